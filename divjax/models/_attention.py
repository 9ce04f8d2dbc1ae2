"""Causal attention with boolean masks, and the places of tokens in it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from divjax.core import Array, check

Rotate = Callable[[Array, Array], Array]
"""(x [B, T, N, D], positions int [B, T]) -> [B, T, N, D]"""


def rotary(base: float = 10_000.0, *, interleaved: bool) -> Rotate:
    """Rotary positions: pair i of a head's D numbers turns by position * base^(-2 i / D).

        (a, b) -> (a cos - b sin, a sin + b cos)

    Which two numbers are a pair is a convention of the weights, and the wrong one gives a fluent
    but bad model: llama's own weights and GGUF files pair neighbours (2i, 2i + 1), those of
    transformers pair halves (i, i + D/2).

    Args:
        base: > 0, the wavelength of the slowest pair over 2 pi, nearly.
        interleaved: pair neighbours, not halves.

    Returns:
        A function of (x [B, T, N, D], positions int [B, T]) to [B, T, N, D].

    Raises:
        ValueError: the base is not positive, or D is odd.

    References:
        Su et al., arXiv 2104.09864.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.models import rotary
        >>> turned = rotary(interleaved=True)(jnp.ones((1, 1, 1, 2)), jnp.array([[1]]))
        >>> [f"{x:.4f}" for x in turned.ravel().tolist()]  # cos 1 - sin 1, sin 1 + cos 1
        ['-0.3012', '1.3818']
    """
    check.positive("base", base, caller="rotary")
    axis = -1 if interleaved else -2

    def rotate(x: Array, positions: Array) -> Array:
        size = x.shape[-1]
        check.require(size % 2 == 0, "rotary", "D must be even", x, "choose another head size")
        kind = jnp.promote_types(x.dtype, jnp.float32)
        rates = base ** (-jnp.arange(0, size, 2, dtype=kind) / size)
        angle = positions[:, :, None, None].astype(kind) * rates  # [B, T, 1, D/2]
        pairs = (size // 2, 2) if interleaved else (2, size // 2)
        a, b = jnp.moveaxis(x.astype(kind).reshape(*x.shape[:-1], *pairs), axis, 0)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis)
        return turned.reshape(x.shape).astype(x.dtype)

    return rotate


def unrotated(x: Array, positions: Array) -> Array:
    """Positions that attention does not see."""
    del positions
    return x


def masked_softmax(scores: Array, where: Array) -> Array:
    """Softmax over the last axis of the entries that count; 0 elsewhere, and where none counts."""
    scores = jnp.where(where, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isneginf(top), 0.0, top))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


def attend(query: Array, key: Array, value: Array, allowed: Array) -> Array:
    """sum_s softmax_s(q_t k_s / sqrt(D)) v_s over the allowed s; query heads share key heads.

    Args:
        query: [B, T, N, D].
        key: [B, S, K, D] with N a multiple of K: heads n K / N .. share one.
        value: [B, S, K, D].
        allowed: bool [B, T, S].

    Returns:
        [B, T, N, D]; zeros where nothing is allowed. Scores and weights in float32 at least.
    """
    batch, time, heads, size = query.shape
    kind = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, time, key.shape[2], -1, size)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=kind)
    weights = masked_softmax(scores * size**-0.5, allowed[:, None, None])
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, value, preferred_element_type=kind)
    return mixed.reshape(batch, time, heads, size).astype(query.dtype)
