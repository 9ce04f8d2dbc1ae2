"""Theorems about every f-divergence on drawn laws; whatever fails here becomes a table row."""

import math
from functools import cache

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divjax.divergences import f_divergence, f_divergence_from_logits, generators, renyi

NAMES = [g.name for g in generators.ALL]
SLACK = 1e-9  # float64 throughout
few = settings(max_examples=25, derandomize=True, deadline=None, database=None)

# Extreme but finite logits, equal entries, and masked vocabulary on either side.
entry = st.one_of(
    st.floats(-3, 3), st.floats(-200, 200), st.sampled_from([0.0, 1.0, -np.inf, -1e4, 1e-7])
)
two_rows = hnp.arrays(np.float64, (2, 4, 5), elements=entry).map(
    lambda z: np.where(np.isfinite(z).any(-1, keepdims=True), z, 0.0)
)


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


@cache
def runner(reverse):
    records = [generators.reverse(g) if reverse else g for g in generators.ALL]

    def run(log_p, log_q):
        return jnp.stack([f_divergence(log_p, log_q, g) for g in records])

    return jax.jit(run)


def all_values(log_p, log_q, reverse=False):
    """Record name -> [4]."""
    values = np.asarray(runner(reverse)(log_p, log_q))
    assert not np.isnan(values).any()
    return dict(zip(NAMES, values, strict=True))


def log_softmax(z):
    with np.errstate(divide="ignore"):
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))


def log_add(a, b):
    with np.errstate(invalid="ignore"):
        return np.logaddexp(a, b)


def at_most(small, large, label):
    bad = ~(small <= large * (1 + SLACK) + SLACK)
    assert not bad.any(), (label, small[bad], large[bad])


@few
@given(two_rows)
def test_nonnegative_and_zero_at_equality(z):
    log_p, log_q = log_softmax(z)
    for name, value in all_values(log_p, log_q).items():
        assert (value >= 0).all(), name
    for name, value in all_values(log_p, log_p).items():
        assert not value.any(), name


@few
@given(two_rows)
def test_the_dual_swaps_the_arguments(z):
    log_p, log_q = log_softmax(z)
    swapped = all_values(log_q, log_p, reverse=True)
    for name, value in all_values(log_p, log_q).items():
        np.testing.assert_allclose(swapped[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


@few
@given(two_rows)
def test_merging_two_cells_never_increases(z):
    log_p, log_q = log_softmax(z)
    # The merged cell keeps its place and the other becomes empty on both sides.
    merged = [
        np.concatenate([log_add(x[:, :1], x[:, 1:2]), np.full((4, 1), -np.inf), x[:, 2:]], axis=1)
        for x in (log_p, log_q)
    ]
    before = all_values(log_p, log_q)
    for name, value in all_values(*merged).items():
        at_most(value, before[name], name)


@few
@given(two_rows, two_rows, st.floats(0.05, 0.95))
def test_jointly_convex(first, second, weight):
    (p1, q1), (p2, q2) = log_softmax(first), log_softmax(second)
    mix_p, mix_q = (
        log_add(math.log(weight) + a, math.log1p(-weight) + b) for a, b in ((p1, p2), (q1, q2))
    )
    left, right = all_values(p1, q1), all_values(p2, q2)
    for name, value in all_values(mix_p, mix_q).items():
        at_most(value, weight * left[name] + (1 - weight) * right[name], name)


@few
@given(two_rows)
def test_inequalities_between_records(z):
    v = all_values(*log_softmax(z))
    tv, kl, js, hellinger, lecam = (v[k] for k in ("tv", "kl", "js", "squared_hellinger", "lecam"))
    log2 = math.log(2)
    at_most(2 * tv**2, kl, "Pinsker")
    at_most(tv**2, 2 * js, "tv by js")
    at_most(tv**2, 1 - (1 - hellinger) ** 2, "tv by Hellinger")
    at_most(tv, np.sqrt(v["pearson"]) / 2, "tv by chi2")
    at_most(kl, np.log1p(v["pearson"]), "kl by chi2")
    at_most(hellinger, lecam, "Hellinger by Le Cam")
    at_most(lecam, 2 * hellinger, "Le Cam by Hellinger")
    at_most(log2 * hellinger, js, "js from below by Hellinger")
    at_most(js, hellinger, "js by Hellinger")
    at_most(lecam / 2, js, "js from below by Le Cam")
    at_most(js, log2 * lecam, "js by Le Cam")


@few
@given(two_rows)
def test_bounds_by_disjoint_supports(z):
    values = all_values(*log_softmax(z))
    for g in generators.ALL:
        if g.at_zero + g.at_inf < np.inf:
            at_most(values[g.name], np.full(4, g.at_zero + g.at_inf), g.name)


@few
@given(two_rows, two_rows)
def test_kl_and_renyi_add_over_products(first, second):
    (p1, q1), (p2, q2) = log_softmax(first), log_softmax(second)
    p, q = ((a[:, :, None] + b[:, None, :]).reshape(4, 25) for a, b in ((p1, p2), (q1, q2)))
    for name, d in (
        ("kl", lambda p, q: f_divergence(p, q, generators.kl)),
        ("renyi", lambda p, q: renyi(p, q, order=0.5)),
        ("renyi", lambda p, q: renyi(p, q, order=2.0)),
    ):
        together, apart = (np.asarray(x) for x in (d(p, q), d(p1, q1) + d(p2, q2)))
        np.testing.assert_allclose(together, apart, rtol=1e-9, atol=1e-12, err_msg=name)


@few
@given(two_rows, st.floats(-1e3, 1e3))
def test_logits_may_be_shifted(z, shift):
    """Both entrances agree, and a constant on one side changes nothing."""
    for g in (generators.kl, generators.js(0.5), generators.tv):
        expected = np.asarray(f_divergence(*log_softmax(z), g))
        for z_p, z_q in ((z[0], z[1]), (z[0] + shift, z[1]), (z[0], z[1] - shift)):
            got = np.asarray(f_divergence_from_logits(jnp.asarray(z_p), jnp.asarray(z_q), g))
            # The shift itself rounds the logits: to 1e-12 of 1e4.
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11, err_msg=g.name)
