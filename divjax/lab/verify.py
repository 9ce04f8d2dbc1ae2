"""Whether stored results still follow from their records, their experiment and the rule."""

import json
import math
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from divjax.lab import folder as folders
from divjax.lab import records, runner, shape
from divjax.lab.experiment import Found
from divjax.lab.records import LabError
from divjax.lab.report import verdict_json

MATCH, MISMATCH, MISSING, UNREADABLE = "match", "mismatch", "nothing stored", "unreadable"

RAISED = LookupError, TypeError, ValueError, ArithmeticError, AttributeError  # by damaged rows


class Check(NamedTuple):
    """What verify found of a preset: the result, the problems, the stored verdict."""

    preset: str
    result: str
    problems: list[str]
    verdict: Mapping[str, Any] | None


def _same(ours: Any, stored: Any) -> bool:
    """Equal, numbers up to the rounding of another machine."""
    numbers = isinstance(ours, int | float) and isinstance(stored, int | float)
    return math.isclose(ours, stored, rel_tol=1e-9, abs_tol=1e-12) if numbers else ours == stored


def _data(found: Found, config: Any, held: Mapping[str, Any]) -> list[Any]:
    """The hashes of the data here; those on record where the files are not on this machine."""
    try:
        return folders.data_identity(found.experiment, config)
    except LabError:
        return list(held["data"])


def _in_experiment(found: Found, error: Exception) -> str:
    """Where the experiment stumbled over its records; an error from elsewhere is raised again."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == found.file.resolve()]
    if not lines:
        raise error
    return (
        f"{found.file.name}, line {lines[-1]}, cannot read these records: "
        f"{type(error).__name__}: {error}"
    )


def verify(found: Found, preset: str, config: Any, place: Path) -> Check:
    """Recomputes the verdict of a folder from its records and compares it with what is stored.

    A mismatch is: a config, claim, paper, grid or data hash that is not the experiment's; cells
    or seeds that are missing, rows that are there twice or were changed; a verdict that the
    records do not give; a file of another shape. `MISSING` is a folder with none of the files.
    """
    if not folders.is_stored(place):
        return Check(preset, MISSING, [], None)
    problems: list[str] = []
    stored = None
    try:
        stored = folders.read_json(place / folders.VERDICT, shape.VERDICT)
        held = folders.read_json(place / folders.CONFIG, shape.CONFIG)
        data = _data(found, config, held)
        wanted = folders.identity(found.experiment, preset, config, data)
        problems += folders.differences(wanted, held)
        outcome = runner.outcome(found, preset, config, place)
        content = (place / folders.RECORDS).read_bytes()
        if records.whole_lines(content) != content.splitlines(keepends=True):
            problems.append(f"{folders.RECORDS} is cut in its last line")
        ours = verdict_json(found.experiment, preset, outcome.verdict, content)
        problems += folders.differences(ours, stored, same=_same)
    except LabError as error:
        problems.append(str(error))
    except RAISED as error:  # analyse is the experiment's own, and the rows may be anything
        problems.append(_in_experiment(found, error))
    return Check(preset, MISMATCH if problems else MATCH, problems, stored)


def stored_verdict(found: Found) -> tuple[str, Mapping[str, Any] | None]:
    """Status and content of the stored verdict; MISSING or UNREADABLE and None without one."""
    path = found.results / folders.VERDICT
    if not path.exists():
        return MISSING, None
    try:
        verdict = folders.read_json(path, shape.VERDICT)
    except LabError:
        return UNREADABLE, None
    return verdict["status"], verdict


def row(found: Found, check: Check | None) -> dict[str, Any]:
    """One line of `list --json` or `verify --json`: name, paper, claim, preset, status, figures."""
    if check is None:
        status, verdict = stored_verdict(found)
    else:
        verdict = check.verdict
        status = MISSING if check.result == MISSING else UNREADABLE
    status = verdict["status"] if verdict else status
    figures = {
        part["name"]: {k: part[k] for k in ("estimate", "low", "high", "threshold", "status")}
        for part in (verdict or {}).get("parts", [])
    }
    preset = check.preset if check else "cpu"
    line = {
        "name": found.experiment.name,
        "paper": found.experiment.paper,
        "claim": found.experiment.sentence(preset),
        "preset": preset,
        "status": status,
        "figures": figures,
    }
    return line if check is None else {**line, "verify": check.result, "problems": check.problems}


def as_json(line: Mapping[str, Any]) -> str:
    """One row as a line of JSON."""
    return json.dumps(records.plain(line), ensure_ascii=False)
