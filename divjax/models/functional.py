"""From a module object to (params, apply), all that losses, steps and references see."""

from typing import Any, Protocol

from flax import nnx

from divjax.core import Array, PyTree, check


class Apply(Protocol):
    """`apply(params, inputs, *, key=None, train=False, carry=()) -> (outputs, carry)`."""

    def __call__(
        self,
        params: PyTree,
        inputs: Array,
        *,
        key: Array | None = None,
        train: bool = False,
        carry: PyTree = (),
    ) -> tuple[Array, PyTree]:
        """Pure; noise only from `key`, one key or one per row, and only when train."""
        ...


def split(module: nnx.Module) -> tuple[PyTree, Apply]:
    """A flax.nnx module as a plain nested dict of arrays and a pure function.

    The module is taken apart once; no nnx object crosses a jit boundary afterwards, so averages,
    masks and checkpoints of params are tree maps over dicts.

    Args:
        module: called as module(inputs, key=key).

    Returns:
        (params, apply).

    Raises:
        ValueError: the module holds other variables: random streams (nnx.Dropout) or statistics
            (nnx.BatchNorm), which must not be trained as parameters.

    Example:
        >>> from flax import nnx
        >>> from divjax.models import MLP, split
        >>> params, apply = split(MLP([4, 3], rngs=nnx.Rngs(0)))
        >>> params["layers"][0]["kernel"].shape
        (4, 3)
    """
    graph, state = _apart("split", module, nnx.Param)
    params: PyTree = nnx.to_pure_dict(state)

    def apply(
        params: PyTree,
        inputs: Array,
        *,
        key: Array | None = None,
        train: bool = False,
        carry: PyTree = (),
    ) -> tuple[Array, PyTree]:
        merged: Any = nnx.merge(graph, params)
        return merged(inputs, key=key if train else None), carry

    return params, apply


def split_with_carry(module: nnx.Module) -> tuple[PyTree, Apply, PyTree]:
    """As `split`, for a module with batch statistics, which travel as `carry`.

    The statistics are updated in training and used otherwise. Over devices nnx.BatchNorm needs
    axis_name="data" (of `data_mesh`) in modes "shard_map" and "pmap", and none in mode "jit", where
    a step sees the whole batch. A microbatch has statistics of its own.

    Args:
        module: called as module(inputs, key=key).

    Returns:
        (params, apply, carry); start with step.init(params, key, carry), and return
        Loss(..., carry=carry) from the objective.

    Raises:
        ValueError: the module holds random streams.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from divjax.models import ResNet, batch_norm, split_with_carry
        >>> net = ResNet([1, 4], classes=3, norm=batch_norm(), rngs=nnx.Rngs(0))
        >>> params, apply, carry = split_with_carry(net)
        >>> logits, carry = apply(params, jnp.ones((2, 8, 8, 1)), train=True, carry=carry)
        >>> logits.shape
        (2, 3)
    """
    graph, state, statistics = _apart("split_with_carry", module, nnx.Param, nnx.BatchStat)

    def apply(
        params: PyTree,
        inputs: Array,
        *,
        key: Array | None = None,
        train: bool = False,
        carry: PyTree = (),
    ) -> tuple[Array, PyTree]:
        merged: Any = nnx.merge(graph, params, carry)
        merged.set_attributes(use_running_average=not train)
        outputs = merged(inputs, key=key if train else None)
        return outputs, nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat)) if train else carry

    return nnx.to_pure_dict(state), apply, nnx.to_pure_dict(statistics)


def _apart(caller: str, module: nnx.Module, *kinds: type[nnx.Variable[Any]]) -> Any:
    """(graph, the state of each kind) of a module that holds nothing else."""
    graph, *states, rest = nnx.split(module, *kinds, ...)
    foreign = sorted(".".join(map(str, path)) for path, _ in nnx.to_flat_state(rest))
    check.require(
        not foreign,
        caller,
        f"the module must hold {' and '.join(f'nnx.{kind.__name__}' for kind in kinds)} only",
        foreign,
        "for random streams call divjax.models.dropout with the key that is handed in; of batch "
        "statistics make a carry with split_with_carry, or use GroupNorm, which has none",
    )
    return graph, *states
