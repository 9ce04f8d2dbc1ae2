"""From an objective to gradients: the one place that divides, and sums over devices.

    value    = sum_k coefficient_k * (sum over devices total_k) / (sum over devices weight_k)
    gradient = sum over devices of grad( sum_k coefficient_k * total_k / W_k ),  W_k that weight sum

Both sums also run over microbatches. Nothing is averaged that was divided before: a mean of means
weights the rows of a sparsely masked part too much, on devices and in microbatches alike.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp

from divjax.core import (
    Array,
    Batch,
    Context,
    GradFn,
    Loss,
    Mean,
    Objective,
    PyTree,
    Scalar,
    sum_over_devices,
    vary,
)
from divjax.core.check import count as check_count
from divjax.core.check import positive, require


def loss_and_grad(
    objective: Objective,
    *,
    accumulate: int = 1,
    train: Sequence[str] | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
) -> GradFn:
    """The exact gradient of an objective over all devices and microbatches.

    With `accumulate=k` the rows i, i + k, i + 2k, ... of the device's batch form microbatch i, and
    a first pass over them collects the term weights alone (compiled, it holds no matrix product),
    so that the sum over microbatches is the gradient of the whole batch. Excepted are terms that
    couple examples: they see one microbatch at a time.

    Args:
        objective: (params, batch, ctx) -> Loss. Its coefficients must not depend on the rows.
        accumulate: number of microbatches, a divisor of the rows per device.
        train: the entries of params to differentiate; None differentiates all of params.
        compute_dtype: the type in which the objective sees floating params (say jnp.bfloat16);
            params, gradients and all sums keep theirs. Inputs are the objective's own to cast.

    Returns:
        (params, batch, ctx) -> (gradients, Loss): gradients shaped like params, or like
        {name: params[name] for name in train}; the means of the Loss are sums over all devices
        and microbatches. Both are equal on all devices.

    Raises:
        ValueError: accumulate is no positive integer, or does not divide the rows per device.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.core import Context, Loss, masked_mean
        >>> from divjax.train import loss_and_grad
        >>> def objective(w, batch, ctx):
        ...     return Loss({"fit": (1.0, masked_mean((w - batch["y"]) ** 2, batch["mask"]))})
        >>> batch = {"y": jnp.array([1.0, 2.0, 9.0, 3.0]),
        ...          "mask": jnp.array([True, True, False, True])}
        >>> ctx = Context(jax.random.key(0), jnp.int32(0), jnp.arange(4))
        >>> grad, loss = loss_and_grad(objective, accumulate=2)(jnp.float32(0.0), batch, ctx)
        >>> float(grad), float(loss.terms["fit"][1].weight)
        (-4.0, 3.0)
    """
    check_count("accumulate", accumulate, caller="loss_and_grad")

    def grad_fn(params: PyTree, batch: Batch, ctx: Context) -> tuple[PyTree, Loss]:
        trained, rest = split_params(params, train)
        trained = vary(trained, ctx.axis_name)

        def evaluate(params: PyTree, batch: Batch, ctx: Context) -> Loss:
            whole = params if train is None else {**rest, **params}
            return _at_least_float32(objective(_cast(whole, compute_dtype), batch, ctx))

        if accumulate == 1:
            grads, loss = _local_grad(evaluate, trained, batch, ctx, None)
        else:
            grads, loss = _microbatch_grad(evaluate, trained, batch, ctx, accumulate)
        return sum_over_devices(grads, ctx.axis_name), _reduce(loss, ctx.axis_name)

    return grad_fn


def extragradient(grad_fn: GradFn, step_size: float) -> GradFn:
    """The gradient at a look-ahead point: g(x - step_size * g(x)), applied by the step at x.

    Korpelevich's extragradient, the Euclidean mirror prox; two gradients per step on one batch.
    The returned Loss, carry included, is that of the look-ahead point. (arXiv 2505.19731 uses the
    same two-call scheme for games.)

    Args:
        grad_fn: as from `loss_and_grad`; with `train`, only those entries look ahead.
        step_size: of the look-ahead, usually the learning rate.

    Returns:
        A GradFn.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.core import Context, Loss
        >>> from divjax.train import extragradient
        >>> ctx = Context(jax.random.key(0), jnp.int32(0), jnp.arange(1))
        >>> grad, _ = extragradient(lambda x, batch, ctx: (2 * x, Loss({})), 0.25)(1.0, {}, ctx)
        >>> float(grad)                                       # 2 (1 - 0.25 * 2)
        1.0
    """
    positive("step_size", step_size, caller="extragradient")

    def look_ahead(params: PyTree, batch: Batch, ctx: Context) -> tuple[PyTree, Loss]:
        grads, _ = grad_fn(params, batch, ctx)
        if isinstance(params, Mapping):  # grads may hold the trained entries only
            part = {name: params[name] for name in grads}
            ahead: PyTree = {**params, **_descend(part, grads, step_size)}
        else:
            ahead = _descend(params, grads, step_size)
        return grad_fn(ahead, batch, ctx)

    return look_ahead


def split_params(params: PyTree, train: Sequence[str] | None) -> tuple[PyTree, PyTree]:
    """(the entries named by train, the others); (params, {}) for None."""
    if train is None:
        return params, {}
    missing = [name for name in train if not isinstance(params, Mapping) or name not in params]
    require(
        not missing,
        "make_step",
        f"train names entries of params, {missing} are none",
        sorted(params) if isinstance(params, Mapping) else type(params).__name__,
        "pass params as a dict with these keys",
    )
    inside = {name: params[name] for name in train}
    return inside, {name: leaf for name, leaf in params.items() if name not in inside}


def objective_value(loss: Loss) -> Array:
    """[] sum of coefficient * total / weight, of reduced means."""
    values = [coefficient * mean.value for coefficient, mean in loss.terms.values()]
    return jnp.asarray(sum(values, start=jnp.float32(0.0)))


def _local_grad(
    evaluate: Objective, params: PyTree, batch: Batch, ctx: Context, weights: PyTree | None
) -> tuple[PyTree, Loss]:
    """Gradient of this device's share of the objective, given the weight sums (None: form them)."""

    def share(params: PyTree) -> tuple[Array, Loss]:
        loss = evaluate(params, batch, ctx)
        known = sum_over_devices(_weights(loss), ctx.axis_name) if weights is None else weights
        # Mean.value holds the weight constant and turns 0 / 0 into 0.
        terms = {n: (c, Mean(mean.total, known[n])) for n, (c, mean) in loss.terms.items()}
        return objective_value(Loss(terms)), loss

    return cast(tuple[PyTree, Loss], jax.grad(share, has_aux=True)(params))


