"""How far confidence and accuracy agree: sums per bin, which add up over batches and devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array, check


class Calibration(NamedTuple):
    """Sums over the examples of each confidence bin; add two of them leaf by leaf.

    Over devices a psum adds them. In `divjax.train.make_eval`, which divides, take
    Mean(confidence - correct, examples.sum()): the gaps [bins], whose absolute sum is the ECE.

    Attributes:
        confidence: [bins] sum of the largest probabilities.
        correct: [bins] number of right answers.
        examples: [bins] number of examples.
    """

    confidence: Array
    correct: Array
    examples: Array


def calibration(
    logits: Array, labels: Array, *, bins: int = 15, mask: Array | None = None
) -> Calibration:
    """Sums per equal-width bin of the confidence max softmax(logits), right-closed bins.

    Args:
        logits: [B, K].
        labels: [B] int.
        bins: number of bins over (0, 1].
        mask: bool [B].

    Returns:
        Calibration, [bins] each.

    Raises:
        ValueError: shapes, dtypes or mask are not as above.

    References:
        Guo et al., arXiv 1706.04599.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.measure import calibration
        >>> c = calibration(jnp.log(jnp.array([[0.9, 0.1]])), jnp.array([0]), bins=2)
        >>> c.examples.tolist(), c.correct.tolist()
        ([0.0, 1.0], [0.0, 1.0])
    """
    _check("calibration", logits, labels, mask)
    whole = isinstance(bins, int) and bins > 0
    check.require(whole, "calibration", "bins must be an int > 0", bins, "bins=15")
    confidence = jnp.max(jax.nn.softmax(_wide(logits)), axis=-1)
    # Of NaN nothing is right: its row shows as NaN in the sums of the last bin.
    correct = (jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(confidence)
    # Edges in the type of the confidence: 0.8 of one type is above 0.8 of a wider one.
    edges = jnp.arange(1, bins, dtype=confidence.dtype) / bins
    index = jnp.searchsorted(edges, confidence, side="left")
    keep = jnp.ones_like(correct) if mask is None else mask

    def sums(x: Array) -> Array:
        return jnp.zeros(bins, confidence.dtype).at[index].add(jnp.where(keep, x, 0.0))

    return Calibration(sums(confidence), sums(correct), sums(jnp.ones_like(confidence)))


def expected_calibration_error(sums: Calibration) -> Array:
    """ECE = sum over bins of |confidence - correct| / number of examples, in [0, 1].

    Args:
        sums: of the whole data set, over batches and devices.

    Returns:
        []; 0 where there are no examples.

    References:
        Guo et al., arXiv 1706.04599.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.measure import Calibration, expected_calibration_error
        >>> sums = Calibration(jnp.array([8.0]), jnp.array([6.0]), jnp.array([10.0]))
        >>> print(f"{expected_calibration_error(sums):.2f}")
        0.20
    """
    total = jnp.sum(sums.examples)
    gap = jnp.sum(jnp.abs(sums.confidence - sums.correct))
    return gap / jnp.maximum(total, 1.0)


def brier_score(logits: Array, labels: Array) -> Array:
    """sum_k (p_k - 1[k = label])^2 per example, in [0, 2].

    Args:
        logits: [B, K].
        labels: [B] int.

    Returns:
        [B]; NaN where the label is no class.

    Raises:
        ValueError: shapes or dtypes are not as above.

    References:
        Brier, 1950.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.measure import brier_score
        >>> float(brier_score(jnp.zeros((1, 2)), jnp.array([1]))[0])
        0.5
    """
    _check("brier_score", logits, labels, None)
    p = jax.nn.softmax(_wide(logits))
    score = jnp.sum((p - jax.nn.one_hot(labels, logits.shape[-1])) ** 2, axis=-1)
    return jnp.where(_is_class(logits, labels), score, jnp.nan)


def negative_log_likelihood(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label] per example, in nats; +inf where the label has probability 0.

    Args:
        logits: [B, K].
        labels: [B] int.

    Returns:
        [B]; NaN where the label is no class.

    Raises:
        ValueError: shapes or dtypes are not as above.

    References:
        Guo et al., arXiv 1706.04599.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.measure import negative_log_likelihood
        >>> print(f"{negative_log_likelihood(jnp.zeros((1, 2)), jnp.array([1]))[0]:.4f}")
        0.6931
    """
    _check("negative_log_likelihood", logits, labels, None)
    log_p = jax.nn.log_softmax(_wide(logits))
    picked = jnp.take_along_axis(log_p, labels[:, None], axis=-1, mode="clip")[:, 0]
    return jnp.where(_is_class(logits, labels), -picked, jnp.nan)


def _is_class(logits: Array, labels: Array) -> Array:
    return (labels >= 0) & (labels < logits.shape[-1])


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _check(caller: str, logits: Array, labels: Array, mask: Array | None) -> None:
    check.floating("logits", logits, caller=caller)
    check.require(logits.ndim == 2, caller, "logits must be [B, K]", logits, "pass logits[None]")
    check.require(logits.size > 0, caller, "logits must not be empty", logits, "skip the batch")
    rows = logits.shape[:1]
    check.require(
        isinstance(labels, jax.Array | np.ndarray)
        and labels.shape == rows
        and jnp.issubdtype(labels.dtype, jnp.integer),
        caller,
        f"labels must be int {list(rows)}",
        labels,
        "pass class indices, not one-hot rows",
    )
    check.boolean_mask("mask", mask, rows, caller=caller)
