"""Bregman divergences and Fenchel-Young losses of any potential, with the gradient by autodiff.

phi(x) - phi(y) - <grad phi(y), x - y> cancels where its terms are larger than their sum. The same
number is int_0^1 t <d, H(x - t d) d> dt with d = x - y and H the Hessian of phi: terms >= 0. Both
have a bound of their error, the rounding of the terms here, the refinement of the quadrature there,
and the better one is taken. A quadrature that has missed something is found out by int <d, H d> dt
= <grad phi(x) - grad phi(y), d>, and by the definition. The powers need none of it, their terms
have an exact form.
"""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array, check, masked_sum, vary_like, xlogy
from divjax.divergences import generators
from divjax.divergences._quadrature import COARSE, FINE, POINTS, error, integrate
from divjax.divergences._terms import under_p, under_q

Potential = Callable[[Array], Array]  # convex, [*E, K] -> [*E], row by row


class Power(NamedTuple):
    """The potential scale * sum_i x_i^a / (a (a - 1)) on x >= 0; a = 1: x log x, a = 0: -log x.

    Its divergence is scale * sum_i y_i^a f_a(x_i / y_i), f_a of the alpha divergence.
    """

    order: float  # a
    scale: float = 1.0

    def __call__(self, x: Array) -> Array:
        """[*E, K] -> [*E]."""
        a = self.order
        if a == 1:
            return self.scale * jnp.sum(xlogy(x, x), axis=-1)
        each = -jnp.log(x) if a == 0 else x**a / (a * (a - 1.0))
        return self.scale * jnp.sum(each, axis=-1)


negative_entropy = Power(1.0)  # generalised KL: sum x log(x / y) - x + y
minus_log = Power(0.0)  # Itakura-Saito: sum x / y - log(x / y) - 1


def density_power(beta: float) -> Power:
    """sum_i x_i^{1 + beta} / beta, whose divergence is Basu's density power divergence.

    sum_i y^{1 + b} - (1 + 1/b) x y^b + x^{1 + b} / b; b -> 0 is the KL, b = 1 the squared distance.

    Args:
        beta: > 0; robust to outliers of x where it is large.

    Returns:
        A potential, [*E, K] -> [*E].

    Raises:
        ValueError: beta is not positive.

    References:
        Basu, Harris, Hjort and Jones, 1998.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import bregman, density_power
        >>> p, q = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.5, 0.3])
        >>> print(f"{bregman(p, q, density_power(0.5)):.6f}")
        0.186089
    """
    check.positive("beta", beta, caller="density_power")
    return Power(1.0 + beta, 1.0 + beta)


def half_square(x: Array) -> Array:
    """|x|^2 / 2, whose divergence is half the squared distance; [*E, K] in, [*E] out.

    References:
        Bregman, 1967.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import bregman, half_square
        >>> float(bregman(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]), half_square))
        2.0
    """
    return 0.5 * jnp.sum(x * x, axis=-1)


