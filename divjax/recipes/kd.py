"""Distillation: an objective from a student, a teacher and the terms between their logits."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
from divjax.divergences import Linear, fused_sum, token_log_prob
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


RowFn = Callable[[Any, Array], Array]


def language(
    student: Callable[[PyTree, Array], Linear],
    teacher: Callable[[Batch, Context], Any],
    divergence: RowFn = forward_kl,
    *,
    weight: float = 1.0,
    block: int | None = None,
) -> Objective:
    """Distillation of a language model, token by token, without an array of all logits.

    (1 - weight) cross-entropy of the next token + weight D(teacher || student), both from one pass
    over the student's head. Off-policy when the batch's tokens are a corpus, on-policy when they
    are the student's own.

    Args:
        student: (params, tokens [B, T - 1]) -> `Linear` with rows [B, T - 1]; soft cap and
            temperature are its own.
        teacher: (batch, ctx) -> a source with the same rows. Of a model: `Linear`, from
            ctx.frozen and batch["tokens"][:, :-1]. Of stored laws: lambda batch, ctx:
            TopK(*batch["teacher"]).
        divergence: (logits_p [b, V], logits_q [b, V]) -> [b], the teacher is p. From a `TopK`:
            lambda p, q: top_k_bounds(p, q, generators.kl).low.
        weight: in [0, 1].
        block: rows of a block, as in `divjax.divergences.fused_sum`.

    Returns:
        An objective over batches {"tokens": [B, T] int, "mask": [B, T] bool}; the mask says which
        tokens are to be predicted and may be absent. Terms and metrics are means per token.

    Raises:
        ValueError: weight outside [0, 1].

    References:
        Agarwal et al., arXiv 2306.13649 (on- and off-policy distillation).

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax.divergences import Linear
        >>> from divjax.recipes import kd
        >>> from divjax.train import make_step
        >>> def head(params, tokens):
        ...     return Linear(params["embedding"][tokens], params["embedding"])
        >>> objective = kd.language(
        ...     head, lambda batch, ctx: head(ctx.frozen, batch["tokens"][:, :-1]))
        >>> step = make_step(objective, optax.sgd(0.1))
        >>> params = {"embedding": jnp.eye(7, 4)}
        >>> state = step.init(params, jax.random.key(0))
        >>> batch = {"tokens": jnp.array([[1, 2, 3]])}
        >>> float(step.update(state, batch, params)[1].value)
        0.0
    """
    check.fraction("weight", weight, caller="language")

    def rows(p: Any, z: Array, ids: Array) -> dict[str, Array]:
        return {"ce": -token_log_prob(z, ids), "kd": divergence(p, z)}

    def objective(params: PyTree, batch: Batch, ctx: Context) -> Loss:
        tokens, mask = batch["tokens"], batch.get("mask")
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        counts = jnp.ones(targets.shape) if mask is None else mask[:, 1:].astype(jnp.float32)
        weights = {"ce": (1.0 - weight) * counts, "kd": weight * counts}
        sources = jax.lax.stop_gradient(teacher(batch, ctx)), student(params, inputs), targets
        alive = None if mask is None else mask[:, 1:]
        total, seen = fused_sum(rows, weights, *sources, mask=alive, block=block)
        number = counts.sum()
        metrics = {name: Mean(x.sum(), number) for name, x in seen.items()}
        return Loss({"distillation": (1.0, Mean(total, number))}, metrics)

    return objective
