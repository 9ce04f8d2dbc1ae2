"""What the K largest entries of a law say for certain about a divergence from it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import (
    Linear,
    Logits,
    TopK,
    f_divergence,
    f_divergence_from_logits,
    fused_rows,
    fused_sum,
    generators,
    top_k,
    top_k_bounds,
)

TEACHER = jnp.asarray(2.0 * np.random.default_rng(0).normal(size=(6, 9)), jnp.float32)
STUDENT = jnp.asarray(np.random.default_rng(1).normal(size=(6, 9)), jnp.float32)


def test_top_k_is_the_sorted_law():
    law = np.asarray(jax.nn.softmax(TEACHER), np.float64)
    known = top_k(Logits(TEACHER), 3, block=2)
    order = np.argsort(-law, axis=-1)
    np.testing.assert_array_equal(known.ids, order[:, :3])
    ranked = np.take_along_axis(law, order, -1)
    np.testing.assert_allclose(np.exp(known.log_probs), ranked[:, :3], rtol=2e-6)
    np.testing.assert_allclose(np.exp(known.log_tail), ranked[:, 3:].sum(-1), rtol=2e-6)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_truth_lies_between(k):
    """Every record; where the tail is one entry, all is known and the lower bound is the truth."""

    def both(g):
        bounds = top_k_bounds(top_k(Logits(TEACHER), k), STUDENT, g)
        return *bounds, f_divergence_from_logits(TEACHER, STUDENT, g)

    for low, high, truth in jax.jit(lambda: [both(g) for g in generators.ALL])():
        slack = 1e-6 * (1.0 + truth)
        assert (low <= truth + slack).all()
        assert (high >= truth - slack).all()
        if k == 8:
            np.testing.assert_allclose(low, truth, rtol=2e-5)


@pytest.mark.parametrize(
    "g", [generators.kl, generators.js(0.3), generators.tv, generators.pearson]
)
def test_no_tail_is_worse_and_one_is_as_bad(g):
    """Tails of two full entries, all choices tried: the worst is the upper bound."""
    cap, tail, head = 0.1, 0.2, [0.7, 0.1]
    log_q = jax.nn.log_softmax(STUDENT[:1])
    known = TopK(jnp.array([[4, 7]]), jnp.log(jnp.array([head])), jnp.log(jnp.array([tail])))
    bound = top_k_bounds(known, STUDENT[:1], g).high[0]
    laws = np.zeros((21, 9), np.float32)
    others = [i for i in range(9) if i not in (4, 7)]
    for law, filled in zip(laws, itertools.combinations(others, 2), strict=True):
        law[[4, 7]], law[list(filled)] = head, cap
    every = f_divergence(jnp.log(laws), jnp.broadcast_to(log_q, laws.shape), g)
    np.testing.assert_allclose(bound, every.max(), rtol=1e-5)


def test_a_tail_that_may_hold_zeros_has_no_upper_bound_for_reverse_kl():
    bounds = top_k_bounds(top_k(Logits(TEACHER), 3), STUDENT, generators.reverse(generators.kl))
    assert np.isinf(bounds.high).all()
    assert np.isfinite(bounds.low).all()


def test_distillation_from_a_stored_list_through_a_head():
    """The bucket loss of a head in blocks, and its gradient, against the whole logits."""
    hidden, head = TEACHER[:, :4], STUDENT[:4].T
    known, weights = top_k(Logits(TEACHER), 3), jnp.full(6, 1 / 6)

    def low(p, z):
        return top_k_bounds(p, z, generators.kl).low

    def dense(head):
        return weights @ low(known, hidden @ head.T)

    value, slope = jax.value_and_grad(
        lambda w: fused_sum(low, weights, known, Linear(hidden, w), block=2)[0]
    )(head)
    np.testing.assert_allclose(value, dense(head), rtol=1e-6)
    np.testing.assert_allclose(slope, jax.grad(dense)(head), atol=1e-7)
    rows = fused_rows(low, known, Linear(hidden, head), block=2)
    np.testing.assert_allclose(weights @ rows, value, rtol=1e-6)


def test_k_must_leave_a_tail():
    with pytest.raises(ValueError, match="k must be below the 9 entries"):
        top_k(Logits(TEACHER), 9)
