"""Distillation: an objective from a student, a teacher and the terms between their logits."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from divjax.core import (
    Array,
    Batch,
    Context,
    Loss,
    Mean,
    Objective,
    PyTree,
    check,
    masked_mean,
    row_keys,
)
from divjax.losses import FromLogits, forward_kl, temperature_kd
from divjax.models import Apply


class Outputs(NamedTuple):
    """What a term of distillation sees of one batch.

    Attributes:
        student: [B, ..., K] logits.
        teacher: [B, ..., K] logits, no gradient.
        labels: [B, ...] int, or None.
        mask: [B, ...] bool, or None.
        axis_name: for terms that couple the rows of all devices.
    """

    student: Array
    teacher: Array
    labels: Array | None
    mask: Array | None
    axis_name: str | None


Term = Callable[[Outputs], Mean]


def cross_entropy(outputs: Outputs) -> Mean:
    """-log softmax(student)[label], the term that needs no teacher.

    Args:
        outputs: with labels [B, ...].

    Returns:
        Mean of [] total and [] weight.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.recipes import kd
        >>> z = jnp.zeros((2, 4))
        >>> print(f"{kd.cross_entropy(kd.Outputs(z, z, jnp.array([0, 1]), None, None)).value:.4f}")
        1.3863
    """
    student = outputs.student
    if outputs.mask is not None:  # what is masked may hold anything, before the softmax too
        student = jnp.where(outputs.mask[..., None], student, 0.0)
    nll = optax.softmax_cross_entropy_with_integer_labels(student, outputs.labels)
    return masked_mean(nll, outputs.mask)


def classical(
    divergence: FromLogits = forward_kl, *, temperature: float, weight: float = 0.9
) -> dict[str, tuple[float, Term]]:
    """(1 - weight) cross-entropy + weight temperature^2 D(teacher || student).

    Args:
        divergence: (logits_p, logits_q) -> [*E], the teacher is p.
        temperature: > 0, of the divergence.
        weight: in [0, 1].

    Returns:
        Terms for `offline`.

    Raises:
        ValueError: weight outside [0, 1].

    Example:
        >>> from divjax.recipes import kd
        >>> {name: round(c, 2) for name, (c, _) in kd.classical(temperature=4.0).items()}
        {'ce': 0.1, 'kd': 0.9}
    """
    check.fraction("weight", weight, caller="classical")

    def term(o: Outputs) -> Mean:
        return temperature_kd(
            o.student, o.teacher, divergence=divergence, temperature=temperature, mask=o.mask
        )

    return {"ce": (1.0 - weight, cross_entropy), "kd": (weight, term)}


def offline(
    student: Apply,
    teacher: Callable[[Batch, Context], Array],
    terms: Mapping[str, tuple[float, Term]],
) -> Objective:
    """A student that learns from a teacher which does not change: sum_k c_k term_k.

    Args:
        student: `apply` of `divjax.models.split`, or of an adapter.
        teacher: (batch, ctx) -> logits [B, ..., K]. Of a network that is handed in as `frozen`:
            lambda batch, ctx: apply(ctx.frozen, batch["x"])[0]. Of stored logits:
            lambda batch, ctx: batch["teacher"].
        terms: name -> (coefficient, term), for example
            {"ce": (0.1, cross_entropy),
             "kd": (0.9, lambda o: temperature_kd(o.student, o.teacher, mask=o.mask))}.

    Returns:
        An objective over batches {"x": [B, ...], "y": [B, ...], "mask": [B, ...]}, of which the
        last two may be absent.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> from divjax.losses import temperature_kd
        >>> from divjax.models import MLP, split
        >>> from divjax.recipes import kd
        >>> from divjax.train import make_step
        >>> params, apply = split(MLP([4, 3], rngs=nnx.Rngs(0)))
        >>> objective = kd.offline(
        ...     apply, lambda batch, ctx: apply(ctx.frozen, batch["x"])[0],
        ...     {"kd": (1.0, lambda o: temperature_kd(o.student, o.teacher, mask=o.mask))})
        >>> step = make_step(objective, optax.sgd(0.1))
        >>> state = step.init(params, jax.random.key(0))
        >>> float(step.update(state, {"x": jnp.ones((2, 4))}, params)[1].value)
        0.0
    """

    def objective(params: PyTree, batch: Batch, ctx: Context) -> Loss:
        logits, carry = student(params, batch["x"], key=row_keys(ctx), train=True, carry=ctx.carry)
        fixed = jax.lax.stop_gradient(teacher(batch, ctx))
        seen = Outputs(logits, fixed, batch.get("y"), batch.get("mask"), ctx.axis_name)
        return Loss({name: (c, term(seen)) for name, (c, term) in terms.items()}, carry=carry)

    return objective
