"""What is asked of a language model's head, row by row and without its logits in memory."""

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp

from divjax.core import Array, check
from divjax.divergences._terms import entropy, weighted
from divjax.divergences.f import f_divergence, f_divergence_from_logits, given
from divjax.divergences.fused import fused_rows
from divjax.divergences.generators import Generator
from divjax.divergences.sources import Linear, Logits, Source, TopK


def fused_divergence(
    p: Linear | Logits,
    q: Linear | Logits,
    generator: Generator,
    *,
    mask: Array | None = None,
    block: int | None = None,
) -> Array:
    """D_f(p || q) of every row of two heads, as `f_divergence_from_logits` of their logits.

    Args:
        p: the law in front, for example the teacher's head.
        q: the second law.
        generator: the record of the divergence.
        mask: bool [*E], as in `fused_rows`.
        block: rows at a time, as in `fused_rows`.

    Returns:
        [*E], >= 0. For a training loss `fused_sum` is faster.

    Raises:
        ValueError: rows, or sizes of the two vocabularies, differ.

    References:
        Liese and Vajda, 2006, On divergences and informations in statistics.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Linear, fused_divergence, generators
        >>> h, w = jnp.ones((2, 4)), jnp.eye(7, 4)
        >>> [f"{x:.4f}" for x in fused_divergence(Linear(h, 2 * w), Linear(h, w), generators.kl)]
        ['0.0548', '0.0548']
    """

    def row(a: Array, b: Array) -> Array:
        check.require(
            a.shape == b.shape,
            "fused_divergence",
            f"both vocabularies must have one size, p's is {a.shape[-1]}",
            b.shape[-1],
            "set valid= to the tokenizer's size on the padded side, or on both",
        )
        return f_divergence_from_logits(a, b, generator)

    out: Array = fused_rows(row, p, q, mask=mask, block=block)
    return out


def token_log_probs(
    source: Source, tokens: Array, *, mask: Array | None = None, block: int | None = None
) -> Array:
    """log p(token) of every row.

    Args:
        source: `Linear` or `Logits` of rows *E.
        tokens: int [*E] entries of the vocabulary.
        mask: bool [*E], as in `fused_rows`.
        block: rows at a time.

    Returns:
        [*E], <= 0; minus the cross-entropy.

    References:
        Wijmans et al., 2024, arXiv 2411.09009.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Linear, token_log_probs
        >>> head = Linear(jnp.ones((2, 4)), jnp.eye(7, 4))
        >>> [f"{x:.2f}" for x in token_log_probs(head, jnp.array([0, 6]))]
        ['-1.63', '-2.63']
    """
    tokens = jnp.asarray(tokens)
    check.require(
        jnp.issubdtype(tokens.dtype, jnp.integer),
        "token_log_probs",
        "tokens must be int [*E]",
        tokens,
        "pass ids of the vocabulary",
    )
    out: Array = fused_rows(token_log_prob, source, tokens, mask=mask, block=block)
    return out


def token_log_prob(logits: Array, tokens: Array) -> Array:
    """log softmax(logits)[token], a row function for `fused_rows` and `fused_sum`.

    Args:
        logits: [*E, V].
        tokens: int [*E].

    Returns:
        [*E].

    References:
        Wijmans et al., 2024, arXiv 2411.09009.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import token_log_prob
        >>> f"{token_log_prob(jnp.zeros((1, 4)), jnp.array([2]))[0]:.4f}"
        '-1.3863'
    """
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropies(source: Source, *, mask: Array | None = None, block: int | None = None) -> Array:
    """-sum p log p of every row, in nats.

    Args:
        source: `Linear` or `Logits` of rows *E.
        mask: bool [*E], as in `fused_rows`.
        block: rows at a time.

    Returns:
        [*E].

    References:
        Shannon, 1948, A mathematical theory of communication.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Linear, entropies
        >>> f"{entropies(Linear(jnp.ones((1, 4)), jnp.ones((8, 4))))[0]:.4f}"
        '2.0794'
    """
    out: Array = fused_rows(entropy, source, mask=mask, block=block)
    return out


def log_normalisers(
    source: Source, *, mask: Array | None = None, block: int | None = None
) -> Array:
    """log sum exp of the logits of every row.

    Args:
        source: `Linear` or `Logits` of rows *E.
        mask: bool [*E], as in `fused_rows`.
        block: rows at a time.

    Returns:
        [*E].

    References:
        Wijmans et al., 2024, arXiv 2411.09009.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Logits, log_normalisers
        >>> f"{log_normalisers(Logits(jnp.zeros((1, 8))))[0]:.4f}"
        '2.0794'
    """
    normaliser: Callable[[Array], Array] = lambda z: jax.nn.logsumexp(z, axis=-1)  # noqa: E731
    out: Array = fused_rows(normaliser, source, mask=mask, block=block)
    return out


