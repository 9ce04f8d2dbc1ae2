"""Checkpoints of a train state with the config it belongs to: atomic, in the background, checked.

One orbax Composite per step: `state` holds the leaves under their paths, typed keys included, and
`about` the config and a checksum of every leaf (orbax itself does not notice a changed byte of
array data). A step appears as a whole or not at all; what a killed process left behind is ignored,
and removed by the next save. Arrays come back with the values, types and shardings of `like`, bit
for bit.
"""

import dataclasses
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from divjax.core import PyTree
from divjax.core.check import positive, require

_FORMAT = "divjax-1"
_TORN = ".orbax-checkpoint-tmp"  # in the name of a directory that is not complete yet


class Checkpoints(NamedTuple):
    """The checkpoints of one run.

    Attributes:
        save: (step, state) -> None. Returns once the state may be donated; the files are written
            in the background. Checkpoints of this and of later steps are dropped when the writing
            begins: they are of a future that will not come.
        restore: (like) -> (state, step) of the newest whole checkpoint, or None. `like` is a state
            with the wanted structure, types and shardings, as from `Step.init`; its values are
            not read.
        close: () -> None, waits for the last write.
    """

    save: Callable[[int, PyTree], None]
    restore: Callable[[PyTree], tuple[PyTree, int] | None]
    close: Callable[[], None]


def save(directory: str | Path, step: int, state: PyTree, config: Any) -> None:
    """Writes one checkpoint and returns when it is on disk; those of other steps are kept.

    Args:
        directory: made if missing.
        step: the number of updates done.
        state: any tree of arrays.
        config: a dataclass or a mapping of JSON values.

    Raises:
        ValueError: the step is there already or is negative; as `open_checkpoints`.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from divjax.train import checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint.save(folder, 7, {"w": jnp.ones(2)}, {"lr": 0.1})
        ...     state, step = checkpoint.restore(folder, {"w": jnp.zeros(2)}, {"lr": 0.1})
        >>> state["w"].tolist(), step
        ([1.0, 1.0], 7)
    """
    checkpoints, manager = _open(directory, config, None)
    try:
        require(
            step not in manager.all_steps(),
            "save",
            f"step must be one that {directory} does not hold",
            step,
            f"remove {Path(directory) / str(step)} first, or keep both under two steps",
        )
        _write(manager, Path(directory).absolute(), step, state, _json_config(config), later=False)
    finally:
        checkpoints.close()


def restore(directory: str | Path, like: PyTree, config: Any) -> tuple[PyTree, int] | None:
    """The newest whole checkpoint as (state, step), or None where there is none.

    Args:
        directory: as in `save`.
        like: a state with the wanted structure, types and shardings.
        config: must equal the config it was saved with.

    Raises:
        ValueError: the directory holds something else, the newest checkpoint is damaged, its
            config differs (the message names the keys), or its leaves differ from those of like.

    Example:
        >>> from divjax.train import checkpoint
        >>> checkpoint.restore("there/is/nothing", {"w": 0.0}, {}) is None
        True
    """
    if not Path(directory).exists():
        return None
    checkpoints = open_checkpoints(directory, config, keep=None)
    found = checkpoints.restore(like)
    checkpoints.close()
    return found


def open_checkpoints(directory: str | Path, config: Any, *, keep: int | None = 2) -> Checkpoints:
    """The checkpoints under a directory, for a training loop.

    Args:
        directory: made if missing; one run each.
        config: a dataclass or a mapping of JSON values, stored with every checkpoint.
        keep: how many of the newest checkpoints stay; None keeps all.

    Returns:
        Checkpoints(save, restore, close).

    Raises:
        ValueError: directory is a file or holds something else; config is not JSON.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from divjax.train import checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = checkpoint.open_checkpoints(folder, {"lr": 0.1}, keep=1)
        ...     for step in (10, 20):
        ...         store.save(step, {"w": jnp.float32(step)})
        ...     state, step = store.restore({"w": jnp.float32(0)})
        ...     store.close()
        >>> float(state["w"]), step
        (20.0, 20)
    """
    return _open(directory, config, keep)[0]


