"""One record per f-divergence: everything the library does with it follows from these functions.

A new divergence is one `Generator` value. Each of its functions has to be right on the whole
line: no NaN for any finite u, +-inf only where the true value exceeds the type, and relative
accuracy near u = 0 for the slopes (write them with expm1 and log1p); `under_q` and `under_p`
may cancel near 0, where the library uses the Taylor series that `log_pull` determines.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf, log

import jax.numpy as jnp
import numpy as np

from divjax.core import Array, check
from divjax.divergences.record import Curve, Generator, factory, linear_tails, reverse, scale, short

__all__ = [
    "ALL",
    "Curve",
    "Generator",
    "alpha",
    "jeffreys",
    "js",
    "kl",
    "lecam",
    "linear_tails",
    "neyman",
    "pearson",
    "reverse",
    "scale",
    "skew_kl",
    "skew_reverse_kl",
    "soft_reverse_kl",
    "squared_hellinger",
    "tsallis",
    "tv",
]


def _expm1_over(c: float, u: Array) -> Array:
    """(e^(c u) - 1) / c, and its limit u at c = 0."""
    return u if c == 0 else jnp.expm1(c * u) / c


def _shrunk(u: Array) -> tuple[Array, Array]:
    """Whether u < 1, and e^u - 1 there, e^-u - 1 elsewhere; the seam is away from u = 0."""
    low = u < 1.0
    return low, jnp.expm1(jnp.where(low, u, -u))


def _log_mixes(u: Array, weight: float) -> tuple[Array, Array]:
    """log(1 - w + w t) and log(w + (1 - w) / t), the log-ratios to a mixture; one logarithm."""
    low, shrunk = _shrunk(u)
    inner = jnp.log1p(jnp.where(low, weight, 1.0 - weight) * shrunk)
    return inner + jnp.where(low, 0.0, u), inner - jnp.where(low, u, 0.0)


def _softplus(u: Array) -> Array:
    return jnp.logaddexp(u, 0.0)


def _kl_under_q(u: Array) -> Array:
    grown = jnp.expm1(u)  # u e^u - (e^u - 1), without inf - inf on the right
    return jnp.where(u < 1.0, (1.0 + grown) * u - grown, grown * (u - 1.0) + u)


kl = Generator(
    name="kl",
    under_q=_kl_under_q,
    under_p=lambda u: u + jnp.expm1(-u),
    slope_p=lambda u: jnp.asarray(u),
    slope_q=lambda u: -jnp.expm1(u),
    log_pull=lambda u: jnp.asarray(u),
    at_zero=1.0,
    at_inf=inf,
    slope_p_under_q=lambda u: u * jnp.exp(u),
    slope_q_under_p=lambda u: jnp.expm1(-u),
    inverse_p=lambda s: s,
    inverse_q=lambda s: jnp.log1p(-s),
)
"""KL(p || q): f(t) = t log t - t + 1."""

jeffreys = Generator(
    name="jeffreys",
    under_q=lambda u: u * jnp.expm1(u),
    under_p=lambda u: -u * jnp.expm1(-u),
    slope_p=lambda u: u - jnp.expm1(-u),
    slope_q=lambda u: -u - jnp.expm1(u),
    log_pull=_softplus,
    at_zero=inf,
    at_inf=inf,
    slope_p_under_q=lambda u: u * jnp.exp(u) + jnp.expm1(u),
    slope_q_under_p=lambda u: jnp.expm1(-u) - u * jnp.exp(-u),
)
"""KL(p || q) + KL(q || p): f(t) = (t - 1) log t."""

squared_hellinger = Generator(
    name="squared_hellinger",
    under_q=lambda u: 0.5 * jnp.expm1(0.5 * u) ** 2,
    under_p=lambda u: 0.5 * jnp.expm1(-0.5 * u) ** 2,
    slope_p=lambda u: -0.5 * jnp.expm1(-0.5 * u),
    slope_q=lambda u: -0.5 * jnp.expm1(0.5 * u),
    log_pull=lambda u: 0.5 * u - log(4.0),
    at_zero=0.5,
    at_inf=0.5,
    slope_p_under_q=lambda u: 0.5 * jnp.exp(0.5 * u) * jnp.expm1(0.5 * u),
    slope_q_under_p=lambda u: 0.5 * jnp.exp(-0.5 * u) * jnp.expm1(-0.5 * u),
    inverse_p=lambda s: -2.0 * jnp.log1p(-2.0 * s),
    inverse_q=lambda s: 2.0 * jnp.log1p(-2.0 * s),
)
"""1 - sum sqrt(p q): f(t) = (sqrt t - 1)^2 / 2; at most 1."""

pearson = Generator(
    name="pearson",
    under_q=lambda u: jnp.expm1(u) ** 2,
    under_p=lambda u: -jnp.expm1(u) * jnp.expm1(-u),
    slope_p=lambda u: 2.0 * jnp.expm1(u),
    slope_q=lambda u: -jnp.expm1(2.0 * u),
    log_pull=lambda u: 2.0 * u + log(2.0),
    at_zero=1.0,
    at_inf=inf,
    slope_p_under_q=lambda u: 2.0 * jnp.exp(u) * jnp.expm1(u),
    slope_q_under_p=lambda u: jnp.expm1(-u) - jnp.expm1(u),
    inverse_p=lambda s: jnp.log1p(0.5 * s),
    inverse_q=lambda s: 0.5 * jnp.log1p(-s),
)
"""Pearson's chi^2: f(t) = (t - 1)^2."""

