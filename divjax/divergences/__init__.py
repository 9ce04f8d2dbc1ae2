"""Divergences of laws: f(p, q) is D(p || q), log space in, unreduced arrays out."""

from divjax.divergences import generators
from divjax.divergences.conjugate import conjugate, inverse_slope
from divjax.divergences.f import f_divergence, f_divergence_from_logits
from divjax.divergences.named import (
    alpha,
    jeffreys,
    js,
    kl,
    lecam,
    neyman,
    pearson,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_reverse_kl,
    squared_hellinger,
    tsallis,
    tv,
)
from divjax.divergences.renyi import renyi, renyi_from_logits

__all__ = [
    "alpha",
    "conjugate",
    "f_divergence",
    "f_divergence_from_logits",
    "generators",
    "inverse_slope",
    "jeffreys",
    "js",
    "kl",
    "lecam",
    "neyman",
    "pearson",
    "renyi",
    "renyi_from_logits",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "soft_reverse_kl",
    "squared_hellinger",
    "tsallis",
    "tv",
]
