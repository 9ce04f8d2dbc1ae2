"""Exponential families: stored values, sums over the support, closed forms, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from divjax.divergences import (
    bernoulli_log_partition,
    categorical_log_partition,
    exponential_family_kl,
    exponential_family_renyi,
    gaussian,
    generators,
    poisson_log_partition,
    renyi_from_logits,
)
from divjax.divergences import f_divergence_from_logits as from_logits

INF = float("inf")
FAMILIES = {
    "categorical": categorical_log_partition,
    "bernoulli": bernoulli_log_partition,
    "poisson": poisson_log_partition,
}
THREE, FIVE = jnp.log(jnp.array([3.0])), jnp.log(jnp.array([5.0]))


def normal_log_partition(eta):
    """N(m, v) with eta = (m / v, -1 / (2 v)); +inf unless the second is negative."""
    inside = eta[..., 1] < 0
    second = jnp.where(inside, eta[..., 1], -1.0)
    value = -(eta[..., 0] ** 2) / (4 * second) - 0.5 * jnp.log(-2 * second)
    return jnp.where(inside, value, jnp.inf)


def normal(mean, variance):
    return jnp.stack([mean / variance, -0.5 / variance], axis=-1)


def test_stored_values_of_two_poisson_laws():
    fn, a = exponential_family_renyi, poisson_log_partition
    np.testing.assert_allclose(exponential_family_kl(THREE, FIVE, a), 0.467523128702, rtol=1e-6)
    np.testing.assert_allclose(fn(THREE, FIVE, a, order=0.5), 0.254033307585, rtol=1e-6)
    pearson = np.expm1(fn(THREE, FIVE, a, order=2.0))
    np.testing.assert_allclose(pearson, 1.225540928492, rtol=1e-6)


@pytest.mark.parametrize("order", [0.2, 0.5, 0.99, 1.0, 1.01, 2.0, 3.0])
def test_poisson_by_summation(order):
    k = np.arange(200)
    p, q = stats.poisson.logpmf(k, 3.0), stats.poisson.logpmf(k, 5.0)
    expected = (
        np.sum(np.exp(p) * (p - q))
        if order == 1
        else np.log(np.sum(np.exp(order * p + (1 - order) * q))) / (order - 1)
    )
    value = exponential_family_renyi(THREE, FIVE, poisson_log_partition, order=order)
    np.testing.assert_allclose(value, expected, rtol=2e-5)


@pytest.mark.parametrize("step", [1.0, 1e-4])
def test_categorical_is_that_of_the_logits(step):
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(3, 20)), jnp.float32)
    y = z + jnp.asarray(step * rng.normal(size=z.shape), jnp.float32)
    value = exponential_family_kl(z, y, categorical_log_partition)
    np.testing.assert_allclose(value, from_logits(z, y, generators.kl), rtol=1e-5)
    for order in (0.3, 0.5, 2.0):
        value = exponential_family_renyi(z, y, categorical_log_partition, order=order)
        np.testing.assert_allclose(value, renyi_from_logits(z, y, order=order), rtol=1e-4)


def test_bernoulli_is_a_sum_over_coins():
    p, q = np.array([0.2, 0.7]), np.array([0.5, 0.4])
    logit = lambda r: jnp.asarray(np.log(r / (1 - r)), jnp.float32)  # noqa: E731
    value = exponential_family_kl(logit(p), logit(q), bernoulli_log_partition)
    expected = np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_normal_laws_and_the_edge_of_the_domain():
    m, v = jnp.array([0.0, 1.0]), jnp.array([1.0, 2.25])
    (p, q), laws = (
        normal(m, v),
        [gaussian.DiagonalGaussian(m[i : i + 1], v[i : i + 1]) for i in (0, 1)],
    )
    value = exponential_family_kl(p, q, normal_log_partition)
    np.testing.assert_allclose(value, gaussian.kl(*laws), rtol=1e-5)
    for order in (0.5, 1.5):
        value = exponential_family_renyi(p, q, normal_log_partition, order=order)
        np.testing.assert_allclose(value, gaussian.renyi(*laws, order=order), rtol=1e-5)

    def beyond(q, p):  # 2 / 2.25 - 1 < 0: the mixed precision is negative
        return exponential_family_renyi(q, p, normal_log_partition, order=2.0)

    value, slopes = jax.value_and_grad(beyond, (0, 1))(q, p)
    assert value == gaussian.renyi(*laws[::-1], order=2.0) == INF
    assert all(np.isfinite(s).all() for s in slopes)


def test_support_lost_on_one_side():
    full, short = jnp.zeros(3), jnp.array([0.0, 0.0, -jnp.inf])
    a = categorical_log_partition
    assert exponential_family_kl(full, short, a) == INF
    np.testing.assert_allclose(exponential_family_kl(short, full, a), np.log(1.5), rtol=1e-6)
    assert exponential_family_kl(short, short, a) == 0
    np.testing.assert_allclose(
        exponential_family_renyi(short, full, a, order=2.0), np.log(1.5), rtol=1e-6
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_laws_order_zero_batches_and_types(name, x64):
    a = FAMILIES[name]
    rng = np.random.default_rng(1)
    p, q = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    for order in (0.0, 0.5, 1.0, 2.0):
        fn = lambda p, q, order=order: exponential_family_renyi(p, q, a, order=order)  # noqa: E731
        value = fn(p, q)
        assert value.shape == (3,)
        assert (fn(p, p) == 0).all()
        assert (value == 0).all() if order == 0 else (value > 0).all()
        np.testing.assert_allclose(jax.vmap(fn)(p, q), value, rtol=1e-5)
        np.testing.assert_allclose(jax.jit(fn)(p, q), value, rtol=1e-5)
        assert value.dtype == fn(*(x.astype(jnp.bfloat16) for x in (p, q))).dtype == jnp.float32
        assert fn(p.astype(jnp.float64), q.astype(jnp.float64)).dtype == jnp.float64


def test_derivatives_of_both_orders(x64):
    rng = np.random.default_rng(2)
    p, q = jnp.asarray(rng.normal(size=(2, 3)))

    @jax.jit
    def all_of(p, q):
        return jnp.stack(
            [
                exponential_family_renyi(p, q, a, order=order)
                for a in (categorical_log_partition, poisson_log_partition)
                for order in (0.5, 1.5)
            ]
        )

    check_grads(all_of, (p, q), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


def test_bad_input():
    a = poisson_log_partition
    with pytest.raises(ValueError, match="exponential_family_kl: eta_q must have the shape"):
        exponential_family_kl(jnp.ones(2), jnp.ones(3), a)
    with pytest.raises(ValueError, match="eta_p must be a floating-point array"):
        exponential_family_kl(jnp.ones(2, int), jnp.ones(2), a)
    with pytest.raises(ValueError, match="eta_p must have at least 1 axes"):
        exponential_family_kl(jnp.ones(()), jnp.ones(()), a)
    for order in (-1.0, INF):
        with pytest.raises(ValueError, match="order must be a finite number >= 0"):
            exponential_family_renyi(THREE, FIVE, a, order=order)
