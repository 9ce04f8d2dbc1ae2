"""The terms of an f-divergence and of its derivatives, pointwise and exact at every edge.

Everything is two-sided: a term is q F(u) where q >= p and p G(u) where p > q, so that the larger
weight multiplies a factor that grows slowly. The weighted slopes follow the same rule:
q S(u) = p e^-u S(u) and p R(u) = q e^u R(u).
"""

from functools import cache, partial
from math import factorial, inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array, check, mul_exp
from divjax.divergences.generators import Generator, reverse

_ORDER = 4  # Taylor terms kept: u^2 ... u^5
_HUGE = 1e30  # beyond it a power law is its leading term, and a product with it may overflow


class Weighted(NamedTuple):
    """One row of terms, each [..., K]; sums over K are the divergence and its derivatives."""

    value: Array  # q f(t)
    slope_p: Array  # p R, the derivative by log p
    slope_q: Array  # q S, the derivative by log q
    pull: Array  # q t^2 f''(t), what couples the two in second derivatives


class _Side(NamedTuple):
    """What happens to a record for u <= 0 (mirrored for u >= 0); Python numbers."""

    series: tuple[float, ...]  # f(e^u) = u^2 (c0 + c1 u + ...)
    radius: float  # of |u| in which the series is used
    growth: float  # e^(growth u) is how fast t^2 f'' goes as u -> -inf


@cache
def _left(g: Generator, dtype: Any) -> _Side:
    """Series and growth of `under_q` for u <= 0.

    F = f(e^u) solves F'' - F' = h with h = t^2 f'' = exp(log_pull) and F(0) = F'(0) = 0, so the
    Taylor coefficients of h give those of F.
    """
    _check_record(g)
    with jax.enable_x64(True), jax.ensure_compile_time_eval():

        def pull(u: Array) -> Array:
            return jnp.exp(g.log_pull(u))

        h = []
        for k in range(_ORDER + 1):
            h.append(float(pull(jnp.zeros(()))) / factorial(k))
            pull = jax.grad(pull)
        far = jnp.asarray([-1000.0, -500.0])
        low, high = g.log_pull(far).tolist()
    growth = round((high - low) / 500.0, 9) if low > -inf and high > -inf else inf
    c = [0.0, 0.0]
    for k in range(_ORDER + 1):
        c.append((h[k] + (k + 1) * c[k + 1]) / ((k + 2) * (k + 1)))
    if not c[2] > 0:  # a kink at 1: f is its own leading term
        return _Side((0.0,), -1.0, growth)
    tolerance = 8.0 * float(np.finfo(dtype).eps)
    last = abs(c[_ORDER + 2]) / c[2]
    radius = min(0.25, (tolerance / last) ** (1 / _ORDER)) if last > 0 else 0.25
    return _Side(tuple(c[2 : _ORDER + 2]), radius, growth)


def growth_at_zero(g: Generator) -> float:
    """The exponent of t^2 f''(t) as t -> 0; inf where that is 0."""
    return _left(g, np.dtype(np.float64)).growth


def _check_record(g: Generator) -> None:
    """The functions of a record belong together and are in the gauge f(1) = f'(1) = 0.

    Of another gauge (t log t for KL) values would be right far from p = q and wrong near it.
    """
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        u = jnp.array([0.0, -0.7, 0.6])
        f, from_p, slope_p, slope_q = (c(u) for c in (g.under_q, g.under_p, g.slope_p, g.slope_q))
        slope = jax.jvp(g.slope_p, (u,), (jnp.ones_like(u),))[1][1:]
        rules = {
            "under_q(0) = f(1) must be 0": f[0],
            "slope_p(0) = f'(1) must be 0": slope_p[0],
            "under_p(u) must be exp(-u) under_q(u)": (from_p - jnp.exp(-u) * f)[1:],
            "slope_q(u) must be under_q(u) - exp(u) slope_p(u)": slope_q - f + jnp.exp(u) * slope_p,
            "log_pull(u) must be u + log slope_p'(u)": (jnp.exp(g.log_pull(u) - u))[1:] - slope,
        }
        size = 1.0 + float(jnp.abs(jnp.stack([f, slope_p, slope_q])).max())
        for rule, error in rules.items():
            off = float(jnp.abs(error).max())
            check.require(
                off <= 1e-4 * size,
                f"Generator {g.name!r}",
                f"{rule} (gauge f(1) = f'(1) = 0; u = log p/q)",
                f"a difference of {off:.3g}",
                "add c (t - 1) to f, and write all five functions for that f",
            )


