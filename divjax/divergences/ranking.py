"""Choice models of rankings: Plackett-Luce, which with censoring is Cox's partial likelihood."""

from collections.abc import Callable
from functools import partial
from math import inf

import jax
import jax.numpy as jnp

from divjax.core import Array, check

Ties = Callable[[Array, Array, Array, Array], Array]
"""(log_risk [K], log_tied [K], place [K], size [K]) -> [K], the log denominators of tied events."""


def breslow(log_risk: Array, log_tied: Array, place: Array, size: Array) -> Array:
    """Each of several tied events is chosen from the whole risk set: log sum_{l at risk} e^{s_l}.

    Args:
        log_risk: [K] log sum of e^s over the risk set of each event.
        log_tied: [K] the same over the events tied with it.
        place: [K] 0, 1, ... within its ties.
        size: [K] how many events are tied.

    Returns:
        [K].

    References:
        Breslow, 1974.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import plackett_luce, ranking
        >>> ranks = jnp.array([0, 0, 1])
        >>> print(f"{plackett_luce(jnp.zeros(3), ranks, ties=ranking.breslow).sum():.4f}")
        2.1972
    """
    return log_risk


def efron(log_risk: Array, log_tied: Array, place: Array, size: Array) -> Array:
    """Tied events leave the risk set one after the other, by an average share of their worths.

        log(sum_{l at risk} e^{s_l} - place / size * sum_{l tied} e^{s_l})

    Args:
        log_risk: [K], as in `breslow`.
        log_tied: [K].
        place: [K].
        size: [K].

    Returns:
        [K].

    References:
        Efron, 1977.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import plackett_luce, ranking
        >>> ranks = jnp.array([0, 0, 1])
        >>> print(f"{plackett_luce(jnp.zeros(3), ranks, ties=ranking.efron).sum():.4f}")
        1.7918
    """
    share = (place / jnp.maximum(size, 1)).astype(log_risk.dtype)
    return log_risk + jnp.log1p(-share * jnp.exp(log_tied - log_risk))


def positions(keys: Array) -> Array:
    """0 for the smallest key, 1 for the next, ...; equal keys keep their order.

    Args:
        keys: [*E, K]; pass -logits to rank by descending logits.

    Returns:
        [*E, K] int32.

    References:
        Plackett, 1975.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import ranking
        >>> ranking.positions(jnp.array([0.3, 0.1, 0.3])).tolist()
        [1, 0, 2]
    """
    order = jnp.argsort(keys, axis=-1, stable=True)
    return jnp.argsort(order, axis=-1, stable=True).astype(jnp.int32)


