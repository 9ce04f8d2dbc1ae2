"""The power divergence near its limits 1 and 0, where the difference of two powers cancels."""

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from divjax.divergences import f_divergence, generators

NEAR = [1 + 1e-6, 1 - 1e-6, 1.0007, 0.993, 1.04, 1e-6, -1e-6, 0.0007, -0.007, -0.04, 0.96, 0.04]
U = np.r_[-60.0, -20.0, -5.0, -1.0, -0.1, 0.1, 1.0, 5.0, 20.0, 60.0]


def exact(a, u):
    with mp.workdps(60):
        a, t = mp.mpf(a), mp.exp(mp.mpf(float(u)))
        return (t**a - a * t - (1 - a)) / (a * (a - 1))


@pytest.mark.parametrize("order", NEAR)
def test_one_term_at_any_log_ratio(order):
    """One support point with q = 1 has the divergence f(p), with p = 1 it has f(1/q) q."""
    g = generators.alpha(order)
    log_p = jnp.asarray(U, jnp.float32)[:, None]
    truth = np.array([float(exact(order, u)) for u in U])
    np.testing.assert_allclose(f_divergence(log_p, 0 * log_p, g), truth, rtol=2e-5)
    mirrored = np.array([float(exact(order, -u) * mp.exp(mp.mpf(float(u)))) for u in U])
    np.testing.assert_allclose(f_divergence(0 * log_p, log_p, g), mirrored, rtol=2e-5)


@pytest.mark.parametrize("order", NEAR)
def test_slopes(order):
    g = generators.alpha(order)
    with mp.workdps(60):
        a = mp.mpf(order)
        powers = [(mp.exp((a - 1) * mp.mpf(float(u))), mp.exp(a * mp.mpf(float(u)))) for u in U]
        slope_p = np.array([float((x - 1) / (a - 1)) for x, _ in powers])
        slope_q = np.array([float((1 - y) / a) for _, y in powers])
    u = jnp.asarray(U, jnp.float32)
    np.testing.assert_allclose(g.slope_p(u), slope_p, rtol=2e-5)
    np.testing.assert_allclose(g.slope_q(u), slope_q, rtol=2e-5)