def top_k(source: Source, k: int, *, mask: Array | None = None, block: int | None = None) -> TopK:
    """The k largest log-probabilities of every row, and the mass of all others.

    Args:
        source: `Linear` or `Logits` of rows *E, for example a teacher's head.
        k: how many, fewer than the vocabulary has.
        mask: bool [*E], as in `fused_rows`.
        block: rows at a time.

    Returns:
        TopK with rows *E; the tail is a sum of its own, not 1 less the others.

    Raises:
        ValueError: k is not in 1..V - 1.

    References:
        Shannon, 1948, A mathematical theory of communication.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Logits, top_k
        >>> top_k(Logits(jnp.array([[0.0, 2.0, 1.0]])), 2).ids.tolist()
        [[1, 2]]
    """
    check.count("k", k, caller="top_k")

    def row(logits: Array) -> TopK:
        size = logits.shape[-1]
        check.require(k < size, "top_k", f"k must be below the {size} entries", k, "take fewer")
        largest, ids = jax.lax.top_k(logits, k)
        rest = jnp.put_along_axis(logits, ids, -inf, axis=-1, inplace=False)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return TopK(ids, largest - log_z[..., None], jax.nn.logsumexp(rest, axis=-1) - log_z)

    out: TopK = fused_rows(row, source, mask=mask, block=block)
    return out


class Bounds(NamedTuple):
    """What is certain of a divergence of which only part is known.

    Attributes:
        low: [*E] it is at least this.
        high: [*E] and at most this; +inf where nothing is certain.
    """

    low: Array
    high: Array


def top_k_bounds(p: TopK, logits_q: Array, generator: Generator) -> Bounds:
    """Bounds of D_f(p || q) when of p only the K largest entries and the tail's mass are known.

    low is the divergence of the K entries and one bucket for all others, hence no more than the
    truth (data processing), and a loss with the right mass in the tail: it vanishes only where q
    agrees with all that is known. high is the largest value that a tail of this mass can have whose
    entries are no larger than the smallest one known: f is convex, so mass m = p_K goes to the
    entries where q f(m / q) - q f(0) is largest, exact but for the one entry that is not filled.

    Args:
        p: K entries of each row [*E, K] and the mass of the others.
        logits_q: [*E, V] of the second law, as `fused_rows` gives them.
        generator: the record.

    Returns:
        Bounds, [*E] each. high is +inf where f(0) is (reverse KL): a tail may hold zeros. It costs
        a sort of the vocabulary, which XLA drops when only low is used.

    Raises:
        ValueError: a record that is none, or K entries where V are too few.

    References:
        Liese and Vajda, 2006, On divergences and informations in statistics.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Logits, fused_rows, generators, top_k, top_k_bounds
        >>> teacher, student = jnp.array([[3.0, 2.0, 0.5, 0.0]]), jnp.array([[2.0, 2.5, 1.0, 0.0]])
        >>> known = top_k(Logits(teacher), 2)
        >>> bounds = top_k_bounds(known, student, generators.kl)
        >>> [f"{x[0]:.3f}" for x in bounds]  # the truth is 0.259
        ['0.257', '0.463']
    """
    log_q = jax.nn.log_softmax(logits_q)
    known = jnp.take_along_axis(log_q, p.ids, axis=-1)
    tail = jnp.put_along_axis(log_q, p.ids, -inf, axis=-1, inplace=False)
    log_tail_q = jax.nn.logsumexp(tail, axis=-1, keepdims=True)
    low = f_divergence(
        jnp.concatenate([p.log_probs, p.log_tail[..., None]], -1),
        jnp.concatenate([known, log_tail_q], -1),
        generator,
    )
    return Bounds(low, _largest(p, known, log_q, generator))


def _largest(p: TopK, known: Array, log_q: Array, g: Generator) -> Array:
    """The known entries' terms and the largest tail."""
    if g.at_zero == inf:
        return jnp.full_like(p.log_tail, inf)
    listed = jnp.put_along_axis(jnp.zeros(log_q.shape, bool), p.ids, True, axis=-1, inplace=False)
    cap, empty = p.log_probs[..., -1:], jnp.exp(log_q) * g.at_zero
    gains = jnp.where(listed, -inf, _cost(g, jnp.broadcast_to(cap, log_q.shape), log_q) - empty)
    largest = -jnp.sort(-gains, axis=-1)
    filled = jnp.exp(p.log_tail[..., None] - cap)  # how many entries of size p_K the tail is worth
    share = jnp.clip(filled - jnp.arange(largest.shape[-1]), 0.0, 1.0)
    gained = jnp.sum(jnp.where(share > 0, share * largest, 0.0), axis=-1)
    rest = jnp.sum(jnp.where(listed, 0.0, empty), axis=-1) + gained
    return jnp.sum(_cost(g, p.log_probs, known), axis=-1) + jnp.maximum(rest, 0.0)


def _cost(g: Generator, log_p: Array, log_q: Array) -> Array:
    """Q f(p / q), entry by entry."""
    pair = given(log_p, log_q)
    return weighted(g, pair.u, pair.p, pair.q, log_p, log_q).value
