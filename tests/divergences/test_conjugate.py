"""Conjugates and inverse slopes against the definition, by maximisation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from divjax.divergences import conjugate, f_divergence, generators, inverse_slope

SMOOTH = [g for g in generators.ALL if g.taylor]


def slopes(g):
    """Slopes well inside the range of f'."""
    return np.asarray(g.slope_p(jnp.linspace(-3.0, 3.0, 13)))


@pytest.mark.parametrize("g", SMOOTH, ids=lambda g: g.name)
def test_inverse_slope_inverts_and_has_the_derivative_of_the_inverse(g):
    u = jnp.linspace(-3.0, 3.0, 13)
    s = g.slope_p(u)
    np.testing.assert_allclose(inverse_slope(g, s), u, atol=2e-4)
    forward = jax.vmap(jax.grad(g.slope_p))(u)
    backward = jax.vmap(jax.grad(lambda s: inverse_slope(g, s)))(s)
    np.testing.assert_allclose(backward * forward, 1.0, rtol=2e-3)


@pytest.mark.parametrize("g", SMOOTH, ids=lambda g: g.name)
def test_closed_inverses_agree_with_each_other(g):
    u = jnp.linspace(-2.0, 2.0, 9)
    if g.inverse_p:
        np.testing.assert_allclose(g.inverse_p(g.slope_p(u)), u, atol=1e-4)
    if g.inverse_q:
        np.testing.assert_allclose(g.inverse_q(g.slope_q(u)), u, atol=1e-4)


@pytest.mark.parametrize("g", generators.ALL, ids=lambda g: g.name)
def test_conjugate_is_the_largest_gap(g, x64):
    f = jax.jit(lambda t: g.under_q(jnp.log(t)))
    points = slopes(g) if g.taylor else np.array([-0.4, -0.1, 0.0, 0.3])
    for s in points:
        best = minimize_scalar(
            lambda v, s=s: float(f(np.exp(v)) - s * np.exp(v)),
            bounds=(-8, 8),
            method="bounded",
            options={"xatol": 1e-9},
        )
        got = conjugate(g, jnp.asarray(float(s)))
        np.testing.assert_allclose(got, -best.fun, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("g", SMOOTH, ids=lambda g: g.name)
def test_the_variational_bound_holds_and_is_tight(g):
    p, q = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.5, 0.3])
    exact = float(f_divergence(jnp.log(p), jnp.log(q), g))
    best = g.slope_p(jnp.log(p / q))

    def bound(critic):
        return float(p @ critic - q @ conjugate(g, critic))

    np.testing.assert_allclose(bound(best), exact, rtol=1e-4)
    assert bound(best * 0.9) < exact + 1e-6


def test_outside_the_range_of_slopes():
    assert conjugate(generators.squared_hellinger, jnp.float32(0.6)) == jnp.inf
    assert conjugate(generators.pearson, jnp.float32(-5.0)) == -1.0
    assert inverse_slope(generators.pearson, jnp.float32(-5.0)) == -jnp.inf
    assert jax.grad(lambda s: conjugate(generators.pearson, s))(-5.0) == 0.0


@pytest.mark.parametrize("g", SMOOTH, ids=lambda g: g.name)
def test_the_derivative_of_the_conjugate_is_the_ratio(g):
    u = jnp.linspace(-3.0, 3.0, 13)
    got = jax.vmap(jax.grad(lambda s: conjugate(g, s)))(g.slope_p(u))
    np.testing.assert_allclose(got, np.exp(u), rtol=2e-3)


@pytest.mark.parametrize("order", [1.0001, 1.01, 1.5, 3.0])
def test_below_the_range_of_the_slope(order):
    """f'(0) = -1 / (a - 1), however close a is to 1: there f* = -f(0)."""
    g, edge = generators.alpha(order), -1.0 / (order - 1.0)
    s = jnp.float32(2 * edge)
    assert inverse_slope(g, s) == -jnp.inf
    np.testing.assert_allclose(conjugate(g, s), -1.0 / order, rtol=1e-6)
    inside = conjugate(g, jnp.float32(0.5 * edge))
    expected = (0.5 ** (order / (order - 1.0)) - 1.0) / order
    np.testing.assert_allclose(inside, expected, rtol=2e-3, atol=1e-6)
