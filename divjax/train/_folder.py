"""The folder of checkpoints: what may lie in it, what a killed writer left, who may write."""

import fcntl
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

TORN = ".orbax-checkpoint-tmp"  # in the name of a directory that is not complete yet
DROPPED = f"dropped{TORN}"  # checkpoints go there whole and are removed there: none is half gone
LOCK = "lock"
_STEP = re.compile(r"0|[1-9][0-9]*")


def check(folder: Path) -> None:
    """Nothing but checkpoints lies there: a foreign folder is neither trained into nor cleaned."""
    if folder.is_file():
        raise ValueError(f"{folder}: must be a directory, got a file; pass another path")
    if not folder.exists():
        return
    # What a writer moves away meanwhile is there in the list and gone at the look.
    foreign = [p.name for p in folder.iterdir() if not _ours(p) and p.exists()]
    if foreign:
        raise ValueError(
            f"{folder}: must hold checkpoints only, got {sorted(foreign)[:5]}; "
            "pass a directory of its own"
        )


def _ours(path: Path) -> bool:
    if path.name == LOCK:
        return path.is_file()
    whole = _STEP.fullmatch(path.name) is not None
    return _torn(path) or (whole and (path / "about").is_dir() and (path / "state").is_dir())


def _torn(path: Path) -> bool:
    step, mark, _ = path.name.partition(TORN)
    ours = path.name == DROPPED or _STEP.fullmatch(step) is not None
    return ours and mark == TORN and path.is_dir()


def sweep(folder: Path) -> None:
    """Removes what a killed writer left (orbax's own cleaning of these fails now and then)."""
    if jax.process_index() == 0:
        for path in filter(_torn, list(folder.iterdir())):
            shutil.rmtree(path, ignore_errors=True)


def lock(folder: Path) -> int | None:
    """The descriptor that holds the lock of the folder; of several processes, that of the first.

    Raises:
        ValueError: somebody else holds it; in all processes of a run alike.
    """
    held = _locked(folder) if jax.process_index() == 0 else None
    free = held is not None
    if jax.process_count() > 1:
        free = bool(multihost_utils.broadcast_one_to_all(np.int32(free)))
    if not free:
        raise ValueError(
            f"{folder}: is open for writing by another process, or by Checkpoints of this one that "
            "were not closed; close() them or wait, or pass a directory of its own"
        )
    return held


def _locked(folder: Path) -> int | None:
    """A lock that dies with its process, however that dies; None where it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def unlock(descriptor: int | None) -> None:
    """Gives the lock back."""
    if descriptor is not None:
        os.close(descriptor)
