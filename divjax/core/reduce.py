"""Masked sums, and the only collectives of the maths.

Contract: `Mean.total` is additive over devices. A statistic of the whole batch is computed
identically on every device from gathered rows and returned through `whole_batch`. Inside a
differentiated path only `all_sum` and `all_rows` may talk to other devices: they gather, then
reduce, so their transpose is the same under pmap, vmap and shard_map in either mode, which that
of a bare psum is not.
"""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import check
from divjax.core.types import Array, Context, Mean, PyTree


def masked_sum(values: Array, mask: Array | None = None, *, axis: int | None = None) -> Array:
    """sum_i mask_i values_i, where a masked value may be NaN and gets gradient zero.

    What made a masked value NaN may still turn that zero into NaN on the way back (0 * inf): mask
    what the values are computed from, too (`where=`, `mask=`).

    Args:
        values: [*S].
        mask: bool [*S], with 1 for axes it does not depend on; True counts. None counts all.
        axis: the axis to sum over; None sums all.

    Returns:
        [] or [*S without axis], in float32 at least.

    Raises:
        ValueError: the mask is not bool, or has another rank than values.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import masked_sum
        >>> float(masked_sum(jnp.array([1.0, jnp.nan]), jnp.array([True, False])))
        1.0
    """
    _check_mask("masked_sum", values, mask)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if mask is not None:
        values = jnp.where(mask, values, 0.0)
    return jnp.sum(values, axis=axis)


def _check_mask(caller: str, values: Array, mask: Array | None) -> None:
    array = isinstance(values, jax.Array | np.ndarray)
    check.require(array, caller, "values must be an array", values, "pass jnp.asarray(values)")
    check.broadcastable_mask("mask", mask, values.shape, caller=caller)


def masked_mean(values: Array, mask: Array | None = None) -> Mean:
    """The mean of the unmasked values as an undivided `Mean`.

    Args:
        values: [*S], may hold NaN where masked; see `masked_sum` for its gradient.
        mask: bool [*S], with 1 for axes it does not depend on; True counts. None counts all. Of
            weights w instead of a mask, write Mean(jnp.sum(w * values), jnp.sum(w)).

    Returns:
        Mean with total [] and weight [] = the number of True.

    Raises:
        ValueError: the mask is not bool, or has another rank than values.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import masked_mean
        >>> mean = masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
        >>> float(mean.value)
        2.0
    """
    _check_mask("masked_mean", values, mask)
    weight = (
        jnp.asarray(values.size)
        if mask is None
        else jnp.sum(jnp.broadcast_to(mask, values.shape), dtype=jnp.int32)
    )
    total = masked_sum(values, mask)
    return Mean(total, weight.astype(total.dtype))


def all_rows(x: Array, axis_name: str | None) -> Array:
    """The rows of all devices, [n * B, ...] from [B, ...]; differentiable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.core import all_rows
        >>> x = jnp.arange(4.0).reshape(2, 2)  # two devices with two rows each
        >>> jax.vmap(lambda x: all_rows(x, "i"), axis_name="i")(x).tolist()
        [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]]
    """
    if axis_name is None:
        return x
    return cast(Array, jax.lax.all_gather(x, axis_name, tiled=True))


def all_sum(x: Array, axis_name: str | None) -> Array:
    """The sum over devices, [...] from [...]; differentiable, equal in every mapping mode.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.core import all_sum
        >>> jax.vmap(lambda x: all_sum(x, "i"), axis_name="i")(jnp.array([1.0, 2.0])).tolist()
        [3.0, 3.0]
    """
    if axis_name is None:
        return x
    return jnp.sum(jax.lax.all_gather(x, axis_name), axis=0)


def whole_batch(value: Array, axis_name: str | None) -> Mean:
    """A statistic that every device computed from the whole batch, as an additive `Mean`.

    Args:
        value: [], equal on all devices.
        axis_name: the mapped axis or None.

    Returns:
        Mean(value / n, 1 / n) over n devices, so that the sum over devices is (value, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import whole_batch
        >>> float(whole_batch(jnp.float32(3.0), None).value)
        3.0
    """
    share = 1.0 if axis_name is None else 1.0 / jax.lax.axis_size(axis_name)
    return Mean(value * share, jnp.asarray(share, value.dtype))


def sum_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """psum of every leaf, for values outside the differentiated path; the identity without axis.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.core import sum_over_devices
        >>> total = jax.vmap(lambda x: sum_over_devices({"n": x}, "i"), axis_name="i")
        >>> total(jnp.array([1.0, 2.0]))["n"].tolist()
        [3.0, 3.0]
    """
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _varying(x: Array) -> frozenset[str]:
    return cast(frozenset[str], jax.typeof(x).manual_axis_type.varying)


def vary(tree: PyTree, axis_name: str | None) -> PyTree:
    """Marks replicated values as device-varying where shard_map checks that (check_vma=True).

    Otherwise shard_map transposes the replication into a psum of its own, and gradients that are
    summed over devices afterwards are counted once per device too often.

    Example:
        >>> from divjax.core import vary
        >>> vary({"w": 1.0}, None)  # no mapped axis: nothing to mark
        {'w': 1.0}
    """
    if axis_name is None or axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree  # vmap, pmap and jit know no such mark

    def cast_leaf(x: Array) -> Array:
        if axis_name in _varying(x):
            return x
        return cast(Array, jax.lax.pcast(x, axis_name, to="varying"))

    return jax.tree.map(cast_leaf, tree)


def vary_like(x: Array, *others: Array) -> Array:
    """Marks x as varying over every axis that one of the others varies over (loop carries).

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import vary_like
        >>> float(vary_like(jnp.float32(1.0), jnp.ones(3)))
        1.0
    """
    missing = frozenset[str]().union(*map(_varying, others)) - _varying(x)
    return cast(Array, jax.lax.pcast(x, tuple(sorted(missing)), to="varying")) if missing else x


def row_keys(ctx: Context) -> Array:
    """One PRNG key per row, [B]: fold_in(ctx.key, row).

    The noise of a row is then the same in whichever microbatch and on whichever device it lies.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.core import Context, row_keys
        >>> row_keys(Context(jax.random.key(0), jnp.int32(0), jnp.arange(4))).shape
        (4,)
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(ctx.key, ctx.rows)
