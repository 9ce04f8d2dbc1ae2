"""Two run folders side by side: what differs, their verdicts, and what both have measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from divjax.lab import folder as folders
from divjax.lab import records, shape
from divjax.lab.experiment import files, find
from divjax.lab.records import LabError, nearest, revive
from divjax.lab.select import final
from divjax.lab.verdict import Part, t_interval

ABSENT = "nothing"
OWN = "name", "paper", "claim"  # an experiment's, not a run's
Values = Mapping[Any, float]  # seed -> value; the seed is None in a cell without seeds


class Held(NamedTuple):
    """A run folder as it lies on disk; environment and verdict are None where the file is not."""

    folder: Path
    identity: Mapping[str, Any]
    environment: Mapping[str, Any] | None
    verdict: Mapping[str, Any] | None
    cells: Mapping[str, Sequence[records.Record]]  # the rows of the cells that are finished


class Difference(NamedTuple):
    """One thing in which the runs differ, `ABSENT` where a run has no such thing."""

    what: str
    a: Any
    b: Any


class Spread(NamedTuple):
    """Mean, its 95 % interval, and over how many seeds; NaN where a value is not finite."""

    mean: float
    low: float
    high: float
    seeds: int


class Line(NamedTuple):
    """A metric of one arm (or cell) in both runs; `paired` is B - A over the shared seeds."""

    group: str
    metric: str
    a: Spread
    b: Spread
    paired: Spread | None
    equal: bool  # the same seeds with the same values


class Comparison(NamedTuple):
    """What `compare` found."""

    a: Held
    b: Held
    differences: Sequence[Difference]
    parts: Mapping[str, tuple[Part | None, Part | None]]
    lines: Sequence[Line]
    seeds: tuple[str, str]  # of the cells whose metrics are compared

    @property
    def same_experiment(self) -> bool:
        """Whether the folders are runs of one experiment."""
        return bool(self.a.identity["name"] == self.b.identity["name"])


def locate(run: str) -> Path:
    """The folder of NAME (its stored results), NAME:PRESET (runs/NAME/PRESET), or the folder run.

    Raises:
        LabError: there is no such folder; the message says what makes it.
    """
    name, colon, preset = run.partition(":")
    if name not in files():
        if not Path(run).is_dir():
            raise LabError(
                f"{run} is no folder, and {name} is no experiment; {nearest(name, files())}"
            )
        return Path(run)
    place = Path("runs") / name / preset if colon else find(name).results
    if place.is_dir() and (preset or not colon):
        return place
    there = sorted(path.name for path in (Path("runs") / name).glob("*") if path.is_dir())
    known = f"; runs here: {', '.join(f'{name}:{each}' for each in there)}" if there else ""
    if colon:
        made = f"divjax run {name} --preset {preset.partition('+')[0]}"
        raise LabError(f"{run}: no folder {place}; {made} makes it{known}")
    raise LabError(
        f"{name}: no results are stored; take a run, {name}:PRESET, or a folder (./{name}){known}"
    )


def load(place: Path) -> Held:
    """Reads a run folder.

    Raises:
        LabError: it is none, or a file in it is damaged.
    """
    if not (place / folders.CONFIG).exists():
        raise LabError(f"{place} is no run folder: it has no {folders.CONFIG}; name another")

    def read(name: str, wanted: Mapping[str, Any]) -> Mapping[str, Any] | None:
        return folders.read_json(place / name, wanted) if (place / name).exists() else None

    identity = folders.read_json(place / folders.CONFIG, shape.CONFIG)
    path = place / folders.RECORDS
    state = records.by_cell(records.read(path), where=str(path))
    return Held(
        place,
        identity,
        read(folders.ENVIRONMENT, shape.ENVIRONMENT),
        read(folders.VERDICT, shape.VERDICT),
        {name: held.rows for name, held in state.items() if held.finished},
    )


def compare(a: Held, b: Held) -> Comparison:
    """All that two runs have in common and in which they differ."""
    same = a.identity["name"] == b.identity["name"]
    found = differing(_described(a), _described(b))
    if same:
        found += _cells_of_one(a, b)
    else:  # two experiments differ in everything; what both have is left
        found = [d for d in found if d.what not in OWN and ABSENT not in (d.a, d.b)]
    ours, theirs = _parts(a), _parts(b)
    names = [name for name in {**ours, **theirs} if same or (name in ours and name in theirs)]
    parts = {name: (ours.get(name), theirs.get(name)) for name in names}
    return Comparison(a, b, found, parts, list(_lines(a, b)), _seeds(a, b))


def _seeds(a: Held, b: Held) -> tuple[str, str]:
    pairs = _groups(a, b).values()

    def of(held: Held, i: int) -> str:
        rows = (row for pair in pairs for row in held.cells.get(pair[i], ()))
        return _ranges({row["seed"] for row in rows if "seed" in row}) or "none"

    return of(a, 0), of(b, 1)


def _described(held: Held) -> dict[str, Any]:
    """What may explain that two runs are not equal."""
    identity, environment = held.identity, held.environment or {}
    seeds = {seed for cell in identity["cells"] for seed in cell["seeds"]}
    git = environment.get("git") or {}
    return {
        **{key: identity[key] for key in (*OWN, "preset")},
        "config": identity["config"],
        "seeds": _ranges(seeds),
        "data": {source["name"]: source for source in identity["data"]},
        "versions": {
            **{key: environment[key] for key in ("divjax", "python") if key in environment},
            **environment.get("packages", {}),
        },
        "git": {"revision": git.get("revision"), "uncommitted changes": git.get("dirty")},
        "experiment file": environment.get("experiment_sha256"),
        "device": environment.get("device", {}),
        "64 bit": environment.get("x64"),
    }


def _ranges(seeds: Iterable[int]) -> str:
    """'0 to 11, 1000 to 1011'."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)


