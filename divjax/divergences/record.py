"""The record of an f-divergence, and the maps from records to records.

D_f(p || q) = sum_i q_i f(t_i) with t = p / q, and all functions take u = log t = log p - log q.
Gauge: f(1) = f'(1) = 0, so that f >= 0 and every single-sample estimate is >= 0.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from math import exp, inf, log
from typing import ParamSpec

import jax
import jax.numpy as jnp

from divjax.core import Array, check

Curve = Callable[[Array], Array]


@dataclass(frozen=True)
class Generator:
    """The record of one f-divergence; static and hashable, so a jitted caller traces once.

    Attributes:
        name: unique name.
        under_q: F(u) = f(e^u), what one sample of q contributes.
        under_p: G(u) = e^-u f(e^u), the same term under a sample of p.
        slope_p: R(u) = f'(e^u), the gradient weight of log p under p.
        slope_q: S(u) = f(t) - t f'(t), the gradient weight of log q under q.
        log_pull: log(t^2 f''(t)), the curvature seen by log-ratios; -inf for tv.
        at_zero: f(0), what a point costs that only q can reach.
        at_inf: f'(inf), what a point costs that only p can reach.
        slope_p_under_q: t f'(t), slope_p as seen under a sample of q; it is used for u <= 0 only.
            None derives it, which rounds at the size of u where u < -88.
        slope_q_under_p: f(t)/t - f'(t), slope_q under a sample of p; used for u >= 0 only.
        inverse_p: s -> u with slope_p(u) = s, in closed form or None.
        inverse_q: s -> u with slope_q(u) = s, in closed form or None.

    Example:
        >>> from divjax.divergences import generators
        >>> float(generators.kl.slope_p(0.5)), generators.kl.at_inf
        (0.5, inf)
    """

    name: str
    under_q: Curve
    under_p: Curve
    slope_p: Curve
    slope_q: Curve
    log_pull: Curve
    at_zero: float
    at_inf: float
    slope_p_under_q: Curve | None = None
    slope_q_under_p: Curve | None = None
    inverse_p: Curve | None = None
    inverse_q: Curve | None = None

    @property
    def taylor(self) -> tuple[float, float] | None:
        """f''(1) and f'''(1); None where f has a kink at 1."""
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            zero = jnp.zeros(())
            pull = jax.jvp(self.log_pull, (zero,), (jnp.ones_like(zero),))
            second, slope = exp(float(pull[0])), float(pull[1])
        return (second, second * (slope - 2.0)) if second > 0 else None


P = ParamSpec("P")


def factory(make: Callable[P, Generator]) -> Callable[P, Generator]:
    """One record per set of parameters, so that a jitted caller traces once; they are static."""
    cached, signature = cache(make), inspect.signature(make)

    @wraps(make)
    def checked(*values: P.args, **named: P.kwargs) -> Generator:
        bound = signature.bind(*values, **named)
        bound.apply_defaults()
        for name, x in bound.arguments.items():
            check.require(
                not isinstance(x, jax.Array),
                make.__name__,
                f"{name} must be a Python number, static under jit",
                x,
                f"pass float({name}), or write what has to move as a weighted sum of records",
            )
        return cached(*bound.args, **bound.kwargs)

    return checked


def short(x: float) -> str:
    """A number for a name: the shortest text that gives it back, so that names stay unique."""
    return repr(float(x)).removesuffix(".0")


@factory
def reverse(g: Generator) -> Generator:
    """The record of D_f(q || p): t f(1/t).

    Example:
        >>> from divjax.divergences import generators
        >>> generators.reverse(generators.kl).at_zero
        inf
    """

    def mirror(curve: Curve) -> Curve:
        return lambda u: curve(-u)

    def mirror_if_given(curve: Curve | None) -> Curve | None:
        return None if curve is None else mirror(curve)

    def mirror_inverse(curve: Curve | None) -> Curve | None:
        return None if curve is None else lambda s: -curve(s)

    return Generator(
        name=f"reverse_{g.name}",
        under_q=mirror(g.under_p),
        under_p=mirror(g.under_q),
        slope_p=mirror(g.slope_q),
        slope_q=mirror(g.slope_p),
        log_pull=lambda u: u + g.log_pull(-u),
        at_zero=g.at_inf,
        at_inf=g.at_zero,
        slope_p_under_q=mirror_if_given(g.slope_q_under_p),
        slope_q_under_p=mirror_if_given(g.slope_p_under_q),
        inverse_p=mirror_inverse(g.inverse_q),
        inverse_q=mirror_inverse(g.inverse_p),
    )


@factory
def scale(g: Generator, factor: float, name: str) -> Generator:
    """The record of factor * D_f; factor > 0.

    Example:
        >>> from divjax.divergences import generators
        >>> generators.scale(generators.tv, 2.0, "l1").at_zero
        1.0
    """
    check.positive("factor", factor, caller="scale")

    def times(curve: Curve) -> Curve:
        return lambda u: factor * curve(u)

    def times_if_given(curve: Curve | None) -> Curve | None:
        return None if curve is None else times(curve)

    def inverse(curve: Curve | None) -> Curve | None:
        return None if curve is None else lambda s: curve(s / factor)

    return Generator(
        name=name,
        under_q=times(g.under_q),
        under_p=times(g.under_p),
        slope_p=times(g.slope_p),
        slope_q=times(g.slope_q),
        log_pull=lambda u: log(factor) + g.log_pull(u),
        at_zero=factor * g.at_zero,
        at_inf=factor * g.at_inf,
        slope_p_under_q=times_if_given(g.slope_p_under_q),
        slope_q_under_p=times_if_given(g.slope_q_under_p),
        inverse_p=inverse(g.inverse_p),
        inverse_q=inverse(g.inverse_q),
    )


@factory
def linear_tails(g: Generator, max_log_ratio: float) -> Generator:
    """A finite surrogate: f goes on along its tangent, linearly in t, where |u| is beyond a bound.

    The result is convex, lies below f, is finite for any supports and keeps a gradient in the
    tails; it is no clip of the value.

    Example:
        >>> from divjax.divergences import generators
        >>> generators.linear_tails(generators.kl, 5.0).at_inf
        5.0
    """
    check.positive("max_log_ratio", max_log_ratio, caller="linear_tails")
    bound = float(max_log_ratio)

    def clipped(curve: Curve) -> Curve:
        return lambda u: curve(jnp.clip(u, -bound, bound))

    def end(curve: Curve, u: float) -> float:
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            return float(curve(jnp.asarray(u)))  # once for all types, so in the widest

    slope_p, slope_q = clipped(g.slope_p), clipped(g.slope_q)

    def inside(u: Array, curve: Curve, tangent: Array) -> Array:
        return jnp.where(jnp.abs(u) <= bound, curve(jnp.clip(u, -bound, bound)), tangent)

    return Generator(
        name=f"{g.name}_linear_{short(bound)}",
        under_q=lambda u: inside(u, g.under_q, slope_q(u) + jnp.exp(u) * slope_p(u)),
        under_p=lambda u: inside(u, g.under_p, jnp.exp(-u) * slope_q(u) + slope_p(u)),
        slope_p=slope_p,
        slope_q=slope_q,
        log_pull=lambda u: inside(u, g.log_pull, jnp.full_like(u, -inf)),
        at_zero=end(g.slope_q, -bound),
        at_inf=end(g.slope_p, bound),
    )