neyman = replace(reverse(pearson), name="neyman")
"""Neyman's chi^2: f(t) = (t - 1)^2 / t."""

tv = Generator(
    name="tv",
    under_q=lambda u: 0.5 * jnp.abs(jnp.expm1(u)),
    under_p=lambda u: 0.5 * jnp.abs(jnp.expm1(-u)),
    slope_p=lambda u: 0.5 * jnp.sign(u),
    slope_q=lambda u: -0.5 * jnp.sign(u),
    log_pull=lambda u: jnp.full_like(u, -inf),
    at_zero=0.5,
    at_inf=0.5,
    slope_p_under_q=lambda u: 0.5 * jnp.exp(u) * jnp.sign(u),
    slope_q_under_p=lambda u: -0.5 * jnp.exp(-u) * jnp.sign(u),
)
"""Total variation: f(t) = |t - 1| / 2; at most 1, with a kink at 1 (slope 0 there)."""


def _lecam_slope(u: Array) -> Array:
    half = jnp.tanh(0.5 * u)
    return half * (1.0 - 0.5 * half)


lecam = Generator(
    name="lecam",
    under_q=lambda u: 0.5 * jnp.expm1(u) * jnp.tanh(0.5 * u),
    under_p=lambda u: -0.5 * jnp.expm1(-u) * jnp.tanh(0.5 * u),
    slope_p=_lecam_slope,
    slope_q=lambda u: _lecam_slope(-u),
    log_pull=lambda u: log(4.0) + 2.0 * u - 3.0 * _softplus(u),
    at_zero=0.5,
    at_inf=0.5,
    slope_p_under_q=lambda u: jnp.exp(u) * _lecam_slope(u),
    slope_q_under_p=lambda u: jnp.exp(-u) * _lecam_slope(-u),
    inverse_p=lambda s: jnp.log(2.0 / jnp.sqrt(1.0 - 2.0 * s) - 1.0),
    inverse_q=lambda s: -jnp.log(2.0 / jnp.sqrt(1.0 - 2.0 * s) - 1.0),
)
"""Le Cam's (triangular) divergence: f(t) = (t - 1)^2 / (2 (t + 1)); at most 1."""


def _soft_reverse_kl(curve: Callable[[Array, Array], Array]) -> Curve:
    return lambda u: curve(u, _log_mixes(u, 0.5)[1])  # k = log((1 + 1/t) / 2)


soft_reverse_kl = Generator(
    name="soft_reverse_kl",
    under_q=_soft_reverse_kl(lambda u, k: jnp.expm1(u) * (k + 1.0) + 2.0 * k),
    under_p=_soft_reverse_kl(lambda u, k: jnp.expm1(-u) * (k - 1.0) + 2.0 * k),
    slope_p=_soft_reverse_kl(lambda u, k: k - jnp.expm1(-u)),
    slope_q=_soft_reverse_kl(lambda u, k: k),
    log_pull=lambda u: -_softplus(u),
    at_zero=inf,
    at_inf=1.0 - log(2.0),
    slope_p_under_q=_soft_reverse_kl(lambda u, k: jnp.exp(u) * k + jnp.expm1(u)),
    slope_q_under_p=_soft_reverse_kl(lambda u, k: jnp.exp(-u) * k),
    inverse_q=lambda s: -jnp.log(jnp.expm1(s + log(2.0))),
)
"""2 KL((p + q)/2 || p): f(t) = (t + 1) log((t + 1)/(2 t)) + t - 1."""


