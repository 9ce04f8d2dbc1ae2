"""What surrounds optax: controllers of knobs, and references that follow the parameters.

Optimisers and gradient transformations are optax's own; controllers are its stateful schedules.
"""

from divjax.optim.controllers import (
    Controller,
    Window,
    adaptive_kl,
    multiplicative_weights,
    windowed,
)
from divjax.optim.references import Reference, ema, swap_when

__all__ = [
    "Controller",
    "Reference",
    "Window",
    "adaptive_kl",
    "ema",
    "multiplicative_weights",
    "swap_when",
    "windowed",
]
