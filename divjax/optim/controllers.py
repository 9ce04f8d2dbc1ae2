"""Controllers: knobs of an objective or an optimiser that react to what the last step measured.

The protocol is that of optax's stateful schedules, so the same object drives a coefficient through
`ctx.knobs` and a learning rate through `optax.inject_hyperparams`. A plain schedule becomes a
controller by `optax.schedules.WrappedSchedule(schedule)`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from divjax.core import Array, PyTree
from divjax.core.check import count, positive, require


@runtime_checkable
class Controller(Protocol):
    """A knob with memory. Signals are the reduced terms and metrics of a step, and `value`."""

    def init(self) -> PyTree:
        """The state before the first step."""
        ...

    def __call__(self, state: PyTree, **signals: Any) -> PyTree:
        """The knob for this step, from the state alone; signals are accepted and ignored."""
        ...

    def update(self, state: PyTree, **signals: Any) -> PyTree:
        """The state after a step: the signals it needs as keywords, the others swallowed."""
        ...


@dataclass(frozen=True)
class _Rule:
    """A Controller from three functions, as the factories below close over them."""

    start: Callable[[], PyTree]
    knob: Callable[[PyTree], PyTree]
    move: Callable[..., PyTree]

    def init(self) -> PyTree:
        return self.start()

    def __call__(self, state: PyTree, **signals: Any) -> PyTree:
        return self.knob(state)

    def update(self, state: PyTree, **signals: Any) -> PyTree:
        return self.move(state, **signals)


def adaptive_kl(*, target: float, horizon: float, initial: float) -> Controller:
    """KL coefficient that steers a measured KL to a target, proportionally in log space.

        e = clip(kl / target - 1, -0.2, 0.2),    beta <- beta (1 + e / horizon)

    Args:
        target: the KL wanted, in the units of the metric `kl` (nats).
        horizon: steps over which the coefficient may change by a factor of about 1.2. The paper's
            K_beta = 0.1 is horizon 10; code that counts episodes divides its horizon by the batch.
        initial: beta of the first step.

    Returns:
        A Controller with knob beta [], state beta [] and signal `kl` [].

    Raises:
        ValueError: a hyper-parameter is not a finite number > 0, or horizon is not > 0.2.

    References:
        Ziegler et al., arXiv 1909.08593.

    Example:
        >>> from divjax.optim import adaptive_kl
        >>> control = adaptive_kl(target=6.0, horizon=10.0, initial=0.5)
        >>> round(float(control(control.update(control.init(), kl=60.0))), 6)
        0.51
    """
    for name, x in {"target": target, "horizon": horizon, "initial": initial}.items():
        positive(name, x, caller="adaptive_kl")
    require(
        horizon > 0.2,
        "adaptive_kl",
        "horizon must be > 0.2, or a coefficient could turn negative",
        horizon,
        "for example horizon=10.0",
    )

    def move(beta: Array, *, kl: Array, **_: Any) -> Array:
        error = jnp.clip(kl / target - 1, -0.2, 0.2)
        moved = beta * (1 + error / horizon)
        return jnp.where(jnp.isnan(kl), beta, moved).astype(beta.dtype)  # NaN teaches nothing

    return _Rule(lambda: jnp.float32(initial), lambda beta: beta, move)


class PidState(NamedTuple):
    """What a PID controller remembers.

    Attributes:
        knob: [] the coefficient.
        integral: [] sum of the errors so far.
        error: [] the last one.
        seen: [] int32, updates done.
    """

    knob: Array
    integral: Array
    error: Array
    seen: Array


def pid(
    *,
    target: float,
    initial: float,
    proportional: float,
    integral: float = 0.0,
    derivative: float = 0.0,
    lowest: float = 0.0,
    highest: float = float("inf"),
    read: Callable[..., Array],
) -> Controller:
    """A coefficient that steers a signal to a target: initial + P e + I sum(e) + D (e - e_before).

    e = signal - target, so positive gains raise the coefficient while the signal is too large (the
    Lagrange multiplier of a constraint signal <= target). At a bound the integral stands still.

    Args:
        target: of the signal, in its units.
        initial: coefficient at zero error.
        proportional: P, per unit of the signal.
        integral: I, per unit and update.
        derivative: D.
        lowest: bound of the coefficient.
        highest: bound of the coefficient.
        read: (**signals) -> [], the signal.

    Returns:
        A Controller with knob [] and state `PidState`; a signal that is not finite changes nothing.

    Raises:
        ValueError: initial is outside the bounds; target or a gain is not finite.

    References:
        Stooke et al., arXiv 2007.03964.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.optim import pid
        >>> control = pid(target=1.0, initial=0.5, proportional=0.1, read=lambda *, kl, **_: kl)
        >>> round(float(control(control.update(control.init(), kl=jnp.float32(3.0)))), 6)
        0.7
    """
    require(
        lowest <= initial <= highest,
        "pid",
        f"initial must lie in [{lowest}, {highest}]",
        initial,
        "move it, or the bounds",
    )
    for name, x in (("target", target), ("proportional", proportional), ("integral", integral),
                    ("derivative", derivative)):  # fmt: skip
        require(math.isfinite(x), "pid", f"{name} must be finite", x, "for example 0.1")

    def start() -> PidState:
        zero = jnp.float32(0.0)
        return PidState(jnp.float32(initial), zero, zero, jnp.int32(0))

    def move(state: PidState, **signals: Any) -> PidState:
        error = jnp.asarray(read(**signals) - target, state.error.dtype)
        change = jnp.where(state.seen > 0, error - state.error, 0.0)
        total = state.integral + error
        raw = initial + proportional * error + integral * total + derivative * change
        knob = jnp.clip(raw, lowest, highest)
        wound = (raw != knob) & (jnp.sign(raw - knob) == jnp.sign(integral * error))
        new = PidState(knob, jnp.where(wound, state.integral, total), error, state.seen + 1)
        kept = (jnp.where(jnp.isfinite(error), b, a) for a, b in zip(state, new, strict=True))
        return PidState(*kept)

    return _Rule(start, lambda state: state.knob, move)


def multiplicative_weights(size: int, *, rate: float, read: Callable[..., Array]) -> Controller:
    """Weights of several objectives that grow with the signal of each (exponentiated gradient).

        w_k <- w_k exp(rate * x_k),   normalised to mean 1

    With losses as signals the mixture moves to the worst objective, as in group DRO
    (arXiv 1911.08731); a negative signal lowers a weight.

    Args:
        size: K, the number of objectives.
        rate: step size in log space, > 0.
        read: (**signals) -> x [K].

    Returns:
        A Controller with knob [K] of mean 1 and state log weights [K].

    Raises:
        ValueError: size or rate is not a finite number > 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.optim import multiplicative_weights
        >>> weights = multiplicative_weights(2, rate=1.0, read=lambda *, losses, **_: losses)
        >>> state = weights.update(weights.init(), losses=jnp.log(jnp.array([1.0, 3.0])))
        >>> [round(float(w), 4) for w in weights(state)]
        [0.5, 1.5]
    """
    count("size", size, caller="multiplicative_weights")
    positive("rate", rate, caller="multiplicative_weights")

    def move(log_weights: Array, **signals: Any) -> Array:
        return jax.nn.log_softmax(log_weights + rate * read(**signals)).astype(log_weights.dtype)

    return _Rule(
        lambda: jnp.full(size, -jnp.log(jnp.float32(size))),
        lambda log_weights: size * jax.nn.softmax(log_weights),
        move,
    )


class Window(NamedTuple):
    """The last signals of K objectives, oldest first.

    Attributes:
        values: [K, L], right-aligned: values[:, -1] is the newest; 0 where nothing is yet.
        filled: [K] int32, how many of them are there, at most L.
    """

    values: Array
    filled: Array


def windowed(
    size: int, length: int, *, knob: Callable[[Window], PyTree], read: Callable[..., Any]
) -> Controller:
    """A knob that is a function of the last `length` signals of each objective.

    Objectives that were absent from a step keep their history. Re-weighting by convergence and
    instability over two windows (arXiv 2510.21978) is a `knob` of six lines.

    Args:
        size: K, the number of objectives.
        length: L, signals kept of each.
        knob: Window -> knob, pure; it must say what an incomplete window means.
        read: (**signals) -> (x [K], present [K] bool).

    Returns:
        A Controller with state `Window`.

    Raises:
        ValueError: size or length is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.optim import windowed
        >>> newest = windowed(1, 3, knob=lambda window: window.values[:, -1],
        ...                   read=lambda *, x, **_: (x[None], jnp.array([True])))
        >>> float(newest(newest.update(newest.init(), x=jnp.float32(7.0)))[0])
        7.0
    """
    count("size", size, caller="windowed")
    count("length", length, caller="windowed")

    def move(window: Window, **signals: Any) -> Window:
        x, present = read(**signals)
        require(
            jnp.shape(x) == (size,) and jnp.shape(present) == (size,),
            "windowed",
            f"read must return two arrays [{size}]",
            x,
            "stack one signal per objective, and which of them this step has",
        )
        pushed = jnp.concatenate([window.values[:, 1:], jnp.asarray(x)[:, None]], axis=1)
        return Window(
            jnp.where(present[:, None], pushed, window.values),
            jnp.minimum(window.filled + present, length),
        )

    def start() -> Window:
        return Window(jnp.zeros((size, length)), jnp.zeros(size, jnp.int32))

    return _Rule(start, knob, move)
