"""Small reference networks in flax.nnx, with dropout whose noise belongs to the row."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from divjax.core import Array, check


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes entries with probability `rate` and scales the rest by 1 / (1 - rate).

    With one key per row the noise of a row does not depend on where in a batch, on which device
    or in which microbatch it lies (`divjax.core.row_keys`), which nnx.Dropout cannot promise.

    Args:
        x: [B, ...].
        rate: in [0, 1).
        key: one key [], keys [B], or None for no dropout.

    Returns:
        [B, ...].

    Raises:
        ValueError: the rate is outside [0, 1), or the keys are neither one nor B.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.models import dropout
        >>> kept = dropout(jnp.ones((1, 1000)), 0.25, jax.random.key(0))
        >>> sorted({round(float(v), 4) for v in kept[0]})
        [0.0, 1.3333]
    """
    ok = isinstance(rate, int | float) and 0 <= rate < 1
    check.require(ok, "dropout", "rate must lie in [0, 1)", rate, "for example rate=0.1")
    if key is None or rate == 0:
        return x
    check.require(
        key.shape in ((), x.shape[:1]),
        "dropout",
        f"key must be one key or keys [{x.shape[0]}]",
        key,
        "pass row_keys(ctx)",
    )
    keep = 1.0 - rate
    if key.ndim:
        mask = jax.vmap(lambda k, row: jax.random.bernoulli(k, keep, row.shape))(key, x)
    else:
        mask = jax.random.bernoulli(key, keep, x.shape)
    return jnp.where(mask, x / keep, 0.0)


class MLP(nnx.Module):
    """Linear layers with relu between them, and dropout after each relu.

    Args:
        sizes: widths, inputs first and outputs last: [64, 12, 10].
        dropout: rate in [0, 1).
        rngs: where the initial weights come from.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import MLP, split
        >>> params, apply = split(MLP([4, 8, 3], rngs=nnx.Rngs(0)))
        >>> apply(params, jnp.ones((2, 4)))[0].shape
        (2, 3)
    """

    def __init__(self, sizes: Sequence[int], *, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        pairs = pairwise(sizes)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])
        self.dropout = dropout

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        """[B, sizes[0]] to [B, sizes[-1]]."""
        for i, layer in enumerate(self.layers[:-1]):
            x = dropout(jax.nn.relu(layer(x)), self.dropout, _fold(key, i))
        out: Array = self.layers[-1](x)
        return out


class CNN(nnx.Module):
    """3x3 convolutions with GroupNorm and relu, halving the image after each, then a mean.

    Args:
        channels: of the image first, then of each convolution (multiples of 4): [1, 16, 32].
        classes: number of outputs.
        dropout: rate before the last layer.
        rngs: where the initial weights come from.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import CNN, split
        >>> params, apply = split(CNN([1, 8], classes=10, rngs=nnx.Rngs(0)))
        >>> apply(params, jnp.ones((2, 8, 8, 1)))[0].shape
        (2, 10)
    """

    def __init__(
        self, channels: Sequence[int], *, classes: int, dropout: float = 0.0, rngs: nnx.Rngs
    ) -> None:
        pairs = list(pairwise(channels))
        self.convolutions = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in pairs])
        # GroupNorm: no batch statistics, hence nothing to carry and nothing to sum over devices.
        self.norms = nnx.List([nnx.GroupNorm(b, num_groups=4, rngs=rngs) for _, b in pairs])
        self.head = nnx.Linear(channels[-1], classes, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        """[B, H, W, channels[0]] to [B, classes]."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nnx.max_pool(jax.nn.relu(norm(convolution(x))), (2, 2), strides=(2, 2))
        out: Array = self.head(dropout(x.mean((1, 2)), self.dropout, key))
        return out


def _fold(key: Array | None, i: int) -> Array | None:
    if key is None:
        return None
    fold = jax.random.fold_in
    return jax.vmap(fold, in_axes=(0, None))(key, i) if key.ndim else fold(key, i)
