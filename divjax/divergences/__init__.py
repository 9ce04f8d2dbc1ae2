"""Divergences of laws: f(p, q) is D(p || q), log space in, unreduced arrays out."""

from divjax.divergences import generators
from divjax.divergences.f import f_divergence, f_divergence_from_logits

__all__ = ["f_divergence", "f_divergence_from_logits", "generators"]
