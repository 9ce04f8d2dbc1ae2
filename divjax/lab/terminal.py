"""The same tables as the report, for a terminal; plain where the output is no terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from divjax.lab import folder as folders
from divjax.lab.compare import Comparison, Held, Line
from divjax.lab.experiment import Found
from divjax.lab.select import rounded
from divjax.lab.sheet import (
    Sheet,
    Table,
    label,
    number,
    part_line,
    signed,
    stored_line,
    undecided,
)
from divjax.lab.verdict import BESIDE, CONTRADICTED, INCONCLUSIVE, PROVISIONAL, REPRODUCED, Part
from divjax.lab.verify import MATCH, MISMATCH, MISSING, UNREADABLE, stored_verdict

TONES = {
    REPRODUCED: "green",
    MATCH: "green",
    CONTRADICTED: "red",
    MISMATCH: "red",
    INCONCLUSIVE: "yellow",
    BESIDE: "cyan",
    MISSING: "dim",
    UNREADABLE: "red",
}
ROOM = 26  # columns that text in a table needs to be read; with fewer, lines go below each other
PROBLEMS = LINES = 12  # of a long list, as many are shown
SHORT = 26  # a value that still fits beside another one


def console() -> Console:
    """Standard output; colours and live bars only where it is a terminal."""
    return Console(highlight=False)


def _table(table: Table, title: str | None = None, *, wrap_last: bool = False) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    shown.title_style = "bold"
    for index, name in enumerate(table.columns):
        flexible = index == (len(table.columns) - 1 if wrap_last else 0)
        shown.add_column(name, overflow="fold", no_wrap=not flexible, header_style="dim")
    for line in table.lines:
        shown.add_row(*(Text(cell, style=TONES.get(cell, "")) for cell in line))
    return shown


def _widths(table: Table) -> list[int]:
    return [
        max(len(cell) for cell in (name, *(line[i] for line in table.lines))) + 3
        for i, name in enumerate(table.columns)
    ]


def show_table(
    out: Console, table: Table, title: str | None = None, *, wrap_last: bool = False
) -> None:
    """A table as the width allows: whole, in several parts, or its cells below each other.

    Args:
        out: the terminal.
        table: what to show.
        title: above it.
        wrap_last: the last column holds sentences and takes the width that is left.
    """
    widths = _widths(table)
    if wrap_last and sum(widths[:-1]) + min(ROOM, widths[-1]) <= out.width:
        out.print(_table(table, title, wrap_last=True))
        return
    parts = side_by_side(table, out.width)
    if wrap_last or any(sum(_widths(part)) - 1 > out.width for part in parts):
        _stack(out, table, title, wrap_last)
        return
    for i, part in enumerate(parts):
        out.print(_table(part, title if i == 0 else None))


def _stack(out: Console, table: Table, title: str | None, wrap_last: bool) -> None:
    if title:
        _say(out, title, "bold")
    for first, *cells in table.lines:
        _say(out, first, TONES.get(first, "bold"))
        for name, cell in zip(table.columns[1:], cells, strict=True):
            sentence = wrap_last and name == table.columns[-1]
            shown = Text("" if sentence else f"{name}: ").append(cell, style=TONES.get(cell, ""))
            out.print(Padding(shown, (0, 0, 0, 2), expand=False))
    out.print()


def side_by_side(table: Table, width: int) -> list[Table]:
    """The table, or several that fit the width, each with the first column in front."""
    widths = _widths(table)
    groups: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if len(groups[-1]) > 1 and sum(widths[j] for j in groups[-1]) + widths[i] > width:
            groups.append([0])
        groups[-1].append(i)
    return [
        Table([table.columns[i] for i in group], [[line[i] for i in group] for line in table.lines])
        for group in groups
    ]


def _say(out: Console, text: str, style: str = "", indent: int = 0) -> None:
    shown = Text(text, style=style)
    out.print(Padding(shown, (0, 0, 0, indent), expand=False) if indent else shown)


def show_start(out: Console, found: Found, preset: str, config: Any) -> None:
    """What is about to be run."""
    experiment = found.experiment
    changed = folders.changes(experiment, preset, config)
    _say(out, f"{experiment.name} (arXiv {experiment.paper}), preset {preset}", "bold")
    _say(out, experiment.sentence(preset))
    values = folders.as_dict(config)
    shown = "  ".join(
        f"{k}={v}{' (overridden)' if k in changed else ''}" for k, v in values.items()
    )
    _say(out, shown, "dim")


def show_sheet(out: Console, sheet: Sheet, place: Path) -> None:
    """The verdict with its figures, the tables, and where the report is."""
    for title, table in sheet.tables.items():
        show_table(out, table, title)
    _say(out, "The claim, part by part", "bold")
    for part in sheet.verdict.parts:
        _say_part(out, part)
    verdict = Text(f"{sheet.verdict.status}: ", style=f"bold {TONES[sheet.verdict.status]}")
    out.print(verdict.append(sheet.verdict.reason + ".", style="not bold default"))
    before, status, after = stored_line(sheet)
    if before:
        shown = Text(before)
        if status:
            shown.append(" ").append(status, style=TONES[status]).append(f" {after}")
        out.print(shown)
    out.print(Text(f"report: {place / 'report.html'}"), soft_wrap=True)


def _say_part(out: Console, part: Part) -> None:
    name, status, difference, interval, excludes, bound = part_line(part)
    shown = Text(f"{name}: ").append(status, style=TONES[status])
    out.print(Padding(shown, (0, 0, 0, 2), expand=False))
    _say(out, f"{difference}, 95 % interval {interval}, must exceed {bound}", indent=4)
    side = undecided(part)
    zero = f"the interval {'excludes' if excludes == 'yes' else 'holds'} 0"
    small = f"; {side} the threshold here, but the run is too small" if side else ""
    _say(out, zero + small, indent=4)


def show_list(rows: Sequence[Mapping[str, Any]]) -> None:
    """All experiments."""
    out = console()
    if not rows:
        _say(out, "no experiments here; set DIVJAX_EXPERIMENTS to their folder")
        return
    lines = [(row["name"], row["paper"], row["status"], row["claim"]) for row in rows]
    show_table(out, Table(("name", "paper", "cpu verdict", "claim"), lines), wrap_last=True)


def show_experiment(found: Found, preset: str, config: Any) -> None:
    """Claim, presets, cells and data of one experiment."""
    out = console()
    experiment = found.experiment
    _say(out, f"{experiment.name} (arXiv {experiment.paper})", "bold")
    _say(out, experiment.claim)
    status, verdict = stored_verdict(found)
    _say(out, f"cpu verdict: {status}" + (f" ({verdict['reason']})" if verdict else ""))
    configs = {name: folders.as_dict(experiment.preset(name)) for name in experiment.presets}
    configs[preset] = folders.as_dict(config)
    fields = [[key, *(str(c[key]) for c in configs.values())] for key in configs[preset]]
    show_table(out, Table(["field", *configs], fields), "Presets")
    cells = [
        (cell.name, str(len(cell.seeds)), "  ".join(f"{k}={v}" for k, v in cell.settings.items()))
        for cell in folders.checked_cells(experiment, config)
    ]
    title = f"Cells of the preset {preset}"
    show_table(out, Table(("cell", "seeds", "settings"), cells), title, wrap_last=True)
    for source in experiment.data(config):
        real = "real data" if source.real else "synthetic data"
        _say(out, f"{real}: {source.name}, {source.source}, sha256 {source.sha256[:16]}")
    _say(out, f"file: {found.file}", "dim")


def show_checks(rows: Sequence[Mapping[str, Any]]) -> None:
    """What verify found, with the problems below and what to do about them."""
    out = console()
    lines = [(_run(row), row["verify"], row["status"], _figures(row)) for row in rows]
    columns = ("name", "records", "stored verdict", "differences")
    show_table(out, Table(columns, lines), wrap_last=True)
    for row in rows:
        if row["problems"]:
            _show_problems(out, row)
    missing = [row for row in rows if row["verify"] == MISSING]
    if missing:
        names = ", ".join(row["name"] for row in missing)
        _say(out, f"no results to verify: {names}. {_renew(missing[0])} makes them.")


def _show_problems(out: Console, row: Mapping[str, Any]) -> None:
    problems = row["problems"]
    _say(out, f"{_run(row)}:", "bold")
    for problem in problems[:PROBLEMS]:
        _say(out, problem, indent=2)
    if len(problems) > PROBLEMS:
        _say(out, f"and {len(problems) - PROBLEMS} more; --json has all", indent=2)
    _say(
        out,
        "What to do: restore the stored files (git), or, where the experiment was changed on "
        f"purpose, move its run folder away and run it again: {_renew(row)}.",
    )


def _renew(row: Mapping[str, Any]) -> str:
    again = f"divjax run {row['name']} --preset {row['preset']}"
    keep = f", then divjax report {row['name']} --preset {row['preset']} --store"
    return again + ("" if row["preset"] in PROVISIONAL else keep)


def _run(row: Mapping[str, Any]) -> str:
    """NAME, or NAME:PRESET beside it."""
    return row["name"] if row["preset"] == "cpu" else f"{row['name']}:{row['preset']}"


def _figures(row: Mapping[str, Any]) -> str:
    figures = row["figures"].items()
    return "; ".join(f"{name} {number(part['estimate'])}" for name, part in figures)


def show_comparison(found: Comparison) -> None:
    """Two runs side by side."""
    out = console()
    for letter, held in (("A", found.a), ("B", found.b)):
        identity = held.identity
        preset = label(identity["preset"], identity["overrides"])
        _say(out, f"{letter}: {identity['name']}, preset {preset}", "bold")
        _say(out, str(held.folder), "dim", indent=3)
        waiting = len(identity["cells"]) - len(held.cells)
        if waiting:
            _say(out, f"not finished: {waiting} of {len(identity['cells'])} cells", indent=3)
    if not found.same_experiment:
        _say(out, "These are runs of two experiments; only what both have is compared.", "bold")
    out.print()
    _show_differences(out, found)
    _show_verdicts(out, found)
    _show_metrics(out, found)


def _show_differences(out: Console, found: Comparison) -> None:
    if not found.differences:
        _say(out, "Config, versions, device, git revision and data are the same.")
        out.print()
        return
    lines = [(d.what, _value(d.a), _value(d.b)) for d in found.differences]
    short = [line for line in lines if max(len(line[1]), len(line[2])) <= SHORT]
    long = [line for line in lines if line not in short]
    for title, some in (
        ("What differs", short),
        ("Differs too" if short else "What differs", long),
    ):
        if some:
            _whole_or_stacked(out, Table(("", "A", "B"), some), title)


def _whole_or_stacked(out: Console, table: Table, title: str) -> None:
    if sum(_widths(table)) - 1 <= out.width:
        out.print(_table(table, title))
    else:
        _stack(out, table, title, wrap_last=False)


def _value(value: Any) -> str:
    """A hash by its beginning, many names by the first; else JSON, text without quotes."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        more = f" and {len(value) - 3} more" if len(value) > 4 else ""
        return (", ".join(value[:3] if more else value) or "none") + more
    text = value if isinstance(value, str) else json.dumps(value)
    hexadecimal = len(text) in (40, 64) and not set(text) - set("0123456789abcdef")
    return text[:12] if hexadecimal else "not known" if value is None else text


