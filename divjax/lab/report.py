"""Writes what a run says: verdict.json, report.md with its figures, and one report.html."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divjax.core.files import write_atomic
from divjax.lab import folder as folders
from divjax.lab import plots
from divjax.lab.experiment import Experiment, Found, Report
from divjax.lab.page import page
from divjax.lab.records import plain, sha256
from divjax.lab.sheet import CAPTION, OTHERS, Sheet, Table, gather, parts_table, stored_line
from divjax.lab.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    claim = experiment.sentence(preset)
    head = {"name": experiment.name, "paper": experiment.paper, "claim": claim}
    judged = {"preset": preset, "status": verdict.status, "reason": verdict.reason}
    return dict(plain({**head, **judged, "parts": parts, "records_sha256": sha256(content)}))


def markdown(s: Sheet, figures: Mapping[str, str]) -> str:
    """The report as Markdown; `figures` maps titles to paths beside it."""
    e, v = s.experiment, s.verdict
    blocks = [
        f"# {s.title}: {v.status}",
        f"{s.lead} ([arXiv {e.paper}](https://arxiv.org/abs/{e.paper})): {s.sentence}",
        f"Preset `{s.label}`: **{v.status}**, {v.reason}. {' '.join(stored_line(s))}".rstrip(),
        _markdown_table(parts_table(v.parts)),
        *(f"**{title}**\n\n{_markdown_table(table)}" for title, table in s.tables.items()),
        *(f"**{title}**\n\n![{title}]({path})" for title, path in figures.items()),
        CAPTION,
        *s.notes,
        *((f"## {OTHERS}", _markdown_table(s.others)) if s.others.lines else ()),
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
    s = gather(found, report, verdict, place)
    content = (place / folders.RECORDS).read_bytes()
    folders.write_json(
        place / folders.VERDICT, verdict_json(found.experiment, s.preset, verdict, content)
    )
    figures: dict[str, Callable[[], Figure]] = {
        "The claim, part by part": partial(plots.intervals, verdict.parts),
        **report.figures,
    }
    (place / "figures").mkdir(exist_ok=True)
    paths, pictures = {}, {}
    for index, (title, draw) in enumerate(figures.items()):
        figure = draw()
        pictures[title] = plots.save(figure, "svg")
        paths[title] = f"figures/{index}.png"
        write_atomic(place / paths[title], plots.save(figure, "png"))
    write_atomic(place / "report.md", markdown(s, paths).encode())
    write_atomic(place / "report.html", page(s, pictures).encode())
    return s