def _microbatch_grad(
    evaluate: Objective, params: PyTree, batch: Batch, ctx: Context, count: int
) -> tuple[PyTree, Loss]:
    """The sum of the local gradients of `count` strided microbatches, weights collected first."""
    part = _strided(batch, ctx, count)
    axis = ctx.axis_name
    like = jax.eval_shape(lambda: evaluate(params, *part(jnp.int32(0), ctx.carry)))
    carry = vary(ctx.carry, axis)
    zero = _zeros(like, axis)._replace(carry=carry)

    def weigh(state: tuple[PyTree, PyTree], i: Array) -> tuple[tuple[PyTree, PyTree], None]:
        weights, carry = state
        loss = evaluate(params, *part(i, carry))
        return vary((jax.tree.map(jnp.add, weights, _weights(loss)), loss.carry), axis), None

    (weights, _), _ = jax.lax.scan(weigh, (_weights(zero), carry), jnp.arange(count))
    weights = sum_over_devices(weights, axis)

    def add(state: tuple[PyTree, Loss], i: Array) -> tuple[tuple[PyTree, Loss], None]:
        grads, total = state
        more, loss = _local_grad(evaluate, params, *part(i, total.carry), weights)
        return (jax.tree.map(jnp.add, grads, more), _add(total, loss, axis)), None

    start = (vary(jax.tree.map(jnp.zeros_like, params), axis), zero)
    (grads, loss), _ = jax.lax.scan(add, start, jnp.arange(count))
    return grads, loss


