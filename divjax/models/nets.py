"""Small reference networks in flax.nnx, with dropout whose noise belongs to the row."""

from collections.abc import Callable, Sequence
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


Norm = Callable[[int, nnx.Rngs], nnx.Module]
"""(channels, rngs) -> a module from [B, H, W, channels] to the same shape."""


def group_norm(groups: int = 4) -> Norm:
    """GroupNorm: no batch statistics, hence nothing to carry and nothing to sum over devices.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import group_norm
        >>> x = jnp.arange(16.0).reshape(1, 2, 2, 4)
        >>> y = group_norm(2)(4, nnx.Rngs(0))(x)[0, ..., :2]  # one row, one group of channels
        >>> print(f"{abs(y.mean()):.2f} {y.std():.2f}")
        0.00 1.00
    """
    return lambda channels, rngs: nnx.GroupNorm(channels, num_groups=groups, rngs=rngs)


def batch_norm(*, momentum: float = 0.9, axis_name: str | None = None) -> Norm:
    """BatchNorm, for `split_with_carry`.

    Args:
        momentum: of the running statistics.
        axis_name: the mapped axis in modes "shard_map" and "pmap"; without it each device would
            normalise by its own rows, another function.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import batch_norm
        >>> layer = batch_norm(momentum=0.9)(1, nnx.Rngs(0))
        >>> y = layer(jnp.array([[1.0], [3.0]]).reshape(2, 1, 1, 1))  # by the mean 2 of the batch
        >>> [f"{v:.2f}" for v in y.ravel()], f"{layer.mean[...].item():.2f}"  # and 0.1 * 2 kept
        (['-1.00', '1.00'], '0.20')
    """
    return lambda channels, rngs: nnx.BatchNorm(
        channels, momentum=momentum, axis_name=axis_name, rngs=rngs
    )


class _Residual(nnx.Module):
    """Two 3x3 convolutions beside the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int, norm: Norm, rngs: nnx.Rngs) -> None:
        steps = (stride, stride)
        self.first = nnx.Conv(inside, outside, (3, 3), steps, use_bias=False, rngs=rngs)
        self.second = nnx.Conv(outside, outside, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([norm(outside, rngs), norm(outside, rngs)])
        same = inside == outside and stride == 1
        project = None if same else nnx.Conv(
            inside, outside, (1, 1), steps, use_bias=False, rngs=rngs)  # fmt: skip
        self.project = project

    def __call__(self, x: Array) -> Array:
        inner = jax.nn.relu(self.norms[0](self.first(x)))
        inner = self.norms[1](self.second(inner))
        return jax.nn.relu(inner + (x if self.project is None else self.project(x)))


class ResNet(nnx.Module):
    """A residual network for small images: a 3x3 stem, stages that halve the image, a mean.

    Args:
        channels: of the image first, then of each stage: [3, 16, 32, 64] with 3 blocks a stage is
            the ResNet-20 of He et al. (arXiv 1512.03385) for CIFAR-10.
        classes: number of outputs.
        blocks: residual blocks per stage.
        norm: `group_norm()`, or `batch_norm(axis_name=...)` with `split_with_carry`.
        dropout: rate before the last layer.
        rngs: where the initial weights come from.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import ResNet, split
        >>> params, apply = split(ResNet([3, 8, 16], classes=10, rngs=nnx.Rngs(0)))
        >>> apply(params, jnp.ones((2, 32, 32, 3)))[0].shape
        (2, 10)
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        classes: int,
        blocks: int = 1,
        norm: Norm | None = None,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        norm = group_norm() if norm is None else norm
        self.stem = nnx.Conv(channels[0], channels[1], (3, 3), use_bias=False, rngs=rngs)
        self.norm = norm(channels[1], rngs)
        layers = []
        for stage, (inside, outside) in enumerate(pairwise([channels[1], *channels[1:]])):
            for block in range(blocks):
                first = block == 0
                stride = 2 if first and stage > 0 else 1
                layers.append(_Residual(inside if first else outside, outside, stride, norm, rngs))
        self.blocks = nnx.List(layers)
        self.head = nnx.Linear(channels[-1], classes, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        """[B, H, W, channels[0]] to [B, classes]."""
        x = jax.nn.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        out: Array = self.head(dropout(x.mean((1, 2)), self.dropout, key))
        return out


def _fold(key: Array | None, i: int) -> Array | None:
    if key is None:
        return None
    fold = jax.random.fold_in
    return jax.vmap(fold, in_axes=(0, None))(key, i) if key.ndim else fold(key, i)
