"""Divergences from samples; values and gradients are chosen independently."""

from divjax.estimators.monte_carlo import (
    estimate,
    k1,
    k2,
    k3,
    score_under_p,
    score_under_q,
    standard_error,
    under_p,
    under_q,
    with_gradient,
)

__all__ = [
    "estimate",
    "k1",
    "k2",
    "k3",
    "score_under_p",
    "score_under_q",
    "standard_error",
    "under_p",
    "under_q",
    "with_gradient",
]
