"""Exact 1-d and sliced transport against SciPy, POT and linear programming."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import ot
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from divjax.divergences import manhattan, sliced_wasserstein, squared_euclidean, wasserstein_1d

pytestmark = pytest.mark.usefixtures("x64")


def clouds(n=6, m=9, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.normal(size=m) * 2 + 1
    return x, y, rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))


@pytest.mark.parametrize("seed", range(3))
def test_w1_is_that_of_scipy(seed):
    x, y, a, b = clouds(seed=seed)
    got = wasserstein_1d(*map(jnp.asarray, (x, y, np.log(a), np.log(b))))
    np.testing.assert_allclose(got, stats.wasserstein_distance(x, y, a, b), rtol=1e-12)
    uniform = wasserstein_1d(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(uniform, stats.wasserstein_distance(x, y), rtol=1e-12)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
def test_any_power_is_the_linear_program(power):
    x, y, a, b = clouds(seed=4)
    expected = ot.emd2(a, b, np.abs(x[:, None] - y) ** power)
    got = wasserstein_1d(*map(jnp.asarray, (x, y, np.log(a), np.log(b))), power=power)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_values_on_a_line():
    """Printed in _f-divergences."""
    x, p, q = (
        jnp.arange(3.0),
        jnp.log(jnp.array([0.5, 0.3, 0.2])),
        jnp.log(jnp.array([0.2, 0.5, 0.3])),
    )
    for power in (1.0, 2.0):
        np.testing.assert_allclose(wasserstein_1d(x, x, p, q, power=power), 0.4, rtol=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_gradients_by_points_and_by_weights(power):
    x, y, a, b = map(jnp.asarray, clouds(seed=5))

    def fn(x, y, log_a, log_b):
        laws = jax.nn.log_softmax(log_a), jax.nn.log_softmax(log_b)
        return wasserstein_1d(x, y, *laws, power=power)

    arguments = (x, y, jnp.log(a), jnp.log(b))
    jax.test_util.check_grads(jax.jit(fn), arguments, order=1, rtol=1e-6)


def test_equal_and_absent_points():
    x, law = jnp.array([1.0, 0.0, 1.0, jnp.nan]), jnp.log(jnp.array([0.25, 0.5, 0.25, 0.0]))
    same = jnp.array([0.0, 1.0]), jnp.log(jnp.array([0.5, 0.5]))
    run = jax.jit(jax.value_and_grad(lambda x: wasserstein_1d(x, same[0], law, same[1], power=1.5)))
    value, gradient = run(x)
    np.testing.assert_allclose(value, 0.0, atol=1e-15)
    assert (gradient == 0).all()
    nobody = jnp.full(4, -jnp.inf)
    assert wasserstein_1d(x, same[0], nobody, same[1]) == 0


def test_batches_and_types():
    rng = np.random.default_rng(6)
    x, y = jnp.asarray(rng.normal(size=(2, 3, 4))), jnp.asarray(rng.normal(size=(2, 3, 5)))
    whole = wasserstein_1d(x, y)
    loops = [[wasserstein_1d(x[i, j], y[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(whole, loops, rtol=1e-14)
    np.testing.assert_allclose(jax.jit(wasserstein_1d)(x, y), whole, rtol=1e-14)
    assert wasserstein_1d(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).dtype == jnp.float32


def test_many_points_in_float32():
    """The levels are sums of 10^5 weights: their rounding must not pair wrong points."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=100_000), rng.normal(size=100_000) + 0.5
    got = wasserstein_1d(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(got, stats.wasserstein_distance(x, y), rtol=2e-4)


def test_sliced_is_the_mean_over_directions():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(9, 3)) + 1
    a, b = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(9))
    run = jax.jit(partial(sliced_wasserstein, projections=512))
    out = run(jax.random.key(0), *map(jnp.asarray, (x, y, np.log(a), np.log(b))))
    expected = ot.sliced_wasserstein_distance(x, y, a, b, n_projections=20000, seed=0) ** 2
    error = out.terms.std() / np.sqrt(512)
    assert abs(out.value - expected) < 4 * error
    assert error < 0.1 * expected
    np.testing.assert_allclose(out.value, out.terms.mean())
    assert out.n_effective == 512
    shift = jnp.array([3.0, 0.0, 0.0])  # E (theta' shift)^2 = |shift|^2 / D
    far = run(jax.random.key(1), jnp.asarray(x), jnp.asarray(x) + shift)
    assert abs(far.value - 3.0) < 4 * far.terms.std() / np.sqrt(512)


