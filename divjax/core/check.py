"""Argument checks at trace time; each message names argument, expectation, what came, remedy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core.types import Array


def describe(x: Any) -> str:
    """'float32 [4, 10]' for an array, the repr (cut) for anything else, text as it is."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype} {list(x.shape)}"
    text = x if isinstance(x, str) and " " in x else repr(x)
    return text if len(text) <= 200 else text[:200] + "..."


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
        remedy = "broadcast or slice one of them first"
        if "log" in name and x.shape[:-1] == first.shape[:-1]:  # log-probs or logits
            remedy += "; vocabularies of two sizes need padding by -inf on the shorter side"
        shape = f"{name} must have the shape of {names[0]}, {list(first.shape)}"
        require(x.shape == first.shape, caller, shape, x, remedy)


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
    if not (hasattr(mask, "dtype") and hasattr(mask, "shape")):
        require(False, caller, expected, mask, f"pass jnp.asarray({name}, bool)")
    floats, trailing = mask.dtype != jnp.bool_, tuple(mask.shape) == (*shape, 1)
    missing = len(shape) - mask.ndim
    as_bool = f"({name} > 0)" if floats else name
    remedy = f"pass {as_bool}" if floats else f"broadcast {name} first"
    if trailing:
        remedy = f"pass {name}[..., 0]" + (" > 0" if floats else "")
    elif missing > 0 and tuple(mask.shape) == tuple(shape[: mask.ndim]):
        remedy = f"pass jnp.broadcast_to({as_bool}[...{', None' * missing}], {tuple(shape)})"
    require(not floats and tuple(mask.shape) == tuple(shape), caller, expected, mask, remedy)


def broadcastable_mask(name: str, mask: Array | None, shape: Sequence[int], *, caller: str) -> None:
    """As `boolean_mask`, but an axis may be 1; none is added in silence (a [B] mask along T)."""
    if mask is None:
        return
    fits = hasattr(mask, "dtype") and hasattr(mask, "shape") and len(mask.shape) == len(shape)
    fits = fits and all(m in (1, v) for m, v in zip(mask.shape, shape, strict=True))
    if not fits or mask.dtype != jnp.bool_:
        boolean_mask(name, mask, shape, caller=caller)


def positive(name: str, value: float | Array, *, caller: str) -> None:
    """A hyper-parameter is a finite number above 0; of a scalar array under a trace, trusted."""
    if isinstance(value, jax.core.Tracer) and value.shape == ():
        return
    if isinstance(value, jax.Array | np.ndarray) and value.shape == ():
        value = float(value)
    ok = isinstance(value, int | float | np.number) and 0 < float(value) < float("inf")
    require(ok, caller, f"{name} must be a finite number > 0", value, f"for example {name}=1.0")


def function(name: str, value: Any, *, caller: str, signature: str, remedy: str) -> None:
    """It can be called."""
    require(callable(value), caller, f"{name} must be a function {signature}", value, remedy)


def log_weights(name: str, x: Array, *, caller: str, mass: float = 1.0) -> None:
    """Log weights [*E, N] of this mass, where values can be seen (not under a trace)."""
    rows = _first_rows(x, -1)
    if rows is None:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.exp(rows).sum(-1)
    off = (abs(found - mass) > 1e-2 * mass) & (found > 0)  # an empty side has a value of its own
    require(
        not off.any(),
        caller,
        f"{name} must be log weights that sum to {mass:.4g}",
        f"a sum of {found[off].max(initial=0.0):.4g}",
        f"pass jnp.log of the weights, or {name} - jax.nn.logsumexp({name})",
    )


def count(name: str, value: int, *, caller: str) -> None:
    """A static number of things is an integer, 1 at least."""
    ok = isinstance(value, int) and value >= 1
    require(ok, caller, f"{name} must be an integer >= 1", value, f"for example {name}=4")


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

    Of the first rows: each in [0, 1] with sum 1, not all of them 0 or 1, nor all constant (which
    is the same law either way).
    """
    rows = _first_rows(x, axis)
    if rows is None:
        return
    looks = (rows >= 0).all() and (rows <= 1).all() and (abs(rows.sum(-1) - 1) < 1e-3).all()
    looks = looks and ((rows > 0) & (rows < 1)).any() and (rows.min(-1) < rows.max(-1)).any()
    require(not looks, caller, f"{name} must not be probabilities", x, remedy)


def not_logits(name: str, x: Array, axis: int, *, caller: str) -> None:
    """Refuses log-probabilities above 0, where values can be seen; the first rows are looked at."""
    rows = _first_rows(x, axis)
    if rows is None:
        return
    largest = float(np.max(rows, initial=-np.inf, where=~np.isnan(rows)))
    require(
        largest <= 0.01,
        caller,
        f"{name} must be log-probabilities, at most 0",
        f"an entry of {largest:.3g}",
        "of logits take f_divergence_from_logits, or jax.nn.log_softmax first",
    )


_LOOK = 16  # rows


def _first_rows(x: Array, axis: int) -> np.ndarray | None:
    """Some rows [L, K] in float64, or None where values cannot be seen or there are none."""
    if x.size == 0:
        return None
    axis = axis % x.ndim
    along = max((i for i in range(x.ndim) if i != axis), key=lambda i: x.shape[i], default=axis)
    first = tuple(
        slice(None) if i == axis else slice(_LOOK) if i == along else slice(1)
        for i in range(x.ndim)
    )
    rows = seen(x, first)
    return None if rows is None else np.moveaxis(rows, axis, -1).reshape(-1, x.shape[axis])