def plackett_luce(
    scores: Array,
    ranks: Array,
    *,
    events: Array | None = None,
    where: Array | None = None,
    ties: Ties = efron,
) -> Array:
    """-log P(item k is chosen at its turn) of each item, by the worths e^s of those still there.

        term_k = log sum_{l: rank_l >= rank_k} e^{s_l} - s_k

    The sum of the terms is the negative log-likelihood of the ranking. Of a list of which only the
    best are known, `events` are the known ones (ranks < k) and all others share a later rank.
    With ranks = times and events = observed deaths it is Cox's negative log partial likelihood.

    Args:
        scores: [*E, K] logits; -inf is an item that is never chosen while another is left.
        ranks: [*E, K] any sortable numbers, smaller is earlier; equal ones are ties.
        events: bool [*E, K], the choices that were seen; others are at risk only. None is all.
        where: bool [*E, K], items that exist; others may hold anything. None is all.
        ties: `efron` or `breslow`; without ties they agree. For an order of ties hand in
            `positions(ranks)`.

    Returns:
        [*E, K], >= 0, and 0 where there is no event; weigh and sum as needed. +inf where an item
        of score -inf was chosen before others; NaN at all events of a row with a NaN.

    Raises:
        ValueError: shapes or masks do not match.

    References:
        Plackett, 1975; Cox, 1972; Xia et al. (ListMLE), 2008.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import plackett_luce
        >>> terms = plackett_luce(jnp.array([0.5, 0.2, -0.3, 0.1]), jnp.array([1, 0, 2, 3]))
        >>> print(f"{jnp.exp(-terms.sum()):.6f}")  # the probability of the order 1, 0, 2, 3
        0.049034
    """
    caller = "plackett_luce"
    check.floating("scores", scores, caller=caller)
    check.rank_at_least("scores", scores, 1, caller=caller)
    check.same_shape(("scores", "ranks"), (scores, ranks), caller=caller)
    check.boolean_mask("events", events, scores.shape, caller=caller)
    check.boolean_mask("where", where, scores.shape, caller=caller)
    check.require(scores.shape[-1] > 0, caller, "the list must not be empty", scores, "skip it")
    signature, remedy = "as `breslow` is", "pass ranking.efron or ranking.breslow"
    check.function("ties", ties, caller=caller, signature=signature, remedy=remedy)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    here = jnp.ones(scores.shape, bool) if where is None else where
    seen = here if events is None else here & events
    # Wherever it would be sorted to, no term of its row is known.
    lost = jnp.any(here & (jnp.isnan(scores) | jnp.isnan(ranks)), axis=-1, keepdims=True)
    scores = jnp.where(lost, jnp.nan, scores)
    one = jnp.vectorize(partial(_terms, ties=ties), signature="(k),(k),(k),(k)->(k)")
    return one(jnp.where(here, scores, -inf), ranks, seen, here)  # type: ignore[no-any-return]


def _terms(scores: Array, ranks: Array, seen: Array, here: Array, *, ties: Ties) -> Array:
    """Of one list: sorted by rank, a risk set is what is not before the first of the ties."""
    order = jnp.lexsort((~seen, ranks, ~here))  # existing first, by rank, events before the others
    s, rank, event, exists = scores[order], ranks[order], seen[order], here[order]
    low = float(jnp.finfo(s.dtype).min) / 4  # type: ignore[no-untyped-call]
    possible = s != -inf
    # log sum_{l >= k} e^{s_l}; two terms of -inf have no derivative, two very low ones have.
    suffix = jax.lax.cumlogsumexp(jnp.where(possible, s, low), axis=0, reverse=True)
    after = jnp.append(suffix[1:], low)
    new = jnp.append(True, (rank[1:] != rank[:-1]) | (exists[1:] != exists[:-1]))
    group = jnp.cumsum(new) - 1
    tied = jax.ops.segment_sum(event.astype(jnp.int32), group, len(s))[group]
    first = jax.lax.cummax(jnp.where(new, jnp.arange(len(s)), 0))
    place = jnp.arange(len(s)) - first
    log_tied = _log_sum_of_group(jnp.where(event, s, -inf), group)
    risk = suffix[first]
    lost = event & ~possible  # chosen though it cannot be: infinite, unless nothing else was left
    chosen = jnp.where(event & possible, s, 0.0)
    shared = ties(risk, log_tied, place, tied) - chosen
    # Where a choice was clear, softplus keeps what log-sum minus s would round away.
    alone = jax.nn.softplus(after - chosen)
    terms = jnp.where((tied == 1) & (place == 0), alone, shared)
    terms = jnp.where(lost, jnp.where(risk > low / 2, inf, 0.0), jnp.where(event, terms, 0.0))
    return jnp.zeros_like(terms).at[order].set(terms)


def _log_sum_of_group(s: Array, group: Array) -> Array:
    """log of the sum of e^s over the group of each item; 0 where that is -inf."""
    peak = jax.lax.stop_gradient(jax.ops.segment_max(s, group, len(s)))[group]
    peak = jnp.where(peak != -inf, peak, 0.0)
    alive = s != -inf
    worth = jnp.where(alive, jnp.exp(jnp.where(alive, s - peak, 0.0)), 0.0)
    total = jax.ops.segment_sum(worth, group, len(s))[group]
    return peak + jnp.log(jnp.where(total > 0, total, 1.0))