def bregman(
    x: Array, y: Array, potential: Potential, *, axis: int = -1, where: Array | None = None
) -> Array:
    """phi(x) - phi(y) - <grad phi(y), x - y>, accurate however close or far x and y are.

    The error is a few roundings of the value or of the definition's terms, whichever is less, as
    far as autodiff of `potential` is accurate: it is not where jax.nn.logsumexp is nearly certain;
    `categorical_log_partition` is, and the others of its module are.

    The derivatives are grad phi(x) - grad phi(y) and -H(y) (x - y), to every order; parameters
    that `potential` closes over are differentiated too.

    Args:
        x: [*E, K].
        y: [*E, K].
        potential: phi, convex; maps [*E, K] to [*E], row by row. `negative_entropy`, `minus_log`
            and `density_power(beta)` are exact term by term.
        axis: the axis of the vectors.
        where: bool [*E, K]; entries that are False may hold NaN. Both sides are 1 there, which
            counts for nothing in a potential that is a sum over entries.

    Returns:
        [*E], >= 0, float32 at least. With `negative_entropy`: +inf where y = 0 < x, 0 where both
        are 0, and derivatives that are infinite in truth are 0.

    Raises:
        ValueError: shapes, dtypes, mask or axis are not as above, or phi returns another shape.

    References:
        Bregman, 1967; Banerjee et al., Clustering with Bregman divergences, 2005.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.divergences import bregman
        >>> z, y = jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0])
        >>> print(f"{bregman(z, y, lambda v: jax.nn.logsumexp(v, axis=-1)):.6f}")
        0.120115
    """
    names = ("x", "y")
    for name, array in zip(names, (x, y), strict=True):
        check.floating(name, array, caller="bregman")
        check.rank_at_least(name, array, 1, caller="bregman")
    check.same_shape(names, (x, y), caller="bregman")
    check.boolean_mask("where", where, x.shape, caller="bregman")
    known = -x.ndim <= axis < x.ndim
    check.require(
        known, "bregman", f"axis must be in [-{x.ndim}, {x.ndim})", axis, "pass one integer"
    )
    dtype = jnp.result_type(x, y, jnp.float32)
    x, y = (jnp.moveaxis(z.astype(dtype), axis, -1) for z in (x, y))
    if where is not None:
        mask = jnp.moveaxis(where, axis, -1)
        x, y = jnp.where(mask, x, 1.0), jnp.where(mask, y, 1.0)
    if isinstance(potential, Power):
        ok = 0 <= potential.order < inf
        check.require(ok, "bregman", "order must be >= 0", potential, "for example Power(1.5)")
        terms = _power_term(potential.order, x, y)
        return potential.scale * masked_sum(terms, None if where is None else mask, axis=-1)
    pure, parameters = jax.closure_convert(potential, x)
    out = jax.eval_shape(pure, x, *parameters)
    rows = f"potential must return {list(x.shape[:-1])}"
    check.require(out.shape == x.shape[:-1], "bregman", rows, out, "sum over the last axis")
    return _bregman(pure, x, y, tuple(parameters))


def fenchel_young(scores: Array, y: Array, potential: Potential, conjugate: Potential) -> Array:
    """Omega*(scores) + Omega(y) - <scores, y>, >= 0, and 0 where y = grad Omega*(scores).

    With the negative entropy on the simplex and its conjugate logsumexp it is
    KL(y || softmax(scores)). The gradient by scores is grad Omega*(scores) - y.

    Args:
        scores: [*E, K], in the dual space.
        y: [*E, K].
        potential: Omega, convex, [*E, K] -> [*E].
        conjugate: Omega*, its convex conjugate, [*E, K] -> [*E].

    Returns:
        [*E], float32 at least, with the rounding of its three terms: near equality it may come
        out a little below 0. Entries with y = 0 may have a score of -inf.

    Raises:
        ValueError: shapes or dtypes are not as above, also those that the two functions return.

    References:
        Blondel, Martins and Niculae, arXiv 1901.02324.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.divergences import fenchel_young, negative_entropy
        >>> z, y = jnp.array([1.0, 0.0, -1.0]), jnp.array([0.5, 0.3, 0.2])
        >>> log_sum = lambda z: jax.nn.logsumexp(z, axis=-1)
        >>> print(f"{fenchel_young(z, y, negative_entropy, log_sum):.6f}")
        0.077953
    """
    for name, array in (("scores", scores), ("y", y)):
        check.floating(name, array, caller="fenchel_young")
        check.rank_at_least(name, array, 1, caller="fenchel_young")
    check.same_shape(("scores", "y"), (scores, y), caller="fenchel_young")
    dtype = jnp.result_type(scores, y, jnp.float32)
    scores, y = scores.astype(dtype), y.astype(dtype)
    of_scores, of_y = conjugate(scores), potential(y)
    for name, out in (("conjugate", of_scores), ("potential", of_y)):
        rows = f"{name} must return {list(scores.shape[:-1])}"
        remedy = "sum over the last axis"
        check.require(out.shape == scores.shape[:-1], "fenchel_young", rows, out, remedy)
    return of_scores + of_y - _inner(scores, y)


def _inner(a: Array, b: Array) -> Array:
    """<a, b> over the last axis, in which 0 times anything is 0."""
    alive = (a != 0) & (b != 0)
    return jnp.sum(jnp.where(alive, jnp.where(alive, a, 1.0) * jnp.where(alive, b, 1.0), 0.0), -1)


# --- any potential; `phi(z, *parameters)` ---


def _slope(phi: Any, z: Array, parameters: tuple[Array, ...]) -> Array:
    # Rows are independent, so the gradient of the sum holds the gradient of each.
    slope: Array = jax.grad(lambda z: jnp.sum(phi(z, *parameters)))(z)
    return slope


