"""Whether stored results still follow from their records, their experiment and the rule."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from divjax.lab import folder as folders
from divjax.lab import records, runner
from divjax.lab.experiment import Found
from divjax.lab.records import LabError
from divjax.lab.report import verdict_json

MATCH, MISMATCH, MISSING = "match", "mismatch", "nothing stored"


class Check(NamedTuple):
    """What verify found: match, mismatch or nothing stored; the problems; the stored verdict."""

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
        return list(held.get("data", []))


def verify(found: Found, preset: str, config: Any, place: Path) -> Check:
    """Recomputes the verdict of a folder from its records and compares it with what is stored.

    A mismatch is: a config, claim, paper, grid or data hash that is not the experiment's; cells
    or seeds that are missing, rows that are there twice or were changed; a verdict that the
    records do not give.
    """
    if not (place / folders.VERDICT).exists() and not (place / folders.RECORDS).exists():
        return Check(MISSING, [], None)
    problems: list[str] = []
    stored = None
    try:
        stored = folders.read_json(place / folders.VERDICT)
        held = folders.read_json(place / folders.CONFIG)
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
    return Check(MISMATCH if problems else MATCH, problems, stored)


def row(found: Found, check: Check | None) -> dict[str, Any]:
    """One line of `list --json` or `verify --json`: name, paper, claim, preset, status, figures."""
    stored = found.results / folders.VERDICT
    verdict = check.verdict if check else None
    if check is None and stored.exists():
        verdict = folders.read_json(stored)
    figures = {
        part["name"]: {k: part[k] for k in ("estimate", "low", "high", "threshold", "status")}
        for part in (verdict or {}).get("parts", [])
    }
    line = {
        "name": found.experiment.name,
        "paper": found.experiment.paper,
        "claim": found.experiment.claim,
        "preset": (verdict or {}).get("preset", "cpu"),
        "status": (verdict or {}).get("status", MISSING),
        "figures": figures,
    }
    return line if check is None else {**line, "verify": check.result, "problems": check.problems}


def as_json(line: Mapping[str, Any]) -> str:
    """One row as a line of JSON."""
    return json.dumps(records.plain(line), ensure_ascii=False)
