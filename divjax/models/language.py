"""The face of a language model: pure functions, all that losses, decoding and rollouts see."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from divjax.core import Array, PyTree, check
from divjax.models._attention import rotary
from divjax.models.decoder import Cache, Decoder, gated_mlp, layer_norm, plain_mlp, rms_norm


class Hidden(Protocol):
    """`hidden(params, tokens, *, positions, mask, cache) -> ([B, T, H], cache)`."""

    def __call__(
        self,
        params: PyTree,
        tokens: Array,
        *,
        positions: Array | None = None,
        mask: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """Tokens int [B, T] and their mask bool [B, T]; what a token sees is before it and counts.

        Positions int [B, T] count the tokens of a row that count, unless given. With a cache the
        tokens come after those in it; beyond its end is a ValueError, or NaN under a trace.
        """
        ...


class InitCache(Protocol):
    """`init_cache(batch, length, *, layers=None) -> Cache`."""

    def __call__(self, batch: int, length: int, *, layers: int | None = None) -> Cache:
        """Room for `length` tokens in each of `batch` rows; `layers` of truncated params."""
        ...


class Head(Protocol):
    """`head(params) -> [V, H]`."""

    def __call__(self, params: PyTree) -> Array:
        """The rows that hidden states are multiplied with."""
        ...


class LogitTransform(NamedTuple):
    """What happens to hidden head^T before it is a logit; the fields are those of a fused source.

        cap(scale z) with cap(z) = soft_cap tanh(z / soft_cap), of which `valid` columns count

    Attributes:
        scale: of the logits.
        soft_cap: > 0, or None.
        valid: columns that are vocabulary, the others are padding; None for all.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.models import LogitTransform
        >>> LogitTransform(scale=2.0, valid=2)(jnp.array([1.0, 2.0, 3.0])).tolist()
        [2.0, 4.0]
    """

    scale: float = 1.0
    soft_cap: float | None = None
    valid: int | None = None

    def __call__(self, z: Array) -> Array:
        """[*E, columns] to logits [*E, V]."""
        z = self.scale * z[..., : self.valid]
        return z if self.soft_cap is None else self.soft_cap * jnp.tanh(z / self.soft_cap)


class LanguageModel(NamedTuple):
    """Pure functions of a language model.

    Attributes:
        hidden: (params, tokens [B, T], *, positions=None, mask=None, cache=None) ->
            ([B, T, H], cache).
        head: (params) -> [V, H].
        logit_transform: products hidden head^T [*E, V] to logits; its fields go to a fused loss,
            Linear(hidden, head, **model.logit_transform._asdict()).
        init_cache: (batch, length, *, layers=None) -> `Cache`.
    """

    hidden: Hidden
    head: Head
    logit_transform: LogitTransform
    init_cache: InitCache


def language_model(
    decoder: Decoder, logit_transform: LogitTransform | None = None
) -> tuple[PyTree, LanguageModel]:
    """A decoder as a plain nested dict of arrays and pure functions.

    Args:
        decoder: taken apart once; no nnx object crosses a jit boundary afterwards.
        logit_transform: the identity when None.

    Returns:
        (params, model); every array of params["blocks"] has a leading axis of blocks.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import gpt, language_model
        >>> decoder = gpt(50, 16, 2, heads=4, length=8, rngs=nnx.Rngs(0))
        >>> params, model = language_model(decoder)
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> states, _ = model.hidden(params, tokens)
        >>> first, cache = model.hidden(params, tokens[:, :3], cache=model.init_cache(1, 8))
        >>> rest, cache = model.hidden(params, tokens[:, 3:], cache=cache)
        >>> bool(jnp.allclose(rest, states[:, 3:], atol=1e-5))
        True
    """
    graph, state = nnx.split(decoder)
    params: PyTree = nnx.to_pure_dict(state)
    depth, heads, size = decoder.memory
    matrix = "embedding" if decoder.head is None else "head"

    def hidden(
        params: PyTree,
        tokens: Array,
        *,
        positions: Array | None = None,
        mask: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        merged: Decoder = nnx.merge(graph, params)
        return merged(tokens, positions=positions, mask=mask, cache=cache)

    def head(params: PyTree) -> Array:
        found: Array = params[matrix]
        return found

    def init_cache(batch: int, length: int, *, layers: int | None = None) -> Cache:
        shape = (depth if layers is None else layers, batch, length, heads, size)
        empty = jnp.zeros((batch, length), bool)
        return Cache(jnp.zeros(shape), jnp.zeros(shape), empty, jnp.int32(0))

    return params, LanguageModel(hidden, head, logit_transform or LogitTransform(), init_cache)


def logits(model: LanguageModel, params: PyTree, hidden: Array) -> Array:
    """All logits as one array, for a look at a few; a loss takes hidden and head instead.

    Args:
        model: of `language_model`.
        params: of the model.
        hidden: [*E, H] of `model.hidden`.

    Returns:
        [*E, V], float32 at least.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import gpt, language_model, logits
        >>> params, model = language_model(gpt(50, 16, 2, heads=4, length=8, rngs=nnx.Rngs(0)))
        >>> states, _ = model.hidden(params, jnp.array([[3, 1, 4]]))
        >>> logits(model, params, states).shape
        (1, 3, 50)
    """
    kind = jnp.promote_types(hidden.dtype, jnp.float32)
    head = model.head(params)
    return model.logit_transform(
        jnp.einsum("...h,vh->...v", hidden, head, preferred_element_type=kind)
    )


def truncate(params: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The first blocks of a language model, with its embedding, norm and head: a student.

    Args:
        params: of `language_model`.
        layers: blocks to keep.

    Returns:
        Params for the same model; a cache for them is init_cache(..., layers=layers).

    Raises:
        ValueError: there are fewer blocks.

    Example:
        >>> from flax import nnx
        >>> from divjax.models import gpt, language_model, truncate
        >>> params, _ = language_model(gpt(50, 16, 6, heads=4, length=8, rngs=nnx.Rngs(0)))
        >>> truncate(params, 2)["blocks"]["attention"]["query"]["kernel"].shape
        (2, 16, 16)
    """
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    ok = isinstance(layers, int) and 1 <= layers <= depth
    expected = f"layers must be 1..{depth}, the blocks there are"
    check.require(ok, "truncate", expected, layers, "keep fewer")
    return {**params, "blocks": jax.tree.map(lambda x: x[:layers], params["blocks"])}