def _show_verdicts(out: Console, found: Comparison) -> None:
    _say(out, "Verdicts", "bold")
    for letter, held in (("A", found.a), ("B", found.b)):
        _say_verdict(out, letter, held)
    out.print()
    columns = ("run", "status", "difference", "95 % interval", "must exceed")
    for name, parts in found.parts.items():
        lines = [_part_line(*each) for each in zip(("A", "B"), parts, strict=True)]
        _whole_or_stacked(out, Table(columns, lines), name)


def _say_verdict(out: Console, letter: str, held: Held) -> None:
    shown = Text(f"{letter}: ")
    if held.verdict is None:
        shown.append("no verdict yet; divjax report writes it once all cells are finished")
    else:
        status = held.verdict["status"]
        shown.append(status, style=TONES[status]).append(f", {held.verdict['reason']}")
    out.print(Padding(shown, (0, 0, 0, 2), expand=False))


def _part_line(letter: str, part: Part | None) -> Sequence[str]:
    if part is None:
        return letter, "no such part", "", "", ""
    *figures, _, bound = part_line(replace(part, name=letter))
    return *figures, bound


def _meaning(found: Comparison) -> str:
    """What the columns of the metrics are, given the seeds that the runs share."""
    shown = "Metrics: the last value of each seed, its mean ± the 95 % half-width; B − A is "
    if any(line.paired for line in found.lines):
        return shown + (
            "paired over the seeds that both runs have, with its 95 % interval; with 0 of those it "
            "is the difference of the means"
        )
    a, b = found.seeds
    return (
        f"The cells that are compared have no seed in common (A: {a}; B: {b}), so nothing can be "
        f"paired. {shown}the difference of the means, without an interval. Two runs of one preset "
        "have the same seeds and are compared seed by seed"
    )


