"""max_log_ratio: f goes on along its tangents beyond the bound; against the tangents in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import f_divergence, f_divergence_from_logits, generators

BOUND = 1.5
# record -> f and f'
CURVES = {
    "kl": (generators.kl, lambda t: t * np.log(t) - t + 1, np.log),
    "reverse_kl": (
        generators.reverse(generators.kl),
        lambda t: t - 1 - np.log(t),
        lambda t: 1 - 1 / t,
    ),
    "pearson": (generators.pearson, lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "neyman": (generators.neyman, lambda t: (t - 1) ** 2 / t, lambda t: 1 - 1 / t**2),
    "tv": (generators.tv, lambda t: np.abs(t - 1) / 2, lambda t: np.sign(t - 1) / 2),
}
P = np.array([0.05, 0.4, 0.1, 0.45, 0.0])  # the ratios 0.1, 1.33, 1, 22.5, 0 and an empty q
Q = np.array([0.5, 0.3, 0.1, 0.02, 0.08])


def exact(f, slope, p, q):
    """sum of q f(p/q) with tangents at e^-BOUND and e^BOUND; p f'(e^BOUND) where q = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(q > 0, p / q, 1.0)
    end = np.clip(t, np.exp(-BOUND), np.exp(BOUND))
    terms = q * (f(end) + slope(end) * (t - end))
    return np.sum(np.where(q > 0, terms, p * slope(np.exp(BOUND))))


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("law", ["zero in p", "zero in q"])
def test_value_is_that_of_the_tangents(name, law, x64):
    g, *curve = CURVES[name]
    p, q = (P, Q) if law == "zero in p" else (Q, P)
    log_p, log_q = jnp.log(p), jnp.log(q)
    expected = exact(*curve, p, q)
    got = f_divergence(log_p, log_q, g, max_log_ratio=BOUND)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    shifted = f_divergence_from_logits(log_p + 3.0, log_q - 2.0, g, max_log_ratio=BOUND)
    np.testing.assert_allclose(shifted, expected, rtol=1e-10)
    assert got < f_divergence(log_p, log_q, g) or name == "tv"


@pytest.mark.parametrize("name", CURVES)
def test_gradient_reaches_the_tails(name, x64):
    """Against differences of the exact sum, by the masses of the supported entries."""
    g, *curve = CURVES[name]
    p, q = P[:2], Q[:2]  # ratios 0.1, in the tail, and 1.33
    for side, law in enumerate((p, q)):
        got = jax.grad(f_divergence, argnums=side)(jnp.log(p), jnp.log(q), g, max_log_ratio=BOUND)
        for i, mass in enumerate(law):
            ends = []
            for sign in (1, -1):
                moved = [p.copy(), q.copy()]
                moved[side][i] = mass * np.exp(sign * 1e-6)
                ends.append(exact(*curve, *moved))
            np.testing.assert_allclose(got[i], (ends[0] - ends[1]) / 2e-6, rtol=1e-7, atol=1e-9)
        assert got[0] != 0


def test_the_costs_do_not_depend_on_the_type_that_was_first():
    """They are computed once per record, so in float64 whatever the first call was in."""
    bound = 0.7123
    p32 = jnp.array([-jnp.inf, 0.0], jnp.float32)
    f_divergence(p32, p32, generators.kl, max_log_ratio=bound)
    with jax.enable_x64(True):
        p, q = jnp.array([-jnp.inf, 0.0]), jnp.log(jnp.array([0.5, 0.5]))
        got = f_divergence(p, q, generators.kl, max_log_ratio=bound)
        t = np.exp(-bound)  # f at 0 by the tangent at the bound: f(t) - t f'(t)
        low = 0.5 * (1 - t)
        u = np.log(2.0)
        np.testing.assert_allclose(got, low + 0.5 * (2 * u - 2 + 1), rtol=1e-12)