def _horner(coefficients: tuple[float, ...], u: Array) -> Array:
    total = jnp.full_like(u, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * u + c
    return total * u * u


def _finite(x: Array) -> Array:
    """Derivatives are those of the representable terms."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _limit(weight: Array, cost: float) -> Array:
    """weight * cost; inf whatever the weight, as the weight's logarithm is finite here."""
    return jnp.full_like(weight, inf) if cost == inf else weight * cost


def entropy(logits: Array) -> Array:
    """[*E, K] -> [*E], of softmax(logits); -inf is probability 0."""
    log_p = jax.nn.log_softmax(logits)
    return jnp.sum(mul_exp(-log_p, log_p), axis=-1)


def under_q(g: Generator, u: Array) -> Array:
    """F(u) = f(e^u), accurate near 0 too."""
    side = _left(g, u.dtype)
    return jnp.where(jnp.abs(u) <= side.radius, _horner(side.series, u), g.under_q(u))


def under_p(g: Generator, u: Array) -> Array:
    """G(u) = e^-u f(e^u), accurate near 0 too."""
    return under_q(reverse(g), -u)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def at_sample(g: Generator, u: Array) -> Array:
    """What a sample of q contributes, for any u; of p, use the reverse record and -u.

    f(0) at -inf, +inf where it is too large, and derivatives that are 0 where they cannot be
    represented.
    """
    x = jnp.where(jnp.isfinite(u), u, 0.0)
    value = under_q(g, x)
    lost = jnp.isnan(value) | (u == inf) | (u == -inf)  # 0 * inf in a formula
    value = jnp.where(lost, jnp.where(u > 0, inf, g.at_zero), value)
    return jnp.where(jnp.isnan(u), u, value)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rate(g: Generator, u: Array) -> Array:
    """F'(u) = t f'(t)."""
    x = jnp.where(jnp.isfinite(u), u, 0.0)
    left, right = jnp.minimum(x, 0.0), jnp.maximum(x, 0.0)
    rate = jnp.where(x <= 0, _slope_p_under_q(g, left), jnp.exp(right) * g.slope_p(right))
    return jnp.where(jnp.isfinite(u), _finite(rate), 0.0)


@at_sample.defjvp
def _at_sample_jvp(g: Generator, primals: Any, tangents: Any) -> Any:
    return at_sample(g, *primals), _rate(g, *primals) * tangents[0]


@_rate.defjvp
def _rate_jvp(g: Generator, primals: Any, tangents: Any) -> Any:
    (u,) = primals
    rate = _rate(g, u)
    pull = jnp.exp(g.log_pull(jnp.where(jnp.isfinite(u), u, 0.0)))
    return rate, jnp.where(jnp.isfinite(u), _finite(rate + pull), 0.0) * tangents[0]


def slope_at_sample(g: Generator, u: Array) -> Array:
    """R(u) at samples of p, for any u: f'(inf) at +inf where that is finite, else 0."""
    x = jnp.where(jnp.isfinite(u), u, 0.0)
    edge = g.at_inf if g.at_inf < inf else 0.0
    return jnp.where(u == inf, edge, jnp.where(jnp.isfinite(u), _finite(g.slope_p(x)), 0.0))


def _slope_p_under_q(g: Generator, u: Array) -> Array:
    """t f'(t) for u <= 0."""
    if g.slope_p_under_q is not None:
        return g.slope_p_under_q(u)
    slope = g.slope_p(u)
    fits = jnp.abs(slope) < _HUGE
    return jnp.where(fits, jnp.exp(u) * jnp.where(fits, slope, 0.0), g.under_q(u) - g.slope_q(u))


def weighted(g: Generator, u: Array, p: Array, q: Array, log_p: Array, log_q: Array) -> Weighted:
    """The four terms of every point.

    Args:
        g: the record.
        u: [..., K] log p - log q, computed as accurately as its source allows; +-inf where only
            one side is -inf, 0 where both are.
        p: [..., K] exp(log_p).
        q: [..., K] exp(log_q).
        log_p: [..., K], used where a weight times a growth would overflow.
        log_q: [..., K].

    Returns:
        Weighted, each [..., K]; terms that XLA does not need are not computed.
    """
    left = _left(g, u.dtype)
    mirror = reverse(g)
    right = _left(mirror, u.dtype)
    low, high = u == -inf, u == inf
    is_left = u <= 0
    x = jnp.where(low | high, 0.0, -jnp.abs(u))  # both sides are evaluated here: u = x or u = -x

    cost_q, cost_p = under_q(g, x), under_p(g, -x)
    value = jnp.where(is_left, q * cost_q, p * cost_p)

    slope_p = jnp.where(is_left, q * _slope_p_under_q(g, x), p * g.slope_p(-x))
    slope_q = jnp.where(is_left, q * g.slope_q(x), p * _slope_p_under_q(mirror, x))
    log_h = jnp.where(is_left, log_q + g.log_pull(x), log_p + (g.log_pull(-x) + x))
    pull = jnp.exp(jnp.where(low | high, -inf, log_h))

    # A side on which f is a power law: where its factor is huge, the leading term, in logarithms.
    a = left.growth
    if a < 0:
        huge = is_left & (cost_q > _HUGE)
        value = jnp.where(huge, pull / (a * (a - 1.0)), value)
        slope_p = jnp.where(huge, pull / (a - 1.0), slope_p)
        slope_q = jnp.where(huge, -pull / a, slope_q)
    a = 1.0 - right.growth
    if a > 1:
        huge = ~is_left & (cost_p > _HUGE)
        value = jnp.where(huge, pull / (a * (a - 1.0)), value)
        slope_p = jnp.where(huge, pull / (a - 1.0), slope_p)
        slope_q = jnp.where(huge, -pull / a, slope_q)

    value = jnp.where(low, _limit(q, g.at_zero), jnp.where(high, _limit(p, g.at_inf), value))
    zero = jnp.zeros_like(u)
    only_p = p * g.at_inf if g.at_inf < inf else zero
    only_q = q * g.at_zero if g.at_zero < inf else zero
    slope_p = jnp.where(low, 0.0, jnp.where(high, only_p, slope_p))
    slope_q = jnp.where(high, 0.0, jnp.where(low, only_q, slope_q))
    return Weighted(value, _finite(slope_p), _finite(slope_q), _finite(pull))
