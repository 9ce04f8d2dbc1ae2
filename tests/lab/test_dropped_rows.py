"""Rows written after the last checkpoint of a killed run are taken out of the records."""

from textwrap import dedent

from divjax.lab import records

# Rows at 3, 6, 9 and 12, checkpoints at 4, 8 and 12; the first process dies in step 8 of cell b.
EXPERIMENT = dedent(
    """
    import os
    from dataclasses import dataclass
    from pathlib import Path
    from typing import NamedTuple
    import jax, jax.numpy as jnp
    from divjax.lab import Cell, Experiment, Report, stated

    @dataclass(frozen=True)
    class Config:
        steps: int = 12

    class State(NamedTuple):
        step: jax.Array
        w: jax.Array

    def run(config, cell, run):
        def step(state, batch):
            if cell.name == "b" and state.step == 7 and os.environ.get("DIE"):
                raise KeyboardInterrupt
            return State(state.step + 1, jnp.sin(state.w) + batch), {}

        yield {"seed": 1, "before": 0.5}
        state = State(jnp.int32(0), jnp.float32(0.3))
        state = yield from run.train(
            step, state, lambda step: 0.1 * step, steps=config.steps,
            evaluate=lambda state: {"w": state.w}, every=3, save_steps=4,
        )
        yield from run.rows({"after": state.w})

    EXPERIMENT = Experiment(
        name="dies", paper="1", claim="c",
        config=Config, presets={"smoke": {}, "demo": {}, "cpu": {}},
        cells=lambda config: [Cell(name, seeds=[1]) for name in "abc"], run=run,
        analyse=lambda config, rows: Report([stated("x", 1.0, 0.5, 2.0, threshold=0.0)]),
    )
    """
)


def test_rows_after_the_last_checkpoint_are_dropped_and_computed_again(
    divjax, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(tmp_path))
    (tmp_path / "dies.py").write_text(EXPERIMENT)
    assert divjax("run", "dies", "--out", "whole")[0] == 0
    whole = (tmp_path / "whole/records.jsonl").read_bytes()
    monkeypatch.setenv("DIE", "yes")
    assert divjax("run", "dies", "--out", "killed")[0] == 130
    path = tmp_path / "killed/records.jsonl"
    assert whole.startswith(path.read_bytes())
    left = records.by_cell(records.read(path))["b"].rows
    assert [row.get("step") for row in left] == [None, 3, 6]  # 6 lies after the checkpoint of 4
    monkeypatch.delenv("DIE")
    assert divjax("run", "dies", "--out", "killed")[0] == 0
    assert path.read_bytes() == whole