def test_sliced_with_absent_points():
    x, y = jnp.array([[0.0, 1.0], [2.0, 0.0], [jnp.nan, jnp.nan]]), jnp.ones((4, 2))
    law = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    run = jax.jit(
        jax.value_and_grad(lambda x, law: sliced_wasserstein(jax.random.key(0), x, y, law).value)
    )
    masked, deleted = run(x, law), run(x[:2], law[:2])
    np.testing.assert_allclose(masked[0], deleted[0], rtol=1e-12)
    np.testing.assert_allclose(masked[1][:2], deleted[1], rtol=1e-12)
    assert (masked[1][2] == 0).all()


def test_a_weight_that_is_nan_is_not_absent():
    law = jnp.log(jnp.ones(3) / 3).at[1].set(jnp.nan)
    assert jnp.isnan(wasserstein_1d(jnp.arange(3.0), jnp.arange(3.0) + 1, law))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_a_cloud_against_itself_under_jit(dtype):
    """By jnp.abs it is 27 to 42 % wrong: the diagonal has two signs of one rounding error."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((12, 5), (5, 4)))
    weights = jnp.asarray(rng.normal(size=(12, 12)), dtype)

    def total(w):
        points = jax.nn.softmax(x @ w)
        return jnp.sum(weights * manhattan(points, points))

    direction = jnp.asarray(rng.normal(size=w.shape), dtype)
    points, moved = jax.jvp(lambda w: jax.nn.softmax(x @ w), (w,), (direction,))
    p, dp = (np.asarray(z, np.float64) for z in (points, moved))
    signs = np.sign(p[:, None] - p) * (dp[:, None] - dp)
    expected = (np.asarray(weights)[..., None] * signs).sum()
    tolerance = 1e-4 if dtype == "float32" else 1e-10
    for gradient in jax.grad(total), jax.jit(jax.grad(total)):
        np.testing.assert_allclose(jnp.sum(gradient(w) * direction), expected, rtol=tolerance)
    forward = jax.jit(lambda w: jax.jvp(total, (w,), (direction,))[1])
    np.testing.assert_allclose(forward(w), expected, rtol=tolerance)


def test_equal_samples_have_no_gradient_under_jit_either():
    """The other side detached and in another order, as a copy of the model at the start."""

    def distance(w):
        p = jax.nn.softmax(w)
        other = jax.lax.stop_gradient(jax.nn.softmax(w)[:, ::-1, 0])
        return wasserstein_1d(p[..., 0], other, power=1.0).sum()

    w = jax.random.normal(jax.random.key(0), (4, 16, 3), jnp.float32)
    for gradient in jax.grad(distance), jax.jit(jax.grad(distance)):
        np.testing.assert_array_equal(gradient(w), 0.0)


@pytest.mark.parametrize(
    ("ours", "name"), [(squared_euclidean, "sqeuclidean"), (manhattan, "cityblock")]
)
def test_costs(ours, name):
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    np.testing.assert_allclose(ours(jnp.asarray(x), jnp.asarray(y)), cdist(x, y, name), rtol=1e-12)
    jax.test_util.check_grads(ours, (jnp.asarray(x), jnp.asarray(y)), order=1, rtol=1e-6)
    point = jnp.asarray(x[:1])
    assert (jax.grad(lambda p: ours(p, point).sum())(point) == 0).all()  # the kink


X = jnp.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wasserstein_1d(X, X[:2]), r"y must be \[\*E, M\]"),
        (lambda: wasserstein_1d(X[:, :0], X), "x must not be empty"),
        (lambda: wasserstein_1d(X, X, X[0]), "log weights"),
        (
            lambda: wasserstein_1d(X, X, jnp.full(X.shape, 0.5)),
            "log_a must be log weights that sum",
        ),
        (lambda: wasserstein_1d(X, X, power=0.5), "power must be a number >= 1"),
        (lambda: wasserstein_1d(X.astype(int), X), "x must be a floating-point array"),
        (lambda: sliced_wasserstein(jax.random.key(0), X, X[:, :1]), r"y must be \[M, 2\]"),
        (lambda: sliced_wasserstein(jax.random.key(0), X, X, projections=0), "projections must be"),
        (lambda: manhattan(X[0], X), r"x must be \[N, D\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
