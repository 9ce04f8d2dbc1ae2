"""Checkpoints of a train state with the config it belongs to: atomic, in the background, checked.

One orbax Composite per step: `state` holds the leaves under their paths, typed keys included, and
`about` the config and a checksum of every leaf (orbax itself does not notice a changed byte of
array data). A step appears as a whole or not at all; what a killed process left behind is ignored,
and removed by the next save. Arrays come back with the values, types and shardings of `like`, bit
for bit. One writer at a time: it holds a lock, which dies with its process; readers need none.
"""

import dataclasses
import hashlib
import json
import weakref
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from divjax.core import PyTree
from divjax.core.check import positive, require
from divjax.train import _folder
from divjax.train._leaves import checksums, is_damaged, named, plain, type_of

_FORMAT = "divjax-2"


class Checkpoints(NamedTuple):
    """The checkpoints of one run.

    Attributes:
        save: (step, state) -> None. Returns once the state may be donated; the files are written
            in the background. Checkpoints of this and of later steps are dropped when the writing
            begins: they are of a future that will not come.
        restore: (like) -> (state, step) of the newest whole checkpoint, or None. `like` is a state
            with the wanted structure, types and shardings, as from `Step.init`; its values are
            not read.
        close: () -> None, waits for the last write and lets others write.
    """

    save: Callable[[int, PyTree], None]
    restore: Callable[[PyTree], tuple[PyTree, int] | None]
    close: Callable[[], None]


def save(directory: str | Path, step: int, state: PyTree, config: Any) -> None:
    """Writes one checkpoint and returns when it is on disk; those of other steps are kept.

    Args:
        directory: made if missing.
        step: the number of updates done.
        state: any tree of arrays, with a number in it.
        config: a dataclass or a mapping of JSON values.

    Raises:
        ValueError: the step is there already or is negative; the state is empty; as
            `open_checkpoints`.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from divjax.train import checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint.save(folder, 7, {"w": jnp.ones(2)}, {"lr": 0.1})
        ...     state, step = checkpoint.restore(folder, {"w": jnp.zeros(2)}, {"lr": 0.1})
        >>> state["w"].tolist(), step
        ([1.0, 1.0], 7)
    """
    checkpoints, manager = _open(directory, config, None, writes=True)
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
        like: a state with the wanted structure, types and shardings, of arrays or, to hold nothing
            twice, of jax.ShapeDtypeStruct; see `parallel.shardings`. How the state lay when it was
            saved, and on how many devices, makes no difference.
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
    checkpoints, _ = _open(directory, config, None, writes=False)
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


def fingerprint(tree: PyTree) -> str:
    """A hash of the paths, types, shapes and bytes of a tree: which teacher a run belongs to.

    A teacher is in no checkpoint. Save it once, in a directory of its own, and put its fingerprint
    into the config: a run is then not resumed with another teacher.

    Args:
        tree: arrays that this process holds; how they lie on its devices makes no difference.

    Returns:
        64 hexadecimal digits (SHA-256).

    Raises:
        ValueError: a leaf is spread over several processes.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.train import checkpoint
        >>> config = {"lr": 0.1, "teacher": checkpoint.fingerprint({"w": jnp.ones(2)})}
        >>> config["teacher"] == checkpoint.fingerprint({"w": jnp.zeros(2)})
        False
    """
    digest = hashlib.sha256()
    for name, x in sorted(named(tree).items()):
        require(
            x.is_fully_addressable or x.is_fully_replicated,
            "fingerprint",
            f"leaf {name} must be held by this process",
            x,
            "take the fingerprint before it is sharded",
        )
        digest.update(f"{name} {type_of(x)}\n".encode())
        digest.update(np.asarray(plain(x)).tobytes())
    return digest.hexdigest()