def _open(
    directory: str | Path, config: Any, keep: int | None
) -> tuple[Checkpoints, ocp.CheckpointManager]:
    folder = Path(directory).absolute()
    if keep is not None:
        positive("keep", keep, caller="open_checkpoints")
    described = _json_config(config)
    _check_folder(folder)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    manager = ocp.CheckpointManager(folder, options=options)

    def save(step: int, state: PyTree) -> None:
        _write(manager, folder, step, state, described, later=True)

    def restore(like: PyTree) -> tuple[PyTree, int] | None:
        manager.wait_until_finished()
        step = manager.latest_step()
        if step is None:
            return None
        path = folder / str(step)
        only = ocp.args.Composite(about=ocp.args.JsonRestore())
        about = _read(path, lambda: manager.restore(step, args=only)["about"])
        _check_about(path, about, described, _named(like))
        targets = {n: _abstract(x) for n, x in _named(like).items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
        leaves = _read(path, lambda: manager.restore(step, args=args)["state"])
        for name, x in leaves.items():
            if _checksum(x) != about["leaves"][name]["checksum"]:
                raise _damaged(path, f"checksum of {name} is wrong")
        return _refill(like, leaves), step

    return Checkpoints(save, restore, manager.close), manager


def _write(
    manager: ocp.CheckpointManager,
    folder: Path,
    step: int,
    state: PyTree,
    config: Any,
    *,
    later: bool,
) -> None:
    """Begins to write; with `later`, in place of the checkpoints of this and of later steps."""
    ok = isinstance(step, int) and step >= 0
    require(ok, "save", "step must be an int >= 0", step, "pass int(state.step)")
    leaves = _named(state)
    about = {
        "format": _FORMAT,
        "config": config,
        "leaves": {n: {"type": _type(x), "checksum": _checksum(x)} for n, x in leaves.items()},
    }
    manager.wait_until_finished()  # one write at a time: else the list of steps is not settled
    _sweep(folder)
    for old in [s for s in manager.all_steps() if later and s >= step]:
        manager.delete(old)
    items = {"state": ocp.args.StandardSave(leaves), "about": ocp.args.JsonSave(about)}
    if not manager.save(step, args=ocp.args.Composite(**items), force=True):
        raise RuntimeError(f"{folder}: orbax declined to save step {step}")


def _named(tree: PyTree) -> dict[str, Any]:
    """Path -> leaf, such as ".params['w']": independent of the classes of the nodes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.asarray(x) for path, x in leaves}


def _refill(like: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The tree of `like` with new leaves, as free to move between devices as the old ones were."""
    order = [
        leaves[name] if old.committed else _unpinned(leaves[name])
        for name, old in _named(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), order)


def _unpinned(x: jax.Array) -> jax.Array:
    """A copy that no device holds on to: orbax pins arrays, and jit over a mesh refuses those."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(x)))
        key: jax.Array = jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(x)))
        return key
    return jnp.asarray(np.asarray(x))


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _type(x: jax.Array) -> str:
    return f"{x.dtype} {list(x.shape)}"


def _checksum(x: jax.Array) -> int | None:
    """Of the bytes of the whole array; None where this process does not hold all of it."""
    if not (x.is_fully_addressable or x.is_fully_replicated):
        return None
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return zlib.crc32(np.asarray(x).tobytes())


def _json_config(config: Any) -> Any:
    plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config  # type: ignore[arg-type]
    require(
        isinstance(plain, Mapping),
        "open_checkpoints",
        "config must be a dataclass or a mapping",
        config,
        "pass the config of the run, or {}",
    )
    try:
        return json.loads(json.dumps(dict(plain)))
    except TypeError as error:
        raise ValueError(
            f"open_checkpoints: config must hold JSON values only, {error}; "
            "store a name or a number instead"
        ) from error


def _check_folder(folder: Path) -> None:
    """Nothing but checkpoints lies there: a foreign folder is neither trained into nor cleaned."""
    if folder.is_file():
        raise ValueError(f"{folder}: must be a directory, got a file; pass another path")
    if not folder.exists():
        return
    foreign = [p.name for p in folder.iterdir() if not _ours(p)]
    if foreign:
        raise ValueError(
            f"{folder}: must hold checkpoints only, got {sorted(foreign)[:5]}; "
            "pass a directory of its own"
        )


def _ours(path: Path) -> bool:
    step = path.name.split(_TORN)[0]
    return path.is_dir() and (step.isdigit() or step == "metadata")


def _sweep(folder: Path) -> None:
    """Removes what a killed writer left (orbax's own cleaning of these fails now and then)."""
    if jax.process_index() == 0:
        for torn in folder.glob(f"*{_TORN}*"):
            shutil.rmtree(torn, ignore_errors=True)


def _check_about(path: Path, about: Any, config: Any, like: Mapping[str, Any]) -> None:
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise _foreign(path)
    saved = about["config"]
    differing = [k for k in sorted({*saved, *config}) if saved.get(k, ...) != config.get(k, ...)]
    if differing:
        lines = [f"{k}: saved {_shown(saved, k)}, now {_shown(config, k)}" for k in differing]
        raise ValueError(
            f"{path}: the checkpoint was written with another config ({'; '.join(lines)}); "
            "restore these values, or start in a new directory"
        )
    have = {name: leaf["type"] for name, leaf in about["leaves"].items()}
    want = {name: _type(x) for name, x in like.items()}
    for name in sorted({*have, *want}):
        if have.get(name) != want.get(name):
            raise ValueError(
                f"{path}: leaf {name} must be {want.get(name, 'absent')}, the checkpoint has "
                f"{have.get(name, 'none')}; build the state as it was when it was saved"
            )


def _shown(config: Mapping[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "absent"


def _read(path: Path, read: Callable[[], Any]) -> Any:
    """What read() returns; whatever orbax raises becomes one readable error."""
    try:
        return read()
    except Exception as error:  # orbax and tensorstore raise plain Exception too
        if not (path / "about").exists() or not (path / "state").exists():
            raise _foreign(path) from error
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from error


def _foreign(path: Path) -> ValueError:
    return ValueError(
        f"{path}: is no checkpoint of divjax; pass another directory, or move it away"
    )


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path}: the checkpoint is damaged ({why}); delete {path} to go on from the one before it"
    )
