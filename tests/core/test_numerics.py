"""core.numerics against float64 limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from divjax import core


def test_mul_exp_is_zero_with_zero_gradient_where_the_weight_is_zero():
    value, (dx, dw) = jax.value_and_grad(core.mul_exp, argnums=(0, 1))(
        jnp.float32(jnp.inf), jnp.float32(-jnp.inf)
    )
    assert value == dx == dw == 0


def test_log1mexp_against_float64():
    x = np.float32([-1e-6, -0.1, -0.69, -0.7, -5.0, -30.0])
    y = np.float64(x)
    expected = np.where(y > -1, np.log(-np.expm1(y)), np.log1p(-np.exp(y)))
    np.testing.assert_allclose(core.log1mexp(jnp.float32(x)), expected, rtol=1e-5)


def test_log_mean_exp_masks_and_empty():
    x = jnp.array([[1.0, 2.0, jnp.nan], [jnp.nan, jnp.nan, jnp.nan]])
    where = jnp.array([[True, True, False], [False] * 3])
    out = core.log_mean_exp(x, where=where)
    np.testing.assert_allclose(out[0], np.log((np.e + np.e**2) / 2), rtol=1e-6)
    assert out[1] == -jnp.inf


def test_xlogy_is_zero_at_zero_with_zero_gradient():
    value, slopes = jax.value_and_grad(core.xlogy, argnums=(0, 1))(0.0, 0.0)
    assert value == slopes[0] == slopes[1] == 0
    np.testing.assert_allclose(core.xlogy(jnp.float32(2.0), jnp.float32(3.0)), 2 * np.log(3))
    assert core.xlogy(jnp.float32(2.0), jnp.float32(0.0)) == -np.inf


def test_exprel_with_its_derivative_across_the_series():
    x = np.float32([-3.0, -1e-3, -1e-4, -1e-5, 0.0, 1e-5, 1.1e-4, 0.5, 3.0])
    y = np.where(x == 0, 1.0, np.float64(x))
    value = np.where(x == 0, 1.0, np.expm1(y) / y)
    np.testing.assert_allclose(jax.jit(core.exprel)(jnp.asarray(x)), value, rtol=1e-6)
    slope = np.where(np.abs(x) < 1e-2, 0.5 + x / 3, (np.exp(y) - value) / y)
    got = jax.vmap(jax.grad(core.exprel))(jnp.asarray(x))
    np.testing.assert_allclose(got, slope, rtol=2e-3)


def test_exprel_is_exact_on_both_sides_of_its_seam(x64):
    """Value and derivative in float64, where a short series would show."""
    x = np.array([-0.101, -0.099, -0.05, -1e-3, 1e-3, 0.05, 0.099, 0.101])
    value = np.expm1(x) / x
    slope = sum((k + 1) * x**k / math.factorial(k + 2) for k in range(20))
    np.testing.assert_allclose(core.exprel(jnp.asarray(x)), value, rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(jax.grad(core.exprel))(jnp.asarray(x)), slope, rtol=1e-11)


def test_norm_and_sqrt_have_gradient_zero_at_the_origin():
    assert (jax.grad(core.safe_norm)(jnp.zeros(3)) == 0).all()
    np.testing.assert_allclose(jax.grad(core.safe_norm)(jnp.array([3.0, 4.0])), [0.6, 0.8])
    assert jax.grad(core.safe_sqrt)(0.0) == 0


def test_far_arguments_have_values_and_derivatives():
    assert core.exprel(jnp.float32(jnp.inf)) == jnp.inf
    assert jax.grad(core.exprel)(jnp.float32(1e4)) == jnp.inf
    np.testing.assert_allclose(core.exprel(jnp.float32(60.0)), np.expm1(60.0) / 60, rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(core.exprel)(jnp.float32(60.0)), np.exp(60.0) * 59 / 3600, rtol=1e-5
    )
    np.testing.assert_allclose(core.safe_norm(jnp.array([3e20, 4e20])), 5e20, rtol=1e-6)
    tiny, slope = jax.value_and_grad(core.safe_norm)(jnp.array([3e-30, 4e-30]))
    np.testing.assert_allclose(tiny, 5e-30, rtol=1e-6)
    np.testing.assert_allclose(slope, [0.6, 0.8], rtol=1e-6)
    assert jnp.isnan(core.safe_sqrt(jnp.float32(-1.0)))


def test_log_mean_exp_is_float32_and_has_no_nan():
    half = core.log_mean_exp(jnp.zeros(70000, jnp.float16))
    assert half.dtype == jnp.float32
    assert half == 0
    nothing = jnp.array([-jnp.inf, -jnp.inf])
    assert core.log_mean_exp(nothing) == -jnp.inf
    assert (jax.grad(core.log_mean_exp)(nothing) == 0).all()