def _show_metrics(out: Console, found: Comparison) -> None:
    """A table a metric, without those that are equal in both runs, seed by seed."""
    lines = found.lines
    if not lines:
        _say(out, "No finished cell with a metric is common to both runs.")
        return
    metrics = list(dict.fromkeys(line.metric for line in lines))
    of = {metric: [line for line in lines if line.metric == metric] for metric in metrics}
    equal = [metric for metric in metrics if all(line.equal for line in of[metric])]
    if len(equal) < len(metrics):
        _say(out, _meaning(found), "bold")
        out.print()
    for metric in metrics:
        if metric not in equal:
            _show_metric(out, metric, of[metric])
    if equal:
        _say(out, f"Equal in both runs, seed by seed: {', '.join(equal)}.")


def _show_metric(out: Console, metric: str, lines: Sequence[Line]) -> None:
    title = metric
    if len(lines) > LINES:
        title = f"{metric} (the {LINES} of {len(lines)} that differ most; --json has all)"
        most = sorted(lines, key=_gap, reverse=True)[:LINES]
        lines = [line for line in lines if line in most]
    shown = [
        (line.group, rounded(*line.a[:3]), rounded(*line.b[:3]), *_paired(line)) for line in lines
    ]
    table = Table(("", "A", "B", "B − A", "seeds"), shown)
    if not any(line.paired for line in lines):  # then the last column says 0 and no more
        table = Table(table.columns[:-1], [line[:-1] for line in shown])
    show_table(out, table, title)


def _gap(line: Line) -> float:
    """How far the means lie apart; what is not finite in one run alone comes first."""
    gap = abs(line.b.mean - line.a.mean)
    return 0.0 if line.equal else math.inf if math.isnan(gap) else gap


def _paired(line: Line) -> tuple[str, str]:
    """B - A with its interval, and over how many seeds."""
    plain = line.b.mean - line.a.mean
    mean, low, high, seeds = line.paired or (plain, plain, plain, 0)
    if line.equal or math.isnan(mean):
        return "equal" if line.equal else "not finite", str(seeds)
    figures = signed(mean, low, high)
    return " ".join(figures if seeds > 1 else figures[:1]), str(seeds)
