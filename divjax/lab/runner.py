"""Runs the cells that are missing, row by row onto the disk, and writes the report."""

import json
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from divjax.lab import folder as folders
from divjax.lab import records
from divjax.lab.experiment import Cell, Found, Report
from divjax.lab.loop import Run
from divjax.lab.progress import Watcher, watching
from divjax.lab.records import LabError, same
from divjax.lab.verdict import Verdict, conclude

if TYPE_CHECKING:
    from divjax.train.checkpoint import Checkpoints


class Outcome(NamedTuple):
    """A run folder with what its records say."""

    folder: Path
    report: Report
    verdict: Verdict


def run(
    found: Found,
    preset: str,
    config: Any,
    *,
    out: Path | None,
    fresh: bool,
    console: Console,
) -> Path:
    """Runs what is missing of an experiment; a killed run goes on where it was.

    Args:
        found: the experiment and its file.
        preset: the preset that `config` comes from.
        config: the resolved config.
        out: the run folder; runs/NAME/PRESET when None.
        fresh: refuse a folder that is not empty.
        console: where progress is shown.

    Returns:
        The run folder; its records are complete.

    Raises:
        LabError: the folder belongs to another run, is in use, or its records are damaged.
    """
    experiment = found.experiment
    cells = folders.checked_cells(experiment, config)
    place = out or folders.default_folder(experiment, preset, config)
    data = folders.data_identity(experiment, config)
    wanted = folders.identity(experiment, preset, config, data)
    folders.require_usable(place, wanted, fresh=fresh)  # a lock is left only where it may be
    with folders.locked(place):
        folders.settle(place, wanted, fresh=fresh)
        _note_environment(place, found, console)
        path = place / folders.RECORDS
        records.truncate(path, len(records.read(path)))  # a half-written last line goes
        state = records.by_cell(records.read(path), where=str(path))
        _require_order(state, cells, path)
        done = sum(held.finished for held in state.values())
        if done == len(cells):
            _say_finished(console, place)
        with watching(console, len(cells), done) as watcher:
            for cell in cells:
                held = state.get(cell.name, records.CellRows([], False))
                if not held.finished:
                    _run_cell(found, config, cell, held.rows, place, watcher)
    return place


def _say_finished(console: Console, place: Path) -> None:
    console.print(
        f"{place} is finished already: nothing is run, its report is written again. To start anew "
        "move that folder away, or give another with --out.",
        highlight=False,
        markup=False,
    )


def _require_order(state: Mapping[str, records.CellRows], cells: list[Cell], path: Path) -> None:
    """Cells are run in their order, so those on disk are the first ones."""
    expected = [cell.name for cell in cells[: len(state)]]
    if list(state) != expected:
        raise LabError(f"{path}: cells must be {expected}, got {list(state)}; restore the file")


def _note_environment(place: Path, found: Found, console: Console) -> None:
    """Writes versions and devices once; says when a run goes on under other ones."""
    now = folders.environment(found)
    path = place / folders.ENVIRONMENT
    if not path.exists():
        folders.write_json(path, now)
        return
    lines = folders.differences(now, folders.read_json(path))
    lines = [line for line in lines if not line.startswith("git")]
    if lines and not _finished(place):
        console.print(
            "note: these records were begun under another environment ("
            + "; ".join(lines)
            + "); rows may not be bit for bit those of one run",
            highlight=False,
            markup=False,
        )


def _finished(place: Path) -> bool:
    state = records.by_cell(records.read(place / folders.RECORDS))
    names = [cell["name"] for cell in folders.read_json(place / folders.CONFIG)["cells"]]
    return all(name in state and state[name].finished for name in names)


