"""Writes what a run says: verdict.json, report.md with its figures, and one report.html."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from divjax.lab import folder as folders
from divjax.lab import plots
from divjax.lab.experiment import Experiment, Found, Report
from divjax.lab.progress import duration
from divjax.lab.records import plain, sha256, write_atomic
from divjax.lab.verdict import PROVISIONAL, Part, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Table(NamedTuple):
    """Text cells under column names."""

    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


class Sheet(NamedTuple):
    """All that a report shows, before it is Markdown, HTML or a terminal."""

    experiment: Experiment
    preset: str
    verdict: Verdict
    stored: Mapping[str, Any] | None  # the stored verdict, where it is another one
    tables: Mapping[str, Table]
    notes: Sequence[str]
    setup: Sequence[tuple[str, str]]
    config: Table
    data: Table


def number(value: float, *, signed: bool = False) -> str:
    """Four significant digits, with a true minus and infinity."""
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    return f"{value:{'+' if signed else ''}.4g}".replace("-", "−")


def parts_table(parts: Sequence[Part]) -> Table:
    """The evidence, one line a part."""
    where = {"below": "below it", "inside": "inside", "above": "above it"}
    columns = "part of the claim", "difference", "95 % interval", "must exceed", "zero", "status"
    lines = [
        (
            part.name,
            number(part.estimate, signed=True),
            f"[{number(part.low, signed=True)}, {number(part.high, signed=True)}]",
            number(part.threshold),
            where[part.zero],
            part.status,
        )
        for part in parts
    ]
    return Table(columns, lines)


def verdict_json(
    experiment: Experiment, preset: str, verdict: Verdict, content: bytes
) -> dict[str, Any]:
    """The verdict with its evidence and the hash of the records it was computed from."""
    parts = [
        {
            "name": part.name,
            "estimate": part.estimate,
            "low": part.low,
            "high": part.high,
            "threshold": part.threshold,
            "zero": part.zero,
            "status": part.status,
            "differences": part.differences,
        }
        for part in verdict.parts
    ]
    head = {"name": experiment.name, "paper": experiment.paper, "claim": experiment.claim}
    judged = {"preset": preset, "status": verdict.status, "reason": verdict.reason}
    return dict(plain({**head, **judged, "parts": parts, "records_sha256": sha256(content)}))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return str(value)


def _table(table: "pd.DataFrame") -> Table:
    lines = [[_text(value) for value in line] for line in table.itertuples(index=False, name=None)]
    return Table([str(column) for column in table.columns], lines)


def _setup(place: Path) -> list[tuple[str, str]]:
    """What the run was made with, as pairs of text."""
    seen = folders.read_json(place / folders.ENVIRONMENT)
    git, device = seen["git"], seen["device"]
    revision = "not in a git checkout"
    if git:
        revision = git["revision"][:12] + (" with uncommitted changes" if git["dirty"] else "")
    packages = [f"{name} {version}" for name, version in seen["packages"].items()]
    lines = [
        ("device", f"{device['count']} x {device['kind']} ({device['platform']})"),
        ("precision", "64 bit" if seen["x64"] else "32 bit"),
        ("git revision", revision),
        (
            "versions",
            ", ".join([f"divjax {seen['divjax']}", f"Python {seen['python']}", *packages]),
        ),
    ]
    timings = place / folders.TIMINGS
    if timings.exists():
        spent = [json.loads(line)["seconds"] for line in timings.read_text("utf-8").splitlines()]
        lines.insert(0, ("computed in", f"{duration(sum(spent))}, {len(spent)} cells"))
    return lines


def sheet(found: Found, report: Report, verdict: Verdict, place: Path) -> Sheet:
    """Gathers what the report of a run folder shows."""
    identity = folders.read_json(place / folders.CONFIG)
    stored_file = found.results / folders.VERDICT
    provisional = identity["preset"] in PROVISIONAL
    stored = folders.read_json(stored_file) if provisional and stored_file.exists() else None
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
        preset=identity["preset"],
        verdict=verdict,
        stored=stored,
        tables={title: _table(table) for title, table in report.tables.items()},
        notes=report.notes,
        setup=_setup(place),
        config=Table(("field", "value", "overridden"), config),
        data=Table(("data", "real", "source", "sha256"), data),
    )


def stored_line(s: Sheet) -> str:
    """What the stored cpu run says, for a preset that is too small to say anything."""
    if s.preset not in PROVISIONAL:
        return ""
    if s.stored is None:
        return "No verdict of the cpu preset is stored yet."
    return f"The stored cpu run says: {s.stored['status']} ({s.stored['reason']})."


def markdown(s: Sheet, figures: Mapping[str, str]) -> str:
    """The report as Markdown; `figures` maps titles to paths beside it."""
    e, v = s.experiment, s.verdict
    blocks = [
        f"# {e.name}: {v.status}",
        f"Claim ([arXiv {e.paper}](https://arxiv.org/abs/{e.paper})): {e.claim}",
        f"Preset `{s.preset}`: **{v.status}**, {v.reason}. {stored_line(s)}".rstrip(),
        _markdown_table(parts_table(v.parts)),
        *(f"**{title}**\n\n{_markdown_table(table)}" for title, table in s.tables.items()),
        *(f"**{title}**\n\n![{title}]({path})" for title, path in figures.items()),
        *s.notes,
        "## How it was run",
        _markdown_table(Table(("", ""), s.setup)),
        _markdown_table(s.data) if s.data.lines else "No data were read.",
        _markdown_table(s.config),
    ]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.lines]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def write(found: Found, report: Report, verdict: Verdict, place: Path) -> Sheet:
    """Writes verdict.json, figures/, report.md and report.html of a run folder."""
    from divjax.lab.page import page

    s = sheet(found, report, verdict, place)
    content = (place / folders.RECORDS).read_bytes()
    folders.write_json(
        place / folders.VERDICT, verdict_json(found.experiment, s.preset, verdict, content)
    )
    figures: dict[str, Callable[[], Figure]] = {
        "The claim, part by part": partial(plots.intervals, verdict.parts),
        **report.figures,
    }
    (place / "figures").mkdir(exist_ok=True)
    paths = {}
    for index, (title, picture) in enumerate(plots.drawn(figures, "png").items()):
        path = place / "figures" / f"{index}.png"
        write_atomic(path, picture)
        paths[title] = f"figures/{path.name}"
    write_atomic(place / "report.md", markdown(s, paths).encode())
    write_atomic(place / "report.html", page(s, plots.drawn(figures, "svg")).encode())
    return s
