"""The recipes that look right, on a batch where they are wrong: these tests would notice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from divjax.core import Context, Loss, Mean, masked_mean, vary
from divjax.train import data_mesh, loss_and_grad, make_step

ROWS = 8
X = jnp.arange(8.0, 0.0, -1.0)
MASK = jnp.array([True, True, False, True, False, True, False, False])  # 2, 1, 1, 0 per device
# loss = mean of w^2 x over the mask at w = 3: x = 8, 7, 5, 3
VALUE, GRADIENT = 9 * 23 / 4, 6 * 23 / 4


def term(w, x, mask):
    return masked_mean(w * w * x, mask)


def local_mean(w, x, mask):
    return term(w, x, mask).value


def sum_inside(w, x, mask):
    total, weight = jax.lax.psum(tuple(term(w, x, mask)), "data")
    return total / weight


def sums_outside(w, x, mask):
    grads = jax.grad(lambda w: term(w, x, mask).total)(w)
    grads, weight = jax.lax.psum((grads, term(w, x, mask).weight), "data")
    return grads / weight


def ours(w, x, mask):
    ctx = Context(jax.random.key(0), jnp.int32(0), jnp.arange(len(x)), axis_name="data")
    fn = loss_and_grad(lambda w, batch, _: Loss({"fit": (1.0, term(w, *batch))}))
    return fn(w, (x, mask), ctx)[0]


def forgot_vary(w, x, mask):
    weight = jax.lax.psum(term(w, x, mask).weight, "data")
    return jax.lax.psum(jax.grad(lambda w: term(w, x, mask).total / weight)(w), "data")


def with_vary(w, x, mask):
    return forgot_vary(vary(w, "data"), x, mask)


def pmean_of(fn):
    return lambda w, x, mask: jax.lax.pmean(jax.grad(fn)(w, x, mask), "data")


def psum_of(fn):
    return lambda w, x, mask: jax.lax.psum(jax.grad(fn)(w, x, mask), "data")


def by_shard_map(fn):
    mapped = jax.shard_map(
        fn, mesh=data_mesh(4), in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=True
    )
    return float(jax.jit(mapped)(jnp.float32(3.0), X, MASK))


def by_pmap(fn):
    mapped = jax.pmap(fn, "data", in_axes=(None, 0, 0), devices=jax.devices()[:4])
    return np.asarray(mapped(jnp.float32(3.0), X.reshape(4, 2), MASK.reshape(4, 2))).tolist()


@pytest.mark.parametrize("fn", [ours, with_vary])
def test_right_recipe(fn):
    assert by_shard_map(fn) == pytest.approx(GRADIENT, rel=1e-6)
    assert by_pmap(fn) == pytest.approx([GRADIENT] * 4, rel=1e-6)


@pytest.mark.parametrize(
    ("recipe", "shard_map", "pmap"),
    [
        # mean of means: the rows of a sparsely masked device weigh too much
        (pmean_of(local_mean), 4 * 23.25, 23.25),
        # a sum inside the loss and outside of it: counted once per device too often
        (psum_of(sum_inside), 4 * GRADIENT, 4 * GRADIENT),
        # right under pmap only: shard_map transposes the replication of w into a sum of its own
        (sums_outside, 4 * GRADIENT, GRADIENT),
        (forgot_vary, 4 * GRADIENT, GRADIENT),
    ],
)
def test_wrong_recipes_differ(recipe, shard_map, pmap):
    assert by_shard_map(recipe) == pytest.approx(shard_map, rel=1e-6)
    assert by_pmap(recipe) == pytest.approx([pmap] * 4, rel=1e-6)
    assert shard_map != pytest.approx(GRADIENT, rel=0.05)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_trl_4719_verl_7200_ms_swift_10076_loss_does_not_depend_on_how_the_batch_was_cut(
    accumulate,
):
    def objective(w, batch, ctx):
        return Loss({"fit": (1.0, term(w, batch["x"], batch["mask"]))})

    step = make_step(objective, optax.sgd(1.0), accumulate=accumulate)
    state, info = step.update(
        step.init(jnp.float32(3.0), jax.random.key(0)), {"x": X, "mask": MASK}
    )
    assert float(info.value) == pytest.approx(VALUE, rel=1e-6)
    assert float(3.0 - state.params) == pytest.approx(GRADIENT, rel=1e-6)
    # the usual recipe, the mean over microbatches of their masked means, is another number
    parts = [
        term(jnp.float32(3.0), X[i::accumulate], MASK[i::accumulate]) for i in range(accumulate)
    ]
    assert float(sum(part.value for part in parts)) / accumulate != pytest.approx(VALUE, rel=0.05)


def test_weights_are_constants():
    """A weight that depends on params gets no gradient: no quotient rule."""

    def objective(w, batch, ctx):
        return Loss({"fit": (1.0, Mean(jnp.sum(w * X), jnp.sum(w * w * X)))})

    ctx = Context(jax.random.key(0), jnp.int32(0), jnp.arange(ROWS))
    for accumulate in [1, 2]:
        grads, _ = loss_and_grad(objective, accumulate=accumulate)(jnp.float32(3.0), {"x": X}, ctx)
        assert float(grads) == pytest.approx(1 / 9, rel=1e-6)