def open_checkpoints(directory: str | Path, config: Any, *, keep: int | None = 2) -> Checkpoints:
    """The checkpoints under a directory, for a training loop.

    Args:
        directory: made if missing; one run each.
        config: a dataclass or a mapping of JSON values, stored with every checkpoint.
        keep: how many of the newest checkpoints stay; None keeps all.

    Returns:
        Checkpoints(save, restore, close).

    Raises:
        ValueError: directory is a file, holds something else or is open for writing elsewhere;
            config is not JSON.

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
    return _open(directory, config, keep, writes=True)[0]


def _open(
    directory: str | Path, config: Any, keep: int | None, *, writes: bool
) -> tuple[Checkpoints, ocp.CheckpointManager]:
    folder = Path(directory).absolute()
    if keep is not None:
        positive("keep", keep, caller="open_checkpoints")
    described = _json_config(config)
    _folder.check(folder)
    lock = _folder.lock(folder) if writes else None
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, todelete_subdir=_folder.DROPPED)
    try:
        manager = ocp.CheckpointManager(folder, options=options)
    except BaseException:
        _folder.unlock(lock)
        raise

    def save(step: int, state: PyTree) -> None:
        require(
            release.alive, "save", "the checkpoints must be open", "closed ones", "open them again"
        )
        _write(manager, folder, step, state, described, later=True)

    def restore(like: PyTree) -> tuple[PyTree, int] | None:
        manager.wait_until_finished()
        step = manager.latest_step()
        return None if step is None else (_load(manager, folder, step, like, described), step)

    def close() -> None:
        manager.close()
        if writes and release.alive:
            _folder.sweep(folder)
        release()

    release = weakref.finalize(save, _folder.unlock, lock)  # also of a store that is only dropped
    return Checkpoints(save, restore, close), manager


def _load(
    manager: ocp.CheckpointManager, folder: Path, step: int, like: PyTree, config: Any
) -> PyTree:
    """The state of one checkpoint, after every check."""
    path, wanted = folder / str(step), named(like)
    only = ocp.args.Composite(about=ocp.args.JsonRestore())
    about = _read(path, lambda: manager.restore(step, args=only)["about"])
    _check_about(path, about, config, wanted)
    targets = {n: _abstract(x) for n, x in wanted.items() if x.size > 0}
    args = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
    leaves = _read(path, lambda: manager.restore(step, args=args)["state"])
    for name, x in leaves.items():
        if is_damaged(x, about["leaves"][name]["checksums"]):
            raise _damaged(path, f"checksum of {name} is wrong")
        if type_of(x) != type_of(targets[name]):
            raise _damaged(path, f"{name} came as {type_of(x)}, not {type_of(targets[name])}")
    return _refill(like, leaves)


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
    ok = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    require(ok, "save", "step must be an int >= 0", step, "pass save(int(state.step), state)")
    leaves = named(state)
    stored = {name: x for name, x in leaves.items() if x.size > 0}  # orbax refuses the others
    require(
        len(stored) > 0,
        "save",
        "state must hold an array with elements",
        {name: type_of(x) for name, x in leaves.items()},
        "pass the TrainState",
    )
    sums = checksums(leaves)
    about = {
        "format": _FORMAT,
        "config": config,
        "leaves": {n: {"type": type_of(x), "checksums": sums[n]} for n, x in leaves.items()},
    }
    about["checksum"] = _text_checksum(about)
    manager.wait_until_finished()  # one write at a time: else the list of steps is not settled
    _folder.sweep(folder)
    for old in [s for s in manager.all_steps() if later and s >= step]:
        manager.delete(old)
    items = {"state": ocp.args.StandardSave(stored), "about": ocp.args.JsonSave(about)}
    if not manager.save(step, args=ocp.args.Composite(**items), force=True):
        raise RuntimeError(f"{folder}: orbax declined to save step {step}")


def _refill(like: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The tree of `like` with new leaves, as free to move between devices as the old ones were."""

    def new(name: str, old: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
        if old.size == 0:
            return jnp.zeros(old.shape, old.dtype, device=_layout(old))
        return _unpinned(leaves[name]) if _layout(old) is None else leaves[name]

    order = [new(name, old) for name, old in named(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), order)


def _unpinned(x: jax.Array) -> jax.Array:
    """A copy that no device holds on to: orbax pins arrays, and jit over a mesh refuses those."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(x)))
        key: jax.Array = jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(x)))
        return key
    return jnp.asarray(np.asarray(x))


def _layout(x: jax.Array | jax.ShapeDtypeStruct) -> Sharding | None:
    """Where a leaf must lie; None where that is free, as for arrays that nobody has placed."""
    held = isinstance(x, jax.ShapeDtypeStruct) or x.committed
    return x.sharding if held else None


def _abstract(x: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_layout(x) or here)


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


def _check_about(path: Path, about: Any, config: Any, like: Mapping[str, Any]) -> None:
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise _foreign(path)
    if about.get("checksum") != _text_checksum({k: x for k, x in about.items() if k != "checksum"}):
        raise _damaged(path, "checksum of its description is wrong")
    saved = about["config"]
    differing = [k for k in sorted({*saved, *config}) if not _same(saved, config, k)]
    if differing:
        lines = [f"{k}: saved {_shown(saved, k)}, now {_shown(config, k)}" for k in differing]
        raise ValueError(
            f"{path}: the checkpoint was written with another config ({'; '.join(lines)}); "
            "restore these values, or start in a new directory"
        )
    have = {name: leaf["type"] for name, leaf in about["leaves"].items()}
    want = {name: type_of(x) for name, x in like.items()}
    for name in sorted({*have, *want}):
        if have.get(name) != want.get(name):
            raise ValueError(
                f"restore: leaf {name} of like must be {have.get(name, 'absent')} as in {path}, "
                f"got {want.get(name, 'no such leaf')}; build like as the state that was saved, "
                "for example by step.init"
            )


def _text_checksum(about: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _same(saved: Mapping[str, Any], config: Mapping[str, Any], key: str) -> bool:
    """Whether both have the entry and it is equal, where NaN equals NaN."""
    if key not in saved or key not in config:
        return False
    one, other = (
        json.loads(json.dumps(x[key]), parse_constant=lambda name: (name,)) for x in (saved, config)
    )
    return bool(one == other)


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
