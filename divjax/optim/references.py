"""Reference parameters that follow the trained ones: averages, and copies swapped in on demand."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divjax.core import Array, PyTree
from divjax.core.check import count, fraction, require


class Reference(NamedTuple):
    """A tree of parameters that an objective reads as `ctx.refs[name]`.

    Of a part of params: `Reference(lambda params: params["student"], ...)`.

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


def frozen(tree: PyTree | None = None) -> Reference:
    """A copy that never moves: the reference policy of RLHF, or any other tree.

    Args:
        tree: what to keep; None keeps the parameters of the start.

    Returns:
        A Reference.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.optim import frozen
        >>> start = frozen()
        >>> float(start.update(start.init(jnp.float32(1.0)), jnp.float32(2.0), 1))
        1.0
    """

    def init(params: PyTree) -> PyTree:
        return params if tree is None else jax.tree.map(jnp.asarray, tree)

    return Reference(init, lambda ref, params, step, **_: ref)


def periodic(every: int) -> Reference:
    """A copy that is replaced by the current parameters after each `every` updates.

    Args:
        every: >= 1, in updates.

    Returns:
        A Reference whose tree is shaped like params.

    Raises:
        ValueError: every is no integer >= 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.optim import periodic
        >>> target = periodic(2)
        >>> ref = target.init(jnp.float32(0.0))
        >>> [float(ref := target.update(ref, jnp.float32(s), s)) for s in (1, 2, 3, 4)]
        [0.0, 2.0, 2.0, 4.0]
    """
    count("every", every, caller="periodic")
    return swap_when(lambda step, **_: step % every == 0)


def soup(*trees: PyTree, weights: Sequence[float] | None = None) -> Reference:
    """A weighted average of parameter trees, model soup, that does not move afterwards.

    Args:
        trees: of one structure, for example two fine-tuned models.
        weights: one each, normalised to sum 1; None weighs them equally.

    Returns:
        A Reference; averages are formed in float32 at least and given in the type of the first.

    Raises:
        ValueError: no trees, structures or shapes differ, weights are not positive numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.optim import soup
        >>> mixed = soup({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, weights=(1.0, 3.0))
        >>> mixed.init(None)["w"].tolist()
        [0.75, 0.75]

    References:
        Wortsman et al., arXiv 2203.05482; Chegini et al., SALSA, arXiv 2411.01798.
    """
    require(len(trees) > 0, "soup", "trees must not be empty", trees, "pass trees of parameters")
    weights = (1.0,) * len(trees) if weights is None else tuple(weights)
    require(
        len(weights) == len(trees) and all(0 < w < float("inf") for w in weights),
        "soup",
        f"weights must be {len(trees)} positive numbers",
        weights,
        "pass one per tree",
    )
    shapes = [jax.tree.map(jnp.shape, tree) for tree in trees]
    require(
        all(shape == shapes[0] for shape in shapes), "soup", "trees must be of one structure",
        f"{len({str(s) for s in shapes})} different ones", "average the parts that agree",
    )  # fmt: skip
    shares = [w / sum(weights) for w in weights]

    def average(*leaves: Array) -> Array:
        dtype = jnp.result_type(leaves[0])
        if not jnp.issubdtype(dtype, jnp.floating):
            return jnp.asarray(leaves[0])
        wide = jnp.promote_types(dtype, jnp.float32)
        total = sum(s * jnp.asarray(x, wide) for s, x in zip(shares, leaves, strict=True))
        return jnp.asarray(total, dtype)

    return frozen(jax.tree.map(average, *trees))


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
