"""Calibration against worked examples and a NumPy histogram."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core import Mean
from divjax.measure import (
    brier_score,
    calibration,
    expected_calibration_error,
    negative_log_likelihood,
)
from divjax.train import make_eval

P = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.55, 0.45], [0.3, 0.7]])
Y = jnp.array([0, 1, 0, 1, 1])


@pytest.mark.parametrize(("bins", "expected"), [(15, 0.27), (10, 0.27), (5, 0.15)])
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


def test_float64_edges_are_float64(x64):
    # 0.6 and 0.8 lie on edges; with the confidence rounded to float32 they leave their bins.
    for bins, expected in ((15, 0.27), (10, 0.27), (5, 0.15)):
        sums = calibration(jnp.log(jnp.float64(P)), Y, bins=bins)
        assert sums.confidence.dtype == jnp.float64
        np.testing.assert_allclose(expected_calibration_error(sums), expected, rtol=1e-12)


def test_the_same_error_in_any_batch_size_and_over_devices():
    rng = np.random.default_rng(1)
    z = jnp.asarray(2 * rng.normal(size=(40, 3)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 3, 40))
    mask = jnp.asarray((rng.uniform(size=40) > 0.3) & (np.arange(40) >= 5))  # device 0: no row
    expected = expected_calibration_error(calibration(z, y, mask=mask))

    def one_device(z, y, mask):
        sums = jax.lax.psum(calibration(z, y, mask=mask), "d")
        return expected_calibration_error(sums)

    parts = [a.reshape(8, 5, *a.shape[1:]) for a in (z, y, mask)]
    got = jax.pmap(one_device, axis_name="d")(*parts)
    np.testing.assert_allclose(got, np.full(8, expected), rtol=1e-6)

    def gaps(params, batch, real):
        sums = calibration(batch["z"], batch["y"], mask=batch["mask"] & real)
        return {"gaps": Mean(sums.confidence - sums.correct, sums.examples.sum())}

    for size in (7, 64):
        means = make_eval(gaps, batch_size=size)(None, {"z": z, "y": y, "mask": mask})
        np.testing.assert_allclose(jnp.abs(means["gaps"]).sum(), expected, rtol=1e-6)


def test_an_empty_mask_is_zero_and_masked_rows_may_be_nan():
    z = jnp.log(jnp.float32(P)).at[0].set(jnp.nan)
    some = jnp.arange(5) > 0
    whole = expected_calibration_error(calibration(z[1:], Y[1:]))
    np.testing.assert_allclose(expected_calibration_error(calibration(z, Y, mask=some)), whole)
    assert expected_calibration_error(calibration(z, Y, mask=jnp.zeros(5, bool))) == 0


def test_negative_log_likelihood():
    z = jnp.log(jnp.float32(P))
    expected = -np.log(P[np.arange(5), np.asarray(Y)])
    np.testing.assert_allclose(negative_log_likelihood(z, Y), expected, rtol=1e-5)
    barred = jnp.array([[0.0, -jnp.inf, 0.0]])
    assert negative_log_likelihood(barred, jnp.array([1])) == np.inf
    np.testing.assert_allclose(negative_log_likelihood(barred, jnp.array([2])), np.log(2), 1e-6)


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
    with pytest.raises(ValueError, match=r"bins must be an int > 0, got 2.5"):
        calibration(jnp.log(jnp.float32(P)), Y, bins=2.5)


def test_what_is_no_number_or_no_class_is_not_scored():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, 5.0]])
    sums = calibration(logits, jnp.array([0, 1]))
    assert sums.correct.sum() == 1
    assert jnp.isnan(expected_calibration_error(sums))
    for label in (-1, 2):
        for score in (negative_log_likelihood, brier_score):
            assert jnp.isnan(score(jnp.array([[0.0, 5.0]]), jnp.array([label])))[0]
    with pytest.raises(ValueError, match="labels must be int"):
        brier_score(logits, [0, 1])
    with pytest.raises(ValueError, match="logits must not be empty"):
        calibration(jnp.zeros((2, 0)), jnp.zeros(2, int))
