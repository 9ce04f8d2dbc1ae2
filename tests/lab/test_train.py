"""The loop with the real step and real checkpoints: donated states, typed keys, many seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Loss, Mean, row_keys
from divjax.lab import Cell, LabError, Run
from divjax.train import make_step, over_seeds, parallel
from divjax.train.checkpoint import open_checkpoints

SEEDS = 3, 4, 5


def objective(params, batch, ctx):
    noise = jax.vmap(jax.random.normal)(row_keys(ctx))
    error = (batch["x"] @ params["w"] + 0.1 * noise - batch["y"]) ** 2
    return Loss({"square": (1.0, Mean(error.sum(), jnp.float32(error.size)))})


def batches(step):
    x = np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(-1)}


def training(folder, progress, config=None):
    run = Run(
        Cell("a", {}, SEEDS),
        folder=folder,
        open_checkpoints=lambda directory: open_checkpoints(directory, config or {"lr": 0.1}),
        drop_rest=lambda: None,
        progress=progress,
    )
    step = over_seeds(make_step(objective, optax.adam(0.1)))
    keys = jax.vmap(jax.random.key)(jnp.asarray(SEEDS))
    params = {"w": jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)}
    return run.train(
        parallel.compile(step),
        step.init(params, keys),
        batches,
        steps=12,
        evaluate=lambda state: {"w": jnp.linalg.norm(state.params["w"] - 1, axis=-1)},
        every=4,
        log=lambda info: info.terms,
        save_steps=3,
    )


def drain(generator):
    rows = []
    while True:
        try:
            rows.append(next(generator))
        except StopIteration as stop:
            return rows, stop.value


class Killed(Exception):
    pass


def kill_at(cut):
    def progress(step, steps):
        if step == cut:
            raise Killed

    return progress


@pytest.mark.parametrize("cut", [2, 7, 12])
def test_resumes_bit_for_bit(tmp_path, cut):
    rows, state = drain(training(tmp_path / "whole", lambda step, steps: None))
    assert all(last["w"] < first["w"] for first, last in zip(rows[:3], rows[-3:], strict=True))
    with pytest.raises(Killed):
        drain(training(tmp_path / "cut", kill_at(cut)))
    seen = []
    again, resumed = drain(training(tmp_path / "cut", lambda step, steps: seen.append(step)))
    assert again == rows
    assert seen[0] == (cut - 1) // 3 * 3 + 1
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_a_foreign_checkpoint_is_an_error_for_the_person(tmp_path):
    drain(training(tmp_path, lambda step, steps: None))
    with pytest.raises(LabError, match="another config"):
        next(training(tmp_path, lambda step, steps: None, config={"lr": 0.2}))
