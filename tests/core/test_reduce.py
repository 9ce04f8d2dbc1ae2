"""core.reduce: masks before sums, float32 sums, collectives with one gradient in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import (
    Context,
    Loss,
    Mean,
    all_sum,
    masked_mean,
    masked_sum,
    row_keys,
    whole_batch,
)
from divjax.train import data_mesh, make_step
from divjax.train.parallel import compile

X = jnp.array([[1.0, jnp.nan], [3.0, 5.0]])
MASK = jnp.array([[True, False], [True, False]])


def test_a_masked_value_counts_for_nothing_and_gets_no_gradient():
    total, slope = jax.value_and_grad(masked_sum)(X, MASK)
    assert total == 4.0
    np.testing.assert_array_equal(slope, MASK)
    np.testing.assert_array_equal(masked_sum(X, MASK, axis=1), [1.0, 3.0])
    value, slope = jax.value_and_grad(lambda x: masked_mean(x, MASK).value)(X)
    assert value == 2.0
    np.testing.assert_array_equal(slope, 0.5 * MASK)


def test_the_weight_is_the_number_of_true_after_broadcasting():
    assert masked_mean(jnp.ones((3, 4)), jnp.array([[True, False, True, True]])) == (9.0, 9.0)
    assert masked_mean(jnp.ones((3, 4))) == (12.0, 12.0)
    assert masked_mean(X, jnp.zeros_like(MASK)).value == 0.0


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            jnp.array([0.5, 1.0, 0.0]),
            r"mask must be bool \[3\], got float32 \[3\]; pass \(mask > 0",
        ),
        (np.array([1, 2, 0]), "mask must be bool"),
        ([True, False, True], r"pass jnp.asarray\(mask, bool\)"),
        (jnp.array([[True], [False], [True]]), r"pass mask\[..., 0\]"),
    ],
)
@pytest.mark.parametrize("reduce", [masked_mean, masked_sum], ids=lambda f: f.__name__)
def test_a_mask_that_is_none_is_refused(reduce, mask, message):
    with pytest.raises(ValueError, match=message):
        reduce(jnp.ones(3), mask)


def test_a_mask_of_rows_does_not_run_along_another_axis():
    with pytest.raises(ValueError, match=r"broadcast_to\(mask\[..., None\], \(3, 3\)\)"):
        masked_mean(jnp.ones((3, 3)), jnp.ones(3, bool))


def test_sums_of_bfloat16_are_float32():
    ones = jnp.ones(1000, jnp.bfloat16)
    assert masked_sum(ones) == 1000.0
    assert masked_sum(ones).dtype == masked_mean(ones).weight.dtype == jnp.float32


def test_an_empty_mean_is_zero_with_zero_gradient():
    def value(total, weight):
        return Mean(total, weight).value

    assert value(3.0, 0.0) == 0.0
    assert jax.grad(value, (0, 1))(3.0, 0.0) == (0.0, 0.0)
    assert jax.grad(value, (0, 1))(3.0, 2.0) == (0.5, 0.0)  # the weight is a constant


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize("devices", [1, 4])
def test_the_gradient_of_a_sum_over_devices(mode, devices):
    """(w sum x)^2 of the whole batch, whose gradient is 2 w (sum x)^2."""
    x = jnp.arange(1.0, 9.0)

    def objective(w, batch, ctx):
        total = all_sum(jnp.sum(w * batch["x"]), ctx.axis_name)
        return Loss({"square": (1.0, whole_batch(total**2, ctx.axis_name))})

    step = make_step(objective, optax.sgd(1.0))
    update = compile(step, mode=mode, mesh=data_mesh(devices))
    state, info = update(step.init(jnp.float32(0.5), jax.random.key(0)), {"x": x})
    assert float(info.value) == pytest.approx(18.0**2)
    assert float(state.params) == pytest.approx(0.5 - 36.0**2)


def test_the_key_of_a_row_depends_on_its_index_alone():
    key = jax.random.key(7)
    keys = row_keys(Context(key, jnp.int32(0), jnp.array([5, 0, 5])))
    expected = [jax.random.fold_in(key, i) for i in (5, 0, 5)]
    for got, one in zip(keys, expected, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(got), jax.random.key_data(one))
