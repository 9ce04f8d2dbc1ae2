"""Divergences of laws: f(p, q) is D(p || q), log space in, unreduced arrays out."""

from divjax.divergences import generators, ranking, transport
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
from divjax.divergences.ranking import plackett_luce
from divjax.divergences.renyi import renyi, renyi_from_logits
from divjax.divergences.transport import sinkhorn, sinkhorn_divergence
from divjax.divergences.wasserstein import (
    manhattan,
    sliced_wasserstein,
    squared_euclidean,
    wasserstein_1d,
)

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
    "manhattan",
    "neyman",
    "pearson",
    "plackett_luce",
    "ranking",
    "renyi",
    "renyi_from_logits",
    "reverse_kl",
    "sinkhorn",
    "sinkhorn_divergence",
    "skew_kl",
    "skew_reverse_kl",
    "sliced_wasserstein",
    "soft_reverse_kl",
    "squared_euclidean",
    "squared_hellinger",
    "transport",
    "tsallis",
    "tv",
    "wasserstein_1d",
]