def gpt(
    vocabulary: int,
    width: int,
    depth: int,
    *,
    heads: int,
    length: int,
    tied: bool = True,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> Decoder:
    """GPT-2: learned positions, LayerNorm, a GELU layer of 4 H, biases.

    Args:
        vocabulary: V.
        width: H.
        depth: number of blocks.
        heads: of attention.
        length: number of positions; a row with a token beyond them is NaN.
        tied: the head is the embedding.
        remat: as in `Decoder`.
        rngs: where the initial weights come from.

    References:
        Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import gpt
        >>> gpt(50, 16, 2, heads=4, length=8, rngs=nnx.Rngs(0))(jnp.zeros((1, 5), int))[0].shape
        (1, 5, 16)
    """
    return Decoder(
        vocabulary, width, depth, heads=heads, norm=layer_norm(), mlp=plain_mlp(4 * width),
        table=length, bias=True, tied=tied, remat=remat, rngs=rngs,
    )  # fmt: skip


def llama(
    vocabulary: int,
    width: int,
    depth: int,
    *,
    heads: int,
    kv_heads: int | None = None,
    inner: int,
    base: float = 10_000.0,
    epsilon: float = 1e-5,
    interleaved: bool = False,
    tied: bool = True,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> Decoder:
    """Llama: rotary positions, RMSNorm, SwiGLU, shared key heads, no biases.

    Args:
        vocabulary: V.
        width: H.
        depth: number of blocks.
        heads: of queries.
        kv_heads: of keys and values, a divisor of heads; heads when None.
        inner: width of the gated layer.
        base: of `rotary`.
        epsilon: of `rms_norm`.
        interleaved: of `rotary`: True for weights of GGUF files.
        tied: the head is the embedding.
        remat: as in `Decoder`.
        rngs: where the initial weights come from.

    References:
        Touvron et al., arXiv 2302.13971.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import llama
        >>> net = llama(50, 16, 2, heads=4, kv_heads=2, inner=32, rngs=nnx.Rngs(0))
        >>> net(jnp.zeros((1, 5), int))[0].shape
        (1, 5, 16)
    """
    return Decoder(
        vocabulary, width, depth, heads=heads, kv_heads=kv_heads, norm=rms_norm(epsilon),
        mlp=gated_mlp(inner), rotate=rotary(base, interleaved=interleaved), bias=False, tied=tied,
        remat=remat, rngs=rngs,
    )  # fmt: skip
