"""Closed forms for two Gaussians: `gaussian.kl(p, q)` is KL(p || q), in nats.

A diagonal law is D independent laws of one dimension, and everything here adds up over
independent parts: both kinds are blocks [*E, N, d], with N = 1 or d = 1, and share each formula.

KL and Renyi need the covariances A and B relative to each other. With Cholesky factors, B = L L^T,
C = L^-1 chol(A) is the factor of I + E, E = L^-1 (A - B) L^-T, and

    tr E - log det(I + E) = sum_{i > k} C_ik^2 + sum_i (t_i - 1 - log t_i),  t_i = C_ii^2,

a sum of positive terms: nothing large is subtracted and no eigenvector is differentiated. Where
the laws are close, C is the factor of I + E itself, and t - 1 comes from E.

Two Gaussians either live on the same affine subspace or are mutually singular. Directions without
variance are found from the eigenvalues of the correlation matrix: those below 4 eps of the
largest count as 0. On the same subspace both laws get unit variance there, which changes nothing.
"""

from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array, check
from divjax.divergences import generators
from divjax.divergences._covariance import (
    diagonal,
    eigh,
    product,
    root,
    squared_bures,
    transpose,
)
from divjax.divergences._terms import under_q

__all__ = [
    "DiagonalGaussian",
    "Gaussian",
    "alpha",
    "bhattacharyya",
    "kl",
    "renyi",
    "squared_hellinger",
    "squared_wasserstein",
]


