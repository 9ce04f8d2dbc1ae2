"""Losses: arrays in, undivided means out; only the train step divides."""

from divjax.losses.distill import (
    Balance,
    FromLogits,
    balanced_kd,
    entropy_balance,
    forward_kl,
    temperature_kd,
)

__all__ = [
    "Balance",
    "FromLogits",
    "balanced_kd",
    "entropy_balance",
    "forward_kl",
    "temperature_kd",
]
