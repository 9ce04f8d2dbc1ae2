"""Distillation losses: logits in, undivided means out; the teacher never gets a gradient."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from divjax.core import Array, Mean, check, masked_mean
from divjax.divergences import f_divergence_from_logits, generators, plackett_luce, ranking
from divjax.divergences._terms import entropy
from divjax.losses._logits import alive, check_logits, fixed, soften

FromLogits = Callable[[Array, Array], Array]
"""(logits_p [*E, K], logits_q [*E, K]) -> [*E]."""


def forward_kl(logits_p: Array, logits_q: Array) -> Array:
    """KL(p || q) from logits: the default divergence of `temperature_kd`.

    Args:
        logits_p: [*E, K].
        logits_q: [*E, K].

    Returns:
        [*E].

    References:
        Hinton, Vinyals and Dean, arXiv 1503.02531.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import forward_kl
        >>> float(forward_kl(jnp.ones(3), jnp.zeros(3)))
        0.0
    """
    return f_divergence_from_logits(logits_p, logits_q, generators.kl)


def temperature_kd(
    student_logits: Array,
    teacher_logits: Array,
    *,
    divergence: FromLogits = forward_kl,
    temperature: float = 1.0,
    power: int = 2,
    mask: Array | None = None,
) -> Mean:
    """temperature^power * D(teacher || student), both softened by the temperature.

    Args:
        student_logits: [*E, K].
        teacher_logits: [*E, K]; no gradient flows into it.
        divergence: (logits_p, logits_q) -> [*E], the teacher is p: for example
            partial(f_divergence_from_logits, generator=generators.js(0.9)). Of logits: the named
            functions such as `divergences.kl` take log-probabilities.
        temperature: > 0.
        power: 2 keeps the size of the gradient as the temperature varies, as in the paper. 0 is
            what code that leaves the factor out computes.
        mask: bool [*E]; rows that are False do not count and may hold anything.

    Returns:
        Mean of [] total and [] weight.

    Raises:
        ValueError: shapes or mask do not match, the temperature is not > 0.

    References:
        Hinton, Vinyals and Dean, arXiv 1503.02531.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import temperature_kd
        >>> teacher = jnp.array([[2.0, 0.0], [0.0, 0.0]])
        >>> kd = temperature_kd(jnp.zeros((2, 2)), teacher, temperature=2.0)
        >>> print(f"{kd.value:.4f}")
        0.2219
    """
    check_logits("temperature_kd", student_logits, teacher_logits, mask, temperature=temperature)
    signature = "(logits_p, logits_q) -> [*E]"
    remedy = "of a record: partial(f_divergence_from_logits, generator=record)"
    check.function(
        "divergence", divergence, caller="temperature_kd", signature=signature, remedy=remedy
    )
    student, teacher = alive(student_logits, mask), fixed(alive(teacher_logits, mask))
    terms = divergence(soften(teacher, temperature), soften(student, temperature))
    return masked_mean(temperature**power * terms, mask)


class Balance(NamedTuple):
    """Weights of the two directions of BD-KD, no gradient.

    Attributes:
        forward: [*E] weight of KL(teacher || student).
        reverse: [*E] weight of KL(student || teacher).
    """

    forward: Array
    reverse: Array


def entropy_balance(
    student_logits: Array,
    teacher_logits: Array,
    *,
    delta: float = 2.0,
    temperature: float = 1.0,
) -> Balance:
    """Where the student is sharper than the teacher, forward KL counts delta-fold; else reverse.

    With H the entropies: forward = delta if H_teacher > H_student else 1, reverse = delta if
    H_student > H_teacher else 1; equal entropies give 1 and 1.

    Args:
        student_logits: [*E, K].
        teacher_logits: [*E, K].
        delta: >= 1. The default is the value given as standard by a third-party implementation
            (github.com/ghwang-s/abkd); the paper's own could not be read.
        temperature: of the entropies; 1 is derived, not read in the paper.

    Returns:
        Balance, [*E] each.

    Raises:
        ValueError: shapes differ, delta < 1, temperature is not > 0.

    References:
        Amara et al., BD-KD, arXiv 2212.12965.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import entropy_balance
        >>> sharp, flat = jnp.array([[9.0, 0.0]]), jnp.array([[0.0, 0.0]])
        >>> [float(w[0]) for w in entropy_balance(sharp, flat)]
        [2.0, 1.0]
    """
    check_logits("entropy_balance", student_logits, teacher_logits, None, temperature=temperature)
    ok = isinstance(delta, int | float) and 1 <= delta < float("inf")
    check.require(ok, "entropy_balance", "delta must be a number >= 1", delta, "delta=2.0")
    student, teacher = (_entropy(z, temperature) for z in (student_logits, teacher_logits))
    forward = jnp.where(teacher > student, delta, 1.0)
    reverse = jnp.where(student > teacher, delta, 1.0)
    lost = jnp.isnan(teacher) | jnp.isnan(student)
    forward, reverse = (jnp.where(lost, jnp.nan, weight) for weight in (forward, reverse))
    return Balance(fixed(forward), fixed(reverse))


def balanced_kd(
    student_logits: Array,
    teacher_logits: Array,
    *,
    delta: float = 2.0,
    temperature: float = 1.0,
    entropy_temperature: float = 1.0,
    mask: Array | None = None,
) -> Mean:
    """BD-KD, the student's term: both KLs, weighted by which of the two laws is sharper.

        temperature^2 (w_F KL(teacher || student) + w_R KL(student || teacher))

    The weights are those of `entropy_balance`, per example. The teacher of online distillation
    learns by `temperature_kd(teacher_logits, student_logits)`, which is KL(student || teacher)
    with the student held fixed. delta = 1 is the Jeffreys divergence; the weights sum to 1 +
    delta, so compare another delta with delta = 1 scaled by (1 + delta) / 2.

    Args:
        student_logits: [*E, K].
        teacher_logits: [*E, K]; no gradient flows into it.
        delta: see `entropy_balance`.
        temperature: of both divergences; 1 is derived, not read in the paper.
        entropy_temperature: of the entropies.
        mask: bool [*E].

    Returns:
        Mean of [] total and [] weight.

    Raises:
        ValueError: as `temperature_kd` and `entropy_balance`.

    References:
        Amara et al., BD-KD, arXiv 2212.12965. The paper's body could not be read; definitions
        follow its abstract and a third-party implementation, whose forward term drops the
        teacher's entropy (the same gradient, another value).

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import balanced_kd
        >>> student, teacher = jnp.array([[3.0, 0.0, 0.0]]), jnp.array([[1.0, 0.5, 0.0]])
        >>> print(f"{balanced_kd(student, teacher).value:.5f}")
        1.49217
    """
    check_logits("balanced_kd", student_logits, teacher_logits, mask, temperature=temperature)
    student, teacher = alive(student_logits, mask), fixed(alive(teacher_logits, mask))
    weight = entropy_balance(student, teacher, delta=delta, temperature=entropy_temperature)
    p, q = soften(teacher, temperature), soften(student, temperature)
    terms = weight.forward * forward_kl(p, q) + weight.reverse * forward_kl(q, p)
    return masked_mean(temperature**2 * terms, mask)


def pld(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array | None = None,
    *,
    temperature: float = 1.0,
    weights: Array | None = None,
    mask: Array | None = None,
) -> Mean:
    """PLD: the teacher's ranking of the classes, the label put first, under Plackett-Luce.

        sum_k w_k (log sum_{l not before k} e^{s_l} - s_k),    w = softmax(teacher / temperature)

    It has no finite minimum and does not match probabilities: at student = teacher the gradient is
    not zero. A label that the teacher finds improbable gets a small weight, as the paper has it.

    Args:
        student_logits: [*E, K].
        teacher_logits: [*E, K]; equal ones keep the order of the classes. No gradient.
        labels: [*E] int, the class that goes first; None ranks by the teacher alone.
        temperature: of the weights only, > 0.
        weights: [*E, K] of the classes in place of the softmax, no gradient. With r =
            `pld_ranks(teacher_logits, labels)`: one-hot labels are cross-entropy, 1 / K is ListMLE,
            2.0 ** (K - 1 - r) - 1 its position-aware form, softmax * (r < k) a list of the k best.
        mask: bool [*E]; rows that are False may hold anything.

    Returns:
        Mean of [] total and [] weight. NaN where a label that counts is no class.

    Raises:
        ValueError: shapes or mask do not match, labels are no integers, the temperature is not > 0.

    References:
        Bassam, Zhu and Bian, arXiv 2506.12542.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import pld
        >>> student = jnp.array([[0.5, 0.2, -0.3, 0.1]])
        >>> teacher = jnp.array([[2.0, 1.0, 0.0, -1.0]])
        >>> print(f"{pld(student, teacher, jnp.array([1])).value:.6f}")
        0.883330
    """
    check_logits("pld", student_logits, teacher_logits, mask, temperature=temperature)
    student, teacher = alive(student_logits, mask), fixed(alive(teacher_logits, mask))
    ranks = pld_ranks(teacher, labels)
    if weights is None:
        weights = jax.nn.softmax(soften(teacher, temperature))
    else:
        check.same_shape(("student_logits", "weights"), (student, weights), caller="pld")
        weights = fixed(alive(weights, mask))
    counted = weights != 0  # a padded class (-inf) is in no risk set; NaN counts
    steps = plackett_luce(student, ranks, events=counted)
    terms = jnp.sum(jnp.where(counted, weights, 0.0) * steps, axis=-1)
    terms = jnp.where(jnp.isnan(teacher).any(-1), jnp.nan, terms)  # its places mean nothing
    if labels is not None:
        known = (labels >= 0) & (labels < student.shape[-1])
        terms = jnp.where(known, terms, jnp.nan)
    return masked_mean(terms, mask)


def pld_ranks(teacher_logits: Array, labels: Array | None = None) -> Array:
    """The place of each class: the label first, the others by descending teacher logit.

    Args:
        teacher_logits: [*E, K].
        labels: [*E] int or None.

    Returns:
        [*E, K] int32, 0 is first.

    Raises:
        ValueError: labels are no integers [*E].

    References:
        Bassam, Zhu and Bian, arXiv 2506.12542.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.losses import pld_ranks
        >>> pld_ranks(jnp.array([2.0, 1.0, 0.0]), jnp.array(2)).tolist()
        [1, 2, 0]
    """
    check.floating("teacher_logits", teacher_logits, caller="pld")
    if labels is None:
        return ranking.positions(-fixed(teacher_logits))
    shape = teacher_logits.shape[:-1]
    check.require(
        jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer) and jnp.shape(labels) == shape,
        "pld",
        f"labels must be int {list(shape)}",
        labels,
        "pass one class per row",
    )
    is_label = jnp.arange(teacher_logits.shape[-1]) == jnp.asarray(labels)[..., None]
    return ranking.positions(jnp.where(is_label, -jnp.inf, -fixed(teacher_logits)))


def _entropy(logits: Array, temperature: float) -> Array:
    """[*E] entropy of softmax(logits / temperature), with -inf logits as probability 0."""
    return entropy(fixed(soften(logits, temperature)))
