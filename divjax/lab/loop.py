"""The one training loop, as the `run` object that an experiment gets."""

import json
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core.files import write_atomic
from divjax.core.types import PyTree
from divjax.lab.records import LabError, Record, plain, revive

if TYPE_CHECKING:
    from divjax.lab.experiment import Cell
    from divjax.train.checkpoint import Checkpoints


class NonFinite(LabError):
    """A term became NaN or infinite; the message names the step, the seeds and the term."""


class Run:
    """What `Experiment.run` gets: the cell, and the training loop.

    Attributes:
        cell: the cell that is run.
    """

    def __init__(
        self,
        cell: "Cell",
        *,
        folder: Path,
        open_checkpoints: Callable[[Path], "Checkpoints"],
        drop_rest: Callable[[], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self.cell = cell
        self._folder = folder
        self._open_checkpoints = open_checkpoints
        self._drop_rest = drop_rest
        self._progress = progress
        self._calls = 0

    def rows(self, metrics: Mapping[str, Any], **columns: Any) -> list[Record]:
        """One row a seed (or one row, for a cell without seeds).

        Args:
            metrics: name -> [S] or [S, ...] values, S seeds; [] and [...] when there is one seed
                and the value has no seed axis, or no seeds.
            **columns: the same in every row, for example step=800.

        Returns:
            S rows {"seed", **columns, **metrics}.

        Raises:
            LabError: a metric has another leading axis than the seeds.
        """
        seeds = self.cell.seeds
        values = {name: np.asarray(value) for name, value in metrics.items()}
        if not seeds:
            return [{**columns, **revive(plain(values))}]
        if len(seeds) == 1:
            values = {n: v[None] if v.shape[:1] != (1,) else v for n, v in values.items()}
        for name, value in values.items():
            if value.shape[:1] != (len(seeds),):
                raise LabError(
                    f"cell {self.cell.name}: metric '{name}' must be [S, ...] with S = "
                    f"{len(seeds)} seeds, got {list(value.shape)}; vmap it over the seeds"
                )
        return [
            {"seed": seed, **columns, **revive(plain({n: v[i] for n, v in values.items()}))}
            for i, seed in enumerate(seeds)
        ]

    def train(
        self,
        step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
        state: PyTree,
        batches: Callable[[int], PyTree],
        *,
        steps: int,
        evaluate: Callable[[PyTree], Mapping[str, Any]],
        every: int,
        log: Callable[[PyTree], Mapping[str, Any]] | None = None,
        allow_nonfinite: bool = False,
        save_seconds: float = 30.0,
        save_steps: int | None = None,
    ) -> Generator[Record, None, PyTree]:
        """Trains up to `steps`, yields rows {"seed", "step", **metrics}, returns the state.

        A killed run goes on from its last checkpoint: rows after it are dropped and computed
        again, bit for bit, because a batch depends on nothing but the step.

        Args:
            step: (state, batch) -> (state, info), compiled; it may donate the state.
            state: the state to begin with; its `.step` is [] or [S], the data cursor.
            batches: step -> batch, a pure function of the step.
            steps: the step to stop at.
            evaluate: state -> {metric: [S], or [] without seeds}, at multiples of `every` and
                at the end.
            every: steps between evaluations.
            log: info of the last step -> more metrics for the row.
            allow_nonfinite: NaN and infinities of info and metrics are data, not an error.
            save_seconds: time between checkpoints.
            save_steps: steps between checkpoints, if sooner.

        Returns:
            A generator: `state = yield from run.train(...)`.

        Raises:
            NonFinite: at an evaluation, when a term of info or a metric is not finite.
        """
        if steps < 1 or every < 1:
            raise LabError(f"run.train: steps and every must be >= 1, got {steps} and {every}")
        self._calls += 1
        keeper = _Keeper(self._folder, self._calls, self._open_checkpoints)
        with closing(keeper):
            state, rows = keeper.restore(state)
            yield from rows
            self._drop_rest()
            cursor = _cursor(state)
            saved = time.monotonic(), cursor
            while cursor < steps:
                state, info = step(state, batches(cursor))
                cursor += 1
                if cursor % every == 0 or cursor == steps:
                    metrics = {**evaluate(state), **(log(info) if log else {})}
                    if not allow_nonfinite:
                        self._require_finite(cursor, every, {"info": info, "metrics": metrics})
                    _require_cursor(state, cursor)
                    new = self.rows(metrics, step=cursor)
                    rows += new
                    yield from new
                self._progress(cursor, steps)
                late = time.monotonic() - saved[0] > save_seconds
                if late or (save_steps and cursor - saved[1] >= save_steps):
                    keeper.save(cursor, state, rows)
                    saved = time.monotonic(), cursor
        return state

    def _require_finite(self, step: int, every: int, tree: PyTree) -> None:
        broken = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                continue
            finite = np.isfinite(np.asarray(leaf, np.float64))
            if not finite.all():
                broken[jax.tree_util.keystr(path, simple=True, separator=".")] = finite
        if not broken:
            return
        seeds = [
            str(seed)
            for i, seed in enumerate(self.cell.seeds)
            if not all(
                f[i].all() for f in broken.values() if f.shape[:1] == (len(self.cell.seeds),)
            )
        ]
        raise NonFinite(
            f"cell {self.cell.name}, step {step}: {', '.join(broken)} not finite"
            + (f", seeds {', '.join(seeds)}" if seeds else "")
            + f" (it was finite up to step {max(step - every, 0)}); lower the learning rate, or "
            "pass allow_nonfinite=True to run.train when divergence is a result"
        )


class _Keeper:
    """The checkpoints of the n-th call of `train`, with the rows that led to them.

    Nothing is opened before there is something to keep or to restore: a short run never
    imports orbax.
    """

    def __init__(self, folder: Path, call: int, opener: Callable[[Path], "Checkpoints"]) -> None:
        self._folder = folder
        self._call = call
        self._opener = opener
        self._store: Checkpoints | None = None

    @property
    def _states(self) -> Path:
        return self._folder / f"train-{self._call}"

    @property
    def _rows(self) -> Path:
        return self._folder / f"rows-{self._call}.json"

    def restore(self, state: PyTree) -> tuple[PyTree, list[Record]]:
        """The newest state and the rows up to it; else the state as it came, and no rows."""
        if self._rows.exists():
            self._store = self._opener(self._states)
            try:
                restored = self._store.restore(state)
            except ValueError as error:  # damaged, or of another state: the message says what to do
                raise LabError(str(error)) from error
            if restored is not None:
                held = json.loads(self._rows.read_text("utf-8"))
                return restored[0], [revive(row) for row in held if row["step"] <= restored[1]]
        # What was trained after a call that begins anew began from a state that is gone.
        for rows in self._folder.glob("rows-*.json"):
            if int(rows.stem.removeprefix("rows-")) > self._call:
                rows.unlink()
                shutil.rmtree(self._folder / rows.stem.replace("rows", "train"), ignore_errors=True)
        return state, []

    def save(self, step: int, state: PyTree, rows: list[Record]) -> None:
        """Rows first: a state on disk always finds those that led to it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._rows, json.dumps(plain(rows)).encode())
        if self._store is None:
            self._store = self._opener(self._states)
        self._store.save(step, state)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


def _cursor(state: PyTree) -> int:
    """The step of the state; all seeds must be at the same one."""
    steps = np.unique(np.asarray(state.step))
    if steps.size != 1:
        raise LabError(f"run.train: all seeds must be at one step, got {steps.tolist()}")
    return int(steps[0])


def _require_cursor(state: PyTree, cursor: int) -> None:
    if _cursor(state) != cursor:
        raise LabError(
            f"run.train: the step must raise state.step by 1, got {_cursor(state)} after {cursor}"
        )
