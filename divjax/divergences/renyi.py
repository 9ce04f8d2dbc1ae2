"""Renyi divergence: a monotone map of the alpha divergence, not an f-divergence itself."""

from math import inf

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array, check
from divjax.divergences import generators
from divjax.divergences.f import (
    Pair,
    clean,
    f_divergence,
    f_divergence_from_logits,
    given,
    normalised,
    prepare,
)


def renyi(
    log_p: Array, log_q: Array, *, order: float, axis: int = -1, where: Array | None = None
) -> Array:
    """R_a(p || q) = log(sum_i p_i^a q_i^(1 - a)) / (a - 1), in nats.

    Args:
        log_p: [*E, K] log-probabilities, normalised; -inf is probability 0.
        log_q: [*E, K].
        order: a >= 0. 1 is KL(p || q); inf is the largest log-ratio; 0 is -log q(p > 0).
        axis: the axis of the support.
        where: bool [*E, K], as in `f_divergence`.

    Returns:
        [*E], >= 0; +inf for disjoint supports, and for a >= 1 where q = 0 < p.

    Raises:
        ValueError: the order is negative, or arrays are not as above.

    References:
        van Erven and Harremoes, arXiv 1206.2459.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import renyi
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{renyi(p, q, order=2.0):.6f}")
        0.446820
    """
    _check_order(order, "renyi")
    p, q = clean(*prepare("renyi", ("log_p", "log_q"), log_p, log_q, axis, where))
    if order == 1:
        return f_divergence(p, q, generators.kl)
    near = f_divergence(p, q, generators.alpha(order)) if 0 < order < inf else None
    return _renyi(given(p, q), near, float(order))


def renyi_from_logits(
    logits_p: Array, logits_q: Array, *, order: float, axis: int = -1, where: Array | None = None
) -> Array:
    """R_a(softmax(logits_p) || softmax(logits_q)), accurate however close the two laws are.

    Args:
        logits_p: [*E, K] unnormalised; -inf is probability 0.
        logits_q: [*E, K].
        order: as in `renyi`.
        axis: the axis of the support.
        where: bool [*E, K].

    Returns:
        [*E], >= 0.

    Raises:
        ValueError: as `renyi`.

    References:
        van Erven and Harremoes, arXiv 1206.2459.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import renyi_from_logits
        >>> z = jnp.array([1.0, 2.0, 3.0])
        >>> float(renyi_from_logits(z, z + 7.0, order=0.5))
        0.0
    """
    _check_order(order, "renyi_from_logits")
    names = ("logits_p", "logits_q")
    p, q = clean(*prepare("renyi_from_logits", names, logits_p, logits_q, axis, where))
    if order == 1:
        return f_divergence_from_logits(p, q, generators.kl)
    near = f_divergence_from_logits(p, q, generators.alpha(order)) if 0 < order < inf else None
    return _renyi(normalised(p, q), near, float(order))


def _check_order(order: float, caller: str) -> None:
    ok = isinstance(order, int | float | np.number) and order >= 0
    check.require(ok, caller, "order must be a number >= 0", order, "for example order=0.5")


def _renyi(pair: Pair, alpha: Array | None, order: float) -> Array:
    """From log-ratios, and from the alpha divergence where the two laws are close."""
    log_p, log_q = pair.log_p, pair.log_q
    has_p, has_q = log_p != -inf, log_q != -inf  # NaN is not absent
    both = has_p & has_q
    u, lq = jnp.where(both, pair.u, 0.0), jnp.where(both, log_q, 0.0)
    # What only p can reach: lost for a < 1 (its term is 0), infinite for a > 1.
    outside = jnp.any(has_p & ~has_q, axis=-1)
    infinite = jnp.where(outside, inf, 0.0) if order > 1 else 0.0
    if order == inf:
        return jnp.max(u, axis=-1, where=both, initial=0.0) + infinite
    some = jnp.any(both, axis=-1)
    empty = ~jnp.any(has_p | has_q, axis=-1)
    terms = jnp.where(both, lq + order * u, -inf)
    terms = jnp.where(some[..., None], terms, 0.0)  # a row of -inf has no gradient
    far = jax.nn.logsumexp(terms, axis=-1) / (order - 1.0)
    disjoint = inf if order < 1 else 0.0
    far = jnp.where(some, far, jnp.where(empty, 0.0, disjoint)) + infinite
    if alpha is None:
        return jnp.maximum(far, 0.0)
    inner = order * (order - 1.0) * alpha
    close = jnp.abs(inner) < 0.5
    return jnp.where(close, jnp.log1p(jnp.where(close, inner, 0.0)) / (order - 1.0), far)
