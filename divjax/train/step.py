"""The train step: knobs, gradients, optimiser, references, controllers, in this order.

    knobs        each controller reads its state
    noise        ctx.key = fold_in(state.key, state.step), equal on all devices
    gradients    grad_fn: exact over devices and microbatches
    optimiser    tx.update(..., value=, terms and metrics as extra arguments)
    references   see the new parameters
    controllers  see what was measured

Nothing here jits; `parallel.compile` does.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from divjax.core import Array, Batch, Context, GradFn, Loss, Objective, PyTree
from divjax.core.check import describe, require
from divjax.optim import Controller, Reference
from divjax.train.gradients import loss_and_grad, objective_value, split_params
from divjax.train.state import Info, Step, TrainState

_NONE: Mapping[str, Any] = MappingProxyType({})
# Keywords of optax's update functions and of what it passes to stateful schedules.
RESERVED = frozenset({"value", "grad", "value_fn", "updates", "params", "state", "step", "ref"})


def make_step(
    objective: Objective | None,
    tx: optax.GradientTransformation,
    *,
    controllers: Mapping[str, Controller] = _NONE,
    references: Mapping[str, Reference] = _NONE,
    grad_fn: GradFn | None = None,
    accumulate: int = 1,
    train: Sequence[str] | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
) -> Step:
    """A pure train step from an objective and an optax transformation.

    A teacher that is a value of the run goes into `frozen`: an argument of `update`, so it can be
    sharded, replaced, and is neither donated nor written into checkpoints. A closure is right for
    what belongs to the program instead, an analytic teacher or a table of a few numbers: it is
    compiled in as a constant, once per compilation.

    Args:
        objective: (params, batch, ctx) -> Loss; None when grad_fn is given.
        tx: any optax transformation; it gets `value=` and all terms and metrics as extra arguments.
        controllers: name -> Controller, its knob is `ctx.knobs[name]`.
        references: name -> Reference, its tree is `ctx.refs[name]`.
        grad_fn: (params, batch, ctx) -> (gradients, Loss) for rules that are not the gradient of
            one objective; None is loss_and_grad(objective, ...) with the next three arguments.
        accumulate: microbatches per step; the gradient is that of the whole batch.
        train: the entries of params to update; the others are only read. None updates all.
        compute_dtype: type of floating params inside the objective; sums stay float32.

    Returns:
        Step(init, update). update(state, batch, frozen=None, *, axis_name=None) takes a batch of
        arrays [B, ...], the rows of this device, and returns (state, Info).

    Raises:
        ValueError: objective and grad_fn are both given or both missing; a controller is a plain
            function; from init: params hold what is no array, such as a function of a module; at
            trace time: leaves of the batch disagree in B, a metric has a reserved name, the carry
            changes its shape.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax.core import Loss, masked_mean
        >>> from divjax.train import make_step
        >>> def objective(w, batch, ctx):
        ...     return Loss({"fit": (0.5, masked_mean((w - batch["y"]) ** 2))})
        >>> step = make_step(objective, optax.sgd(0.5))
        >>> state = step.init(jnp.float32(0.0), jax.random.key(0))
        >>> state, info = step.update(state, {"y": jnp.array([2.0, 4.0])})
        >>> float(state.params), float(info.value)
        (1.5, 5.0)
    """
    _check_arguments(objective, grad_fn, accumulate, compute_dtype)
    _check_parts(tx, controllers, references)
    if objective is not None:
        grad_fn = loss_and_grad(
            objective, accumulate=accumulate, train=train, compute_dtype=compute_dtype
        )
    assert grad_fn is not None
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree, key: Array, carry: PyTree = ()) -> TrainState:
        _check_key(key)
        _check_params(params)
        params = jax.tree.map(jnp.asarray, params)
        state = TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=tx.init(split_params(params, train)[0]),
            controllers={name: c.init() for name, c in controllers.items()},
            refs={name: r.init(params) for name, r in references.items()},
            carry=carry,
            key=key,
        )
        # Params and references may be one buffer here, and a buffer is donated once only.
        return TrainState(*(jax.tree.map(_own, field) for field in state))

    def update(
        state: TrainState, batch: Batch, frozen: PyTree = None, *, axis_name: str | None = None
    ) -> tuple[TrainState, Info]:
        knobs = {name: c(state.controllers[name]) for name, c in controllers.items()}
        ctx = _context(state, batch, frozen, knobs, axis_name)
        grads, loss = grad_fn(state.params, batch, ctx)
        info = _info(loss)
        signals = {**info.terms, **info.metrics, "value": info.value}
        trained, rest = split_params(state.params, train)
        grads = grads if train is None else {name: grads[name] for name in train}
        updates, opt_state = tx.update(grads, state.opt_state, trained, **signals)
        trained = optax.apply_updates(trained, updates)
        params = trained if train is None else {**rest, **trained}
        done = state.step + 1
        refs = {n: r.update(state.refs[n], params, done, **signals) for n, r in references.items()}
        moved = {n: c.update(state.controllers[n], **signals) for n, c in controllers.items()}
        new = TrainState(done, params, opt_state, moved, refs, loss.carry, state.key)
        return _same_types(state, new), info

    return Step(init, update)


def _context(
    state: TrainState,
    batch: Batch,
    frozen: PyTree,
    knobs: Mapping[str, PyTree],
    axis_name: str | None,
) -> Context:
    return Context(
        key=jax.random.fold_in(state.key, state.step),
        step=state.step,
        rows=_rows(batch, axis_name),
        refs=state.refs,
        frozen=frozen,
        knobs=knobs,
        carry=state.carry,
        axis_name=axis_name,
    )


def _rows(batch: Batch, axis_name: str | None) -> Array:
    """[B] int32: the global index of each row of this device, devices in order."""
    sizes = {jax.tree_util.keystr(path): jnp.shape(x)[:1] for path, x in _leaves(batch)}
    require(
        len(set(sizes.values())) == 1 and () not in sizes.values() and (0,) not in sizes.values(),
        "Step.update",
        "every leaf of the batch must be [B, ...] with one B > 0",
        {path: list(size) for path, size in sizes.items()},
        "put what has no row axis into frozen, and pad a short batch with masked rows",
    )
    (size,) = next(iter(sizes.values()))
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
    return start + jnp.arange(size, dtype=jnp.int32)


def _info(loss: Loss) -> Info:
    """The reduced Loss, divided."""
    means = {name: mean for name, (_, mean) in loss.terms.items()}
    taken = sorted(RESERVED & {*means, *loss.metrics})
    require(
        not taken and "empty_terms" not in loss.metrics,
        "Step.update",
        f"terms and metrics must not be called {sorted(RESERVED | {'empty_terms'})}",
        taken or ["empty_terms"],
        "rename them: optax passes these keywords itself",
    )
    twice = sorted({*means} & {*loss.metrics})
    require(
        not twice, "Step.update", "a metric must not have the name of a term", twice,
        "rename it: controllers get both by name",
    )  # fmt: skip
    empty = [jnp.all(mean.weight == 0).astype(jnp.float32) for mean in means.values()]
    return Info(
        value=_strong(objective_value(loss)),
        terms={name: _strong(mean.value) for name, mean in means.items()},
        metrics={
            **{name: _strong(mean.value) for name, mean in loss.metrics.items()},
            "empty_terms": sum(empty, start=jnp.float32(0.0)),
        },
    )


def _strong(x: Array) -> Array:
    """Without weak type: it would differ between the first call and the second, and recompile."""
    return jax.lax.convert_element_type(x, x.dtype) if jax.typeof(x).weak_type else x


def _own(x: Any) -> Array:
    """A strongly typed copy in a buffer of its own."""
    x = jnp.asarray(x)
    return jnp.array(x, dtype=x.dtype, copy=True)


def _leaves(tree: PyTree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _same_types(before: TrainState, after: TrainState) -> TrainState:
    """`after`, whose fields must have the structure, shapes and types they had before."""
    after = TrainState(*(jax.tree.map(lambda x: _strong(jnp.asarray(x)), field) for field in after))
    for name, old, new in zip(TrainState._fields, before, after, strict=True):
        was, now = _shapes(old), _shapes(new)
        for path in sorted({*was, *now}):
            require(
                was.get(path) == now.get(path),
                "Step.update",
                f"{name}{path} must stay {was.get(path, 'absent')}",
                now.get(path, "absent"),
                "give init what update returns; an objective with a carry returns it every time",
            )
    return after


def _shapes(tree: PyTree) -> dict[str, str]:
    return {jax.tree_util.keystr(path): describe(x) for path, x in _leaves(tree)}


def _check_key(key: Array) -> None:
    require(
        isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key),
        "Step.init",
        "key must be a typed PRNG key",
        key,
        "pass jax.random.key(seed)",
    )
    require(key.shape == (), "Step.init", "key must be one key", key, "use over_seeds for several")


def _check_params(params: PyTree) -> None:
    """Arrays and numbers alone: a function or a switch in a module is no parameter."""
    for path, leaf in _leaves(params):
        numeric = isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float | complex)
        require(
            numeric and not isinstance(leaf, bool),
            "Step.init",
            f"params{jax.tree_util.keystr(path)} must be an array",
            f"a callable of type {type(leaf).__name__}" if callable(leaf) else leaf,
            "partition it: params, apply, carry = adapters.equinox(module), or likewise "
            "adapters.linen, adapters.haiku and models.split",
        )


def _check_arguments(
    objective: Objective | None,
    grad_fn: GradFn | None,
    accumulate: int,
    compute_dtype: jax.typing.DTypeLike | None,
) -> None:
    require(
        (objective is None) != (grad_fn is None),
        "make_step",
        "exactly one of objective and grad_fn must be given",
        "both" if objective is not None else "neither",
        "pass make_step(None, tx, grad_fn=...) for a rule of its own",
    )
    require(
        grad_fn is None or (accumulate == 1 and compute_dtype is None),
        "make_step",
        "accumulate and compute_dtype belong to the default grad_fn",
        {"accumulate": accumulate, "compute_dtype": compute_dtype},
        "pass grad_fn=extragradient(loss_and_grad(objective, accumulate=...), ...)",
    )


def _check_parts(
    tx: optax.GradientTransformation,
    controllers: Mapping[str, Controller],
    references: Mapping[str, Reference],
) -> None:
    require(
        isinstance(tx, optax.GradientTransformation),
        "make_step",
        "tx must be an optax transformation",
        tx,
        "pass for example optax.adam(1e-3)",
    )
    for name, reference in references.items():
        require(
            isinstance(reference, Reference),
            "make_step",
            f"references[{name!r}] must be a Reference",
            reference,
            "pass for example divjax.optim.ema(0.999)",
        )
    for name, controller in controllers.items():
        require(
            isinstance(controller, Controller),
            "make_step",
            f"controllers[{name!r}] must have init, update and __call__",
            controller,
            "wrap a plain schedule: optax.schedules.WrappedSchedule(schedule)",
        )
