"""A decoder-only transformer; what GPT and Llama differ in are values that are passed in.

The blocks are one module whose parameters have a leading axis [L], and a scan goes over it:
compile time does not grow with depth, and a truncated student is a slice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from divjax.core import Array, check
from divjax.models._attention import Rotate, attend, unrotated
from divjax.models.nets import Norm

Mlp = Callable[[int, nnx.Rngs], nnx.Module]
"""(width, rngs) -> a module from [B, T, H] to the same shape."""


class Cache(NamedTuple):
    """Keys and values of the tokens so far, for decoding a few tokens at a time.

    Attributes:
        keys: [L, B, S, K, D].
        values: [L, B, S, K, D].
        mask: bool [B, S], the places that hold a token.
        length: int32 [], the places that are used, the same in every row.
    """

    keys: Array
    values: Array
    mask: Array
    length: Array


_Memory = tuple[Array, Array] | None  # keys and values of one block, or of all


class _Place(NamedTuple):
    positions: Array  # int32 [B, T]
    allowed: Array  # bool [B, T, S]
    start: Array  # int32 [], the first place of these tokens in the cache


def layer_norm(epsilon: float = 1e-5) -> Norm:
    """LayerNorm with scale and bias.

    Example:
        >>> from flax import nnx
        >>> from divjax.models import layer_norm
        >>> type(layer_norm()(8, nnx.Rngs(0))).__name__
        'LayerNorm'
    """
    return lambda width, rngs: nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)


def rms_norm(epsilon: float = 1e-5) -> Norm:
    """x / sqrt(mean(x^2) + epsilon), with a scale.

    References:
        Zhang and Sennrich, arXiv 1910.07467.

    Example:
        >>> from flax import nnx
        >>> from divjax.models import rms_norm
        >>> type(rms_norm()(8, nnx.Rngs(0))).__name__
        'RMSNorm'
    """
    return lambda width, rngs: nnx.RMSNorm(width, epsilon=epsilon, rngs=rngs)


class _Plain(nnx.Module):
    def __init__(
        self, width: int, inner: int, activation: Callable[[Array], Array], rngs: nnx.Rngs
    ) -> None:
        self.up = nnx.Linear(width, inner, rngs=rngs)
        self.down = nnx.Linear(inner, width, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        out: Array = self.down(self.activation(self.up(x)))
        return out


class _Gated(nnx.Module):
    def __init__(
        self, width: int, inner: int, activation: Callable[[Array], Array], rngs: nnx.Rngs
    ) -> None:
        self.gate = nnx.Linear(width, inner, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, inner, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(inner, width, use_bias=False, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        out: Array = self.down(self.activation(self.gate(x)) * self.up(x))
        return out


def plain_mlp(inner: int, activation: Callable[[Array], Array] = jax.nn.gelu) -> Mlp:
    """Two linear layers with biases and an activation between them.

    Args:
        inner: width between the layers.
        activation: [*E] -> [*E]; jax.nn.gelu is GPT-2's (its tanh form).

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import plain_mlp
        >>> plain_mlp(32)(8, nnx.Rngs(0))(jnp.ones((1, 2, 8))).shape
        (1, 2, 8)
    """
    return lambda width, rngs: _Plain(width, inner, activation, rngs)


def gated_mlp(inner: int, activation: Callable[[Array], Array] = jax.nn.silu) -> Mlp:
    """down(activation(gate x) * up x) without biases; with silu it is SwiGLU.

    Args:
        inner: width between the layers.
        activation: [*E] -> [*E].

    References:
        Shazeer, arXiv 2002.05202.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import gated_mlp
        >>> gated_mlp(32)(8, nnx.Rngs(0))(jnp.ones((1, 2, 8))).shape
        (1, 2, 8)
    """
    return lambda width, rngs: _Gated(width, inner, activation, rngs)


class _Attention(nnx.Module):
    def __init__(
        self, width: int, heads: int, kv_heads: int, bias: bool, rotate: Rotate, rngs: nnx.Rngs
    ) -> None:
        size = width // heads
        self.query = nnx.Linear(width, heads * size, use_bias=bias, rngs=rngs)
        self.key = nnx.Linear(width, kv_heads * size, use_bias=bias, rngs=rngs)
        self.value = nnx.Linear(width, kv_heads * size, use_bias=bias, rngs=rngs)
        self.out = nnx.Linear(heads * size, width, use_bias=bias, rngs=rngs)
        self.size = size
        self.rotate = rotate

    def __call__(self, x: Array, place: _Place, memory: _Memory) -> tuple[Array, _Memory]:
        query, key, value = (
            f(x).reshape(*x.shape[:2], -1, self.size) for f in (self.query, self.key, self.value)
        )
        query, key = (self.rotate(z, place.positions) for z in (query, key))
        if memory is not None:
            key = _written(memory[0], key, place.start)
            value = _written(memory[1], value, place.start)
            memory = key, value
        mixed = attend(query, key, value, place.allowed)
        return self.out(mixed.reshape(*x.shape[:2], -1)), memory


def _written(old: Array, new: Array, start: Array) -> Array:
    """[B, S, ...] with [B, T, ...] put in at `start`."""
    return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, 1)


class _Block(nnx.Module):
    def __init__(
        self, width: int, attention: _Attention, norm: Norm, mlp: Mlp,
        rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.attention_norm = norm(width, rngs)
        self.attention = attention
        self.mlp_norm = norm(width, rngs)
        self.mlp = mlp(width, rngs)

    def __call__(self, x: Array, place: _Place, memory: _Memory) -> tuple[Array, _Memory]:
        mixed, memory = self.attention(self.attention_norm(x), place, memory)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), memory


class Decoder(nnx.Module):
    """Tokens to hidden states; `gpt` and `llama` put the usual values in.

        x = x + attention(norm x),  x = x + mlp(norm x)  for each block, then norm x

    Args:
        vocabulary: V, rows of the embedding and of the head.
        width: H, a multiple of heads.
        depth: number of blocks.
        heads: N query heads of H/N numbers each.
        kv_heads: K heads of keys and values, a divisor of N; N when None.
        norm: `layer_norm()` or `rms_norm()`.
        mlp: `plain_mlp(inner)` or `gated_mlp(inner)`.
        rotate: `rotary(...)`, or None.
        table: number of learned positions that are added to the embedding, or None.
        bias: of the four projections of attention.
        tied: the head is the embedding.
        remat: compute each block again in the backward pass, instead of keeping its inside.
        rngs: where the initial weights come from.

    Raises:
        ValueError: heads does not divide width, or kv_heads heads.

    References:
        Radford et al., 2019 (GPT-2); Touvron et al., arXiv 2302.13971 (Llama); Ainslie et al.,
        arXiv 2305.13245 (shared key heads).

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import Decoder, gated_mlp, rms_norm, rotary
        >>> net = Decoder(50, 16, 2, heads=4, kv_heads=2, norm=rms_norm(), mlp=gated_mlp(32),
        ...               rotate=rotary(interleaved=False), bias=False, rngs=nnx.Rngs(0))
        >>> net(jnp.zeros((1, 5), int))[0].shape
        (1, 5, 16)
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        depth: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        norm: Norm,
        mlp: Mlp,
        rotate: Rotate | None = None,
        table: int | None = None,
        bias: bool = True,
        tied: bool = True,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        shared = heads if kv_heads is None else kv_heads
        for name, whole, part in (("heads", width, heads), ("kv_heads", heads, shared)):
            check.count(name, part, caller="Decoder")
            fits = f"{name} must divide {whole}"
            check.require(whole % part == 0, "Decoder", fits, part, "choose a divisor")
        turn = unrotated if rotate is None else rotate

        def block(rngs: nnx.Rngs) -> _Block:
            attention = _Attention(width, heads, shared, bias, turn, rngs)
            return _Block(width, attention, norm, mlp, rngs)

        def rows(count: int) -> nnx.Param[Array]:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (count, width)))

        self.embedding = rows(vocabulary)
        self.table = None if table is None else rows(table)
        split: Any = nnx.split_rngs(splits=depth)  # an initial value of its own for each block
        self.blocks = split(nnx.vmap(block, in_axes=0, out_axes=0))(rngs)
        self.norm = norm(width, rngs)
        self.head = None if tied else rows(vocabulary)
        self.memory = (depth, shared, width // heads)  # L, K, D of a cache
        self.remat = remat

    def __call__(
        self,
        tokens: Array,
        *,
        positions: Array | None = None,
        mask: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """As `LanguageModel.hidden`."""
        place, seen = _placed(tokens, positions, mask, cache)
        x = _rows(self.embedding[...], tokens if mask is None else jnp.where(mask, tokens, 0))
        if self.table is not None:
            x = x + _rows(self.table[...], place.positions)
        graph, stack = nnx.split(self.blocks)

        def block(x: Array, layer: Any) -> tuple[Array, _Memory]:
            params, memory = layer
            out: tuple[Array, _Memory] = nnx.merge(graph, params)(x, place, memory)
            return out

        memory = None if cache is None else _memory(cache, stack)
        step = jax.checkpoint(block) if self.remat else block
        x, memory = jax.lax.scan(step, x, (stack, memory))
        x = self.norm(x)
        if memory is None:
            return x, None
        end = place.start + tokens.shape[1]
        # An end that is traced cannot be refused; what it gives must not look like a result.
        x = jnp.where(end <= seen.shape[1], x, jnp.nan)
        return x, Cache(*memory, seen, end)


def _placed(
    tokens: Array, positions: Array | None, mask: Array | None, cache: Cache | None
) -> tuple[_Place, Array]:
    """Where the tokens are and what they may see, and which places hold tokens afterwards."""
    _check(tokens, positions, mask, cache)
    here = jnp.ones(tokens.shape, bool) if mask is None else mask
    start = jnp.int32(0) if cache is None else cache.length
    seen = here if cache is None else _written(cache.mask, here, start)
    if positions is None:
        before = 0 if cache is None else cache.mask.sum(-1, keepdims=True, dtype=jnp.int32)
        positions = jnp.maximum(before + jnp.cumsum(here, -1, dtype=jnp.int32) - 1, 0)
    now = start + jnp.arange(tokens.shape[1])
    causal = jnp.arange(seen.shape[1]) <= now[:, None]
    return _Place(positions, seen[:, None] & causal, start), seen


def _check(tokens: Array, positions: Array | None, mask: Array | None, cache: Cache | None) -> None:
    for name, x in (("tokens", tokens), ("positions", positions)):
        if x is not None:
            ok = jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 2 and x.shape == tokens.shape
            check.require(ok, "hidden", f"{name} must be integers [B, T]", x, f"pass {name}[None]")
    check.boolean_mask("mask", mask, tokens.shape, caller="hidden")
    if cache is None:
        return
    rows, places = cache.mask.shape
    check.require(
        rows == tokens.shape[0],
        "hidden",
        f"cache must have the {tokens.shape[0]} rows of tokens",
        rows,
        "init_cache(batch, length)",
    )
    used = check.seen(cache.length)
    end = tokens.shape[1] + (0 if used is None else int(used))
    longer = f"init_cache(batch, length) with length >= {end}"
    check.require(end <= places, "hidden", f"cache must have {end} places", places, longer)


def _memory(cache: Cache, stack: nnx.State) -> tuple[Array, Array]:
    """Keys and values, as many blocks of them as there are."""
    depth = jax.tree.leaves(stack)[0].shape[0]
    check.require(
        cache.keys.shape[0] == depth,
        "hidden",
        f"cache must have {depth} blocks as params have",
        cache.keys.shape[0],
        f"init_cache(batch, length, layers={depth})",
    )
    return cache.keys, cache.values


def _rows(table: Array, index: Array) -> Array:
    """NaN where there is no such row: a wrong token must not look like a right one."""
    index = jnp.where(index < 0, len(table), index)  # -1 is no row, not the last one
    return jnp.take(table, index, axis=0, mode="fill", fill_value=jnp.nan)
