"""All that a report shows, before it is Markdown, HTML or a terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from divjax.lab import folder as folders
from divjax.lab import shape
from divjax.lab.experiment import Experiment, Found, Report
from divjax.lab.progress import duration
from divjax.lab.verdict import (
    CONTRADICTED,
    INCONCLUSIVE,
    PROVISIONAL,
    REPRODUCED,
    Part,
    Verdict,
    judge,
)

OTHERS = "The same on other images"

if TYPE_CHECKING:
    import pandas as pd


class Table(NamedTuple):
    """Text cells under column names."""

    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


class Sheet(NamedTuple):
    """All that a report shows, before it is Markdown, HTML or a terminal."""

    experiment: Experiment
    preset: str
    overrides: Mapping[str, Any]
    verdict: Verdict
    stored: Mapping[str, Any] | None  # the stored verdict, where it is another one
    others: Table  # of the cpu preset: the parts in stored presets on other data
    tables: Mapping[str, Table]
    notes: Sequence[str]
    setup: Sequence[tuple[str, str]]
    config: Table
    data: Table

    @property
    def label(self) -> str:
        """The preset with what was overridden: another grid than the one that was committed."""
        return label(self.preset, self.overrides)

    @property
    def title(self) -> str:
        """The experiment, and on what, where those are not the claim's data."""
        name = self.experiment.name
        return f"{name} on {self.preset}" if self.preset in self.experiment.beside else name

    @property
    def lead(self) -> str:
        """What the sentence below is."""
        return "Beside the claim" if self.preset in self.experiment.beside else "Claim"

    @property
    def sentence(self) -> str:
        """The claim, or what the preset measures beside it."""
        return self.experiment.sentence(self.preset)


def label(preset: str, overrides: Mapping[str, Any]) -> str:
    """'smoke with steps=20'."""
    changed = ", ".join(f"{key}={value}" for key, value in overrides.items())
    return f"{preset} with {changed}" if changed else preset


def number(value: float) -> str:
    """Four significant digits, with a true minus and infinity."""
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    return f"{value:.4g}".replace("-", "−")


def parts_table(parts: Sequence[Part]) -> Table:
    """The evidence, one line a part; with a column for what a run too small to decide shows."""
    columns = ["part of the claim", "status", "difference", "95 % interval", "excludes 0"]
    columns.append("must exceed")
    lines, seen = [part_line(part) for part in parts], [undecided(part) for part in parts]
    if not any(seen):
        return Table(columns, lines)
    sides = [{"above": "above it", "below": "below it"}.get(side, "around it") for side in seen]
    lines = [(*line, side) for line, side in zip(lines, sides, strict=True)]
    return Table([*columns, "in this run"], lines)


def part_line(part: Part) -> tuple[str, ...]:
    """Name, status, difference, interval, whether that excludes 0, and the threshold."""
    figures = signed(part.estimate, part.low, part.high)
    excludes = "no" if part.zero == "inside" else "yes"
    return part.name, part.status, *figures, excludes, number(part.threshold)


def undecided(part: Part) -> str:
    """'above' or 'below' its threshold, of a part that only the size of the run leaves open."""
    sides = {REPRODUCED: "above", CONTRADICTED: "below"}
    seen = sides.get(judge(part.low, part.high, part.threshold), "")
    return seen if part.status == INCONCLUSIVE else ""


def signed(estimate: float, low: float, high: float) -> tuple[str, str]:
    """A difference and its interval, with as many decimals as the latter gives sense to.

    Example:
        >>> signed(0.5, 0.25, 0.75)
        ('+0.500', '[+0.250, +0.750]')
    """
    digits = _digits(estimate, low, high)
    return _fixed(estimate, digits), f"[{_fixed(low, digits)}, {_fixed(high, digits)}]"


def _digits(estimate: float, low: float, high: float) -> int:
    """Decimals that show three digits of the half-width; of the estimate when there is none."""
    half = (high - low) / 2
    scale = half if 0 < half < math.inf else abs(estimate)
    return min(max(2 - math.floor(math.log10(scale)), 0), 12) if scale else 3


