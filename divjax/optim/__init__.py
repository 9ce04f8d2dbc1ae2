"""What surrounds optax: controllers of knobs, and references that follow the parameters.

Optimisers and gradient transformations are optax's own; controllers are its stateful schedules.
"""

from divjax.optim.controllers import (
    Controller,
    PidState,
    Window,
    adaptive_kl,
    multiplicative_weights,
    pid,
    windowed,
)
from divjax.optim.references import Reference, ema, frozen, periodic, soup, swap_when

__all__ = [
    "Controller",
    "PidState",
    "Reference",
    "Window",
    "adaptive_kl",
    "ema",
    "frozen",
    "multiplicative_weights",
    "periodic",
    "pid",
    "soup",
    "swap_when",
    "windowed",
]