@factory
def js(weight: float = 0.5, *, normalise: bool = False) -> Generator:
    """Generalised Jensen-Shannon: b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q.

    Args:
        weight: b in (0, 1); GKD's beta (arXiv 2306.13649). 1/2 is the Jensen-Shannon divergence.
        normalise: divides by b (1 - b), so that b -> 1 and b -> 0 tend to the two KLs.

    Raises:
        ValueError: weight outside (0, 1); the limits are kl and reverse(kl), not 0.

    Example:
        >>> f"{js(0.5).at_zero:.4f}"
        '0.3466'
    """
    check.fraction("weight", weight, caller="js", open_ends=True)
    b = float(weight)
    name = "js" if b == 0.5 else f"js_{short(b)}"
    if normalise:
        return scale(js(b), 1.0 / (b * (1.0 - b)), f"{name}_normalised")

    def curve(fn: Callable[[Array, Array, Array], Array]) -> Curve:
        return lambda u: fn(u, *_log_mixes(u, b))  # log(m / q), log(m / p)

    return Generator(
        name=name,
        under_q=curve(lambda u, to_q, to_p: -b * (jnp.exp(u) * to_p) - (1.0 - b) * to_q),
        under_p=curve(lambda u, to_q, to_p: -b * to_p - (1.0 - b) * (jnp.exp(-u) * to_q)),
        slope_p=curve(lambda u, to_q, to_p: -b * to_p),
        slope_q=curve(lambda u, to_q, to_p: -(1.0 - b) * to_q),
        log_pull=curve(lambda u, to_q, to_p: log(b * (1.0 - b)) + u - to_q),
        at_zero=-(1.0 - b) * log(1.0 - b),
        at_inf=-b * log(b),
        slope_p_under_q=curve(lambda u, to_q, to_p: -b * (jnp.exp(u) * to_p)),
        slope_q_under_p=curve(lambda u, to_q, to_p: -(1.0 - b) * (jnp.exp(-u) * to_q)),
        inverse_p=lambda s: s / b + log(1.0 - b) - jnp.log1p(-b * jnp.exp(s / b)),
        inverse_q=lambda s: jnp.log1p(-(1.0 - b) * jnp.exp(s / (1.0 - b))) - s / (1.0 - b) - log(b),
    )


@factory
def skew_kl(weight: float = 0.1) -> Generator:
    """KL(p || a p + (1 - a) q), at most -log a (DistiLLM, arXiv 2402.03898).

    Args:
        weight: a in (0, 1), the share of p in the mixture.

    Raises:
        ValueError: weight outside (0, 1).

    Example:
        >>> skew_kl(0.1).at_zero
        0.9
    """
    check.fraction("weight", weight, caller="skew_kl", open_ends=True)
    a = float(weight)
    b = 1.0 - a

    def ratio(u: Array) -> Array:
        return _log_mixes(u, a)[1]  # k = log(mixture / p)

    def tilted(u: Array) -> Array:
        """(t - 1) / (a t + b)."""
        low, shrunk = _shrunk(u)
        return jnp.where(low, shrunk, -shrunk) / (1.0 + jnp.where(low, a, b) * shrunk)

    def under_q(u: Array) -> Array:
        k, grown = ratio(u), jnp.expm1(u)
        return jnp.where(u < 1.0, -jnp.exp(u) * k - b * grown, -grown * (k + b) - k)

    return Generator(
        name=f"skew_kl_{short(a)}",
        under_q=under_q,
        under_p=lambda u: b * jnp.expm1(-u) - ratio(u),
        slope_p=lambda u: -a * b * tilted(u) - ratio(u),
        slope_q=lambda u: -b * b * tilted(u),
        log_pull=lambda u: 2.0 * log(b) + u - 2.0 * _log_mixes(u, a)[0],
        at_zero=b,
        at_inf=-log(a) - b,
        slope_p_under_q=lambda u: -jnp.exp(u) * (a * b * tilted(u) + ratio(u)),
        slope_q_under_p=lambda u: -b * b * jnp.exp(-u) * tilted(u),
        inverse_q=lambda s: log(b) - jnp.log(1.0 / (1.0 - s / b) - a),
    )


@factory
def skew_reverse_kl(weight: float = 0.1) -> Generator:
    """KL(q || a q + (1 - a) p), the reverse of `skew_kl` (arXiv 2402.03898).

    Example:
        >>> skew_reverse_kl(0.1).at_inf
        0.9
    """
    return replace(reverse(skew_kl(weight)), name=f"skew_reverse_kl_{short(weight)}")


