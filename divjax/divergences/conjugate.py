"""The convex conjugate of a record and the inverse of its slope: tilts, bounds, critics."""

from functools import partial
from math import inf
from typing import cast

import jax
import jax.numpy as jnp

from divjax.core import Array, check
from divjax.divergences._terms import growth_at_zero
from divjax.divergences.generators import Generator

_EDGE = 85.0  # e^85 is still a float32
_HALVINGS = 60


def _bisect(g: Generator, s: Array) -> Array:
    """u with slope_p(u) = s; slope_p increases."""

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        above = g.slope_p(middle) >= s
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    start = (jnp.full_like(s, -_EDGE), jnp.full_like(s, _EDGE))
    low, high = cast(tuple[Array, Array], jax.lax.fori_loop(0, _HALVINGS, halve, start))
    return 0.5 * (low + high)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def inverse_slope(generator: Generator, s: Array) -> Array:
    """The log-ratio u at which f'(e^u) = s: what turns rewards into log-ratios (f-DPO, f-tilts).

    Args:
        generator: the record; closed form where it has one, else bisection on [-85, 85].
        s: [*E], in the range of f'; below it -inf (probability 0), above it +inf.

    Returns:
        [*E].

    References:
        Wang et al., f-DPO, arXiv 2309.16240.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import generators, inverse_slope
        >>> float(inverse_slope(generators.kl, jnp.float32(0.25)))
        0.25
    """
    check.floating("s", s, caller="inverse_slope")
    lowest, highest = (float(g) for g in _range(generator))
    inside = (s > lowest) & (s < highest)
    safe = jnp.where(inside, s, 0.0)  # 0 = f'(1) is in the range of every record
    u = generator.inverse_p(safe) if generator.inverse_p else _bisect(generator, safe)
    beyond = jnp.where(s <= lowest, -inf, jnp.where(jnp.isnan(s), s, inf))
    return jnp.where(inside, u, beyond)


@inverse_slope.defjvp
def _inverse_slope_jvp(
    generator: Generator, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    u = inverse_slope(generator, *primals)
    finite = jnp.isfinite(u)
    safe = jnp.where(finite, u, 0.0)
    rate = jnp.where(finite, jnp.exp(safe - generator.log_pull(safe)), 0.0)
    return u, rate * tangents[0]


def _range(g: Generator) -> tuple[float, float]:
    """f'(0) and f'(inf)."""
    growth = growth_at_zero(g)  # f'' goes like t^(growth - 2) near 0
    if growth <= 1:
        return -inf, g.at_inf
    far = min(-50.0, -745.0 / (growth - 1.0))
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return float(g.slope_p(jnp.asarray(far))), g.at_inf


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def conjugate(generator: Generator, s: Array) -> Array:
    """f*(s) = sup over t >= 0 of s t - f(t), in the gauge f(1) = f'(1) = 0.

    D_f(p || q) >= E_p[g] - E_q[f*(g)] for any g, with equality at g = slope_p(log p/q).

    Args:
        generator: the record.
        s: [*E].

    Returns:
        [*E]; +inf where s exceeds f'(inf), -f(0) where s is below f'(0).

    References:
        Nguyen, Wainwright and Jordan, arXiv 0809.0853; Nowozin et al., f-GAN, arXiv 1606.00709.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import conjugate, generators
        >>> f"{conjugate(generators.pearson, jnp.float32(1.0)):.2f}"
        '1.25'
    """
    u = inverse_slope(generator, s)
    finite = jnp.isfinite(u)
    safe = jnp.where(finite, u, 0.0)
    # At a kink s lies between two slopes and only the definition holds.
    smooth = generator.taylor is not None
    value = -generator.slope_q(safe) if smooth else s * jnp.exp(safe) - generator.under_q(safe)
    beyond = jnp.where(u < 0, -generator.at_zero, jnp.where(jnp.isnan(u), u, inf))
    return jnp.where(finite, value, beyond)


@conjugate.defjvp
def _conjugate_jvp(
    generator: Generator, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    u = inverse_slope(generator, *primals)
    ratio = jnp.where(jnp.isfinite(u), jnp.exp(jnp.where(jnp.isfinite(u), u, 0.0)), 0.0)
    return conjugate(generator, *primals), ratio * tangents[0]
