"""Argument checks at trace time; each message names argument, expectation, what came, remedy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core.types import Array


def describe(x: Any) -> str:
    """'float32 [4, 10]' for an array, the repr for anything else."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype} {list(x.shape)}"
    return repr(x)


def require(condition: bool, where: str, expected: str, got: Any, remedy: str) -> None:
    """Raises ValueError('where: expected, got got; remedy') unless the condition holds."""
    if not condition:
        raise ValueError(f"{where}: {expected}, got {describe(got)}; {remedy}")


def floating(name: str, x: Array, *, caller: str) -> None:
    """x is an array of floats (a Python list or integers are refused, not cast)."""
    require(
        hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating),
        caller,
        f"{name} must be a floating-point array",
        x,
        f"pass jnp.asarray({name}, jnp.float32)",
    )


def same_shape(names: Sequence[str], arrays: Sequence[Array], *, caller: str) -> None:
    """All arrays have one shape; nothing is broadcast in silence."""
    first = arrays[0]
    for name, x in zip(names[1:], arrays[1:], strict=True):
        require(
            x.shape == first.shape,
            caller,
            f"{name} must have the shape of {names[0]}, {list(first.shape)}",
            x,
            "broadcast or slice one of them first"
            + (
                "; vocabularies of two sizes need padding by -inf logits on the shorter side"
                if x.shape[:-1] == first.shape[:-1]
                else ""
            ),
        )


def rank_at_least(name: str, x: Array, rank: int, *, caller: str) -> None:
    """x has at least `rank` axes."""
    require(
        x.ndim >= rank, caller, f"{name} must have at least {rank} axes", x, f"pass {name}[None]"
    )


def boolean_mask(name: str, mask: Array | None, shape: Sequence[int], *, caller: str) -> None:
    """The mask is None or bool and of exactly this shape (no trailing axis, no 0/1 floats)."""
    if mask is None:
        return
    expected = f"{name} must be bool {list(shape)}"
    floats = hasattr(mask, "dtype") and mask.dtype != jnp.bool_
    trailing = hasattr(mask, "shape") and tuple(mask.shape) == (*shape, 1)
    index = "[..., 0]" if trailing else ""
    positive = " > 0" if floats else ""
    require(
        hasattr(mask, "dtype") and mask.dtype == jnp.bool_ and tuple(mask.shape) == tuple(shape),
        caller,
        expected,
        mask,
        f"pass {name}{index}{positive}" if trailing or floats else f"broadcast {name} first",
    )


def positive(name: str, value: float, *, caller: str) -> None:
    """A static hyper-parameter is a finite number above 0."""
    ok = isinstance(value, int | float | np.number) and 0 < float(value) < float("inf")
    require(ok, caller, f"{name} must be a finite number > 0", value, f"for example {name}=1.0")


def fraction(name: str, value: float, *, caller: str, open_ends: bool = False) -> None:
    """A static hyper-parameter lies in [0, 1], or strictly between."""
    ok = isinstance(value, int | float | np.number) and 0 <= float(value) <= 1
    ok = ok and not (open_ends and float(value) in (0.0, 1.0))
    interval = "(0, 1)" if open_ends else "[0, 1]"
    require(ok, caller, f"{name} must lie in {interval}", value, f"for example {name}=0.5")


def seen(x: Array, index: Any = ...) -> np.ndarray | None:
    """The values x[index] in float64, None where they cannot be seen (under a trace)."""
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    with jax.ensure_compile_time_eval():  # inside a jit, indexing a constant would be traced
        return np.asarray(x[index]).astype(np.float64)


def not_probabilities(name: str, x: Array, axis: int, *, caller: str, remedy: str) -> None:
    """Refuses what looks like probabilities, where values can be seen (not under a trace).

    Only the first row is looked at: all entries in [0, 1], not all 0 or 1, with sum 1.
    """
    if x.size == 0:
        return
    row = seen(x, tuple(slice(None) if i == axis % x.ndim else 0 for i in range(x.ndim)))
    if row is None:
        return
    looks = (row >= 0).all() and ((row > 0) & (row < 1)).any() and abs(row.sum() - 1) < 1e-3
    require(not looks, caller, f"{name} must not be probabilities", x, remedy)
