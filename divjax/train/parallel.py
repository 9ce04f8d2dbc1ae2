"""One compile for one device and for many: the only place that jits and that names a mesh axis."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from divjax.core import Array, Batch, PyTree
from divjax.core.check import require
from divjax.train.processes import start
from divjax.train.state import Info, Step, TrainState

__all__ = [
    "Compiled",
    "Rule",
    "compile",
    "data_mesh",
    "fsdp",
    "replicate",
    "shard",
    "shard_rows",
    "shardings",
    "start",
]


class Compiled(Protocol):
    """`update(state, batch, frozen=None) -> (state, Info)`, compiled."""

    def __call__(
        self, state: TrainState, batch: Batch, frozen: PyTree = None
    ) -> tuple[TrainState, Info]:
        """One step."""
        ...


Rule = Callable[[str, tuple[int, ...]], PartitionSpec]  # (path, shape) of a parameter -> its layout


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
    return shard(tree, mesh, _everywhere)


def fsdp(mesh: Mesh, *, min_size: int = 2**14) -> Rule:
    """The rule that splits the largest axis which the devices divide, of arrays that are worth it.

    Args:
        mesh: as from `data_mesh`.
        min_size: arrays with fewer elements stay whole on every device.

    Returns:
        (path, shape) -> PartitionSpec, for `compile` and `shard`. A rule of your own may look at
        the path, "['layer']['w']".

    Example:
        >>> from divjax.train.parallel import data_mesh, fsdp
        >>> rule = fsdp(data_mesh(8))
        >>> tuple(rule("['w']", (768, 3072))), tuple(rule("['b']", (3072,)))
        ((None, 'data'), ())
    """
    (axis,) = mesh.axis_names

    def rule(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        fits = [i for i, size in enumerate(shape) if size % mesh.size == 0]
        if not fits or math.prod(shape) < min_size:
            return PartitionSpec()
        largest = max(fits, key=lambda i: shape[i])
        return PartitionSpec(*(None,) * largest, axis)

    return rule


def shard(tree: PyTree, mesh: Mesh, rule: Rule) -> PyTree:
    """The tree split over the mesh: parameters by the rule, a TrainState as `compile` wants it.

    For a teacher that is too large for one device, and for the `like` of checkpoint.restore.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.train.parallel import data_mesh, fsdp, shard
        >>> mesh = data_mesh(8)
        >>> teacher = shard({"w": jnp.ones((4, 16))}, mesh, fsdp(mesh, min_size=1))
        >>> teacher["w"].addressable_shards[0].data.shape
        (4, 2)
    """
    places = shardings(tree, mesh, rule)
    if all(place.is_fully_addressable for place in jax.tree.leaves(places)):
        return jax.device_put(tree, places)
    return jax.jit(lambda x: x, out_shardings=places)(tree)  # device_put refuses typed keys


def shardings(tree: PyTree, mesh: Mesh, rule: Rule) -> PyTree:
    """A NamedSharding for each leaf: by the rule for parameters.

    Of a TrainState, params go by the rule; leaves of opt_state and refs that end in the path of a
    parameter and have its shape (moments, averages) go with it; all else lies on every device.

    Args:
        tree: of arrays, or of shapes as from jax.eval_shape.
        mesh: as from `data_mesh`.
        rule: as from `fsdp`.

    Raises:
        ValueError: the rule splits an axis that the devices do not divide.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.train.parallel import data_mesh, fsdp, shardings
        >>> mesh = data_mesh(8)
        >>> tuple(shardings({"w": jnp.ones((4, 16))}, mesh, fsdp(mesh, min_size=1))["w"].spec)
        (None, 'data')
    """
    if not isinstance(tree, TrainState):
        return jax.tree_util.tree_map_with_path(lambda p, x: _placed(p, x, mesh, rule), tree)
    everywhere = NamedSharding(mesh, PartitionSpec())
    known = {path: (jnp.shape(x), _placed(path, x, mesh, rule))
             for path, x in jax.tree_util.tree_leaves_with_path(tree.params)}  # fmt: skip

    def follow(path: tuple[Any, ...], x: Array) -> NamedSharding:
        ends = (known.get(path[i:]) for i in range(len(path) + 1))
        return next((p for shape, p in filter(None, ends) if shape == jnp.shape(x)), everywhere)

    placed = jax.tree.map(lambda _: everywhere, tree)
    return placed._replace(
        params=jax.tree_util.tree_map_with_path(follow, tree.params),
        opt_state=jax.tree_util.tree_map_with_path(follow, tree.opt_state),
        refs=jax.tree_util.tree_map_with_path(follow, tree.refs),
    )


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
    step: Step,
    *,
    mode: str = "jit",
    mesh: Mesh | None = None,
    rule: Rule | None = None,
    donate: bool = True,
) -> Compiled:
    """Compiles `step.update` for one device or for a mesh of them; the numbers are the same.

    The state is replicated and the batch is split along its first axis. With a rule such as `fsdp`,
    params and what is shaped like them (moments, references) are kept in parts: a step gathers
    params, references and a teacher that is in parts, and never the batch. "jit" lets the compiler
    place the communication: the step sees the whole batch and axis_name is None. "shard_map" and
    "pmap" run the step per device with the axis named, so that the collectives are those the step
    writes; pmap is JAX's old way and is here for code that uses it.

    Args:
        step: from make_step, alternate or over_seeds (whose per-seed batches need mode "jit").
        mode: "jit", "shard_map" or "pmap".
        mesh: one axis, see `data_mesh`; None is one device, as for jax.jit.
        rule: (path, shape) of a parameter -> PartitionSpec, with mode "jit"; None replicates.
        donate: reuse the memory of the state passed in, which is then gone: go on with the one that
            is returned. Touching the old one fails ("Array has been deleted", "Buffer has been
            deleted or donated"); to keep it, copy before (jnp.copy), or pass donate=False.

    Returns:
        update(state, batch, frozen=None) -> (state, Info). The batch holds the rows of all devices,
        [B, ...], as NumPy or JAX arrays; `frozen` is never donated, see `replicate` and `shard`.

    Raises:
        ValueError: unknown mode, a mesh of several axes, a rule without a mesh or with another
            mode; at the first call: B is no multiple of the number of devices.

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
    _check_compile(step, mode, mesh, rule)
    donated = (0,) if donate else ()
    if mesh is None and mode == "jit":  # nothing between the caller and jax's own fast path
        return jax.jit(step.update, donate_argnums=donated)
    mesh = data_mesh(1) if mesh is None else mesh
    rule = _everywhere if rule is None else rule
    made = _jit(step, mesh, donated, rule) if mode == "jit" else _MODES[mode](step, mesh, donated)
    return _on_mesh(made, mesh, rule)


def _jit(step: Step, mesh: Mesh, donated: tuple[int, ...], rule: Rule) -> Compiled:
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))

    def fix(tree: PyTree, places: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, places)

    def whole(state: TrainState, batch: Batch, frozen: PyTree) -> tuple[TrainState, Info]:
        # Left to itself, the compiler gathers the rows where a weight is split by columns.
        params, refs, teacher = fix((state.params, state.refs, frozen), everywhere)
        used = state._replace(params=params, refs=refs)
        new, info = step.update(used, batch, teacher)
        return fix(new, shardings(new, mesh, rule)), info

    return jax.jit(
        whole,
        in_shardings=(None, split, None),  # None: as they come
        out_shardings=(None, everywhere),
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
        whole = jax.tree.map(lambda x: x if x.is_fully_replicated else replicate(x, mesh), frozen)
        result: tuple[TrainState, Info] = mapped(state, parts, whole)
        return result

    return folded


_MODES: Mapping[str, Callable[[Step, Mesh, tuple[int, ...]], Compiled]] = {
    "shard_map": _shard_map,
    "pmap": _pmap,
}


def _on_mesh(fn: Compiled, mesh: Mesh, rule: Rule) -> Compiled:
    """Checks the rows and places what comes from elsewhere, so that all calls are alike."""
    devices = set(mesh.devices.flat)

    @functools.cache
    def places(structure: Any, shapes: tuple[tuple[int, ...], ...]) -> list[NamedSharding]:
        like = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]  # shapes decide
        return jax.tree.leaves(shardings(jax.tree.unflatten(structure, like), mesh, rule))

    def update(state: TrainState, batch: Batch, frozen: PyTree = None) -> tuple[TrainState, Info]:
        _check_rows(batch, mesh.size)
        leaves, structure = jax.tree.flatten(state)
        wanted = places(structure, tuple(x.shape for x in leaves))
        if any(x.sharding != place for x, place in zip(leaves, wanted, strict=True)):
            state = shard(state, mesh, rule)  # the first call: it would be compiled for itself
        teacher, structure = jax.tree.flatten(frozen)
        if any(not isinstance(x, jax.Array) or x.sharding.device_set != devices for x in teacher):
            frozen = jax.tree.unflatten(structure, [_on_devices(x, mesh) for x in teacher])
        return fn(state, batch, frozen)

    return update


