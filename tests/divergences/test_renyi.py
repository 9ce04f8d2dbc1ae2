"""Renyi divergences: stored values, limits, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import kl, renyi, renyi_from_logits

P, Q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
INF = float("inf")


@pytest.mark.parametrize(
    ("order", "forward", "backward"),
    [
        (0.5, 0.105799536750, 0.105799536750),
        (2.0, 0.446820293790, 0.309932681387),
        (0.9, 0.199775787620, None),
        (1.1, 0.247824410462, None),
        (INF, 0.916290731874, None),
        (1.0, 0.223804657186, 0.193794197941),
        (0.0, 0.0, 0.0),
    ],
)
def test_values(order, forward, backward):
    np.testing.assert_allclose(renyi(P, Q, order=order), forward, rtol=2e-6, atol=1e-7)
    from_logits = renyi_from_logits(P + 3, Q - 2, order=order)
    np.testing.assert_allclose(from_logits, forward, rtol=2e-6, atol=1e-7)
    if backward is not None:
        np.testing.assert_allclose(renyi(Q, P, order=order), backward, rtol=2e-6, atol=1e-7)


def test_close_laws_keep_their_accuracy():
    rng = np.random.default_rng(0)
    z = rng.normal(size=512).astype(np.float32)
    y = (z + 1e-4 * rng.normal(size=512)).astype(np.float32)
    a, b = (np.float64(x) - np.log(np.exp(np.float64(x)).sum()) for x in (z, y))
    for order in (0.5, 2.0):
        t = np.exp(b) * np.expm1(order * (a - b) - order * np.log(np.exp(a).sum()))
        t -= order * np.exp(b) * np.expm1(a - b)
        expected = np.log1p(t.sum()) / (order - 1)
        got = renyi_from_logits(jnp.asarray(z), jnp.asarray(y), order=order)
        np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_edges():
    p, q = jnp.log(jnp.array([0.7, 0.3, 0.0])), jnp.log(jnp.array([0.1, 0.0, 0.9]))
    np.testing.assert_allclose(renyi(p, q, order=0.5), -2 * np.log(np.sqrt(0.07)), rtol=1e-6)
    np.testing.assert_allclose(renyi(p, q, order=0), -np.log(0.1), rtol=1e-6)
    for order in (1, 2.0, INF):
        value, slope = jax.value_and_grad(lambda q, a=order: renyi(p, q, order=a))(q)
        assert value == INF
        assert np.isfinite(slope).all()
    apart = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    for order in (0.5, 1, 3.0):
        value, slope = jax.value_and_grad(lambda x, a=order: renyi(x, apart[1], order=a))(apart[0])
        assert value == INF
        assert np.isfinite(slope).all()
    masked = renyi(p, q, order=0.5, where=jnp.zeros(3, bool))
    assert masked == 0


def test_far_and_near_form_meet():
    grid = jnp.linspace(0.0, 4.0, 400)
    p = jax.nn.log_softmax(jnp.stack([grid, jnp.zeros_like(grid)], -1))
    q = jax.nn.log_softmax(jnp.zeros((400, 2)))
    for order in (0.3, 1.5, 4.0):
        steps = np.diff(np.float64(renyi(p, q, order=order)))
        assert (steps > -1e-6).all()
        a, b = np.float64(p), np.float64(q)
        expected = np.log(np.exp(order * a + (1 - order) * b).sum(-1)) / (order - 1)
        np.testing.assert_allclose(renyi(p, q, order=order), expected, rtol=1e-5, atol=2e-7)


def test_order_one_is_kl_and_negative_orders_are_refused():
    np.testing.assert_array_equal(renyi(P, Q, order=1), kl(P, Q))
    with pytest.raises(ValueError, match="order must be a number >= 0, got -1"):
        renyi(P, Q, order=-1)
