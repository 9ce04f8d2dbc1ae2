"""Every field of every record against mpmath on the line f(t), over u in [-80, 80] and near 0."""

import f_exact
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from divjax.divergences import _terms, generators

RECORDS = pytest.mark.parametrize("g", generators.ALL, ids=lambda g: g.name)
TYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
SIZES = np.r_[
    2.0 ** -np.arange(24.0, 2.0, -1.0), 0.3, 0.7, 1.1, 2.5, 4, 7.5, 12, 20, 31, 45, 60, 80
]
GRID = np.float64(np.float32(np.r_[-SIZES[::-1], 0.0, SIZES]))
FIELDS = ("under_q", "under_p", "slope_p", "slope_q", "log_pull")


def exact(name, u):
    """F, G, R, S, log h at one log-ratio, as mpf."""
    with mp.workdps(f_exact.DIGITS):
        f, g, r, s, h = f_exact.point(name, mp.mpf(float(u)))
        return f, g, r, s, mp.log(h) if h > 0 else -mp.inf


def fields(g, dtype):
    """The five functions of a record on the grid, [5, N] float64."""
    with jax.enable_x64(True):
        u = jnp.asarray(GRID, dtype)
        out = jax.jit(lambda u: [getattr(g, field)(u) for field in FIELDS])(u)
        assert all(x.dtype == u.dtype and x.shape == u.shape for x in out)
        return np.array(out, np.float64)


def worst(got, expected, dtype, scale, conditioning):
    """Largest error over the tolerance: 8 roundings of a value, or of `scale` near u = 0.

    e^(c u) carries |c u| roundings of its exponent; beyond the range of the type inf and 0.
    """
    eps, top, tiny = (float(getattr(np.finfo(dtype), k)) for k in ("eps", "max", "tiny"))
    out = []
    for u, x, y in zip(GRID, got, expected, strict=True):
        y = float(y)
        assert not np.isnan(x), f"NaN at u = {u}, expected {y}"
        if abs(y) > top / 100 and (np.isinf(x) or abs(y) < top):
            assert x * y > 0, f"{x} at u = {u}, expected {y}"
            continue
        if x == y:
            continue
        allowed = 8 * eps * (abs(y) * (1 + conditioning * abs(u)) + scale * min(1.0, abs(u) + eps))
        out.append((abs(x - y) / (allowed + 2 * tiny), u, x, y))
    return max(out, default=(0.0, 0.0, 0.0, 0.0))


def test_every_record_has_a_line_and_a_unique_name():
    names = [g.name for g in generators.ALL]
    assert len(set(names)) == len(names) >= 19
    for name in names:
        f_exact.formula(name)
    assert not set(f_exact.FORMULAS) - set(names)


@TYPES
@RECORDS
def test_functions_of_the_log_ratio(g, dtype):
    got = fields(g, dtype)
    expected = np.array([exact(g.name, u) for u in GRID], object).T
    if g.name == "tv":  # t^2 f'' is a point mass at t = 1
        got, expected = got[:4], expected[:4]
    for field, x, y in zip(FIELDS, got, expected, strict=False):
        error, u, value, truth = worst(x, y, dtype, scale=1.0, conditioning=3.0)
        assert error <= 1, f"{field}({u}) = {value}, expected {truth} ({error:.1f} tolerances)"


@TYPES
@RECORDS
def test_gauge_is_exact_at_equality(g, dtype):
    with jax.enable_x64(True):
        zero = jnp.zeros((), dtype)
        for field in FIELDS[:4]:
            assert getattr(g, field)(zero) == 0, field


@RECORDS
def test_boundary_values_and_taylor(g):
    for got, expected in zip((g.at_zero, g.at_inf), f_exact.edges(g.name), strict=True):
        assert got == pytest.approx(float(expected), rel=1e-14)
    if g.name == "tv":
        assert g.taylor is None
    else:
        expected = [float(x) for x in f_exact.taylor(g.name)]
        assert g.taylor == pytest.approx(expected, rel=1e-14, abs=1e-14)


