"""The training loop with checkpoints in memory: cut anywhere, rows and state are the same."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.lab import Cell, LabError, NonFinite, Run


class State(NamedTuple):
    step: jax.Array  # [S]
    w: jax.Array  # [S]


@jax.jit
def update(state, batch):
    w = jnp.sin(0.9 * state.w) + batch
    return State(state.step + 1, w), {"terms": {"ce": w}}


def start(seeds):
    return State(jnp.zeros(len(seeds), jnp.int32), 0.1 * jnp.arange(1.0, 1.0 + len(seeds)))


class Memory:
    """Checkpoints that survive the Run, as a disk does."""

    def __init__(self):
        self.states = {}

    def __call__(self, directory):
        held = self.states.setdefault(directory, {})

        class Store:
            def save(self, step, state):
                held[step] = jax.tree.map(np.asarray, state)

            def restore(self, like):
                if not held:
                    return None
                step = max(held)
                return jax.tree.map(jnp.asarray, held[step]), step

            def close(self):
                pass

        return Store()


def a_run(tmp_path, memory, seeds=(7, 8), dropped=None):
    return Run(
        Cell("a", {}, seeds),
        folder=tmp_path / "a",
        open_checkpoints=memory,
        drop_rest=lambda: dropped is not None and dropped.append(True),
        progress=lambda step, steps: None,
    )


def training(run, steps=20, every=5, save_steps=3, **more):
    return run.train(
        update,
        start(run.cell.seeds),
        lambda step: jnp.float32(0.01 * step),
        steps=steps,
        evaluate=lambda state: {"w": state.w},
        every=every,
        save_steps=save_steps,
        **more,
    )


def drain(generator):
    rows = []
    while True:
        try:
            rows.append(next(generator))
        except StopIteration as stop:
            return rows, stop.value


def test_rows_state_and_progress(tmp_path):
    seen = []
    run = a_run(tmp_path, Memory())
    run._progress = lambda step, steps: seen.append((step, steps))
    rows, state = drain(training(run, steps=12))
    assert [(row["seed"], row["step"]) for row in rows] == [
        (7, 5), (8, 5), (7, 10), (8, 10), (7, 12), (8, 12),
    ]  # fmt: skip
    assert seen == [(step, 12) for step in range(1, 13)]
    w = np.float32([0.1, 0.2])
    for step in range(12):
        w = np.sin(np.float32(0.9) * w) + np.float32(0.01 * step)
    np.testing.assert_allclose(state.w, w, rtol=1e-5)
    np.testing.assert_array_equal(state.step, [12, 12])
    assert [row["w"] for row in rows[-2:]] == [float(v) for v in state.w]


@pytest.mark.parametrize("cut", range(1, 21))
def test_cut_after_any_step(tmp_path, cut):
    whole, expected = drain(training(a_run(tmp_path / "whole", Memory())))
    memory = Memory()

    class Killed(Exception):
        pass

    def kill(step, steps):
        if step == cut:
            raise Killed

    run = a_run(tmp_path, memory)
    run._progress = kill
    with pytest.raises(Killed):
        drain(training(run))
    calls = []
    run = a_run(tmp_path, memory)
    run._progress = lambda step, steps: calls.append(step)
    rows, state = drain(training(run))
    assert rows == whole
    np.testing.assert_array_equal(state.w, expected.w)
    saved = (cut - 1) // 3 * 3  # the newest checkpoint before the cut
    assert calls == list(range(saved + 1, 21))


def test_rows_are_given_back_before_the_rest_is_dropped(tmp_path):
    memory = Memory()
    drain(training(a_run(tmp_path, memory), steps=10))
    dropped = []
    resumed = training(a_run(tmp_path, memory, dropped=dropped), steps=20)
    assert [next(resumed)["step"] for _ in range(2)] == [5, 5]  # up to the checkpoint of step 9
    assert dropped == []
    assert next(resumed)["step"] == 10
    assert dropped == [True]


def test_rows_outlive_a_checkpoint_that_was_never_written(tmp_path):
    whole, _ = drain(training(a_run(tmp_path / "whole", Memory())))
    memory = Memory()
    drain(training(a_run(tmp_path, memory)))
    (states,) = memory.states.values()
    for lost in (18, 15, 12, 9, 6):  # each was still on its way when the process was killed
        states.pop(lost)
        assert drain(training(a_run(tmp_path, memory)))[0] == whole
        for later in [step for step in states if step >= lost]:
            states.pop(later)


def test_two_trainings_in_one_cell(tmp_path):
    memory = Memory()

    def both(run):
        teacher = yield from training(run, steps=6)
        student = yield from run.train(
            update,
            start(run.cell.seeds),
            lambda step: teacher.w.mean(),
            steps=20,
            evaluate=lambda state: {"v": state.w},
            every=10,
            save_steps=4,
        )
        yield from run.rows({"final": student.w})

    whole, _ = drain(both(a_run(tmp_path / "whole", Memory())))
    broken = both(a_run(tmp_path, memory))
    for _ in range(6):  # into the second training
        next(broken)
    broken.close()
    assert len(memory.states) == 2
    assert drain(both(a_run(tmp_path, memory)))[0] == whole
    # a first training that begins anew forgets what followed from it
    (tmp_path / "a" / "rows-1.json").unlink()
    assert drain(both(a_run(tmp_path, memory)))[0] == whole
    assert not (tmp_path / "a" / "train-2").exists()


def test_a_short_training_opens_no_checkpoints(tmp_path):
    memory = Memory()
    drain(training(a_run(tmp_path, memory), save_steps=None))
    assert memory.states == {}
    assert not (tmp_path / "a").exists()


@jax.jit
def breaks(state, batch):
    ce = jnp.where((state.step >= 7) & (jnp.arange(2) == 1), jnp.nan, 1.0)
    return State(state.step + 1, state.w), {"terms": {"ce": ce, "kl": ce * 0 + 1}, "n": state.step}


def broken(run, **more):
    return run.train(
        breaks,
        start(run.cell.seeds),
        lambda step: 0.0,
        steps=20,
        evaluate=lambda state: {"w": state.w},
        every=5,
        log=lambda info: info["terms"],
        **more,
    )


def test_what_is_not_finite_is_named(tmp_path):
    rows = broken(a_run(tmp_path, Memory()))
    assert next(rows)["step"] == next(rows)["step"] == 5
    with pytest.raises(NonFinite, match=r"cell a, step 10: info\.terms\.ce.*seeds 8 .*step 5"):
        next(rows)
    rows, _ = drain(broken(a_run(tmp_path, Memory()), allow_nonfinite=True))
    assert np.isnan(rows[3]["ce"])


def test_rows_for_seeds(tmp_path):
    run = a_run(tmp_path, Memory())
    assert run.rows({"x": np.array([1.0, 2.0])}, step=3) == [
        {"seed": 7, "step": 3, "x": 1.0},
        {"seed": 8, "step": 3, "x": 2.0},
    ]
    assert run.rows({"x": np.ones((2, 3))})[1] == {"seed": 8, "x": [1.0, 1.0, 1.0]}
    for wrong in (1.0, np.ones(3)):
        with pytest.raises(LabError, match="S = 2 seeds"):
            run.rows({"x": wrong})
    one = a_run(tmp_path, Memory(), seeds=(7,))
    assert one.rows({"x": 1.0, "y": np.ones(1), "z": np.ones(3)}) == [
        {"seed": 7, "x": 1.0, "y": 1.0, "z": [1.0, 1.0, 1.0]}
    ]
    assert a_run(tmp_path, Memory(), seeds=()).rows({"x": 1.0}) == [{"x": 1.0}]


def test_steps_that_do_not_count(tmp_path):
    run = a_run(tmp_path, Memory())
    stuck = run.train(
        lambda state, batch: (state, {}),
        start((7, 8)),
        lambda step: 0.0,
        steps=4,
        evaluate=lambda state: {"w": state.w},
        every=2,
    )
    with pytest.raises(LabError, match=r"raise state.step by 1"):
        next(stuck)
    apart = State(jnp.array([0, 1]), jnp.zeros(2))
    with pytest.raises(LabError, match="at one step"):
        next(run.train(update, apart, lambda s: 0.0, steps=4, evaluate=lambda s: {}, every=2))
    with pytest.raises(LabError, match="every must be >= 1"):
        next(training(run, every=0))
