"""Bregman divergences of any potential near and far, against the definition in eighty digits."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from jax.test_util import check_grads

from divjax.divergences import (
    bernoulli_log_partition,
    bregman,
    categorical_log_partition,
    exponential_family_kl,
    half_square,
    poisson_log_partition,
)

EPS = 2.0**-23


def total(term):
    return lambda v: mp.fsum(term(a) for a in v)


def softmax(v):
    all_of = mp.fsum(mp.exp(a) for a in v)
    return [mp.exp(a) / all_of for a in v]


# Name -> (potential, the same in mpmath, its gradient, whether x > 0).
POTENTIALS = {
    "logsumexp": (categorical_log_partition, lambda v: mp.log(total(mp.exp)(v)), softmax, False),
    "softplus": (
        bernoulli_log_partition,
        total(lambda a: mp.log1p(mp.exp(a))),
        lambda v: [1 / (1 + mp.exp(-a)) for a in v],
        False,
    ),
    "half_square": (half_square, lambda v: total(lambda a: a * a)(v) / 2, list, False),
    "fourth": (
        lambda v: jnp.sum(v**4, -1),
        total(lambda a: a**4),
        lambda v: [4 * a**3 for a in v],
        False,
    ),
    "negative_entropy": (
        lambda v: jnp.sum(v * jnp.log(v), -1),
        total(lambda a: a * mp.log(a)),
        lambda v: [mp.log(a) + 1 for a in v],
        True,
    ),
    "barrier": (
        lambda v: -jnp.sum(jnp.log(v), -1),
        total(lambda a: -mp.log(a)),
        lambda v: [-1 / a for a in v],
        True,
    ),
}
every = pytest.mark.parametrize("name", POTENTIALS)


def points(name, scale, step, rows=10):
    rng = np.random.default_rng(int(scale * 7 + step * 1e5))
    y, d = rng.normal(size=(2, rows, 4))
    if POTENTIALS[name][3]:
        y = scale * np.exp(y)
        return np.float32(y * np.exp(np.clip(step * d / 3, -60, 60))), np.float32(y)
    return np.float32(scale * y + step * d), np.float32(scale * y)


def exact(name, x, y):
    _, phi, slope, _ = POTENTIALS[name]
    with mp.workdps(80):
        x, y = ([mp.mpf(float(a)) for a in v] for v in (x, y))
        inner = mp.fsum(g * (a - b) for g, a, b in zip(slope(y), x, y, strict=True))
        return float(phi(x) - phi(y) - inner)


@every
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_relative_accuracy_whatever_the_scale_and_the_step(name, scale):
    """Down to where float32 ends; the exponents of 1000 are known to 1e-5 only."""
    fn = jax.jit(lambda x, y: bregman(x, y, POTENTIALS[name][0]))
    for step in (1e-5, 1e-3, 0.1, 1.0, 10.0, 1000.0):
        x, y = points(name, scale, step)
        value = np.asarray(fn(x, y))
        expected = [exact(name, *row) for row in zip(x, y, strict=True)]
        assert (value >= 0).all()
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-30)


@every
def test_slopes_near_and_far(name):
    """By x: rounded as two gradients (and the 1 in log x + 1), at arguments of that scale."""
    fn = jax.jit(jax.grad(lambda x, y: bregman(x, y, POTENTIALS[name][0]).sum()))
    slope = POTENTIALS[name][2]
    for scale in (1.0, 100.0):
        for step in (1e-3, 1.0, 100.0):
            x, y = points(name, scale, step)
            with mp.workdps(80):
                ends = np.array([[[float(g) for g in slope(list(map(mp.mpf, map(float, row))))]
                                  for row in z] for z in (x, y)])  # fmt: skip
                size = np.abs(ends).sum(0) + (name == "negative_entropy")
            assert (
                np.abs(fn(x, y) - (ends[0] - ends[1])) <= 4 * EPS * size * max(1, scale) + 1e-37
            ).all()


def test_certain_laws():
    """The definition rounds at 1e-4 here, and a quadrature of few points sees nothing."""
    x, y = jnp.array([1000.0, 993.0]), jnp.array([1000.0, 0.0])
    phi = categorical_log_partition
    np.testing.assert_allclose(bregman(x, y, phi), 9.114664538e-4, rtol=2e-5)
    np.testing.assert_allclose(exponential_family_kl(y, x, phi), 9.114664538e-4, rtol=2e-5)
    by_x, by_y = jax.grad(bregman, (0, 1))(x, y, phi)
    np.testing.assert_allclose(by_x, [-9.1105119e-4, 9.1105119e-4], rtol=1e-4)
    assert (by_y == 0).all()  # in truth e^-1000
    # Seen from the other law; and so far away that e^-x is 0 between the ends.
    np.testing.assert_allclose(bregman(y, x, phi), 0.90376236960, rtol=1e-5)
    far = jnp.array([3e4, 0.0]), jnp.array([3e4, 3e4 - 7.0])
    np.testing.assert_allclose(bregman(far[1], far[0], phi), 9.114664538e-4, rtol=1e-3)


def test_any_potential_is_as_good_as_the_better_of_the_two_bounds():
    """Autodiff of logsumexp loses small variances, and large constants hide small values."""
    constant = lambda v: half_square(v) + 1e6  # noqa: E731
    np.testing.assert_allclose(bregman(jnp.array([1.0]), jnp.array([0.0]), constant), 0.5)
    kink = lambda v: jnp.sum(jnp.abs(v), -1)  # noqa: E731
    np.testing.assert_allclose(bregman(jnp.array([3.0]), jnp.array([-1.0]), kink), 6.0)
    huber = lambda v: jnp.sum(jnp.where(v > 0.3, v * v, 0.0), -1) + 1e4  # noqa: E731
    for step in (1.0, 10.0, 1000.0):
        x, y = points("logsumexp", 100.0, step)
        value = bregman(x, y, lambda v: jax.nn.logsumexp(v, axis=-1))
        expected = np.array([exact("logsumexp", *row) for row in zip(x, y, strict=True)])
        size = np.abs(x).max(-1) + np.abs(y).max(-1)
        assert (np.abs(value - expected) <= 8 * EPS * size).all()
        assert (value >= 0).all()
    # A step between two nodes, in terms so large that the definition is known to 1e3 only.
    hidden = lambda v: bernoulli_log_partition(v) + 1e10  # noqa: E731
    assert 5e3 < bregman(jnp.array([1e4]), jnp.array([-2e4]), hidden) < 2e4
    assert bregman(jnp.array([1.0]), jnp.array([0.0]), lambda v: -half_square(v)) == -0.5
    assert bregman(jnp.array([1.0]), jnp.array([0.5]), huber) > 0


def test_a_row_is_the_same_in_any_batch():
    """Rows that need many panels do not change those beside them."""
    x, y = points("logsumexp", 1000.0, 1000.0, rows=32)
    near = x[:16] + np.float32(1.0)
    x, y = np.concatenate([near, x]), np.concatenate([x[:16], y])
    fn = jax.jit(lambda x, y: bregman(x, y, categorical_log_partition))
    np.testing.assert_allclose(fn(x, y), jnp.concatenate([fn(x[:16], y[:16]), fn(x[16:], y[16:])]))
    np.testing.assert_allclose(jax.vmap(fn)(x, y), fn(x, y), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    "phi", [categorical_log_partition, bernoulli_log_partition, poisson_log_partition]
)
def test_the_log_partitions_to_third_order(phi, x64):
    check_grads(phi, (jnp.asarray([[0.3, -1.2, 2.0], [3.0, 0.0, -3.0]]),), order=3)


def test_second_derivatives_of_certain_laws():
    """d' H d is the variance of d: e^-20 and not the rounding of 1."""
    for phi, x in ((categorical_log_partition, [20.0, 0.0]), (bernoulli_log_partition, [20.0])):
        x, d = jnp.array(x), jnp.arange(5.0, 5.0 + len(x))
        curve = jax.jvp(jax.grad(phi), (x,), (d,))[1]
        expected = np.exp(-20.0) * (np.array([-1.0, 1.0]) if len(x) == 2 else 5.0)
        np.testing.assert_allclose(curve, expected, rtol=1e-5)
