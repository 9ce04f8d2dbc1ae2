"""Distillation losses against float64 NumPy and worked examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import f_divergence_from_logits, generators, renyi_from_logits
from divjax.losses import balanced_kd, entropy_balance, temperature_kd

STUDENT = np.array([[3.0, 0.0, 0.0], [0.5, 0.2, 0.0]])
TEACHER = np.array([[1.0, 0.5, 0.0], [4.0, 0.0, 0.0]])
S, T = jnp.float32(STUDENT), jnp.float32(TEACHER)


def log_softmax(z):
    z = np.float64(z) - np.max(z, -1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl(z_p, z_q):
    p, q = log_softmax(z_p), log_softmax(z_q)
    return (np.exp(p) * (p - q)).sum(-1)


def by_row(loss, s=S, t=T, **kwargs):
    """The loss of each row alone."""
    return np.array([loss(s[i : i + 1], t[i : i + 1], **kwargs).value for i in range(len(s))])


def test_both_directions_and_weights_of_the_worked_example():
    np.testing.assert_allclose(kl(TEACHER, STUDENT), [0.55529045, 0.69009762], rtol=1e-7)
    weights = entropy_balance(S, T)
    np.testing.assert_array_equal(weights.forward, [2, 1])
    np.testing.assert_array_equal(weights.reverse, [1, 2])
    np.testing.assert_allclose(by_row(balanced_kd), [1.49217435, 3.19962863], rtol=2e-6)
    np.testing.assert_allclose(balanced_kd(S, T).value, 2.34590149, rtol=2e-6)
    warm = by_row(balanced_kd, temperature=4.0)
    np.testing.assert_allclose(warm, [1.92317, 4.75152501], rtol=1e-5)


def test_delta_one_is_jeffreys_and_the_loss_is_affine_in_delta():
    np.testing.assert_allclose(by_row(balanced_kd, delta=1.0), [0.93688391, 1.94486313], rtol=2e-6)
    slopes = by_row(balanced_kd, delta=4.0) - by_row(balanced_kd, delta=3.0)
    expected = [kl(TEACHER, STUDENT)[0], kl(STUDENT, TEACHER)[1]]
    np.testing.assert_allclose(slopes, expected, rtol=1e-5)


def test_gradient_is_that_of_the_weighted_sum_with_weights_held():
    got = jax.grad(lambda s: balanced_kd(s, T).total)(S)
    expected = [
        [0.99122718, -0.62780538, -0.3634218],
        [-2.30411106, 1.32546813, 0.97864292],
    ]
    np.testing.assert_allclose(got, expected, rtol=3e-6)


def test_no_gradient_reaches_the_teacher_and_the_teachers_term_is_the_other_way_round():
    for loss in (balanced_kd, temperature_kd):
        assert (jax.grad(lambda t, loss=loss: loss(S, t).total)(T) == 0).all()
    got = jax.grad(lambda t: temperature_kd(t, S).total)(T)
    np.testing.assert_allclose(got[0], [-0.40296261, 0.26191738, 0.14104522], rtol=2e-6)
    assert (jax.grad(lambda s: temperature_kd(T, s).total)(S) == 0).all()


def test_swapping_the_roles_leaves_the_value_and_an_offset_leaves_nothing():
    np.testing.assert_allclose(by_row(balanced_kd, T, S), by_row(balanced_kd), rtol=1e-6)
    same = balanced_kd(T + 7.0, T)
    assert same.value == 0
    assert (np.array(entropy_balance(T, T)) == 1).all()
    assert np.abs(jax.grad(lambda s: balanced_kd(s, T).total)(T + 7.0)).max() < 1e-6


def test_near_the_teacher_both_directions_are_the_fisher_form():
    teacher, d = np.array([[1.0, 0.0, -1.0]]), np.array([[0.01, -0.02, 0.005]])
    s, t = jnp.float32(teacher + d), jnp.float32(teacher)
    both = [float(temperature_kd(s, t).total), float(temperature_kd(t, s).total)]
    np.testing.assert_allclose(both, [8.05009e-5, 8.01056e-5], rtol=1e-4)
    p = np.exp(log_softmax(teacher))[0]
    fisher = 0.5 * d[0] @ (np.diag(p) - np.outer(p, p)) @ d[0]
    np.testing.assert_allclose(fisher, 8.08955e-5, rtol=1e-5)
    np.testing.assert_allclose(both, fisher, rtol=1e-2)


def test_gradient_in_float64_is_the_formula_and_the_finite_difference(x64):
    rng = np.random.default_rng(0)
    s, t = 2 * rng.normal(size=(2, 6, 5))
    got = jax.grad(lambda s: balanced_kd(s, jnp.asarray(t), delta=3.0).total)(jnp.asarray(s))
    log_p, log_q = log_softmax(t), log_softmax(s)
    p, q = np.exp(log_p), np.exp(log_q)
    sharper = -(p * log_p).sum(-1) > -(q * log_q).sum(-1)
    assert 0 < sharper.sum() < 6  # both sides of the switch
    forward, reverse = np.where(sharper, 3, 1)[:, None], np.where(sharper, 1, 3)[:, None]
    pull = q * (log_q - log_p - kl(s, t)[:, None])
    np.testing.assert_allclose(got, forward * (q - p) + reverse * pull, rtol=1e-10, atol=1e-12)

    def value(s):
        return float(balanced_kd(jnp.asarray(s), jnp.asarray(t), delta=3.0).total)

    direction = rng.normal(size=s.shape)
    slope = (value(s + 1e-5 * direction) - value(s - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(slope, (got * direction).sum(), rtol=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_kd_against_float64(temperature):
    mask = jnp.array([True, False])
    got = temperature_kd(S, T, temperature=temperature, mask=mask)
    expected = temperature**2 * kl(TEACHER / temperature, STUDENT / temperature)[0]
    np.testing.assert_allclose(got.total, expected, rtol=2e-6)
    assert got.weight == 1
    plain = temperature_kd(S, T, temperature=temperature, power=0, mask=mask)
    np.testing.assert_allclose(plain.total, expected / temperature**2, rtol=2e-6)


def test_any_divergence_goes_in_with_the_teacher_in_front():
    skew = partial(f_divergence_from_logits, generator=generators.skew_kl(0.1))
    p, q = np.exp(log_softmax(TEACHER)), np.exp(log_softmax(STUDENT))
    expected = (p * np.log(p / (0.1 * p + 0.9 * q))).sum(-1)
    np.testing.assert_allclose(by_row(temperature_kd, divergence=skew), expected, rtol=2e-6)
    two = partial(renyi_from_logits, order=2.0)
    expected = np.log((p**2 / q).sum(-1))
    np.testing.assert_allclose(by_row(temperature_kd, divergence=two), expected, rtol=2e-6)


def test_trl_5885_a_fully_masked_batch_is_zero_with_zero_gradient():
    mask = jnp.zeros(2, bool)
    broken = S.at[0, 0].set(jnp.nan)
    for loss in (balanced_kd, temperature_kd):
        value, slope = jax.value_and_grad(lambda s, f=loss: f(s, T, mask=mask).value)(broken)
        assert value == 0
        assert (slope == 0).all()


def test_a_masked_vocabulary_entry_changes_nothing():
    pad = [(0, 0), (0, 2)]
    s, t = (jnp.pad(z, pad, constant_values=-jnp.inf) for z in (S, T))
    for loss in (balanced_kd, temperature_kd):
        value, slope = jax.value_and_grad(lambda s, f=loss: f(s, t).value)(s)
        np.testing.assert_allclose(value, loss(S, T).value, rtol=1e-6)
        assert np.isfinite(slope).all()


def test_bfloat16_logits_give_float32_losses_and_bfloat16_gradients():
    s, t = S.astype(jnp.bfloat16), T.astype(jnp.bfloat16)
    assert temperature_kd(s, t, temperature=2.0).total.dtype == jnp.float32
    assert jax.grad(lambda s: balanced_kd(s, t, temperature=2.0).total)(s).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temperature_kd(S, T[:, :2]), r"teacher_logits must have the shape.*-inf on the"),
        (lambda: temperature_kd(S, T, temperature=0.0), "temperature must be a finite number > 0"),
        (lambda: temperature_kd(S, T, mask=jnp.ones((2, 1))), r"mask must be bool \[2\], got"),
        (lambda: temperature_kd(S[:0], T[:0]), "the batch must not be empty"),
        (lambda: balanced_kd(S, T, delta=0.5), "delta must be a number >= 1, got 0.5"),
        (
            lambda: temperature_kd(S, T, divergence=generators.js()),
            r"divergence must be a function .*partial",
        ),
        (lambda: entropy_balance(jnp.zeros((2, 3), int), T), "floating-point array, got int32"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_probabilities_are_refused_at_any_temperature(temperature):
    p, q = jnp.array([[0.2, 0.8], [0.4, 0.6]]), jnp.array([[3.0, 1.0], [0.0, 1.0]])
    with pytest.raises(
        ValueError, match="temperature_kd: teacher_logits must not be probabilities"
    ):
        temperature_kd(q, p, temperature=temperature)
    mixed = jnp.array([[0.25, 0.75], [5.0, 1.0]])  # logits, one row of which sums to 1
    assert jnp.isfinite(temperature_kd(q, mixed, temperature=temperature).value)


def test_a_temperature_may_be_traced():
    z = jnp.array([[2.0, 0.0]])
    run = jax.jit(lambda t: temperature_kd(jnp.zeros((1, 2)), z, temperature=t).value)
    expected = temperature_kd(jnp.zeros((1, 2)), z, temperature=3.0).value
    np.testing.assert_allclose(run(3.0), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        temperature_kd(jnp.zeros((1, 2)), z, temperature=jnp.float32(0.0))
