import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.schedules import StatefulSchedule, WrappedSchedule

from divjax.optim import Controller, adaptive_kl, multiplicative_weights, pid, windowed

LOSSES = {"read": lambda *, losses, **_: losses}


def run(control, signals):
    """Knobs seen at each step, jitted, as a step would drive them."""
    move = jax.jit(lambda state, signal: control.update(state, **signal))
    state, knobs = control.init(), []
    for signal in signals:
        knobs.append(np.asarray(control(state, **signal)))
        state = move(state, signal)
    return np.stack([*knobs, np.asarray(control(state))])


def test_adaptive_kl_is_zieglers_recurrence():
    kls = [0.0, 3.0, 5.9, 6.0, 6.3, 7.5, 100.0]
    expected = [0.3]
    for kl in kls:
        error = min(max((kl - 6.0) / 6.0, -0.2), 0.2)
        expected.append(expected[-1] * (1 + 0.1 * error))  # K_beta = 0.1
    knobs = run(adaptive_kl(target=6.0, horizon=10.0, initial=0.3), [{"kl": kl} for kl in kls])
    np.testing.assert_allclose(knobs, expected, rtol=1e-6)


def test_adaptive_kl_steers_to_its_target():
    """A plant whose KL falls with beta, kl = 1 / beta: the fixed point is beta = 1 / target."""
    control = adaptive_kl(target=0.5, horizon=5.0, initial=0.1)
    state = jax.lax.fori_loop(
        0, 400, lambda _, beta: control.update(beta, kl=1 / beta, other=1.0), control.init()
    )
    np.testing.assert_allclose(1 / control(state), 0.5, rtol=1e-3)


@pytest.mark.parametrize("name", ["target", "horizon", "initial"])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "0.1"])
def test_adaptive_kl_checks_its_numbers(name, bad):
    with pytest.raises(ValueError, match=f"adaptive_kl: {name} must be a finite number > 0"):
        adaptive_kl(**{"target": 1.0, "horizon": 10.0, "initial": 0.1, name: bad})


def test_multiplicative_weights_is_exponentiated_gradient():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    control = multiplicative_weights(3, rate=0.7, **LOSSES)
    knobs = run(control, [{"losses": row} for row in x])
    total = np.cumsum(np.vstack([np.zeros(3), x]).astype(np.float64), axis=0) * 0.7
    weights = np.exp(total)
    np.testing.assert_allclose(knobs, 3 * weights / weights.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(knobs.mean(1), 1.0, rtol=1e-6)


def test_multiplicative_weights_survive_long_runs():
    control = multiplicative_weights(2, rate=1.0, **LOSSES)
    signal = jnp.array([10.0, 9.0])
    state = jax.lax.fori_loop(
        0, 1000, lambda _, s: control.update(s, losses=signal), control.init()
    )
    np.testing.assert_allclose(control(state), [2.0, 0.0], atol=1e-6)


def test_window_keeps_the_last_signals_of_those_present():
    control = windowed(
        2,
        3,
        knob=lambda window: jnp.concatenate([window.values.ravel(), window.filled]),
        read=lambda *, x, here, **_: (x, here),
    )
    xs = np.arange(10, dtype=np.float32).reshape(5, 2)
    here = np.array([[1, 0], [1, 1], [1, 0], [0, 1], [1, 0]], bool)
    knobs = run(control, [{"x": x, "here": h} for x, h in zip(xs, here, strict=True)])
    np.testing.assert_array_equal(knobs[0], [0, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(knobs[2], [0, 0, 2, 0, 0, 3, 2, 1])  # after two steps
    np.testing.assert_array_equal(knobs[5], [2, 4, 8, 0, 3, 7, 3, 2])


def test_window_refuses_signals_of_another_size():
    control = windowed(2, 3, knob=lambda w: w.values, read=lambda *, x, **_: (x, x > 0))
    with pytest.raises(ValueError, match=r"read must return two arrays \[2\], got float32 \[3\]"):
        control.update(control.init(), x=jnp.ones(3))


@pytest.mark.parametrize("bad", [0, -1])
def test_sizes_are_positive(bad):
    with pytest.raises(ValueError, match="size must be"):
        multiplicative_weights(bad, rate=1.0, **LOSSES)
    with pytest.raises(ValueError, match="length must be"):
        windowed(1, bad, knob=lambda w: w.values, read=lambda **_: None)


ALL = {
    "adaptive_kl": adaptive_kl(target=1.0, horizon=2.0, initial=0.5),
    "multiplicative_weights": multiplicative_weights(2, rate=0.5, **LOSSES),
    "windowed": windowed(
        2, 3, knob=lambda w: w.values[0, -1], read=lambda *, losses, **_: (losses, losses > 0)
    ),
    "schedule": WrappedSchedule(optax.linear_schedule(1.0, 0.0, 4)),
}
SIGNALS = {"kl": jnp.float32(2.0), "losses": jnp.array([1.0, 3.0]), "value": jnp.float32(0.0)}


@pytest.mark.parametrize("control", ALL.values(), ids=ALL)
def test_every_controller_is_a_stateful_schedule(control):
    assert isinstance(control, StatefulSchedule)
    assert isinstance(control, Controller)
    state = control.init()
    moved = control.update(state, **SIGNALS)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)  # fit for a scan
    jitted = jax.jit(lambda s, signals: control.update(s, **signals))(state, SIGNALS)
    np.testing.assert_allclose(control(jitted), control(moved), rtol=1e-6)
    assert not np.allclose(control(state), control(moved))  # it moves
    np.testing.assert_array_equal(control(state), control(state, **SIGNALS))  # reads state only


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.scale(1.0), tx)])
def test_learning_rate_driven_by_a_controller(wrap):
    """beta as a learning rate: halved or so where the KL is below its target."""
    control = adaptive_kl(target=1.0, horizon=0.5, initial=0.5)
    tx = wrap(optax.inject_hyperparams(optax.sgd)(learning_rate=control))
    params = state = None
    params, state = jnp.float32(0.0), tx.init(jnp.float32(0.0))
    steps = []
    for kl in [0.0, 3.0, 3.0]:
        updates, state = tx.update(jnp.float32(-1.0), state, params, kl=jnp.float32(kl), value=0.0)
        steps.append(float(updates))
    np.testing.assert_allclose(steps, [0.5, 0.5 * 0.6, 0.5 * 0.6 * 1.4], rtol=1e-6)


