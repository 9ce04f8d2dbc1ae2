"""One compile for one device and for many: the only place that jits and that names a mesh axis."""

from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from divjax.core import Batch, PyTree
from divjax.core.check import require
from divjax.train.state import Info, Step, TrainState


class Compiled(Protocol):
    """`update(state, batch, frozen=None) -> (state, Info)`, compiled."""

    def __call__(
        self, state: TrainState, batch: Batch, frozen: PyTree = None
    ) -> tuple[TrainState, Info]:
        """One step."""
        ...


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the one axis "data".

    Args:
        devices: how many of jax.devices(); None takes all.

    Returns:
        A Mesh. Its axis is Auto: jax.make_mesh alone would make it Explicit, and shard_map then
        refuses arrays that are not sharded yet.

    Raises:
        ValueError: there are fewer devices.

    Example:
        >>> from divjax.train.parallel import data_mesh
        >>> data_mesh(1).axis_names
        ('data',)
    """
    found = jax.devices()
    count = len(found) if devices is None else devices
    require(
        0 < count <= len(found),
        "data_mesh",
        f"devices must lie in 1..{len(found)}",
        devices,
        "on CPU, set XLA_FLAGS=--xla_force_host_platform_device_count=N before importing jax",
    )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=found[:count])


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The tree on every device of the mesh; for a teacher once, instead of at each step.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.train.parallel import data_mesh, replicate
        >>> replicate({"w": jnp.ones(2)}, data_mesh(1))["w"].is_fully_replicated
        True
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.jit(lambda x: x, out_shardings=everywhere)(tree)  # device_put refuses typed keys


def shard_rows(batch: Batch, mesh: Mesh) -> Batch:
    """The batch split over the mesh; with several processes, each passes the rows it has read.

    For one process it only saves the first copy; for several (jax.distributed) it is how their
    parts become one batch, process after process, in the order of jax.process_index().

    Example:
        >>> import numpy as np
        >>> from divjax.train.parallel import data_mesh, shard_rows
        >>> shard_rows({"x": np.zeros((4, 3))}, data_mesh(1))["x"].shape
        (4, 3)
    """
    split = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    parts: Batch = jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), batch)
    return parts


def compile(
    step: Step, *, mode: str = "jit", mesh: Mesh | None = None, donate: bool = True
) -> Compiled:
    """Compiles `step.update` for one device or for a mesh of them; the numbers are the same.

    The state is replicated and the batch is split along its first axis. "jit" lets the compiler
    place the communication: the step sees the whole batch and axis_name is None. "shard_map" and
    "pmap" run the step per device with the axis named, so that the collectives are those the step
    writes; pmap is JAX's old way and is here for code that uses it.

    Args:
        step: from make_step, alternate or over_seeds (whose per-seed batches need mode "jit").
        mode: "jit", "shard_map" or "pmap".
        mesh: one axis, see `data_mesh`; None is one device, as for jax.jit.
        donate: reuse the memory of the state passed in, which is then gone.

    Returns:
        update(state, batch, frozen=None) -> (state, Info). The batch holds the rows of all devices,
        [B, ...], as NumPy or JAX arrays; `frozen` is never donated, see `replicate`.

    Raises:
        ValueError: unknown mode, a mesh of several axes; at the first call: B is no multiple of the
            number of devices.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax.core import Loss, masked_mean
        >>> from divjax.train import make_step, parallel
        >>> def objective(w, batch, ctx):
        ...     return Loss({"fit": (0.5, masked_mean((w - batch["y"]) ** 2))})
        >>> step = make_step(objective, optax.sgd(0.5))
        >>> update = parallel.compile(step, mesh=parallel.data_mesh())
        >>> state, info = update(step.init(jnp.float32(0.0), jax.random.key(0)),
        ...                      {"y": jnp.repeat(jnp.array([2.0, 4.0]), 8)})
        >>> float(state.params), float(info.value)
        (1.5, 5.0)
    """
    require(mode in _MODES, "compile", f"mode must be one of {sorted(_MODES)}", mode, "pass one")
    require(isinstance(step, Step), "compile", "step must be a Step", step, "pass make_step(...)")
    require(
        mesh is None or isinstance(mesh, Mesh),
        "compile",
        "mesh must be a Mesh or None",
        mesh,
        "pass data_mesh(devices)",
    )
    require(
        mesh is None or len(mesh.axis_names) == 1,
        "compile",
        "mesh must have one axis",
        None if mesh is None else mesh.axis_names,
        "pass data_mesh()",
    )
    donated = (0,) if donate else ()
    if mesh is None and mode == "jit":  # nothing between the caller and jax's own fast path
        return jax.jit(step.update, donate_argnums=donated)
    mesh = data_mesh(1) if mesh is None else mesh
    return _on_mesh(_MODES[mode](step, mesh, donated), mesh)


def _jit(step: Step, mesh: Mesh, donated: tuple[int, ...]) -> Compiled:
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))

    def whole(state: TrainState, batch: Batch, frozen: PyTree) -> tuple[TrainState, Info]:
        return step.update(state, batch, frozen)

    return jax.jit(
        whole,
        in_shardings=(everywhere, split, everywhere),
        out_shardings=everywhere,
        donate_argnums=donated,
    )


def _shard_map(step: Step, mesh: Mesh, donated: tuple[int, ...]) -> Compiled:
    (axis,) = mesh.axis_names
    replicated, split = PartitionSpec(), PartitionSpec(axis)

    def local(state: TrainState, batch: Batch, frozen: PyTree) -> tuple[TrainState, Info]:
        return step.update(state, batch, frozen, axis_name=axis)

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(replicated, split, replicated),
        out_specs=(replicated, replicated),
        check_vma=True,
    )
    return jax.jit(mapped, donate_argnums=donated)


def _pmap(step: Step, mesh: Mesh, donated: tuple[int, ...]) -> Compiled:
    (axis,) = mesh.axis_names

    def local(state: TrainState, batch: Batch, frozen: PyTree) -> tuple[TrainState, Info]:
        return step.update(state, batch, frozen, axis_name=axis)

    mapped = jax.pmap(
        local,
        axis_name=axis,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=donated,
    )

    def folded(state: TrainState, batch: Batch, frozen: PyTree = None) -> tuple[TrainState, Info]:
        parts = jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch)
        result: tuple[TrainState, Info] = mapped(state, parts, frozen)
        return result

    return folded


_MODES: Mapping[str, Callable[[Step, Mesh, tuple[int, ...]], Compiled]] = {
    "jit": _jit,
    "shard_map": _shard_map,
    "pmap": _pmap,
}


def _on_mesh(fn: Compiled, mesh: Mesh) -> Compiled:
    """Checks the rows and places a state that comes from elsewhere, so that all calls are alike."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def update(state: TrainState, batch: Batch, frozen: PyTree = None) -> tuple[TrainState, Info]:
        _check_rows(batch, mesh.size)
        if state.step.sharding != everywhere:  # the first call: it would be compiled for itself
            state = replicate(state, mesh)
        return fn(state, batch, frozen)

    return update


def _check_rows(batch: Batch, devices: int) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        require(
            jnp.ndim(x) > 0 and jnp.shape(x)[0] % devices == 0,
            "compile",
            f"the first axis of batch{jax.tree_util.keystr(path)} must be a multiple of "
            f"{devices} devices",
            x,
            "pad with masked rows, or pass mesh=data_mesh(devices) with a divisor",
        )
