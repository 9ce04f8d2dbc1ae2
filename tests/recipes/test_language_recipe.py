"""Distillation of a language model through its head in blocks, against whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Loss, masked_mean
from divjax.divergences import (
    Linear,
    TopK,
    f_divergence_from_logits,
    fused_rows,
    generators,
    token_log_prob,
    top_k,
    top_k_bounds,
)
from divjax.recipes import kd
from divjax.train import data_mesh, make_step, parallel

ROWS, LENGTH, WIDTH, SIZE = 16, 6, 5, 23
RNG = np.random.default_rng(0)


def weights(scale):
    shapes = {"embedding": (SIZE, WIDTH), "mix": (WIDTH, WIDTH), "head": (SIZE, WIDTH)}
    return {k: jnp.asarray(scale * RNG.normal(size=s), jnp.float32) for k, s in shapes.items()}


STUDENT, TEACHER = weights(1.0), weights(1.5)
MASK = RNG.random((ROWS, LENGTH)) < 0.7
MASK[:4] = False  # a device without a token
BATCH = {"tokens": RNG.integers(0, SIZE, (ROWS, LENGTH)), "mask": MASK}


def head(params, tokens):
    """A model of one token: enough to have a hidden state and a head."""
    hidden = jnp.tanh(params["embedding"][tokens] @ params["mix"])
    return Linear(hidden, params["head"])


def js(p, q):
    return f_divergence_from_logits(p, q, generators.js(0.3))


FUSED = kd.language(
    head, lambda batch, ctx: head(ctx.frozen, batch["tokens"][:, :-1]), js, weight=0.7, block=8
)


def dense(params, batch, ctx):
    """The same by hand, two terms."""
    inputs, targets, mask = batch["tokens"][:, :-1], batch["tokens"][:, 1:], batch["mask"][:, 1:]
    p, q = (x.hidden @ x.head.T for x in (head(ctx.frozen, inputs), head(params, inputs)))
    ce, far = masked_mean(-token_log_prob(q, targets), mask), masked_mean(js(p, q), mask)
    return Loss({"near": (0.3, ce), "far": (0.7, far)}, {"ce": ce, "kd": far})


def first_gradient(objective, *, mode="jit", devices=1, accumulate=1):
    step = make_step(objective, optax.trace(0.9), accumulate=accumulate)
    state = step.init(STUDENT, jax.random.key(0))
    update = parallel.compile(step, mode=mode, mesh=data_mesh(devices))
    state, info = update(state, BATCH, TEACHER)
    return jax.device_get((info, state.opt_state.trace))


@pytest.mark.parametrize(
    ("mode", "devices", "accumulate"),
    [
        ("jit", 1, 1),
        ("jit", 8, 1),
        ("jit", 1, 4),
        ("shard_map", 4, 1),
        ("shard_map", 8, 2),
        ("pmap", 4, 1),
    ],
)
def test_the_dense_objective_on_any_devices_and_microbatches(mode, devices, accumulate):
    true, expected = first_gradient(dense)
    info, slopes = first_gradient(FUSED, mode=mode, devices=devices, accumulate=accumulate)
    np.testing.assert_allclose(info.value, true.value, rtol=1e-6)
    for name, value in true.metrics.items():
        np.testing.assert_allclose(info.metrics[name], value, rtol=1e-6)
    for ours, theirs in zip(*map(jax.tree.leaves, (slopes, expected)), strict=True):
        assert np.linalg.norm(ours - theirs) < 2e-6 * np.linalg.norm(theirs)


def test_stored_laws_take_the_place_of_the_teacher():
    """All but one entry stored: nothing is hidden, so value and gradient are the teacher's."""
    source = head(TEACHER, BATCH["tokens"][:, :-1])
    stored = {**BATCH, "teacher": tuple(top_k(source, SIZE - 1))}

    def low(p, q):
        return top_k_bounds(p, q, generators.kl).low

    from_store = kd.language(head, lambda batch, ctx: TopK(*batch["teacher"]), low)
    from_model = kd.language(head, lambda batch, ctx: head(TEACHER, batch["tokens"][:, :-1]))

    def slope(objective, batch):
        step = make_step(objective, optax.trace(0.9))
        return step.update(step.init(STUDENT, jax.random.key(0)), batch)

    (ours, info), (theirs, expected) = slope(from_store, stored), slope(from_model, BATCH)
    np.testing.assert_allclose(info.value, expected.value, rtol=1e-5)
    pair = (ours.opt_state.trace, theirs.opt_state.trace)
    for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_it_learns_the_teacher():
    """150 steps take the divergence on the batch down tenfold."""
    objective = kd.language(head, lambda batch, ctx: head(ctx.frozen, batch["tokens"][:, :-1]))
    step = make_step(objective, optax.adam(3e-2))
    state, update = step.init(STUDENT, jax.random.key(0)), parallel.compile(step)
    values = []
    for _ in range(150):
        state, info = update(state, BATCH, TEACHER)
        values.append(float(info.value))
    assert values[-1] < 0.1 * values[0]
    inputs = BATCH["tokens"][:, :-1]
    kl = fused_rows(
        lambda p, q: f_divergence_from_logits(p, q, generators.kl),
        head(TEACHER, inputs), head(state.params, inputs),
    )  # fmt: skip
    assert float(masked_mean(kl, jnp.asarray(MASK[:, 1:])).value) < 0.1 * values[0]
