"""Every named divergence is its textbook sum, argument for argument."""

import jax.numpy as jnp
import numpy as np
import pytest

from divjax import divergences as d

P = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
Q = np.array([[0.2, 0.5, 0.3], [0.3, 0.6, 0.1]])


def kl(p, q):
    return p * np.log(p / q)


def mixture(p, q, weight):
    return weight * p + (1 - weight) * q


def js(p, q, b):
    m = mixture(p, q, b)
    return b * kl(p, m) + (1 - b) * kl(q, m)


# name -> (arguments of ours, terms of the sum in NumPy)
SUMS = {
    "kl": ({}, kl),
    "reverse_kl": ({}, lambda p, q: kl(q, p)),
    "jeffreys": ({}, lambda p, q: kl(p, q) + kl(q, p)),
    "squared_hellinger": ({}, lambda p, q: (np.sqrt(p) - np.sqrt(q)) ** 2 / 2),
    "pearson": ({}, lambda p, q: (p - q) ** 2 / q),
    "neyman": ({}, lambda p, q: (p - q) ** 2 / p),
    "tv": ({}, lambda p, q: np.abs(p - q) / 2),
    "lecam": ({}, lambda p, q: (p - q) ** 2 / (2 * (p + q))),
    "soft_reverse_kl": ({}, lambda p, q: 2 * kl((p + q) / 2, p)),
    "js": ({"weight": 0.2}, lambda p, q: js(p, q, 0.2)),
    "js normalised": ({"weight": 0.2, "normalise": True}, lambda p, q: js(p, q, 0.2) / 0.16),
    "skew_kl": ({"weight": 0.3}, lambda p, q: kl(p, mixture(p, q, 0.3))),
    "skew_reverse_kl": ({"weight": 0.3}, lambda p, q: kl(q, mixture(q, p, 0.3))),
    "alpha": ({"order": 0.4}, lambda p, q: (p - p**0.4 * q**0.6) / 0.24),
    "tsallis": ({"order": 1.7}, lambda p, q: (p**1.7 * q**-0.7 - p) / 0.7),
}
DEFAULTS = {"js": {"weight": 0.5}, "skew_kl": {"weight": 0.1}, "skew_reverse_kl": {"weight": 0.1}}


def test_every_name_is_here():
    home = "divjax.divergences.named"
    named = {name for name in d.__all__ if getattr(vars(d)[name], "__module__", "") == home}
    assert named == {name.split()[0] for name in SUMS}


@pytest.mark.parametrize("name", SUMS)
def test_named_divergence(name, x64):
    options, terms = SUMS[name]
    function = vars(d)[name.split()[0]]
    log_p, log_q = jnp.log(P), jnp.log(Q)
    expected = terms(P, Q).sum(-1)
    np.testing.assert_allclose(function(log_p, log_q, **options), expected, rtol=1e-10)
    np.testing.assert_allclose(function(log_p.T, log_q.T, axis=0, **options), expected, rtol=1e-10)


@pytest.mark.parametrize("name", SUMS)
def test_where_drops_entries(name, x64):
    """What is masked may hold NaN and is as if it were not there."""
    options, _ = SUMS[name]
    function = vars(d)[name.split()[0]]
    where = jnp.array([[True, True, False]] * 2)
    p, q = (x[:, :2] / x[:, :2].sum(-1, keepdims=True) for x in (P, Q))
    padded = [jnp.pad(jnp.log(x), [(0, 0), (0, 1)], constant_values=jnp.nan) for x in (p, q)]
    expected = function(jnp.log(p), jnp.log(q), **options)
    np.testing.assert_allclose(function(*padded, where=where, **options), expected, rtol=1e-10)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    function = vars(d)[name]
    log_p, log_q = jnp.log(jnp.float32(P)), jnp.log(jnp.float32(Q))
    np.testing.assert_array_equal(function(log_p, log_q), function(log_p, log_q, **DEFAULTS[name]))
