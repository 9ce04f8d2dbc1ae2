"""Value and gradient are those of the whole batch on any number of devices and microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Loss, all_rows, masked_mean, row_keys, whole_batch
from divjax.train import data_mesh, make_step
from divjax.train.parallel import compile

ROWS = 16


def make_batch():
    """Two masks with different counts; the first device of 2, 4 and 8 has no valid row of one."""
    rng = np.random.default_rng(0)
    mask = rng.random(ROWS) < 0.6
    mask[: ROWS // 2] = False
    other = rng.random(ROWS) < 0.4
    other[0] = True
    return {
        "x": rng.normal(size=(ROWS, 5)).astype(np.float32),
        "y": rng.normal(size=(ROWS, 3)).astype(np.float32),
        "mask": mask,
        "other": other,
    }


def make_params():
    rng = np.random.default_rng(1)
    return {
        "w1": rng.normal(size=(5, 7)).astype(np.float32),
        "w2": rng.normal(size=(7, 3)).astype(np.float32),
    }


def draw_keep(keys):
    return jax.vmap(lambda key: jax.random.bernoulli(key, 0.7, (7,)))(keys)


def network(params, x, keep):
    return jnp.where(keep, jnp.tanh(x @ params["w1"]) / 0.7, 0.0) @ params["w2"]


def pairwise(out):
    """Couples examples: the mean squared distance between all rows of the batch."""
    return jnp.mean((out[:, None] - out[None]) ** 2)


def objective(params, batch, ctx, *, coupled):
    out = network(params, batch["x"], draw_keep(row_keys(ctx)))
    terms = {
        "fit": (1.0, masked_mean(jnp.sum((out - batch["y"]) ** 2, -1), batch["mask"])),
        "size": (0.3, masked_mean(jnp.sum(out**4, -1), batch["other"])),
    }
    if coupled:
        spread = pairwise(all_rows(out, ctx.axis_name))
        terms["spread"] = (0.5, whole_batch(spread, ctx.axis_name))
    return Loss(terms, {"norm": masked_mean(jnp.sum(jnp.abs(out), -1), batch["mask"])})


# Keeps the gradient as its state and leaves the parameters alone: nothing is rounded on the way.
READER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def run(mode, devices, *, coupled, accumulate=1):
    """(gradient vector, Info) of one step."""
    step = make_step(functools.partial(objective, coupled=coupled), READER, accumulate=accumulate)
    state = step.init(make_params(), jax.random.key(3))
    if mode == "vmap":
        split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), make_batch())
        local = functools.partial(step.update, axis_name="i")
        new, info = jax.jit(jax.vmap(local, (None, 0), axis_name="i"))(state, split)
        new, info = jax.tree.map(lambda x: x[-1], (new, info))
    else:
        new, info = compile(step, mode=mode, mesh=data_mesh(devices))(state, make_batch())
    return vector(new.opt_state), info


def vector(tree):
    return np.concatenate([np.ravel(tree[k]) for k in sorted(tree)]).astype(np.float64)


@functools.cache
def expected(coupled):
    """(value, norm, gradient) by the definition: the whole batch at once, in float64."""
    batch, params = make_batch(), make_params()
    key = jax.random.fold_in(jax.random.key(3), 0)
    keep = np.asarray(draw_keep(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(ROWS))))

    def value(params):
        out = network(params, batch["x"].astype(np.float64), keep)
        error = jnp.sum((out - batch["y"]) ** 2, -1)
        total = jnp.sum(error * batch["mask"]) / batch["mask"].sum()
        total += 0.3 * jnp.sum(jnp.sum(out**4, -1) * batch["other"]) / batch["other"].sum()
        norm = jnp.sum(jnp.abs(out).sum(-1) * batch["mask"]) / batch["mask"].sum()
        return total + (0.5 * pairwise(out) if coupled else 0.0), norm

    with jax.enable_x64(True):
        params = {k: jnp.asarray(v, jnp.float64) for k, v in params.items()}
        (total, norm), grad = jax.value_and_grad(value, has_aux=True)(params)
        return float(total), float(norm), vector(grad)


def check(grad, info, *, coupled):
    value, norm, truth = expected(coupled)
    assert np.linalg.norm(grad - truth) / np.linalg.norm(truth) < 1e-6
    np.testing.assert_allclose(info.value, value, rtol=1e-6)
    np.testing.assert_allclose(info.metrics["norm"], norm, rtol=1e-6)
    assert float(info.metrics["empty_terms"]) == 0


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap", "vmap"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_same_numbers_on_any_number_of_devices(mode, devices):
    grad, info = run(mode, devices, coupled=True)
    check(grad, info, coupled=True)


@pytest.mark.parametrize(
    ("mode", "devices", "accumulate"),
    [
        ("jit", 1, 2),
        ("jit", 1, 16),
        ("jit", 4, 2),
        ("shard_map", 1, 8),
        ("shard_map", 2, 4),
        ("shard_map", 8, 2),
        ("pmap", 4, 4),
        ("vmap", 1, 4),
        ("vmap", 8, 2),
    ],
)
def test_same_numbers_in_any_number_of_microbatches(mode, devices, accumulate):
    grad, info = run(mode, devices, coupled=False, accumulate=accumulate)
    check(grad, info, coupled=False)