@TYPES
@RECORDS
def test_costs_of_samples_are_nonnegative_and_accurate_near_equality(g, dtype):
    """The estimators see f(e^u) through the series, where the record itself may cancel."""
    near = GRID[np.abs(GRID) <= 1]
    with jax.enable_x64(True):
        u = jnp.asarray(near, dtype)
        got = [np.float64(cost(g, u)) for cost in (_terms.under_q, _terms.under_p)]
    truth = np.float64([exact(g.name, x)[:2] for x in near]).T
    assert (np.array(got) >= 0).all()
    tolerance = 1e-5 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(got, truth, rtol=tolerance, atol=1e-44)


@TYPES
@RECORDS
def test_inverses_give_back_the_slope(g, dtype):
    """R(inverse_p(s)) = s and S(inverse_q(s)) = s, up to the rounding of s and of the result."""
    eps = float(np.finfo(dtype).eps)
    u = GRID[(np.abs(GRID) <= 12) & (np.abs(GRID) > 1e-6)]
    for field, inverse in ((2, g.inverse_p), (3, g.inverse_q)):
        if inverse is None:
            continue
        with jax.enable_x64(True):
            s = jnp.asarray([float(exact(g.name, x)[field]) for x in u], dtype)
            back = np.asarray(jax.jit(inverse)(s), np.float64)
            assert back.dtype == np.float64
        for x, target, y in zip(u, np.asarray(s, np.float64), back, strict=True):
            # A slope within some roundings of its supremum belongs to no one log-ratio.
            h, t = f_exact.point(g.name, mp.mpf(float(x)))[4], np.exp(x)
            steep = float(h) / (t if field == 2 else 1.0)  # |dR/du| = h/t, |dS/du| = h
            slack = 16 * eps * (max(abs(target), 1.0) + (1 + abs(x)) * steep)
            if slack > 0.1 * steep:
                continue
            assert np.isfinite(y), f"inverse of {target} is {y}, expected {x}"
            gap = abs(float(exact(g.name, y)[field]) - target)
            assert gap <= slack, f"field {FIELDS[field]}: inverse({target}) = {y}, expected {x}"


@RECORDS
def test_reverse_swaps_the_arguments(g):
    """F_dual(-u) = e^-u F(u) and its companions, boundary values and the Taylor pair."""
    r = generators.reverse(g)
    got = fields(r, "float64")
    expected = np.array([exact(g.name, -u) for u in GRID], object).T[[1, 0, 3, 2, 4]]
    expected[4] = [u + x for u, x in zip(GRID, expected[4], strict=True)]
    count = 4 if g.name == "tv" else 5
    for field, x, y in zip(FIELDS[:count], got, expected, strict=False):
        error, u, value, truth = worst(x, y, "float64", scale=1.0, conditioning=3.0)
        assert error <= 1, f"{field}({u}) = {value}, expected {truth}"
    assert (r.at_zero, r.at_inf) == (g.at_inf, g.at_zero)
    if g.taylor is not None:
        second, third = g.taylor
        assert r.taylor == pytest.approx((second, -3 * second - third), abs=1e-14)


@RECORDS
def test_reverse_twice_is_the_record(g):
    twice = generators.reverse(generators.reverse(g))
    # log_pull passes through u + (-u + x), which costs roundings of u = 80.
    np.testing.assert_allclose(
        fields(twice, "float64"), fields(g, "float64"), rtol=1e-14, atol=1e-13
    )
    assert (twice.at_zero, twice.at_inf) == (g.at_zero, g.at_inf)
    assert twice.taylor == pytest.approx(g.taylor, abs=1e-14) if g.taylor else not twice.taylor
    for inverse, again in ((g.inverse_p, twice.inverse_p), (g.inverse_q, twice.inverse_q)):
        assert (inverse is None) == (again is None)