def _alpha_under_q(u: Array, a: float) -> Array:
    """(t^a - a t - (1 - a)) / (a (a - 1)); with y = f'(t) where a is near 1 or 0."""
    if min(abs(a), abs(a - 1.0)) > _NEAR_KL:
        inside = (jnp.expm1(a * u) / a - jnp.expm1(u)) / (a - 1.0)
        return jnp.where(u > _overflow(u), inf, inside)
    if a <= 0.5:
        saturated = jnp.minimum(a * u, 60.0) / a if a > 0 else u
        return (_expm1_over(a, saturated) - jnp.expm1(u)) / (a - 1.0)
    v = jnp.maximum(u, -80.0)  # beyond, all but the constant is below one rounding
    grown, y = jnp.expm1(v), _expm1_over(a - 1.0, v)
    left = jnp.exp(jnp.minimum(v, 0.0)) * y - grown
    return jnp.where(v <= 0, left, grown * (y - 1.0) + y) / a


def _alpha_slope_under_other(u: Array, a: float) -> Array:
    """(t^a - t) / (a - 1) for u <= 0."""
    if abs(a - 1.0) > _NEAR_KL:
        return (jnp.expm1(a * u) - jnp.expm1(u)) / (a - 1.0)
    return jnp.exp(u) * _expm1_over(a - 1.0, jnp.maximum(u, -80.0))


_NEAR_KL = 0.05  # within it of 1 or 0, the difference of two powers cancels


def _overflow(u: Array) -> float:
    """Where e^u nears the largest number of its type."""
    return float(np.log(np.finfo(u.dtype).max)) - 1.0


@factory
def alpha(order: float) -> Generator:
    """Cressie-Read power divergence: f(t) = (t^a - a t - (1 - a)) / (a (a - 1)).

    Args:
        order: a, any finite number. 1 is kl, 0 reverse(kl), 1/2 is 4 squared_hellinger, 2 is
            pearson / 2, -1 is neyman / 2. f''(1) = 1 for each.

    Raises:
        ValueError: the order is not a finite number.

    References:
        Cressie and Read, 1984; Amari, 2009.

    Example:
        >>> alpha(0.5).at_zero, alpha(0.5).at_inf
        (2.0, 2.0)
    """
    check.require(
        isinstance(order, int | float | np.number) and abs(order) < inf,
        "alpha",
        "order must be a finite number",
        order,
        "its limits have closed forms: renyi(order=inf) is the largest log-ratio",
    )
    a = float(order)
    name = f"alpha_{short(a)}"
    if a in (0.0, 1.0):
        return replace(kl if a == 1.0 else reverse(kl), name=name)
    return Generator(
        name=name,
        under_q=lambda u: _alpha_under_q(u, a),
        under_p=lambda u: _alpha_under_q(-u, 1.0 - a),
        slope_p=partial(_expm1_over, a - 1.0),
        slope_q=lambda u: -_expm1_over(a, u),
        log_pull=lambda u: a * u,
        at_zero=1.0 / a if a > 0 else inf,
        at_inf=1.0 / (1.0 - a) if a < 1 else inf,
        slope_p_under_q=lambda u: _alpha_slope_under_other(u, a),
        slope_q_under_p=lambda u: _alpha_slope_under_other(-u, 1.0 - a),
        inverse_p=lambda s: jnp.log1p((a - 1.0) * s) / (a - 1.0),
        inverse_q=lambda s: jnp.log1p(-a * s) / a,
    )


def tsallis(order: float) -> Generator:
    """Tsallis relative entropy: (E_q[t^a] - 1) / (a - 1) = a * alpha(a); order > 0.

    References:
        Tsallis, 1998.

    Example:
        >>> tsallis(0.5).at_zero
        1.0
    """
    check.positive("order", order, caller="tsallis")
    return scale(alpha(order), float(order), f"tsallis_{short(order)}")


ALL: tuple[Generator, ...] = (
    kl,
    reverse(kl),
    jeffreys,
    js(),
    js(0.1),
    skew_kl(0.1),
    skew_reverse_kl(0.1),
    alpha(0.3),
    alpha(0.5),
    alpha(1.5),
    alpha(-0.5),
    alpha(2.5),
    squared_hellinger,
    pearson,
    neyman,
    tv,
    soft_reverse_kl,
    lecam,
    tsallis(1.5),
)
"""Every record, families at fixed orders: what the tests and the documentation walk over."""
