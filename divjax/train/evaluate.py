"""Exact metrics of a data set: sums over batches, one division at the end."""

from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp

from divjax.core import Array, Batch, Mean, PyTree, sum_over_devices, vary
from divjax.core.check import positive, require

Metrics = Callable[[PyTree, Batch, Array], Mapping[str, Mean]]


class Evaluate(Protocol):
    """`evaluate(params, data, *, axis_name=None) -> {name: [...]}`."""

    def __call__(
        self, params: PyTree, data: Batch, *, axis_name: str | None = None
    ) -> dict[str, Array]:
        """The metrics of all rows of data."""
        ...


def make_eval(metrics: Metrics, *, batch_size: int) -> Evaluate:
    """A pure evaluation over a whole data set in batches of one shape.

    The last batch repeats a row to be full and masks it, so the result does not depend on
    batch_size, and one compilation serves every batch.

    Args:
        metrics: (params, batch [B, ...], mask [B] bool) -> name -> Mean; where mask is False the
            row is padding and must not count (masked_mean(values, mask) does that). A Mean may
            have axes, such as the bins of a calibration curve.
        batch_size: B > 0.

    Returns:
        evaluate(params, data, *, axis_name=None) -> name -> value; data has leaves [N, ...]. Params
        is any tree, (student, teacher) for instance. Jit it where it is called often.

    Raises:
        ValueError: batch_size is not a positive integer; at trace time: data is empty, or its
            leaves disagree in N.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import masked_mean
        >>> from divjax.train import make_eval
        >>> def metrics(w, batch, mask):
        ...     return {"error": masked_mean((w - batch["y"]) ** 2, mask)}
        >>> evaluate = make_eval(metrics, batch_size=2)
        >>> data = {"y": jnp.array([1.0, 3.0, 2.5])}
        >>> round(float(evaluate(jnp.float32(1.0), data)["error"]), 4)     # (0 + 4 + 2.25) / 3
        2.0833
    """
    positive("batch_size", batch_size, caller="make_eval")

    def evaluate(params: PyTree, data: Batch, *, axis_name: str | None = None) -> dict[str, Array]:
        rows = _count_rows(data)

        def sums(i: Array) -> dict[str, Mean]:
            index = i * batch_size + jnp.arange(batch_size)
            batch = jax.tree.map(lambda x: jnp.asarray(x)[jnp.minimum(index, rows - 1)], data)
            means = metrics(params, batch, index < rows)
            return {name: Mean(*map(_wide, mean)) for name, mean in means.items()}

        def add(total: PyTree, i: Array) -> tuple[PyTree, None]:
            return vary(jax.tree.map(jnp.add, total, sums(i)), axis_name), None

        like = jax.eval_shape(sums, jnp.int32(0))
        zero = vary(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like), axis_name)
        total, _ = jax.lax.scan(add, zero, jnp.arange(-(-rows // batch_size)))
        return {name: mean.value for name, mean in sum_over_devices(total, axis_name).items()}

    return evaluate


def _wide(x: Array) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _count_rows(data: Batch) -> int:
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(data)}
    require(
        len(sizes) == 1 and not sizes & {(), (0,)},
        "evaluate",
        "every leaf of data must be [N, ...] with one N > 0",
        sorted(map(list, sizes)),
        "pass arrays with a common first axis",
    )
    return int(sizes.pop()[0])
