"""What a person sees while cells run: a live bar on a terminal, one line a cell elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

WIDE = 80  # columns that name, bar, count, clock and speed take together


class Watcher(Protocol):
    """Told what happens; never asked."""

    def begin(self, cell: str) -> None:
        """A cell begins."""

    def step(self, step: int, steps: int) -> None:
        """Its training is at `step` of `steps`."""

    def end(self, cell: str, seconds: float, steps: int) -> None:
        """The cell is finished."""


def duration(seconds: float) -> str:
    """'4.2 s', '42 s', '3 min 20 s' or '2 h 05 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short(name: str, width: int = 20) -> str:
    """The name, or its two ends: cells that begin alike end in different settings.

    Example:
        >>> short("pilot-debiased0.1-rate0.003")
        'pilot-deb…-rate0.003'
    """
    half = width // 2
    return name if len(name) <= width else f"{name[: half - 1]}…{name[-half:]}"


class _Rate(ProgressColumn):
    """Steps per second, and the time that remains at this speed."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        rate = f"{speed:,.0f} steps/s" if speed and task.fields["speed"] else ""
        left = task.time_remaining
        eta = "" if left is None or task.finished else f"ETA {duration(left)}"
        return Text("  ".join(part for part in (rate, eta) if part), style="dim")


class _Live:
    """Two bars: all cells, and the training of the one that runs."""

    def __init__(self, progress: Progress, total: int, done: int) -> None:
        self._progress = progress
        self._done = done
        self._total = total
        self._steps = 0  # of the training that the lower bar shows
        self._all = progress.add_task(
            "cells", total=total, completed=done, speed=False, count=f"{done}/{total}"
        )
        self._cell = progress.add_task("", total=1, visible=False, speed=False, count="")

    def begin(self, cell: str) -> None:
        self._steps = 0
        self._progress.reset(
            self._cell, total=1, description=short(cell), visible=True, speed=False, count=""
        )

    def step(self, step: int, steps: int) -> None:
        if steps != self._steps or step == 1:  # another training; a resumed one begins at `step`
            self._steps = steps
            self._progress.reset(self._cell, total=steps, completed=step - 1, speed=True, count="")
        self._progress.update(self._cell, completed=step, count=f"{step}/{steps}")
        self._progress.update(self._all, completed=self._done + step / steps)

    def end(self, cell: str, seconds: float, steps: int) -> None:
        self._done += 1
        self._progress.update(self._all, completed=self._done, count=f"{self._done}/{self._total}")
        self._progress.update(self._cell, visible=False)


class _Lines:
    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console, self._total, self._done = console, total, done
        self._began = time.monotonic()
        self._first = done

    def begin(self, cell: str) -> None:
        pass

    def step(self, step: int, steps: int) -> None:
        pass

    def end(self, cell: str, seconds: float, steps: int) -> None:
        self._done += 1
        each = (time.monotonic() - self._began) / (self._done - self._first)
        rate = f", {steps / seconds:,.0f} steps/s" if steps and seconds else ""
        left = self._total - self._done
        eta = f", about {duration(each * left)} to go" if left else ""
        self._console.print(
            f"cell {self._done}/{self._total} {cell}: {duration(seconds)}{rate}{eta}",
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def watching(console: Console, total: int, done: int) -> Iterator[Watcher]:
    """A watcher for `total` cells of which `done` are finished."""
    if not console.is_terminal:
        yield _Lines(console, total, done)
        return
    name, count = TextColumn("{task.description}"), TextColumn("{task.fields[count]:>9}")
    wide = console.width >= WIDE  # where it is not, the figures matter more than the bar
    columns = (
        (name, BarColumn(bar_width=8), count, TimeElapsedColumn(), _Rate())
        if wide
        else (name, count, _Rate())
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Live(progress, total, done)