def _run_cell(
    found: Found,
    config: Any,
    cell: Cell,
    held: list[dict[str, Any]],
    place: Path,
    watcher: Watcher,
) -> None:
    """Replays the rows on disk, appends the others, ends the cell, forgets its checkpoints."""
    path, work = place / folders.RECORDS, place / "cells" / cell.name
    before = len(records.read(path)) - len(held)
    count = steps = 0

    def drop_rest() -> None:
        records.truncate(path, before + count)
        del held[count:]

    def progress(step: int, total: int) -> None:
        nonlocal steps
        steps += 1
        watcher.step(step, total)

    watcher.begin(cell.name)
    began = time.monotonic()
    run = Run(
        cell,
        folder=work,
        open_checkpoints=partial(_open_checkpoints, config=config),
        drop_rest=drop_rest,
        progress=progress,
    )
    for row in found.experiment.run(config, cell, run):
        entry = _entry(cell, row)
        if count >= len(held):
            records.append(path, entry)
        elif records.encode(entry) != records.encode(held[count]):
            raise _other_rows(cell, count + 1, place)
        count += 1
    if count < len(held):
        raise _other_rows(cell, count + 1, place)
    records.append(path, {"cell": cell.name, "end": count})
    seconds = time.monotonic() - began
    _note_timing(place, {"cell": cell.name, "seconds": round(seconds, 3), "steps": steps})
    shutil.rmtree(work, ignore_errors=True)
    watcher.end(cell.name, seconds, steps)


def _open_checkpoints(directory: Path, *, config: Any) -> "Checkpoints":
    from divjax.train.checkpoint import open_checkpoints  # brings orbax

    return open_checkpoints(directory, folders.as_dict(config))


def _other_rows(cell: Cell, row: int, place: Path) -> LabError:
    return LabError(
        f"cell {cell.name}: row {row} comes out different from the one on disk; the experiment or "
        f"its environment changed. Move {place} away, or give another folder with --out"
    )


def _note_timing(place: Path, timing: Mapping[str, Any]) -> None:
    """Times lie beside the records: they differ from run to run."""
    with (place / folders.TIMINGS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(timing) + "\n")


def _entry(cell: Cell, row: records.Record) -> dict[str, Any]:
    """The row as it is written: cell and settings first."""
    if clash := [key for key in row if key in ("cell", "end") or key in cell.settings]:
        raise LabError(f"cell {cell.name}: a row must not set {clash}; the lab and the cell do")
    if cell.seeds and row.get("seed") not in cell.seeds:
        raise LabError(
            f"cell {cell.name}: every row needs one of its seeds, got {row.get('seed')!r}; "
            "yield from run.rows(...)"
        )
    return {"cell": cell.name, **cell.settings, **row}


def outcome(found: Found, preset: str, config: Any, place: Path) -> Outcome:
    """Report and verdict of a run folder whose cells are all finished.

    Raises:
        LabError: cells or seeds are missing, or rows are there twice.
    """
    path = place / folders.RECORDS
    entries = records.read(path)
    cells = folders.checked_cells(found.experiment, config)
    problems = incomplete(entries, cells, where=str(path))
    if problems:
        raise LabError(f"{path}: {'; '.join(problems)}; run the experiment again")
    report = found.experiment.analyse(config, records.rows(entries))
    beside = preset in found.experiment.beside
    return Outcome(place, report, conclude(report.parts, preset=preset, beside=beside))


def incomplete(entries: list[dict[str, Any]], cells: list[Cell], *, where: str) -> list[str]:
    """What keeps the records from being those of the cells, in words; [] when nothing does."""
    state = records.by_cell(entries, where=where)
    problems = [
        f"cell {name} is not of this experiment"
        for name in state.keys() - {cell.name for cell in cells}
    ]
    for cell in cells:
        held = state.get(cell.name, records.CellRows([], False))
        if not held.finished:
            problems.append(f"cell {cell.name} is missing or not finished")
        problems += _foreign(entries, cell)
        missing = set(cell.seeds) - {row.get("seed") for row in held.rows}
        if held.finished and missing:
            problems.append(f"cell {cell.name} lacks seeds {sorted(missing)}")
        lines = [records.encode(row) for row in held.rows]
        if len(set(lines)) < len(lines):
            problems.append(f"cell {cell.name} has duplicate rows")
    return problems


def _foreign(entries: list[dict[str, Any]], cell: Cell) -> list[str]:
    """The first row that bears the name of the cell without its settings or seeds."""
    for number, row in enumerate(entries, 1):
        if row["cell"] != cell.name or "end" in row:
            continue
        if cell.seeds and row.get("seed") not in cell.seeds:
            return [f"line {number}: seed {row.get('seed')!r} is not one of cell {cell.name}"]
        if any(not same(row.get(k), v) for k, v in cell.settings.items()):
            return [f"line {number}: not the settings of cell {cell.name}"]
    return []
