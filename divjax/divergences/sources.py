"""Where rows of logits come from: a head, an array, or stored top-k log-probabilities.

A source says how a block of its rows becomes what a row function sees; `divjax.divergences.fused`
never holds more than a block.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divjax.core import Array, PyTree, check

Numbers = float | Array


class Parts(NamedTuple):
    """A source taken apart by what happens to it when rows are cut into blocks."""

    projection: tuple[Array, Array] | None  # hidden [*E, H] and head [V, H]
    rows: PyTree  # arrays [*E, ...], cut with the rows
    shared: PyTree  # arrays that every row uses
    build: Callable[[Any, PyTree, PyTree], Any]  # (hidden head^T, rows, shared) of a block


def _static(default: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """Logits of a language model's head, never formed as a whole.

    logits = cap(scale * (hidden head^T + bias)) / temperature with cap(z) = soft_cap
    tanh(z / soft_cap), of which the first `valid` columns count.

    Attributes:
        hidden: [*E, H].
        head: [V, H]; products are accumulated in float32 at least.
        bias: [V], or None.
        scale: [] of the logits (Cohere's logit scale).
        temperature: [], > 0.
        soft_cap: static number > 0 (Gemma's final soft cap), or None.
        valid: static number of columns that are vocabulary; the head's others are padding.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Linear, log_normalisers
        >>> head = Linear(jnp.ones((3, 4)), jnp.ones((8, 4)), valid=5)
        >>> [f"{x:.3f}" for x in log_normalisers(head)]  # 4 + log 5
        ['5.609', '5.609', '5.609']
    """

    hidden: Array
    head: Array
    bias: Array | None = None
    scale: Numbers = 1.0
    temperature: Numbers = 1.0
    soft_cap: float | None = _static()
    valid: int | None = _static()

    def parts(self, caller: str) -> Parts:
        """Checks shapes and takes the source apart."""
        for name, x, rank in (("hidden", self.hidden, 1), ("head", self.head, 2)):
            check.floating(name, x, caller=caller)
            check.rank_at_least(name, x, rank, caller=caller)
        width, size = self.hidden.shape[-1], self.head.shape[0]
        check.require(
            self.head.ndim == 2 and self.head.shape[1] == width,
            caller,
            f"head must be [V, H] with H = {width} as in hidden",
            self.head,
            "pass head.T if it is [H, V]",
        )
        if self.bias is not None:
            check.floating("bias", self.bias, caller=caller)
            check.require(
                self.bias.shape == (size,),
                caller,
                f"bias must be [V] = [{size}]",
                self.bias,
                "pass one number per row of the head",
            )
        _check_columns(caller, self.valid, size)
        shared, finish = _finish(caller, self)
        return Parts((self.hidden, self.head), (), shared, lambda z, _, given: finish(z, given))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Logits:
    """Logits that are an array already, with the same transforms as `Linear`.

    Attributes:
        logits: [*E, V].
        bias: [V], or None.
        scale: [].
        temperature: [], > 0.
        soft_cap: static number > 0, or None.
        valid: static number of columns that count.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Logits, entropies
        >>> [f"{x:.3f}" for x in entropies(Logits(jnp.zeros((2, 8)), valid=4))]  # log 4
        ['1.386', '1.386']
    """

    logits: Array
    bias: Array | None = None
    scale: Numbers = 1.0
    temperature: Numbers = 1.0
    soft_cap: float | None = _static()
    valid: int | None = _static()

    def parts(self, caller: str) -> Parts:
        """Checks shapes and takes the source apart."""
        check.floating("logits", self.logits, caller=caller)
        check.rank_at_least("logits", self.logits, 1, caller=caller)
        _check_columns(caller, self.valid, self.logits.shape[-1])
        shared, finish = _finish(caller, self)
        return Parts(None, self.logits, shared, lambda _, z, given: finish(z, given))


class TopK(NamedTuple):
    """A law of which only the K largest log-probabilities are known; a row function sees it whole.

    Attributes:
        ids: int [*E, K] entries of the vocabulary, different within a row.
        log_probs: [*E, K], largest first.
        log_tail: [*E] logarithm of the mass of all other entries.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import Logits, top_k
        >>> law = top_k(Logits(jnp.log(jnp.array([[0.1, 0.6, 0.3]]))), 2)
        >>> law.ids.tolist(), f"{jnp.exp(law.log_tail[0]):.2f}"
        ([[1, 2]], '0.10')
    """

    ids: Array
    log_probs: Array
    log_tail: Array

    def parts(self, caller: str) -> Parts:
        """Checks shapes and takes the source apart."""
        check.same_shape(("ids", "log_probs"), (self.ids, self.log_probs), caller=caller)
        check.floating("log_probs", self.log_probs, caller=caller)
        check.require(
            jnp.issubdtype(self.ids.dtype, jnp.integer)
            and self.log_tail.shape == self.ids.shape[:-1],
            caller,
            "TopK needs int ids [*E, K] and log_tail [*E]",
            (self.ids, self.log_tail),
            "make it by top_k(source, k)",
        )
        return Parts(None, self, (), lambda _, law, __: law)


Source = Linear | Logits | TopK


def _check_columns(caller: str, valid: int | None, size: int) -> None:
    check.require(
        valid is None or 0 < valid <= size,
        caller,
        f"valid must be in 1..{size}, the columns there are",
        valid,
        "pass the size of the tokenizer's vocabulary",
    )


def _finish(caller: str, of: Linear | Logits) -> tuple[dict[str, Array], Any]:
    """What is an array, hence may be traced, and the function from raw products to logits."""
    check.positive("temperature", of.temperature, caller=caller)
    if of.soft_cap is not None:
        check.positive("soft_cap", of.soft_cap, caller=caller)
    numbers: dict[str, Any] = {"bias": of.bias, "scale": of.scale, "temperature": of.temperature}
    shared = {name: x for name, x in numbers.items() if isinstance(x, jax.Array)}
    fixed = {name: x for name, x in numbers.items() if name not in shared}
    cap, valid = of.soft_cap, of.valid

    def finish(z: Array, given: dict[str, Array]) -> Array:
        use = {**fixed, **given}
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        z = z if use["bias"] is None else z + use["bias"]
        z = z * use["scale"]
        z = z if cap is None else cap * jnp.tanh(z / cap)
        z = z * (1.0 / use["temperature"])
        return z[..., :valid]

    return shared, finish