class Gaussian(NamedTuple):
    """N(mean, covariance); the covariance is symmetric and may be singular."""

    mean: Array  # [*E, D]
    covariance: Array  # [*E, D, D]


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(variance)); a variance may be 0."""

    mean: Array  # [*E, D]
    variance: Array  # [*E, D]


Law = Gaussian | DiagonalGaussian


def kl(p: Law, q: Law) -> Array:
    """KL(p || q) = (tr(B^-1 A) - D - log det(B^-1 A) + |m - n|^2_{B^-1}) / 2.

    p = N(m, A), q = N(n, B).

    Args:
        p: the law in front, `Gaussian` or `DiagonalGaussian` with arrays [*E, D], [*E, D, D].
        q: the second law, of the same shape; a diagonal one may meet a full one.

    Returns:
        [*E], >= 0, float32 at least; +inf unless both live on the same affine subspace.

        Digits: 8 less the logarithm of the condition number of the covariances are right in
        float32. The relative error was 3e-6 at a condition number of 1e3 and 3e-3 at 1e6 (median
        of random pairs; ten times that at worst).

        Singular covariances: derivatives are right along moves that keep both laws on their
        subspace. Along moves that leave it the truth jumps to +inf; the derivative there is finite
        and means nothing, so project a step to the subspace. Where the value is +inf itself, the
        derivative is that of the quadratic form in the means.

    Raises:
        ValueError: shapes or dtypes are not as above; where values can be seen, a variance is
            negative, or a covariance not symmetric or with a negative eigenvalue.

    References:
        Kullback and Leibler, 1951.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import gaussian
        >>> p = gaussian.DiagonalGaussian(jnp.array([0.0]), jnp.array([1.0]))
        >>> q = gaussian.DiagonalGaussian(jnp.array([1.0]), jnp.array([2.25]))
        >>> print(f"{gaussian.kl(p, q):.6f}")
        0.349910
    """
    return _renyi(*_blocks("gaussian.kl", p, q), 1.0)


def renyi(p: Law, q: Law, *, order: float) -> Array:
    """R_a(p || q) = log(E_q (p/q)^a) / (a - 1).

    With S = a B + (1 - a) A: a |m - n|^2_{S^-1} / 2 + log(det S / (det A^{1-a} det B^a)) /
    (2 (1 - a)).

    Args:
        p: arrays [*E, D] as in `kl`.
        q: as p.
        order: a >= 0, finite. 1 is KL(p || q).

    Returns:
        [*E], >= 0; +inf for mutually singular laws, and where S is not positive definite.

    Raises:
        ValueError: the order is negative; laws as in `kl`.

    References:
        Gil, Alajaji and Linder, 2013; van Erven and Harremoes, arXiv 1206.2459.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import gaussian
        >>> p = gaussian.Gaussian(jnp.zeros(1), jnp.eye(1))
        >>> q = gaussian.Gaussian(jnp.ones(1), 2.25 * jnp.eye(1))
        >>> print(f"{gaussian.renyi(p, q, order=2.0):.6f}")
        0.470263
    """
    ok = isinstance(order, int | float) and 0 <= order < inf
    expected = "order must be a finite number >= 0"
    check.require(ok, "gaussian.renyi", expected, order, "for example order=0.5")
    return _renyi(*_blocks("gaussian.renyi", p, q), float(order))


def bhattacharyya(p: Law, q: Law) -> Array:
    """-log of the integral of sqrt(p q) = R_{1/2}(p || q) / 2.

    Laws of arrays [*E, D] in, [*E] out, as in `kl`; symmetric.

    References:
        Bhattacharyya, 1943.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import gaussian
        >>> p = gaussian.DiagonalGaussian(jnp.array([0.0]), jnp.array([1.0]))
        >>> q = gaussian.DiagonalGaussian(jnp.array([2.0]), jnp.array([1.0]))
        >>> float(gaussian.bhattacharyya(p, q))
        0.5
    """
    return 0.5 * _renyi(*_blocks("gaussian.bhattacharyya", p, q), 0.5)


def squared_hellinger(p: Law, q: Law) -> Array:
    """1 - integral of sqrt(p q), at most 1.

    Laws of arrays [*E, D] in, [*E] out, as in `kl`; 1 for mutually singular laws.

    References:
        Hellinger, 1909.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import gaussian
        >>> p = gaussian.DiagonalGaussian(jnp.array([0.0]), jnp.array([1.0]))
        >>> q = gaussian.DiagonalGaussian(jnp.array([1.0]), jnp.array([2.25]))
        >>> print(f"{gaussian.squared_hellinger(p, q):.6f}")
        0.110365
    """
    return -jnp.expm1(-0.5 * _renyi(*_blocks("gaussian.squared_hellinger", p, q), 0.5))


def alpha(p: Law, q: Law, *, order: float) -> Array:
    """(E_q (p/q)^a - 1) / (a (a - 1)), with the KLs as limits at 1 and 0.

    Pearson's chi^2 is twice order 2, the squared Hellinger distance a quarter of order 1/2.

    Args:
        p: arrays [*E, D] as in `kl`.
        q: as p.
        order: a, any finite number.

    Returns:
        [*E], >= 0; +inf as in `renyi` for a >= 1 or a <= 0, at most 1 / (a (1 - a)) between.

    Raises:
        ValueError: the order is no finite number; laws as in `kl`.

    References:
        Cressie and Read, 1984; Amari, 2009.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import gaussian
        >>> p = gaussian.DiagonalGaussian(jnp.array([0.0]), jnp.array([1.0]))
        >>> q = gaussian.DiagonalGaussian(jnp.array([1.0]), jnp.array([2.25]))
        >>> print(f"{2 * gaussian.alpha(p, q, order=2.0):.6f}")
        0.600415
    """
    ok = isinstance(order, int | float) and abs(order) < inf
    expected = "order must be a finite number"
    check.require(ok, "gaussian.alpha", expected, order, "for example order=0.5")
    a, b = _blocks("gaussian.alpha", p, q)
    if order < 0.5:  # the order of the mirrored pair, so that 1 is the only order without division
        a, b, order = b, a, 1.0 - order
    r = _renyi(a, b, float(order))
    if order == 1:
        return r
    exponent = (order - 1.0) * r
    fits = ~(exponent >= jnp.log(np.finfo(r.dtype).max))  # NaN stays what it is
    grown = jnp.expm1(jnp.where(fits, exponent, 0.0))
    return jnp.where(fits, grown / (order * (order - 1.0)), inf)


def squared_wasserstein(p: Law, q: Law) -> Array:
    """W_2^2(p, q) = |m - n|^2 + tr(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}).

    Laws of arrays [*E, D] in, [*E] out, as in `kl`; symmetric, finite for all laws. In directions
    without variance the slope of the square root is infinite; the derivative omits that term.

    References:
        Gelbrich, 1990; Takatsu, 2011.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import gaussian
        >>> p = gaussian.DiagonalGaussian(jnp.array([0.0]), jnp.array([1.0]))
        >>> q = gaussian.DiagonalGaussian(jnp.array([1.0]), jnp.array([2.25]))
        >>> float(gaussian.squared_wasserstein(p, q))
        1.25
    """
    a, b = _blocks("gaussian.squared_wasserstein", p, q)
    shift = jnp.sum((a.mean - b.mean) ** 2, axis=-1)
    return jnp.sum(shift + squared_bures(a.covariance, b.covariance), axis=-1)


# --- arguments ---


def _checked(caller: str, name: str, law: Law) -> None:
    known = isinstance(law, Gaussian | DiagonalGaussian)
    remedy = "pass gaussian.Gaussian(mean, covariance)"
    check.require(known, caller, f"{name} must be a Gaussian or DiagonalGaussian", law, remedy)
    label = f"{name}.{law._fields[1]}"
    mean, spread = law
    check.floating(f"{name}.mean", mean, caller=caller)
    check.floating(label, spread, caller=caller)
    check.rank_at_least(f"{name}.mean", mean, 1, caller=caller)
    shape = mean.shape + mean.shape[-1:] * (spread.ndim - mean.ndim) if known else ()
    full = isinstance(law, Gaussian)
    shape = (*mean.shape, mean.shape[-1]) if full else mean.shape
    remedy = "one row of the covariance per entry of the mean" if full else "one per entry"
    check.require(spread.shape == shape, caller, f"{label} must be {list(shape)}", spread, remedy)
    seen = check.seen(spread)
    if seen is None or seen.size == 0:
        return
    variance = np.diagonal(seen, axis1=-2, axis2=-1) if full else seen
    remedy = "a covariance" if full else "variances, not logarithms or standard deviations"
    check.require(not (variance < 0).any(), caller, f"{label} must be >= 0", spread, remedy)
    if full:
        slack = 1e-3 * np.abs(seen).max()
        even = not (np.abs(seen - np.swapaxes(seen, -1, -2)) > slack).any()
        remedy = f"pass ({label} + {label}.mT) / 2"
        check.require(even, caller, f"{label} must be symmetric", spread, remedy)
        lowest = np.linalg.eigvalsh(np.where(np.isfinite(seen), seen, 0.0)).min(-1)
        definite = not (lowest < -1e-3 * np.abs(seen).max((-1, -2))).any()
        expected = f"{label} must have no negative eigenvalue"
        check.require(definite, caller, expected, f"one of {lowest.min():.3g}", "pass x.mT @ x / n")


def _blocks(caller: str, p: Law, q: Law) -> tuple[Gaussian, Gaussian]:
    """Both laws as independent blocks, mean [*E, N, d] and covariance [*E, N, d, d]."""
    _checked(caller, "p", p)
    _checked(caller, "q", q)
    check.same_shape(("p.mean", "q.mean"), (p.mean, q.mean), caller=caller)
    dtype = jnp.result_type(*p, *q, jnp.float32)
    diagonal = isinstance(p, DiagonalGaussian) and isinstance(q, DiagonalGaussian)

    def block(law: Law) -> Gaussian:
        mean, spread = (x.astype(dtype) for x in law)
        if diagonal:
            return known(Gaussian(mean[..., None], spread[..., None, None]))
        if isinstance(law, DiagonalGaussian):
            spread = spread[..., None] * jnp.eye(mean.shape[-1], dtype=dtype)
        return known(Gaussian(mean[..., None, :], spread[..., None, :, :]))

    def known(law: Gaussian) -> Gaussian:
        """A covariance with NaN is no singular one: the unit one, and a mean that is NaN."""
        lost = jnp.isnan(law.covariance).any((-1, -2))
        unit = jnp.eye(law.mean.shape[-1], dtype=dtype)
        mean = jnp.where(lost[..., None], jnp.nan, law.mean)
        return Gaussian(mean, jnp.where(lost[..., None, None], unit, law.covariance))

    return block(p), block(q)


# --- Renyi divergences of all orders, KL among them ---


class _Pair(NamedTuple):
    """Two laws with unit variance along the directions in which the second has none."""

    p: Array  # [..., d, d] A
    q: Array  # [..., d, d] B
    inverse: Array  # [..., d, d] L^-1, B = L L^T
    excess: Array  # [..., d, d] L^-1 (A - B) L^-T
    shift: Array  # [..., d, 1] the difference of the means, where the second law has variance
    singular: Array  # bool [...] the two laws live on different subspaces


def _null(covariance: Array) -> tuple[Array, Array]:
    """Rows N and columns C [..., d, d] of the directions without variance, N C = I; others 0."""
    variance = diagonal(covariance)
    scale = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 1.0)
    w, v = eigh(covariance / (scale[..., :, None] * scale[..., None, :]))
    v = jnp.where((w == 0)[..., None, :], v, 0.0)
    return transpose(v / scale[..., :, None]), scale[..., :, None] * v


def _paired(p: Gaussian, q: Gaussian) -> _Pair:
    shift = (p.mean - q.mean)[..., None]
    at = jax.lax.stop_gradient((p.covariance, q.covariance, shift))
    nulls, columns = _null(jnp.stack(at[:2]))
    null_q, lift = nulls[1], product(columns[1], transpose(columns[1]))
    rank_p, rank_q = jnp.sum(jnp.any(nulls != 0, axis=-1), axis=-1)
    # What p has in the null directions of q, beside the rounding of the sums that form it.
    slack = 16.0 * shift.shape[-2] * float(np.finfo(shift.dtype).eps)
    rows = jnp.abs(null_q)
    leak = diagonal(product(null_q, at[0], transpose(null_q)))
    leaks = leak > slack * diagonal(product(rows, jnp.abs(at[0]), transpose(rows)))
    moves = jnp.abs(product(null_q, at[2])) > slack * product(rows, jnp.abs(at[2]))
    _, inverse = root(q.covariance + lift)
    excess = product(inverse, p.covariance - q.covariance, transpose(inverse))
    apart = (rank_p != rank_q) | jnp.any(leaks, -1) | jnp.any(moves, (-1, -2)) | ~_definite(inverse)
    shift = shift - product(columns[1], null_q, shift)
    return _Pair(p.covariance + lift, q.covariance + lift, inverse, excess, shift, apart)


class _Spread(NamedTuple):
    """How far n covariances S are from B, with X = L^-1 S L^-T - I."""

    gap: Array  # [n, ...] tr X - log det(I + X), >= 0
    log_det: Array  # [n, ...] log det(I + X)
    inverse: Array  # [n, ..., d, d] of the Cholesky factor of S, 0 where S is not definite


def _definite(inverse: Array) -> Array:
    """Whether `root` found a factor."""
    return inverse[..., 0, 0] > 0


def _spread(base: Array, covariance: Array, excess: Array) -> _Spread:
    """From S and from X, [n, ..., d, d], each where it is the more accurate."""
    eye = jnp.eye(excess.shape[-1], dtype=excess.dtype)
    near = jnp.max(jnp.abs(excess), axis=(-1, -2), keepdims=True) < 0.5
    both = jnp.stack([covariance, eye + jnp.where(near, excess, 0.0)])
    (factor, close), (inverse, found) = root(both)
    c = jnp.where(near & _definite(found)[..., None, None], close, product(base, factor))
    below = jnp.sum(jnp.tril(c, -1) ** 2, axis=-1)
    pivot = diagonal(excess) - below
    small = _definite(inverse)[..., None] & (jnp.abs(pivot) < 0.5)
    log_t = jnp.where(small, jnp.log1p(jnp.where(small, pivot, 0.0)), 2 * jnp.log(diagonal(c)))
    rest = under_q(generators.reverse(generators.kl), log_t)  # t - 1 - log t
    return _Spread(jnp.sum(below + rest, -1), jnp.sum(log_t, -1), inverse)


def _renyi(p: Gaussian, q: Gaussian, order: float) -> Array:
    if order < 0.5:  # (1 - a) R_a(p || q) = a R_{1-a}(q || p), which cancels less
        mirrored = _renyi_of_pair(_paired(q, p), 1.0 - order)
        infinite = mirrored == inf
        finite = order / (1.0 - order) * jnp.where(infinite, 0.0, mirrored)
        return jnp.sum(jnp.where(infinite, inf, finite), axis=-1)
    return jnp.sum(_renyi_of_pair(_paired(p, q), order), axis=-1)


def _renyi_of_pair(pair: _Pair, order: float) -> Array:
    """Of order >= 1/2, per block."""
    if order == 1:
        own = _Spread(*(x[0] for x in _spread(pair.inverse, pair.p[None], pair.excess[None])))
        gap, inverse = own.gap, pair.inverse
    else:
        c = 1.0 - order
        covariances = jnp.stack([pair.p, order * pair.q + c * pair.p])
        spread = _spread(pair.inverse, covariances, jnp.stack([pair.excess, c * pair.excess]))
        own, mixed = (_Spread(*(x[i] for x in spread)) for i in (0, 1))
        gap = own.gap - mixed.gap / c  # both of second order, where the log-dets are of first
        if order < 1:
            gap = jnp.where(own.gap < 1.0, gap, mixed.log_det / c - own.log_det)
        inverse = mixed.inverse
    quadratic = order * jnp.sum(product(inverse, pair.shift) ** 2, axis=(-1, -2))
    finite = _definite(own.inverse) & _definite(inverse) & ~pair.singular
    return 0.5 * (quadratic + jnp.where(finite, gap, inf))
