"""What all losses of student and teacher logits do first."""

import jax
import jax.numpy as jnp

from divjax.core import Array, check

fixed = jax.lax.stop_gradient


def alive(logits: Array, mask: Array | None) -> Array:
    """Masked rows become constant logits before anything is computed from them."""
    return logits if mask is None else jnp.where(mask[..., None], logits, 0.0)


def soften(logits: Array, temperature: float) -> Array:
    """logits / temperature in float32 at least; equal logits come out equal to the last bit.

    A division does not do that: by a constant it is compiled as a product, where it is compiled.
    Nor does a product that the compiler may join with a later difference into one rounding; the
    select keeps them apart. The barrier keeps it from computing a constant teacher's softmax
    itself, with sums rounded in another way than those of the student.
    """
    logits = jax.lax.optimization_barrier(logits)
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(jnp.isfinite(wide), wide * (1.0 / temperature), wide)


def check_logits(
    caller: str, student: Array, teacher: Array, mask: Array | None, *, temperature: float
) -> None:
    """Two arrays [*E, K] of one shape, a mask [*E], a temperature > 0."""
    for name, x in (("student_logits", student), ("teacher_logits", teacher)):
        check.floating(name, x, caller=caller)
        check.rank_at_least(name, x, 1, caller=caller)
        check.not_probabilities(name, x, -1, caller=caller, remedy=f"pass jnp.log({name})")
    check.same_shape(("student_logits", "teacher_logits"), (student, teacher), caller=caller)
    check.require(student.size > 0, caller, "the batch must not be empty", student, "skip it")
    check.boolean_mask("mask", mask, student.shape[:-1], caller=caller)
    check.positive("temperature", temperature, caller=caller)
