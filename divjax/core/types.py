"""The values that travel between the rooms: Mean, Loss, Context and their protocols."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any  # any tree of arrays; jax has no narrower type for it
Scalar = jax.Array | float


class Mean(NamedTuple):
    """A mean that is not divided yet: sums add up over microbatches and devices, means do not.

    Attributes:
        total: [] or [*S], the weighted sum of the values.
        weight: [] or [*S], the sum of the weights; it carries no gradient.

    Example:
        >>> from divjax.core import Mean
        >>> import jax.numpy as jnp
        >>> float(Mean(jnp.float32(6.0), jnp.float32(4.0)).value)
        1.5
    """

    total: Array
    weight: Array

    @property
    def value(self) -> Array:
        """total / weight, and 0 where the weight is 0 (an empty mask)."""
        weight = jax.lax.stop_gradient(self.weight)
        empty = weight == 0
        return jnp.where(empty, 0.0, self.total / jnp.where(empty, 1.0, weight))


class Loss(NamedTuple):
    """What an objective returns: terms to minimise, metrics to log, a carry to keep.

    The objective is the sum over terms of coefficient * total / weight, where total and weight
    are summed over microbatches and devices first; only the train step divides.

    Attributes:
        terms: name -> (coefficient [], Mean); terms may have different weights.
        metrics: name -> Mean; never differentiated.
        carry: batch statistics, queues: kept for the next step, never differentiated, equal on
            all devices; microbatches thread it in order.
    """

    terms: Mapping[str, tuple[Scalar, Mean]]
    metrics: Mapping[str, Mean] = {}
    carry: PyTree = ()

    @property
    def value(self) -> Array:
        """[] the objective of this batch alone, for the notebook."""
        values = [coefficient * mean.value for coefficient, mean in self.terms.values()]
        return sum(values, start=jnp.float32(0.0))


class Context(NamedTuple):
    """What a step hands to its objective besides params and batch; it never crosses jit.

    Attributes:
        key: typed PRNG key, equal on all devices and microbatches of a step.
        step: [] int32, the number of updates done.
        rows: [B] int32, the global index of each row of this call; see `row_keys`.
        refs: the reference trees of the step, by name.
        frozen: whatever the caller passed as `frozen` (teachers).
        knobs: the value of each controller, by name.
        carry: `Loss.carry` of the previous step or microbatch.
        axis_name: the mapped axis of shard_map, pmap or vmap; None under jit and on one device.
    """

    key: Array
    step: Array
    rows: Array
    refs: Mapping[str, PyTree] = {}
    frozen: PyTree = None
    knobs: Mapping[str, PyTree] = {}
    carry: PyTree = ()
    axis_name: str | None = None


Batch = Mapping[str, PyTree]  # every leaf [B, ...]


class Objective(Protocol):
    """`objective(params, batch, ctx) -> Loss`: pure, and free of collectives and divisions."""

    def __call__(self, params: PyTree, batch: Batch, ctx: Context) -> Loss:
        """Sums and weights of one batch."""
        ...


GradFn = Callable[[PyTree, Batch, Context], tuple[PyTree, Loss]]
"""Gradients and the reduced loss, both equal on all devices."""

Divergence = Callable[..., Array]
"""`divergence(log_p, log_q, *, axis=-1, where=None)`: [*E, K] twice in, [*E] out."""


class Estimate(NamedTuple):
    """What an estimator returns: the value with what its error bars are made of.

    Attributes:
        value: [] or [*E], the estimate.
        terms: [N] or [*E, N], the per-sample terms it is the mean of.
        n_effective: [] or [*E], the number of samples it is worth.
    """

    value: Array
    terms: Array
    n_effective: Array
