"""Reference parameters that follow the trained ones: averages, and copies swapped in on demand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divjax.core import Array, PyTree
from divjax.core.check import fraction


class Reference(NamedTuple):
    """A tree of parameters that an objective reads as `ctx.refs[name]`.

    A frozen copy is `Reference(lambda params: params, lambda ref, params, step, **_: ref)`; a
    copy of a part of params is `Reference(lambda params: params["student"], ...)`.

    Attributes:
        init: params -> ref.
        update: (ref, params, step, **signals) -> ref, after the parameters were updated. `step`
            is [] int32, the number of updates done, this one included; signals are the reduced
            terms and metrics of the step by name, and `value`.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., PyTree]


def ema(decay: float) -> Reference:
    """Exponential moving average: ref <- decay * ref + (1 - decay) * params.

    Args:
        decay: in [0, 1]; 0 copies params, 1 freezes the start.

    Returns:
        A Reference whose tree is shaped like params. Floats below float32 are kept in float32 (in
        bfloat16 a small step is lost to rounding for good); leaves that are no floats are copied.

    Raises:
        ValueError: decay outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.optim import ema
        >>> average = ema(0.75)
        >>> float(average.update(average.init(jnp.float32(4.0)), jnp.float32(8.0), 1))
        5.0
    """
    fraction("decay", decay, caller="ema")

    def follow(ref: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (decay * ref + (1 - decay) * new).astype(ref.dtype)

    def wide(x: Array) -> Array:
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            return x
        return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))

    def update(ref: PyTree, params: PyTree, step: Array, **_: Any) -> PyTree:
        return jax.tree.map(follow, ref, params)

    return Reference(lambda params: jax.tree.map(wide, params), update)


def swap_when(condition: Callable[..., Array]) -> Reference:
    """A copy that is replaced by the current parameters whenever a condition on signals holds.

    With a proposal q and a policy pi, both scored on one batch, it is the adaptive proposal of
    distributional policy gradients: q <- pi where KL(p || pi) < KL(p || q) (arXiv 2302.08215).

    Args:
        condition: (step, **signals) -> [] bool.

    Returns:
        A Reference whose tree is shaped like params.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.optim import swap_when
        >>> proposal = swap_when(lambda step, *, new, old, **_: new < old)
        >>> ref = proposal.init(jnp.float32(1.0))
        >>> float(proposal.update(ref, jnp.float32(2.0), 1, new=0.5, old=0.4))
        1.0
        >>> float(proposal.update(ref, jnp.float32(2.0), 1, new=0.3, old=0.4))
        2.0
    """

    def update(ref: PyTree, params: PyTree, step: Array, **signals: Any) -> PyTree:
        swap = condition(step, **signals)
        return jax.tree.map(lambda old, new: jnp.where(swap, new, old), ref, params)

    return Reference(lambda params: params, update)
