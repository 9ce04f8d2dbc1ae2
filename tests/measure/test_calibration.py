"""Calibration against worked examples and a NumPy histogram."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.measure import brier_score, calibration, expected_calibration_error

P = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.55, 0.45], [0.3, 0.7]])
Y = jnp.array([0, 1, 0, 1, 1])


@pytest.mark.parametrize(("bins", "expected"), [(15, 0.27), (10, 0.27)])
def test_worked_example(bins, expected):
    sums = calibration(jnp.log(jnp.float32(P)), Y, bins=bins)
    np.testing.assert_allclose(expected_calibration_error(sums), expected, rtol=1e-5)


def test_against_a_histogram_and_in_two_halves():
    rng = np.random.default_rng(0)
    z = np.float32(2 * rng.normal(size=(500, 4)))
    y, mask = rng.integers(0, 4, 500), rng.uniform(size=500) > 0.2
    p = np.exp(np.float64(z))
    p /= p.sum(-1, keepdims=True)
    confidence, right = p.max(-1)[mask], (p.argmax(-1) == y)[mask]
    which = np.ceil(confidence * 15).astype(int) - 1
    gaps = [abs((confidence - right)[which == b].sum()) for b in range(15)]
    args = jnp.asarray(z), jnp.asarray(y)
    whole = calibration(*args, mask=jnp.asarray(mask))
    np.testing.assert_allclose(expected_calibration_error(whole), sum(gaps) / mask.sum(), rtol=1e-5)
    np.testing.assert_array_equal(whole.examples, np.bincount(which, minlength=15))
    halves = [
        calibration(*(a[s] for a in args), mask=jnp.asarray(mask[s]))
        for s in (slice(0, 123), slice(123, 500))
    ]
    added = jax.tree.map(jnp.add, *halves)
    np.testing.assert_allclose(
        expected_calibration_error(added), expected_calibration_error(whole), rtol=1e-6
    )


def test_perfectly_calibrated_is_zero():
    z = jnp.log(jnp.tile(jnp.array([0.8, 0.2]), (5, 1)))
    sums = calibration(z, jnp.array([0, 0, 0, 0, 1]))
    np.testing.assert_allclose(expected_calibration_error(sums), 0, atol=1e-7)


def test_brier():
    expected = ((P - np.eye(2)[np.asarray(Y)]) ** 2).sum(-1)
    np.testing.assert_allclose(brier_score(jnp.log(jnp.float32(P)), Y), expected, rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match=r"labels must be int \[5\], got float32 \[5, 2\]"):
        calibration(jnp.log(jnp.float32(P)), jnp.eye(2)[Y])
