"""SinKD couples all rows of a batch: one plan, on any number of devices, in every mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from divjax.core import Loss
from divjax.divergences.transport import converged
from divjax.losses import sinkd, sinkd_debiased
from divjax.train import data_mesh, make_step
from divjax.train.parallel import compile

ROWS = 16
LOSSES = {
    "paper": sinkd,
    "converged": functools.partial(sinkd, solver=converged(tolerance=1e-5)),
    "debiased": functools.partial(sinkd_debiased, solver=converged(tolerance=1e-5)),
}


def make_batch(dtype):
    """The first device of 2, 4 and 8 has no valid row, the others unequal numbers of them."""
    rng = np.random.default_rng(0)
    mask = rng.random(ROWS) < 0.7
    mask[: ROWS // 2] = False
    mask[-ROWS // 2 :: 3] = True
    x, teacher = rng.normal(size=(ROWS, 5)), 2 * rng.normal(size=(ROWS, 4))
    return {"x": x.astype(dtype), "teacher": teacher.astype(dtype), "mask": mask}


WEIGHTS = np.random.default_rng(1).normal(size=(5, 4))


def loss(name, w, batch, axis_name=None):
    student = batch["x"] @ w
    return LOSSES[name](student, batch["teacher"], mask=batch["mask"], axis_name=axis_name)[0]


@functools.cache
def expected(name, dtype):
    """Value and gradient of the whole batch by one call, without devices."""
    batch = make_batch(dtype)
    value = jax.jit(jax.value_and_grad(lambda w: loss(name, w, batch).value))
    return value(jnp.asarray(WEIGHTS, dtype))


# In float32 the order of the sums alone moves this gradient, a difference of larger ones, by 2e-6.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 3e-6)])
@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_whole_batch(name, devices, mode, dtype, tolerance):
    def objective(w, batch, ctx):
        return Loss({"plan": (1.0, loss(name, w, batch, ctx.axis_name))})

    step = make_step(objective, optax.trace(0.9))  # whose state is the first gradient as it came
    with jax.enable_x64(dtype == "float64"):
        value, slope = expected(name, dtype)
        start = step.init(jnp.asarray(WEIGHTS, dtype), jax.random.key(0))
        state, info = compile(step, mode=mode, mesh=data_mesh(devices))(start, make_batch(dtype))
    np.testing.assert_allclose(info.value, value, rtol=1e-6)
    assert np.linalg.norm(state.opt_state.trace - slope) < tolerance * np.linalg.norm(slope)


@pytest.mark.parametrize("name", LOSSES)
def test_devices_that_do_not_ask_for_the_others_make_plans_of_their_own(name):
    """Each device's loss, under shard_map, is that of its rows alone."""
    batch = make_batch("float32") | {"mask": np.arange(ROWS) % 3 > 0}
    local = jax.shard_map(
        lambda batch: loss(name, jnp.asarray(WEIGHTS), batch).total[None],
        mesh=data_mesh(4), in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"),
    )  # fmt: skip
    for i, total in enumerate(jax.jit(local)(batch)):
        rows = {k: x[4 * i : 4 * i + 4] for k, x in batch.items()}
        np.testing.assert_allclose(total, loss(name, WEIGHTS, rows).total, rtol=1e-5)