def _curve(phi: Any, z: Array, d: Array, parameters: tuple[Array, ...]) -> Array:
    """H(z) d."""
    curve: Array = jax.jvp(lambda z: _slope(phi, z, parameters), (z,), (d,))[1]
    return curve


def _step(x: Array, y: Array) -> Array:
    """x - y, 0 where both are the same infinity."""
    same = x == y
    return jnp.where(same, 0.0, jnp.where(same, 0.0, x) - jnp.where(same, 0.0, y))


def _finite(x: Array) -> Array:
    """Derivatives are those of the finite terms."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _between(x: Array, y: Array, d: Array, t: Array) -> Array:
    """x - t d, from the nearer end; t [*E]."""
    t = t[..., None]
    return jnp.where(t < 0.5, x - t * d, y + (1.0 - t) * d)


def _better(quadrature: Array, its_error: Array, definition: Array, size: Array) -> Array:
    """The quadrature where its error is less than the rounding of terms of this size."""
    eps = float(np.finfo(size.dtype).eps)
    # Strictly less: where the definition is infinite, so is its size.
    less = its_error + 2.0 * eps * jnp.abs(quadrature) < eps * size
    agree = jnp.abs(quadrature - definition) < 8.0 * eps * size + its_error
    return jnp.where(less & agree, quadrature, definition)


def _definition(phi: Any, x: Array, y: Array, parameters: tuple[Array, ...]) -> Array:
    slope = _inner(_slope(phi, y, parameters), _step(x, y))
    value: Array = phi(x, *parameters) - phi(y, *parameters) - slope
    return value


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _bregman(phi: Any, x: Array, y: Array, parameters: tuple[Array, ...]) -> Array:
    d, eps = _step(x, y), float(np.finfo(x.dtype).eps)
    ends = phi(x, *parameters), phi(y, *parameters)
    at_x, at_y = _slope(phi, x, parameters), _slope(phi, y, parameters)
    value = ends[0] - ends[1] - _inner(at_y, d)
    # What it is rounded in terms of: phi, and what moves phi by a rounding of its argument.
    size = jnp.abs(ends[0]) + jnp.abs(ends[1])
    for slope, z in ((at_y, d), (at_x, x), (at_y, y)):
        size += _inner(jnp.abs(slope), jnp.abs(z))

    def height(t: Array) -> Array:
        return _inner(d, _curve(phi, _between(x, y, d, t), d, parameters))

    found = integrate(height, size > 32.0 * jnp.abs(value), d.dtype)
    mass, scale = _inner(_step(at_x, at_y), d), _inner(jnp.abs(at_x) + jnp.abs(at_y), jnp.abs(d))
    slack = 16.0 * eps * scale + eps**0.5 * found.mass + found.spread
    missed = ~(jnp.abs(mass - found.mass) <= slack)
    out = _better(found.moment, jnp.where(missed, inf, found.error), value, size)
    # Only what rounding can have made of a number >= 0: a potential that is not convex shows.
    return jnp.where((out < 0) & (out >= -8.0 * eps * size), 0.0, out)


@_bregman.defjvp
def _bregman_jvp(phi: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, y, parameters = primals
    dx, dy, dparameters = tangents
    curved = _curve(phi, y, _step(x, y), parameters)
    change = jnp.sum(
        _finite(_slope_gap(phi, x, y, parameters)) * dx - _finite(curved) * dy, axis=-1
    )
    if parameters:
        change += jax.jvp(lambda c: _definition(phi, x, y, c), (parameters,), (dparameters,))[1]
    return _bregman(phi, x, y, parameters), change


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _slope_gap(phi: Any, x: Array, y: Array, parameters: tuple[Array, ...]) -> Array:
    """grad phi(x) - grad phi(y)."""
    at_x, at_y = _slope(phi, x, parameters), _slope(phi, y, parameters)
    d = _step(x, y)

    def add(sums: Any, node: Any) -> tuple[Any, None]:
        t, *weights = node
        bent = _curve(phi, _between(x, y, d, jnp.full(x.shape[:-1], t)), d, parameters)
        return [s + w * bent for s, w in zip(sums, weights, strict=True)], None

    nodes = [jnp.asarray(a, d.dtype) for a in (POINTS, FINE, COARSE)]
    zero = vary_like(jnp.zeros_like(d), x, y, *parameters)
    (fine, coarse), _ = jax.lax.scan(add, [zero, zero], nodes)
    size = jnp.abs(at_x) + jnp.abs(at_y)
    return _better(fine, error(fine, coarse), _step(at_x, at_y), size)


@_slope_gap.defjvp
def _slope_gap_jvp(phi: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, y, parameters = primals
    (dx, dy), moved = tangents[:2], tangents[2]
    change = _curve(phi, x, dx, parameters) - _curve(phi, y, dy, parameters)
    if parameters:
        gap = lambda c: _slope(phi, x, c) - _slope(phi, y, c)  # noqa: E731
        change += jax.jvp(gap, (parameters,), (moved,))[1]
    return _slope_gap(phi, x, y, parameters), change


# --- powers, term by term ---


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _power_term(a: float, x: Array, y: Array) -> Array:
    """y^a f_a(x / y), with its limits at x = 0 and at y = 0."""
    both, safe_x, safe_y, u = _log_ratio(x, y)
    g = generators.alpha(a)
    # Two-sided: y^a F(u) where u <= 0, x y^{a - 1} G(u) where u > 0.
    low = safe_y**a * under_q(g, jnp.minimum(u, 0.0))
    grown = (a > 1) & ((a - 1.0) * u > 1.0)  # G may overflow, and the definition does not cancel
    high = safe_x * safe_y ** (a - 1.0) * under_p(g, jnp.where(grown, 0.0, jnp.maximum(u, 0.0)))
    if a > 1:
        far = safe_x**a - a * safe_x * safe_y ** (a - 1.0) + (a - 1.0) * safe_y**a
        high = jnp.where(grown, far / (a * (a - 1.0)), high)
    alone_y = safe_y**a * g.at_zero  # x = 0 < y
    alone_x = safe_x**a / (a * (a - 1.0)) if a > 1 else jnp.full_like(x, inf)  # y = 0 < x
    edge = jnp.where(y > 0, alone_y, jnp.where(x > 0, alone_x, 0.0))
    edge = jnp.where((x < 0) | (y < 0), inf, edge)  # outside the domain
    edge = jnp.where(jnp.isnan(x) | jnp.isnan(y), jnp.nan, edge)
    return jnp.where(both, jnp.where(u <= 0, low, high), edge)


@_power_term.defjvp
def _power_term_jvp(a: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, y = primals
    dx, dy = tangents
    return _power_term(a, x, y), _power_slope(a, x, y) * dx - _power_curved(a, x, y) * dy


def _log_ratio(x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """Whether both are positive, harmless x and y elsewhere, and log(x / y)."""
    both = (x > 0) & (y > 0)
    safe_x, safe_y = jnp.where(x > 0, x, 1.0), jnp.where(y > 0, y, 1.0)
    change = (safe_x - safe_y) / safe_y
    near = jnp.abs(change) < 0.5
    far = jnp.log(safe_x) - jnp.log(safe_y)
    return both, safe_x, safe_y, jnp.where(near, jnp.log1p(jnp.where(near, change, 0.0)), far)


def _power_slope(a: float, x: Array, y: Array) -> Array:
    """(x^{a - 1} - y^{a - 1}) / (a - 1), log(x / y) for a = 1; 0 where it is infinite."""
    both, safe_x, safe_y, u = _log_ratio(x, y)
    if a == 1:
        return jnp.where(both, u, 0.0)
    b = a - 1.0
    near = b * u < 1.0
    change = safe_y**b * jnp.expm1(jnp.where(near, b * u, 0.0))
    change = jnp.where(near, change, safe_x**b - safe_y**b)
    if a > 1:
        edge = jnp.where(x > 0, safe_x**b, 0.0) - jnp.where(y > 0, safe_y**b, 0.0)
        change = jnp.where(both, change, edge)
    return _finite(jnp.where(both | (a > 1), change, 0.0) / b)


def _power_curved(a: float, x: Array, y: Array) -> Array:
    """y^{a - 2} (x - y), 0 at y = 0."""
    alive = y > 0
    return _finite(jnp.where(alive, jnp.where(alive, y, 1.0) ** (a - 2.0) * (x - y), 0.0))
