"""Bregman divergences: stored values, the definition in 40 digits, derivatives, edges."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads

from divjax.divergences import (
    Power,
    bregman,
    categorical_log_partition,
    density_power,
    fenchel_young,
    generators,
    half_square,
    kl,
    minus_log,
    negative_entropy,
)
from divjax.divergences import f_divergence_from_logits as from_logits

P, Q = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.5, 0.3])
INF = float("inf")

# Name -> (ready, the same potential as a plain function, its pointwise divergence).
POTENTIALS = {
    "negative_entropy": (
        negative_entropy,
        lambda x: jnp.sum(x * jnp.log(x), -1),
        lambda x, y: x * mpmath.log(x / y) - x + y,
    ),
    "minus_log": (
        minus_log,
        lambda x: -jnp.sum(jnp.log(x), -1),
        lambda x, y: x / y - mpmath.log(x / y) - 1,
    ),
    "density_power_0.5": (
        density_power(0.5),
        lambda x: jnp.sum(x**1.5, -1) / 0.5,
        lambda x, y: y**1.5 - 3 * x * mpmath.sqrt(y) + 2 * x**1.5,
    ),
    "density_power_3": (
        density_power(3.0),
        lambda x: jnp.sum(x**4, -1) / 3,
        lambda x, y: y**4 - (4 * x * y**3) / 3 + x**4 / 3,
    ),
    "root": (
        Power(0.5),
        lambda x: -4 * jnp.sum(jnp.sqrt(x), -1),
        lambda x, y: 2 * (mpmath.sqrt(x) - mpmath.sqrt(y)) ** 2 / mpmath.sqrt(y),
    ),
    "half_square": (half_square, half_square, lambda x, y: (x - y) ** 2 / 2),
}
every = pytest.mark.parametrize("name", POTENTIALS)


def exact(name, x, y):
    with mpmath.workdps(60):
        term = POTENTIALS[name][2]
        pairs = zip(np.float64(x).ravel(), np.float64(y).ravel(), strict=True)
        return float(sum(term(mpmath.mpf(a), mpmath.mpf(b)) for a, b in pairs))


def test_stored_values(x64):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    p, q = jnp.asarray(p), jnp.asarray(q)
    values = {
        0.186088600014: density_power(0.5),
        0.14: density_power(1.0),
        0.766666666667: minus_log,
        0.223804657186: negative_entropy,
        0.07: half_square,
    }
    for expected, potential in values.items():
        np.testing.assert_allclose(bregman(p, q, potential), expected, rtol=1e-11)


@every
def test_against_the_definition_in_sixty_digits(name):
    """Far, near and with steps so small that the definition in float32 is only rounding."""
    rng = np.random.default_rng(0)
    for step in (1.0, 1e-2, 1e-4):
        x = np.float32(rng.uniform(0.2, 2.0, 30))
        y = np.float32(x * (1 + step * rng.uniform(-0.9, 3, 30)))
        ready, plain, _ = POTENTIALS[name]
        for potential, tolerance in ((ready, 2e-6), (plain, 5e-5 if step == 1 else 2e-6)):
            value = bregman(jnp.asarray(x), jnp.asarray(y), potential)
            np.testing.assert_allclose(value, exact(name, x, y), rtol=tolerance)


@every
def test_powers_at_any_ratio(name):
    ready = POTENTIALS[name][0]
    for x, y in ((1e-20, 1.0), (1.0, 1e-9), (1e8, 1e-3), (3.0, 1e5)):
        value = bregman(jnp.array([x]), jnp.array([y]), ready)
        np.testing.assert_allclose(value, exact(name, [np.float32(x)], [np.float32(y)]), rtol=1e-5)
    assert not np.isnan(bregman(jnp.array([1.0]), jnp.array([1e-30]), ready))


@every
def test_gradients_of_close_arguments_keep_their_accuracy(name):
    """grad phi(x) - grad phi(y), and -H(y) (x - y), which is no difference of large numbers."""
    rng = np.random.default_rng(1)
    x = np.float32(rng.uniform(0.2, 2.0, 30))
    y = np.float32(x * (1 + 1e-4 * rng.normal(size=30)))
    slope = {
        "negative_entropy": np.log,
        "minus_log": lambda t: -1 / t,
        "density_power_0.5": lambda t: 3 * t**0.5,
        "density_power_3": lambda t: 4 * t**3 / 3,
        "root": lambda t: -2 / t**0.5,
        "half_square": lambda t: t,
    }[name]
    a, b = np.float64(x), np.float64(y)
    curve = (slope(b * (1 + 1e-6)) - slope(b * (1 - 1e-6))) / (2e-6 * b)
    for potential in POTENTIALS[name][:2]:
        by_x, by_y = jax.grad(bregman, (0, 1))(jnp.asarray(x), jnp.asarray(y), potential)
        np.testing.assert_allclose(by_x, slope(a) - slope(b), rtol=1e-5)
        np.testing.assert_allclose(by_y, -curve * (a - b), rtol=1e-5)


def test_derivatives_of_both_orders(x64):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.uniform(0.3, 1.5, (2, 3)))
    y = x * (1 + np.array([[1.0], [1e-3]]) * rng.uniform(size=(2, 3)))  # far and near

    @jax.jit
    def all_of(x, y):
        return jnp.stack([bregman(x, y, f) for pair in POTENTIALS.values() for f in pair[:2]])

    check_grads(all_of, (x, y), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


def test_a_potential_of_coupled_entries_with_parameters(x64):
    """logsumexp(W z): differentiated by W too, under jit and vmap."""
    rng = np.random.default_rng(3)
    w, x, y = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (2, 3), (2, 3)))

    def fn(w, x, y):
        return bregman(x, y, lambda v: jax.nn.logsumexp(v @ w.T, axis=-1))

    zx, zy = (np.asarray(z @ w.T) for z in (x, y))
    weights = np.exp(zy) / np.exp(zy).sum(-1, keepdims=True)
    expected = (np.log(np.exp(zx).sum(-1)) - np.log(np.exp(zy).sum(-1))
                - (weights * (zx - zy)).sum(-1))  # fmt: skip
    np.testing.assert_allclose(fn(w, x, y), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(fn)(w, x, y), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(fn, (None, 0, 0))(w, x, y), expected, rtol=1e-12)
    stacked = jax.vmap(fn, (0, None, None))(jnp.stack([w, 0 * w]), x, y)
    np.testing.assert_allclose(stacked, [expected, 0 * expected], atol=1e-12)
    check_grads(jax.jit(fn), (w, x, y), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


def test_logits_seen_from_logsumexp_are_the_reverse_kl():
    """B_A(z, y) = KL(softmax y || softmax z), near too; -inf on both sides counts for nothing."""
    rng = np.random.default_rng(4)
    z = rng.normal(size=(2, 20)).astype(np.float32)
    for step in (1.0, 1e-4):
        y = jnp.asarray(z + np.float32(step * rng.normal(size=z.shape)))
        value = bregman(jnp.asarray(z), y, categorical_log_partition)
        expected = from_logits(y, jnp.asarray(z), generators.kl)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    pad = lambda v: jnp.pad(v, ((0, 0), (0, 2)), constant_values=-jnp.inf)  # noqa: E731
    padded, slope = jax.value_and_grad(
        lambda v: jnp.sum(bregman(pad(v), pad(y), categorical_log_partition))
    )(jnp.asarray(z))
    np.testing.assert_allclose(padded, jnp.sum(expected), rtol=1e-5)
    assert np.isfinite(slope).all()


@every
def test_batch_axis_and_mask(name):
    rng = np.random.default_rng(5)
    x, y = jnp.asarray(rng.uniform(0.2, 2, (2, 3, 4, 5)), jnp.float32)
    mask = jnp.asarray(rng.uniform(size=x.shape) > 0.3)
    for potential in POTENTIALS[name][:2]:
        value = bregman(x, y, potential, axis=1)
        assert value.shape == (3, 5)
        loop = [exact(name, x[1, :, j], y[1, :, j]) for j in range(5)]
        np.testing.assert_allclose(value[1], loop, rtol=1e-5)
        holes = [jnp.where(mask, v, jnp.nan) for v in (x, y)]
        fn = lambda x, y, f=potential: jnp.sum(bregman(x, y, f, where=mask))  # noqa: E731
        value, slopes = jax.value_and_grad(fn, (0, 1))(*holes)
        np.testing.assert_allclose(value, exact(name, x[mask], y[mask]), rtol=1e-5)
        for slope in slopes:
            assert np.isfinite(slope).all()
            assert (slope[~mask] == 0).all()


@pytest.mark.parametrize(
    ("potential", "only_x", "only_y"),
    [
        (negative_entropy, INF, 2.0),
        (minus_log, INF, INF),
        (density_power(0.5), 2 * 2**1.5, 2**1.5),
        (density_power(1.0), 4.0, 4.0),
        (Power(0.5), INF, 2 * 2**0.5),
    ],
)
def test_the_boundary(potential, only_x, only_y):
    fn = lambda x, y: bregman(x, y, potential)  # noqa: E731
    for x, y, expected in ((2.0, 0.0, only_x), (0.0, 2.0, only_y), (0.0, 0.0, 0.0)):
        arrays = jnp.array([x, 1.0]), jnp.array([y, 1.0])
        value, slopes = jax.value_and_grad(fn, (0, 1))(*arrays)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        curved = jax.jvp(jax.grad(fn, (0, 1)), arrays, (jnp.ones(2), jnp.ones(2)))[1]
        assert all(np.isfinite(s).all() for s in jax.tree.leaves((slopes, curved)))
        if x == y == 0:
            assert all((s == 0).all() for s in slopes)
    assert bregman(jnp.array([-1.0]), jnp.array([1.0]), potential) == INF
    assert np.isnan(bregman(jnp.array([jnp.nan]), jnp.array([1.0]), potential))


@every
def test_types(name, x64):
    for potential in POTENTIALS[name][:2]:
        for given, out in ((jnp.bfloat16, jnp.float32), (jnp.float32,) * 2, (jnp.float64,) * 2):
            x, y = P.astype(given), Q.astype(given)
            assert bregman(x, y, potential).dtype == out
            assert jax.grad(bregman)(x, y, potential).dtype == given


def test_fenchel_young_is_a_kl():
    rng = np.random.default_rng(6)
    z, logits = jnp.asarray(rng.normal(size=(2, 4, 7)), jnp.float32)
    y = jax.nn.softmax(logits)
    pair = negative_entropy, categorical_log_partition
    expected = kl(jnp.log(y), jax.nn.log_softmax(z))
    np.testing.assert_allclose(fenchel_young(z, y, *pair), expected, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda z: jnp.sum(fenchel_young(z, y, *pair)))(z)
    np.testing.assert_allclose(slope, jax.nn.softmax(z) - y, atol=1e-6)
    hot = fenchel_young(jnp.array([0.0, -jnp.inf, 0.0]), jnp.array([1.0, 0.0, 0.0]), *pair)
    np.testing.assert_allclose(hot, np.log(2), rtol=1e-6)


def test_fenchel_young_of_squares_is_a_squared_distance():
    z, y = jnp.array([[1.0, 2.0]]), jnp.array([[-1.0, 0.5]])
    value = fenchel_young(z, y, half_square, half_square)
    np.testing.assert_allclose(value, [(4 + 2.25) / 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bregman(P, Q[:2], half_square), "bregman: y must have the shape of x"),
        (lambda: bregman(jnp.arange(3), Q, half_square), "bregman: x must be a floating-point"),
        (lambda: bregman(P[0], Q[0], half_square), "bregman: x must have at least 1 axes"),
        (lambda: bregman(P, Q, half_square, axis=1), r"bregman: axis must be in \[-1, 1\)"),
        (lambda: bregman(P, Q, half_square, where=P), "bregman: where must be bool"),
        (lambda: bregman(P, Q, jnp.exp), r"bregman: potential must return \[\]"),
        (lambda: bregman(P, Q, Power(-1.0)), "bregman: order must be >= 0"),
        (lambda: density_power(0.0), "density_power: beta must be a finite number > 0"),
        (
            lambda: fenchel_young(P[None], Q[None], half_square, jax.nn.logsumexp),
            "fenchel_young: conjugate must return",
        ),
        (
            lambda: fenchel_young(P, Q[:2], half_square, half_square),
            "fenchel_young: y must have the shape of scores",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
