"""Divergences of laws: f(p, q) is D(p || q), log space in, unreduced arrays out."""

from divjax.divergences import gaussian, generators, ranking, transport
from divjax.divergences.bregman import (
    Power,
    bregman,
    density_power,
    fenchel_young,
    half_square,
    minus_log,
    negative_entropy,
)
from divjax.divergences.conjugate import conjugate, inverse_slope
from divjax.divergences.exponential import (
    bernoulli_log_partition,
    categorical_log_partition,
    exponential_family_kl,
    exponential_family_renyi,
    poisson_log_partition,
)
from divjax.divergences.f import f_divergence, f_divergence_from_logits
from divjax.divergences.fused import fused_rows, fused_sum
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
from divjax.divergences.sources import Linear, Logits, TopK
from divjax.divergences.transport import sinkhorn, sinkhorn_divergence
from divjax.divergences.vocabulary import (
    Bounds,
    entropies,
    fused_divergence,
    log_normalisers,
    token_log_prob,
    token_log_probs,
    top_k,
    top_k_bounds,
)
from divjax.divergences.wasserstein import (
    manhattan,
    sliced_wasserstein,
    squared_euclidean,
    wasserstein_1d,
)

__all__ = [
    "Bounds",
    "Linear",
    "Logits",
    "Power",
    "TopK",
    "alpha",
    "bernoulli_log_partition",
    "bregman",
    "categorical_log_partition",
    "conjugate",
    "density_power",
    "entropies",
    "exponential_family_kl",
    "exponential_family_renyi",
    "f_divergence",
    "f_divergence_from_logits",
    "fenchel_young",
    "fused_divergence",
    "fused_rows",
    "fused_sum",
    "gaussian",
    "generators",
    "half_square",
    "inverse_slope",
    "jeffreys",
    "js",
    "kl",
    "lecam",
    "log_normalisers",
    "manhattan",
    "minus_log",
    "negative_entropy",
    "neyman",
    "pearson",
    "plackett_luce",
    "poisson_log_partition",
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
    "token_log_prob",
    "token_log_probs",
    "top_k",
    "top_k_bounds",
    "transport",
    "tsallis",
    "tv",
    "wasserstein_1d",
]
