"""The run folder: what lies in it, who may write to it, and which run it belongs to."""

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import operator
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import divjax
from divjax.core.files import write_atomic
from divjax.lab.experiment import Cell, Experiment, Found
from divjax.lab.records import LabError, plain
from divjax.lab.shape import fault, shown

RECORDS, CONFIG, VERDICT = "records.jsonl", "config.json", "verdict.json"
ENVIRONMENT, TIMINGS = "environment.json", "timings.jsonl"
STORED = RECORDS, VERDICT, CONFIG, ENVIRONMENT, "report.md"  # and the figures
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ott-jax",
    "numpy",
    "scipy",
    "scikit-learn",
)


def read_json(path: Path, shape: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The object in a JSON file, of a shape of divjax.lab.shape where one is given.

    Raises:
        LabError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise LabError(f"{path} is missing; run the experiment first, or restore it") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise LabError(f"{path} is not JSON; restore it") from None
    if not isinstance(content, dict):
        raise LabError(f"{path} must hold a JSON object; restore it")
    if wrong := fault(content, shape or {}):
        raise LabError(f"{path}: {wrong}; restore it")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically, in a form that is pleasant in a diff."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def as_dict(config: Any) -> dict[str, Any]:
    """The fields of a config in their JSON form."""
    return dict(plain(dataclasses.asdict(config)))


def changes(experiment: Experiment, preset: str, config: Any) -> dict[str, Any]:
    """The fields in which a config departs from its preset."""
    base = as_dict(experiment.preset(preset))
    return {key: value for key, value in as_dict(config).items() if value != base[key]}


def data_identity(experiment: Experiment, config: Any) -> list[Any]:
    """The provenance of all data in its JSON form; reads the data."""
    return [plain(dataclasses.asdict(source)) for source in experiment.data(config)]


def identity(experiment: Experiment, preset: str, config: Any, data: list[Any]) -> dict[str, Any]:
    """What a run is of, and must be equal for its records to be gone on with."""
    return {
        "name": experiment.name,
        "paper": experiment.paper,
        "claim": experiment.sentence(preset),
        "preset": preset,
        "overrides": changes(experiment, preset, config),
        "config": as_dict(config),
        "cells": [plain(dataclasses.asdict(c)) for c in checked_cells(experiment, config)],
        "data": data,
    }


def checked_cells(experiment: Experiment, config: Any) -> list[Cell]:
    """The cells of a config; their names differ and there is one at least."""
    cells = list(experiment.cells(config))
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not cells:
        raise LabError(f"{experiment.name}: cells need names that differ, got {twice or 'no cell'}")
    return cells


def default_folder(experiment: Experiment, preset: str, config: Any) -> Path:
    """runs/NAME/PRESET, with what departs from the preset in the name of the folder."""
    changed = changes(experiment, preset, config)
    suffix = "".join(f"+{key}={value}" for key, value in changed.items())
    if len(suffix) > 80 or re.search(r"[^\w.+=-]", suffix):
        suffix = "+" + hashlib.sha256(suffix.encode()).hexdigest()[:12]
    return Path("runs") / experiment.name / (preset + suffix)


def differences(
    ours: Any, stored: Any, path: str = "", *, same: Callable[[Any, Any], bool] = operator.eq
) -> list[str]:
    """'config.lr: 0.1 here, 0.2 stored' for each leaf in which two JSON trees differ."""
    if isinstance(ours, dict) and isinstance(stored, dict):
        keys = list(dict.fromkeys([*ours, *stored]))
        pairs = [(ours.get(k, "nothing"), stored.get(k, "nothing"), f"{path}.{k}") for k in keys]
    elif isinstance(ours, list) and isinstance(stored, list) and len(ours) == len(stored):
        pairs = [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(ours, stored, strict=True))]
    elif isinstance(ours, list) and isinstance(stored, list):
        return [f"{path.lstrip('.')}: {len(ours)} here, {len(stored)} stored"]
    else:
        if same(ours, stored):
            return []
        return [f"{path.lstrip('.')}: {shown(ours)} here, {shown(stored)} stored"]
    return [line for a, b, where in pairs for line in differences(a, b, where, same=same)]


def require_usable(folder: Path, wanted: Mapping[str, Any], *, fresh: bool) -> None:
    """This run may write here: there is nothing yet, or this run; nothing is touched.

    Raises:
        LabError: it is a file, something else lies in it, it is of another run or not fresh.
    """
    if folder.exists() and not folder.is_dir():
        raise LabError(f"{folder} cannot be a run folder: it is a file; give another with --out")
    occupied = folder.is_dir() and any(path.name != "lock" for path in folder.iterdir())
    if fresh and occupied:
        raise LabError(
            f"{folder} is not empty and --fresh overwrites nothing; move or delete it, or give "
            "another folder with --out"
        )
    if not (folder / CONFIG).exists():
        if occupied:
            raise LabError(f"{folder} is not empty and no run folder; give another with --out")
        return
    require_same(folder, wanted)


def settle(folder: Path, wanted: Mapping[str, Any], *, fresh: bool) -> None:
    """Makes a folder this run's; call it with the lock held."""
    require_usable(folder, wanted, fresh=fresh)
    if not (folder / CONFIG).exists():
        write_json(folder / CONFIG, wanted)


def require_same(folder: Path, wanted: Mapping[str, Any]) -> None:
    """The folder is of this run, or LabError says in what it differs."""
    lines = differences(wanted, read_json(folder / CONFIG))
    if lines:
        shown = "\n  ".join(lines[:12])
        raise LabError(
            f"{folder} belongs to another run:\n  {shown}\ngive another folder with --out, or "
            "move this one away"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock dies with its process, however that dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise LabError(
            f"{folder} cannot be a run folder: {error.strerror}; give another with --out"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"{folder}: another process is running in it; wait for it") from None
        yield


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment(found: Found) -> dict[str, Any]:
    """Versions, git revision and devices: what may explain a difference, never what is judged."""
    import jax

    revision = _git(found.file.parent, "rev-parse", "HEAD")
    status = _git(found.file.parent, "status", "--porcelain", "--untracked-files=no")
    return {
        "divjax": divjax.__version__,
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "git": {"revision": revision, "dirty": bool(status)} if revision else None,
        "experiment_sha256": hashlib.sha256(found.file.read_bytes()).hexdigest(),
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
        },
        "x64": bool(jax.config.read("jax_enable_x64")),
    }


def timings(folder: Path) -> list[float]:
    """Seconds of each cell that was computed; a line that a kill broke off is left out."""
    path, seconds = folder / TIMINGS, []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            seconds.append(float(json.loads(line)["seconds"]))
        except (ValueError, TypeError, KeyError):
            continue
    return seconds


def store(found: Found, preset: str, place: Path) -> Path:
    """Copies what belongs into git: records, verdict, config, environment, report.md, figures."""
    kept = found.stored(preset)
    kept.mkdir(parents=True, exist_ok=True)
    for name in STORED:
        write_atomic(kept / name, (place / name).read_bytes())
    shutil.rmtree(kept / "figures", ignore_errors=True)
    shutil.copytree(place / "figures", kept / "figures")
    return kept


def is_stored(place: Path) -> bool:
    """Whether a folder holds any of the files that are stored."""
    return any((place / name).exists() for name in STORED)


def stored_presets(found: Found) -> list[str]:
    """The presets besides cpu of which results are stored, in the experiment's order."""
    others = [preset for preset in found.experiment.presets if preset != "cpu"]
    return [preset for preset in others if is_stored(found.stored(preset))]