def _on_devices(x: Any, mesh: Mesh) -> Array:
    """As it lies, if it lies on the devices of the mesh; else on all of them."""
    there = isinstance(x, jax.Array) and x.sharding.device_set == set(mesh.devices.flat)
    placed: Array = x if there else replicate(x, mesh)
    return placed


def _everywhere(path: str, shape: tuple[int, ...]) -> PartitionSpec:
    return PartitionSpec()


def _placed(path: tuple[Any, ...], x: Any, mesh: Mesh, rule: Rule) -> NamedSharding:
    """The layout of one parameter, checked."""
    name, shape = jax.tree_util.keystr(path), jnp.shape(x)
    place = NamedSharding(mesh, rule(name, shape))
    try:
        place.shard_shape(shape)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"rule: {place.spec} must split {name} {list(shape)} evenly over {mesh.size} devices; "
            "return PartitionSpec() for it"
        ) from error
    return place


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


def _check_compile(step: Step, mode: str, mesh: Mesh | None, rule: Rule | None) -> None:
    modes = sorted({"jit", *_MODES})
    require(mode in modes, "compile", f"mode must be one of {modes}", mode, "pass one")
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
    require(
        rule is None or (mode == "jit" and mesh is not None),
        "compile",
        "a rule needs a mesh and mode 'jit'",
        {"mode": mode, "mesh": mesh},
        "pass mesh=data_mesh(), rule=fsdp(mesh)",
    )