def differing(a: Any, b: Any, path: str = "") -> list[Difference]:
    """The leaves in which two trees of objects differ; a list is a leaf.

    Example:
        >>> differing({"x": {"lr": 1, "n": 2}}, {"x": {"lr": 1, "n": 3}})
        [Difference(what='x.n', a=2, b=3)]
    """
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return [] if a == b else [Difference(path.lstrip("."), a, b)]
    keys = dict.fromkeys([*a, *b])
    return [d for k in keys for d in differing(a.get(k, ABSENT), b.get(k, ABSENT), f"{path}.{k}")]


def _cells_of_one(a: Held, b: Held) -> list[Difference]:
    names = [[cell["name"] for cell in held.identity["cells"]] for held in (a, b)]
    alone = [
        [name for name in mine if name not in others] for mine, others in (names, reversed(names))
    ]
    return [Difference("cells of one run alone", *alone)] if any(alone) else []


def _parts(held: Held) -> dict[str, Part]:
    """The parts of the stored verdict by name."""
    parts = (held.verdict or {}).get("parts", [])
    keys = "name", "estimate", "low", "high", "threshold", "status"
    return {part["name"]: Part(*(revive(part[key]) for key in keys)) for part in parts}


def _groups(a: Held, b: Held) -> dict[str, tuple[str, str]]:
    """Label -> the cell of each run: by arm where an arm has one cell in both, else by name."""
    arms: list[dict[str, list[str]]] = []
    for held in (a, b):
        arms.append({})
        for cell in held.identity["cells"]:
            arms[-1].setdefault(str(cell["settings"].get("arm", "")), []).append(cell["name"])
    single = all(len(names) == 1 for each in arms for names in each.values())
    if single and all("" not in each for each in arms):
        ours, theirs = arms
        return {arm: (ours[arm][0], theirs[arm][0]) for arm in ours if arm in theirs}
    return {name: (name, name) for name in a.cells if name in b.cells}


def _lines(a: Held, b: Held) -> Iterable[Line]:
    groups = {
        label: (a.cells[mine], b.cells[other])
        for label, (mine, other) in _groups(a, b).items()
        if mine in a.cells and other in b.cells
    }
    settings = {key for held in (a, b) for c in held.identity["cells"] for key in c["settings"]}
    metrics = dict.fromkeys(key for rows, _ in groups.values() for row in rows for key in row)
    for metric in metrics:
        if metric in settings or metric in ("cell", "seed", "step"):
            continue
        for label, (mine, other) in groups.items():
            ours, theirs = _values(mine, metric), _values(other, metric)
            if ours and theirs:
                shared = [seed for seed in ours if seed in theirs]
                paired = _spread([theirs[s] - ours[s] for s in shared]) if shared else None
                equal = records.same(ours, theirs)
                yield Line(
                    label, metric, _spread(ours.values()), _spread(theirs.values()), paired, equal
                )


def _values(rows: Sequence[records.Record], metric: str) -> Values:
    """The last value of each seed, where it is one number."""
    having = [row for row in rows if isinstance(row.get(metric), int | float)]
    return {row.get("seed"): float(row[metric]) for row in final(having, metric)} if having else {}


def _spread(values: Iterable[float]) -> Spread:
    held = list(values)
    if not all(map(math.isfinite, held)):
        return Spread(math.nan, math.nan, math.nan, len(held))
    return Spread(*t_interval(held), len(held))


def as_dict(found: Comparison) -> dict[str, Any]:
    """The comparison for `compare --json`."""
    runs = {
        key: {
            "folder": str(held.folder),
            "name": held.identity["name"],
            "preset": held.identity["preset"],
            "status": held.verdict["status"] if held.verdict else None,
            "reason": held.verdict["reason"] if held.verdict else None,
        }
        for key, held in (("a", found.a), ("b", found.b))
    }
    return {
        **runs,
        "same_experiment": found.same_experiment,
        "differences": [d._asdict() for d in found.differences],
        "parts": [
            {"name": name, "a": _part(a), "b": _part(b)} for name, (a, b) in found.parts.items()
        ],
        "metrics": [
            {
                **line._asdict(),
                "a": line.a._asdict(),
                "b": line.b._asdict(),
                "paired": line.paired._asdict() if line.paired else None,
            }
            for line in found.lines
        ],
    }


def _part(part: Part | None) -> dict[str, Any] | None:
    if part is None:
        return None
    keys = "estimate", "low", "high", "threshold", "status"
    return {key: vars(part)[key] for key in keys}