def _strided(
    batch: Batch, ctx: Context, count: int
) -> Callable[[Array, PyTree], tuple[Batch, Context]]:
    """(i, carry) -> (rows i, i + count, ... of the batch, their context).

    Strided, because with rows sharded over devices each microbatch then takes an equal share from
    every device, and nothing is moved.
    """
    size = ctx.rows.shape[0]
    require(
        size % count == 0,
        "make_step",
        f"accumulate must divide the {size} rows of one call",
        count,
        "choose a divisor, or pad the batch with masked rows",
    )

    def take(x: Array, i: Array) -> Array:
        folded = x.reshape(size // count, count, *x.shape[1:])
        row: Array = jax.lax.dynamic_index_in_dim(folded, i, 1, keepdims=False)
        return row

    def part(i: Array, carry: PyTree) -> tuple[Batch, Context]:
        rows = jax.tree.map(lambda x: take(x, i), batch)
        return rows, ctx._replace(rows=take(ctx.rows, i), carry=carry)

    return part


def _add(total: Loss, loss: Loss, axis_name: str | None) -> Loss:
    """Means added, coefficients and carry replaced."""
    loss = vary(loss, axis_name)

    def plus(name: str, mean: Mean) -> Mean:
        before = total.terms[name][1]
        return Mean(before.total + mean.total, before.weight + mean.weight)

    terms = {name: (c, plus(name, mean)) for name, (c, mean) in loss.terms.items()}
    metrics = jax.tree.map(jnp.add, total.metrics, loss.metrics)
    return Loss(terms, metrics, loss.carry)


def _reduce(loss: Loss, axis_name: str | None) -> Loss:
    """Means summed over devices; coefficient and carry are equal on all of them by contract."""
    if axis_name is None:
        return loss
    means = {n: mean for n, (_, mean) in loss.terms.items()}
    means, metrics = sum_over_devices((means, loss.metrics), axis_name)
    coefficients, carry = _of_first_device(
        ({n: c for n, (c, _) in loss.terms.items()}, loss.carry), axis_name
    )
    return Loss({n: (coefficients[n], means[n]) for n in means}, metrics, carry)


def _of_first_device(tree: PyTree, axis_name: str) -> PyTree:
    """Values equal on all devices, in the eyes of shard_map as well: those of device 0."""

    def first(x: Array) -> Array:
        if axis_name not in jax.typeof(x).manual_axis_type.varying:
            return x  # not marked as varying: nothing to do, and so in every other mode
        mine = jax.lax.axis_index(axis_name) == 0
        kept = jnp.where(mine, x, jnp.zeros_like(x)).astype(_summable(x))
        total: Array = jax.lax.psum(kept, axis_name)
        return total.astype(x.dtype)

    return jax.tree.map(first, tree)


def _summable(x: Array) -> jax.typing.DTypeLike:
    return jnp.int32 if x.dtype == jnp.bool_ else x.dtype


def _weights(loss: Loss) -> dict[str, Array]:
    return {name: mean.weight for name, (_, mean) in loss.terms.items()}


def _at_least_float32(loss: Loss) -> Loss:
    """Arrays throughout; sums in float32 at least, whatever the objective computed in."""
    _check_loss(loss)

    def wide(x: Scalar) -> Array:
        array = jnp.asarray(x)
        return array.astype(jnp.promote_types(array.dtype, jnp.float32))

    terms = {n: (wide(c), Mean(*map(wide, mean))) for n, (c, mean) in loss.terms.items()}
    metrics = {n: Mean(*map(wide, mean)) for n, mean in loss.metrics.items()}
    return Loss(terms, metrics, jax.tree.map(jnp.asarray, loss.carry))


def _check_loss(loss: Loss) -> None:
    """What an objective returned: users forget the coefficient, or divide already."""
    caller = "the objective"
    remedy = 'return Loss({"name": (1.0, masked_mean(values, mask))})'
    require(isinstance(loss, Loss), caller, "it must return a divjax.core.Loss", loss, remedy)
    for name, term in loss.terms.items():
        pair = isinstance(term, tuple) and not isinstance(term, Mean) and len(term) == 2
        ok = pair and isinstance(term[1], Mean)
        require(ok, caller, f"term {name!r} must be (coefficient, Mean)", term, remedy)
    for name, mean in loss.metrics.items():
        require(
            isinstance(mean, Mean), caller, f"metric {name!r} must be a Mean", mean,
            "use masked_mean(values, mask)",
        )  # fmt: skip


def _cast(params: PyTree, dtype: jax.typing.DTypeLike | None) -> PyTree:
    if dtype is None:
        return params
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params
    )


def _descend(params: PyTree, grads: PyTree, step_size: float) -> PyTree:
    return jax.tree.map(lambda p, g: p - step_size * g, params, grads)


def _zeros(like: PyTree, axis_name: str | None) -> Loss:
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
    return cast(Loss, vary(zeros, axis_name))