def _fixed(value: float, digits: int) -> str:
    return number(value) if math.isinf(value) else f"{value:+.{digits}f}".replace("-", "−")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return str(value)


def _table(table: "pd.DataFrame") -> Table:
    lines = [[_text(value) for value in line] for line in table.itertuples(index=False, name=None)]
    return Table([str(column) for column in table.columns], lines)


def _setup(place: Path) -> list[tuple[str, str]]:
    """What the run was made with, as pairs of text."""
    seen = folders.read_json(place / folders.ENVIRONMENT, shape.ENVIRONMENT)
    git, device = seen["git"], seen["device"]
    revision = "not in a git checkout"
    if git:
        revision = git["revision"][:12] + (" with uncommitted changes" if git["dirty"] else "")
    packages = [f"{name} {version}" for name, version in seen["packages"].items()]
    lines = [
        ("device", f"{device['count']} {device['kind']} ({device['platform']})"),
        ("precision", "64 bit" if seen["x64"] else "32 bit"),
        ("git revision", revision),
        (
            "versions",
            ", ".join([f"divjax {seen['divjax']}", f"Python {seen['python']}", *packages]),
        ),
    ]
    if spent := folders.timings(place):
        lines.insert(0, ("computed in", f"{duration(sum(spent))}, {len(spent)} cells"))
    return lines


def gather(found: Found, report: Report, verdict: Verdict, place: Path) -> Sheet:
    """Gathers what the report of a run folder shows."""
    identity = folders.read_json(place / folders.CONFIG)
    stored_file = found.results / folders.VERDICT
    preset = identity["preset"]
    stored = None
    if preset != "cpu" and stored_file.exists():
        stored = folders.read_json(stored_file, shape.VERDICT)
    overrides = identity["overrides"]
    config = [
        (key, json.dumps(value), "yes" if key in overrides else "")
        for key, value in identity["config"].items()
    ]
    data = [
        (source["name"], str(source["real"]).lower(), source["source"], source["sha256"])
        for source in identity["data"]
    ]
    return Sheet(
        experiment=found.experiment,
        preset=preset,
        overrides=overrides,
        verdict=verdict,
        stored=stored,
        others=others(found) if preset == "cpu" else Table((), []),
        tables={title: _table(table) for title, table in report.tables.items()},
        notes=report.notes,
        setup=_setup(place),
        config=Table(("field", "value", "overridden"), config),
        data=Table(("data", "real", "source", "sha256"), data),
    )


def parts_beside(found: Found) -> list[tuple[str, Mapping[str, Any]]]:
    """(preset, part of the claim) of every stored preset on other data."""
    found_parts = []
    for preset in folders.stored_presets(found):
        if preset in found.experiment.beside:
            held = folders.read_json(found.stored(preset) / folders.VERDICT, shape.VERDICT)
            found_parts += [(preset, part) for part in held["parts"]]
    return found_parts


def others(found: Found) -> Table:
    """`parts_beside`, one line each."""
    lines = []
    for preset, part in parts_beside(found):
        estimate, low, high, bound = (
            float(part[k]) for k in ("estimate", "low", "high", "threshold")
        )
        lines.append((part["name"], preset, *signed(estimate, low, high), number(bound)))
    columns = ("part of the claim", "preset", "difference", "95 % interval", "must exceed")
    return Table(columns, lines)


CAPTION = (
    "A dot is the paired difference of one seed, the bar the 95 % Student-t interval of their "
    "mean. In a run that is large enough to decide, a part holds when the whole bar lies on the "
    "shaded side of the threshold."
)


def stored_line(s: Sheet) -> tuple[str, str, str]:
    """What the stored cpu run says, beside a preset that decides nothing.

    Returns:
        (introduction, status, reason); three empty texts for a preset that speaks for itself.
    """
    if s.preset not in (*PROVISIONAL, *s.experiment.beside):
        return "", "", ""
    if s.stored is None:
        return "No verdict of the cpu preset is stored yet.", "", ""
    return "The stored cpu run says:", s.stored["status"], f"({s.stored['reason']})."
