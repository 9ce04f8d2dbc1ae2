"""core.numerics against float64 limits."""

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