def test_controllers_keep_their_type_in_x64(x64):
    control = adaptive_kl(target=1.0, horizon=10.0, initial=1.0)
    state = control.init()
    assert control.update(state, kl=jnp.float64(2.0)).dtype == state.dtype
    weights = multiplicative_weights(2, rate=1.0, read=lambda *, losses, **_: losses)
    moved = weights.update(weights.init(), losses=jnp.array([1.0, 2.0], jnp.float64))
    assert moved.dtype == weights.init().dtype


def test_a_signal_of_nan_leaves_the_coefficient():
    control = adaptive_kl(target=1.0, horizon=10.0, initial=0.5)
    assert control.update(control.init(), kl=jnp.float32(jnp.nan)) == 0.5
    with pytest.raises(ValueError, match=r"horizon must be > 0\.2"):
        adaptive_kl(target=1.0, horizon=0.1, initial=0.5)
    with pytest.raises(ValueError, match="size must be an integer"):
        multiplicative_weights(2.5, rate=1.0, read=lambda **_: 0.0)


def test_pid_is_the_textbook_sum():
    gains = {"proportional": 0.5, "integral": 0.1, "derivative": 0.2}
    control = pid(target=1.0, initial=1.0, lowest=-9.0, read=lambda *, kl, **_: kl, **gains)
    state, errors, knobs = control.init(), [], []
    for signal in (1.5, 2.0, 0.5, 1.0):
        state = control.update(state, kl=jnp.float32(signal), value=0.0)
        errors.append(signal - 1.0)
        change = errors[-1] - errors[-2] if len(errors) > 1 else 0.0
        knobs.append(1.0 + 0.5 * errors[-1] + 0.1 * sum(errors) + 0.2 * change)
        np.testing.assert_allclose(control(state), knobs[-1], rtol=1e-6)
    for lost in jnp.nan, jnp.inf, -jnp.inf:  # a KL may be +inf: no later step may suffer from it
        kept = control.update(state, kl=jnp.float32(lost))
        assert kept == state
    for name in gains:
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            pid(target=1.0, initial=1.0, read=lambda **_: 0.0, **gains | {name: float("nan")})


def test_pid_does_not_wind_up_at_a_bound():
    read = {"read": lambda *, kl, **_: kl}
    control = pid(target=0.0, initial=0.5, proportional=0.0, integral=1.0, highest=1.0, **read)
    state = control.init()
    for _ in range(50):
        state = control.update(state, kl=jnp.float32(1.0))
    assert control(state) == 1.0
    for _ in range(2):
        state = control.update(state, kl=jnp.float32(-0.5))
    assert control(state) < 1.0
    with pytest.raises(ValueError, match="initial must lie in"):
        pid(target=0.0, initial=2.0, proportional=1.0, highest=1.0, **read)
