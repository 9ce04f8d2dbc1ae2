"""SinKD: the transport between the clouds of a batch's student and teacher probabilities."""

import jax
import jax.numpy as jnp

from divjax.core import Array, Mean, all_rows, check, whole_batch
from divjax.divergences import manhattan, sinkhorn, sinkhorn_divergence, transport
from divjax.divergences.transport import SinkhornDivergence, Solver, Transport
from divjax.losses._logits import alive, check_logits, fixed, soften

PAPER = transport.unrolled(20)
"""The solver of the released code: twenty times rows, then columns."""


def sinkd(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    solver: Solver = PAPER,
    mask: Array | None = None,
    axis_name: str | None = None,
) -> tuple[Mean, Transport]:
    """SinKD: <P, C> of the entropic plan between all rows of the student and of the teacher.

        C_ij = |softmax(s_i / temperature) - softmax(t_j / temperature)|_1

    Rows are not paired: permuting the teacher's changes nothing, so add it to a paired term. It is
    not 0 at student = teacher and its minimum lies elsewhere; `sinkd_debiased` has neither fault.

    `total` is the sum over the batch that the released code adds with coefficient 0.0008, so
    (0.0008 * B, mean) is its term; `value` is per row. Its other constants are explicit here:
    temperature 2 whatever the distillation uses, no factor temperature^2, epsilon 0.1, 20
    iterations. With it go 0.1 cross-entropy and 0.9 `temperature_kd(..., power=0)`.

    Args:
        student_logits: [B, K], K classes.
        teacher_logits: [B, K]; no gradient flows into it.
        temperature: > 0.
        epsilon: > 0, in units of the cost, which lies in [0, 2].
        solver: see `divergences.transport`; `converged()` for the true plan.
        mask: bool [B]; rows that are False are in neither cloud and may hold anything.
        axis_name: the mapped axis: one plan for the rows of all devices, which is what one device
            would compute. None takes the rows of this call, under shard_map those of one device:
            another loss, that of data-parallel code. The same holds for microbatches.

    Returns:
        (Mean of [] total and [] weight = rows, Transport of the clouds).

    Raises:
        ValueError: shapes or mask do not match, temperature or epsilon is not > 0.

    References:
        Cui et al., arXiv 2402.17110 (abstract) and its released code.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import sinkd
        >>> student = jnp.array([[2.0, 0.1, -1.0], [0.3, 1.0, -0.2], [-1.0, 0.4, 3.0]])
        >>> teacher = jnp.array([[3.0, -0.3, 0.2], [0.0, 2.0, 0.5], [-0.1, 0.15, 1.0]])
        >>> mean, plan = sinkd(student, teacher)
        >>> print(f"{mean.total:.6f} {mean.value:.6f} {plan.marginal_error:.4f}")
        1.000223 0.333408 0.0012
    """
    check.positive("epsilon", epsilon, caller="sinkd")
    p, q, rows = _clouds("sinkd", student_logits, teacher_logits, temperature, mask, axis_name)
    plan = sinkhorn(manhattan(p, q), rows, rows, epsilon=epsilon, solver=solver)
    return _per_row(plan.cost, rows, axis_name), plan


def sinkd_debiased(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    solver: Solver = PAPER,
    mask: Array | None = None,
    axis_name: str | None = None,
) -> tuple[Mean, SinkhornDivergence]:
    """The Sinkhorn divergence of the clouds of `sinkd`: 0 at student = teacher. Not in the paper.

        OT_epsilon(p, q) - OT_epsilon(p, p) / 2 - OT_epsilon(q, q) / 2

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into it.
        temperature: > 0.
        epsilon: > 0.
        solver: as in `sinkd`.
        mask: bool [B].
        axis_name: as in `sinkd`.

    Returns:
        (Mean of [] total and [] weight = rows, SinkhornDivergence of the clouds of mass 1).

    Raises:
        ValueError: as `sinkd`.

    References:
        Feydy et al., arXiv 1810.08278; Cui et al., arXiv 2402.17110.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import sinkd_debiased
        >>> logits = jnp.array([[2.0, 0.1, -1.0], [0.3, 1.0, -0.2]])
        >>> print(f"{sinkd_debiased(logits, logits)[0].value:.4f}")
        0.0000
    """
    check.positive("epsilon", epsilon, caller="sinkd_debiased")
    p, q, rows = _clouds(
        "sinkd_debiased", student_logits, teacher_logits, temperature, mask, axis_name
    )
    count = jnp.sum(rows > -jnp.inf)
    law = rows - jnp.log(jnp.maximum(count, 1)).astype(rows.dtype)
    out = sinkhorn_divergence(p, q, law, law, epsilon=epsilon, cost=manhattan, solver=solver)
    return _per_row(count * out.value, rows, axis_name), out


def _clouds(
    caller: str,
    student_logits: Array,
    teacher_logits: Array,
    temperature: float,
    mask: Array | None,
    axis_name: str | None,
) -> tuple[Array, Array, Array]:
    """(student's probabilities [B, K], teacher's [B, K], log weights [B]: 0 or -inf)."""
    check_logits(caller, student_logits, teacher_logits, mask, temperature=temperature)
    check.require(student_logits.ndim == 2, caller, "logits must be [B, K]", student_logits,
                  "reshape to (-1, K), and the mask with it")  # fmt: skip
    student, teacher = (
        jax.nn.softmax(soften(alive(z, mask), temperature))
        for z in (student_logits, fixed(teacher_logits))
    )
    keep = jnp.ones(student.shape[0], bool) if mask is None else mask
    rows = jnp.where(keep, 0.0, -jnp.inf).astype(student.dtype)
    p, q, rows = (all_rows(x, axis_name) for x in (student, teacher, rows))
    return p, q, rows


def _per_row(total: Array, rows: Array, axis_name: str | None) -> Mean:
    """Of all devices together: `total`, and the number of rows."""
    count = jnp.sum(rows > -jnp.inf).astype(total.dtype)
    return Mean(*(whole_batch(x, axis_name).total for x in (total, count)))
