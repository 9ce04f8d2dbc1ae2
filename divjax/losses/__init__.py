"""Losses: arrays in, undivided means out; only the train step divides."""

from divjax.losses.distill import (
    Balance,
    FromLogits,
    balanced_kd,
    entropy_balance,
    forward_kl,
    pld,
    pld_ranks,
    temperature_kd,
)
from divjax.losses.sinkd import sinkd, sinkd_debiased

__all__ = [
    "Balance",
    "FromLogits",
    "balanced_kd",
    "entropy_balance",
    "forward_kl",
    "pld",
    "pld_ranks",
    "sinkd",
    "sinkd_debiased",
    "temperature_kd",
]
