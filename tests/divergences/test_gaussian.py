"""Closed forms of two Gaussians: stored values, mpmath, quadrature, derivatives, singular laws."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from divjax.divergences import gaussian
from divjax.divergences.gaussian import DiagonalGaussian, Gaussian

INF = float("inf")
ALL = {
    "kl": gaussian.kl,
    "renyi_0.3": partial(gaussian.renyi, order=0.3),
    "renyi_0.7": partial(gaussian.renyi, order=0.7),
    "renyi_1.1": partial(gaussian.renyi, order=1.1),
    "bhattacharyya": gaussian.bhattacharyya,
    "squared_hellinger": gaussian.squared_hellinger,
    "alpha_0.3": partial(gaussian.alpha, order=0.3),
    "squared_wasserstein": gaussian.squared_wasserstein,
}


@jax.jit
def all_of(p, q):
    """[8, *E], in one compilation."""
    return jnp.stack([fn(p, q) for fn in ALL.values()])


@jax.jit
def pulls_of(p, q):
    """The gradients of all divergences, [8, ...], of laws without example axes."""
    return jax.jacrev(all_of, (0, 1))(p, q)


def one(mean, deviation):
    return DiagonalGaussian(jnp.array([mean]), jnp.array([deviation**2]))


def flat(mean, *variances):
    """A full law with a diagonal covariance."""
    return Gaussian(jnp.asarray(mean, float), jnp.diag(jnp.asarray(variances, float)))


def covariance(rng, size, condition=10.0):
    turn, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (turn * np.geomspace(1.0, 1.0 / condition, size)) @ turn.T


def symmetric(x):
    return (x + jnp.swapaxes(x, -1, -2)) / 2


def laws(rng, batch=(), size=4):
    """Two full laws, in float32 values."""
    made = []
    for _ in range(2):
        c = np.array([covariance(rng, size) for _ in range(int(np.prod(batch)))])
        c = np.float32((c + np.swapaxes(c, -1, -2)) / 2).reshape(*batch, size, size)
        made.append(Gaussian(jnp.asarray(rng.normal(size=(*batch, size)), jnp.float32), c))
    return [Gaussian(m, jnp.asarray(c)) for m, c in made]


def exact_renyi(p, q, order):
    """The textbook formula in 60 digits."""
    with mpmath.workdps(60):
        (m, a), (n, b) = (
            [mpmath.matrix(np.asarray(x, np.float64).tolist()) for x in law] for law in (p, q)
        )
        shift, mixed = m - n, order * b + (1 - order) * a
        quadratic = order * (shift.T * mpmath.lu_solve(mixed, shift))[0]
        log_a, log_b, log_s = (mpmath.log(mpmath.det(x)) for x in (a, b, mixed))
        if order == 1:
            ratio = mpmath.inverse(b) * a
            trace = sum(ratio[i, i] for i in range(a.rows))
            return float((trace - a.rows - log_a + log_b + quadratic) / 2)
        return float((quadratic + (log_s - order * log_b) / (1 - order) - log_a) / 2)


def exact_wasserstein(p, q):
    with mpmath.workdps(60):
        a, b = (mpmath.matrix(np.asarray(law[1], np.float64).tolist()) for law in (p, q))
        roots, _ = mpmath.eig(a * b)
        shift = np.float64(p.mean) - np.float64(q.mean)
        trace = sum(a[i, i] + b[i, i] for i in range(a.rows))
        return float(trace - 2 * sum(mpmath.sqrt(mpmath.re(r)) for r in roots)) + shift @ shift


def test_stored_values_in_one_dimension(x64):
    p, q = one(0.0, 1.0), one(1.0, 1.5)
    full = [Gaussian(law.mean, law.variance[:, None]) for law in (p, q)]
    for a, b in ((p, q), full, (p, full[1]), (full[0], q)):
        values = {
            0.349909552553: gaussian.kl(a, b),
            0.719534891892: gaussian.kl(b, a),
            0.233888861520: gaussian.renyi(a, b, order=0.5),
            0.470263017683: gaussian.renyi(a, b, order=2.0),
            0.110365371890: gaussian.squared_hellinger(a, b),
            0.600415075330: 2 * gaussian.alpha(a, b, order=2.0),
            0.512849024680: gaussian.alpha(a, b, order=0.3),
            1.25: gaussian.squared_wasserstein(a, b),
        }
        for expected, value in values.items():
            np.testing.assert_allclose(value, expected, rtol=1e-11)
        assert 2 * gaussian.alpha(a, b, order=-1.0) == INF
        np.testing.assert_allclose(gaussian.bhattacharyya(a, b), 0.233888861520 / 2, rtol=1e-11)


def test_stored_values_in_two_dimensions(x64):
    p = Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 2.0]]))
    q = Gaussian(jnp.array([1.0, -1.0]), jnp.array([[2.0, -0.3], [-0.3, 1.0]]))
    values = {
        1.059450533344: gaussian.kl(p, q),
        1.613399130081: gaussian.kl(q, p),
        0.560259208013: gaussian.renyi(p, q, order=0.5),
        0.941159910495: gaussian.renyi(p, q, order=0.9),
        0.244314204798: gaussian.squared_hellinger(p, q),
        2.575425893305: gaussian.squared_wasserstein(p, q),
    }
    for expected, value in values.items():
        np.testing.assert_allclose(value, expected, rtol=1e-11)
    assert gaussian.alpha(p, q, order=2.0) == gaussian.alpha(p, q, order=-1.0) == INF


@pytest.mark.parametrize("order", [0.0, 0.01, 0.3, 0.5, 0.9999, 1.0, 1.0001, 1.2])
def test_renyi_against_sixty_digits(order, x64):
    rng = np.random.default_rng(0)
    for _ in range(5):
        p, q = laws(rng)
        p, q = (Gaussian(*(x.astype(jnp.float64) for x in law)) for law in (p, q))
        q = q._replace(covariance=q.covariance + 5 * jnp.eye(4))  # orders above 1 stay finite
        value = gaussian.renyi(p, q, order=order)
        np.testing.assert_allclose(value, exact_renyi(p, q, order), rtol=1e-10, atol=1e-300)


def test_alpha_is_an_integral(x64):
    x = np.linspace(-30, 30, 40001)
    density = lambda m, s: np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))  # noqa: E731
    p, q = density(0.0, 1.0), density(0.4, 1.1)
    for order in (-1.5, 0.3, 0.5, 0.8, 1.5, 2.5):
        mass = np.trapezoid(p**order * q ** (1 - order), x)
        value = gaussian.alpha(one(0.0, 1.0), one(0.4, 1.1), order=order)
        np.testing.assert_allclose(value, (mass - 1) / (order * (order - 1)), rtol=1e-9)
    for order, expected in ((1, gaussian.kl(one(0.0, 1.0), one(0.4, 1.1))), (0, None)):
        kl = gaussian.kl(one(0.4, 1.1), one(0.0, 1.0)) if expected is None else expected
        np.testing.assert_allclose(gaussian.alpha(one(0.0, 1.0), one(0.4, 1.1), order=order), kl)


def test_close_laws_keep_their_accuracy():
    """KL of about 1e-8, float32."""
    rng = np.random.default_rng(0)
    for size in (1, 3):
        p, _ = laws(rng, size=size)
        root = np.linalg.cholesky(np.float64(p.covariance))
        noise = 1e-4 * rng.normal(size=(size, size))
        near = np.float32(root @ (np.eye(size) + noise + noise.T) @ root.T)
        near = (near + near.T) / 2
        q = Gaussian(p.mean + np.float32(1e-5 * rng.normal(size=size)), jnp.asarray(near))
        for order in (1.0, 0.9999, 0.5, 0.01, 2.0):
            value = gaussian.renyi(p, q, order=order)
            np.testing.assert_allclose(value, exact_renyi(p, q, order), rtol=1e-4)
        value = gaussian.squared_wasserstein(p, q)
        np.testing.assert_allclose(value, exact_wasserstein(p, q), rtol=1e-4)
        assert gaussian.kl(p, p) == gaussian.squared_wasserstein(p, p) == 0


def test_gradients_of_close_laws_keep_their_accuracy():
    """At B = I the gradients of KL and of W_2^2 by A are (A - B) / 2, to first order."""
    change = np.float32(1e-4 * np.array([[1.0, 2.0], [2.0, -3.0]]))
    q = Gaussian(jnp.zeros(2), jnp.eye(2))
    p = q._replace(covariance=jnp.eye(2) + change)
    change = np.float64(p.covariance) - np.eye(2)
    for fn in (gaussian.kl, gaussian.squared_wasserstein):
        slope_p, slope_q = jax.grad(fn, (0, 1))(p, q)
        np.testing.assert_allclose(slope_p.covariance, change / 2, rtol=1e-3)
        np.testing.assert_allclose(slope_q.covariance, -change / 2, rtol=1e-3)


@pytest.mark.parametrize(("condition", "tolerance"), [(1e3, 2e-4), (1e6, 0.1)], ids=["1e3", "1e6"])
def test_ill_conditioned_covariances(condition, tolerance):
    """The rounding of the entries alone moves the result by condition * 6e-8."""
    rng = np.random.default_rng(0)
    for size in (2, 2, 2, 8):
        c = [np.float32(covariance(rng, size, condition)) for _ in range(2)]
        p, q = (
            Gaussian(jnp.asarray(rng.normal(size=size), jnp.float32), jnp.asarray((x + x.T) / 2))
            for x in c
        )
        for order in (1.0, 0.5, 0.2):
            value = gaussian.renyi(p, q, order=order)
            np.testing.assert_allclose(value, exact_renyi(p, q, order), rtol=tolerance)
        value = gaussian.squared_wasserstein(p, q)
        np.testing.assert_allclose(value, exact_wasserstein(p, q), rtol=1e-4)
        if size == 2:
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(pulls_of(p, q)))


def test_scales_far_apart():
    """Covariances that differ by 1e-10, or whose own scales do, are not singular."""
    p, q = flat([0.0, 0.0], 1.0, 1e-10), flat([0.0, 1e-6], 1.0, 1.0)
    for a, b in ((p, q), (q, p)):
        np.testing.assert_allclose(gaussian.kl(a, b), exact_renyi(a, b, 1), rtol=1e-5)
        np.testing.assert_allclose(
            gaussian.renyi(a, b, order=0.5), exact_renyi(a, b, 0.5), rtol=1e-5
        )
    scale = jnp.array([1.0, 1e-5])
    p = Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 1.0]]) * scale * scale[:, None])
    for a, b in ((p, q), (q, p)):
        np.testing.assert_allclose(gaussian.kl(a, b), exact_renyi(a, b, 1), rtol=1e-5)


@pytest.mark.parametrize("singular", [False, True])
def test_full_and_diagonal_agree(singular):
    rng = np.random.default_rng(1)
    variances = rng.uniform(0.5, 2, (2, 2)) * (np.arange(2) != (1 if singular else -1))
    mean = rng.normal(size=2) * (variances[0] > 0)
    thin = [
        DiagonalGaussian(jnp.asarray(m, jnp.float32), jnp.asarray(v, jnp.float32))
        for m, v in zip((mean, 0 * mean), variances, strict=True)
    ]
    full = [Gaussian(m, jnp.diag(v)) for m, v in thin]
    expected = all_of(*thin)
    assert np.isfinite(expected).all()
    for pair in (full, (thin[0], full[1]), (full[0], thin[1])):
        np.testing.assert_allclose(all_of(*pair), expected, rtol=1e-5)
    for a, b in zip(pulls_of(*thin), pulls_of(*full), strict=True):
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(a.variance, jnp.linalg.diagonal(b.covariance), atol=1e-5)


def test_batch_is_loop_and_jit_is_eager():
    p, q = laws(np.random.default_rng(2), (2, 3), size=2)
    value = all_of(p, q)
    assert value.shape == (len(ALL), 2, 3)
    vmapped = jax.vmap(jax.vmap(all_of, out_axes=1), out_axes=1)(p, q)
    np.testing.assert_allclose(vmapped, value, rtol=2e-5)
    single = [Gaussian(*(x[1, 2] for x in law)) for law in (p, q)]
    np.testing.assert_allclose(all_of(*single), value[:, 1, 2], rtol=2e-5)
    for i, name in ((0, "kl"), (-1, "squared_wasserstein")):
        np.testing.assert_allclose(ALL[name](*single), value[i, 1, 2], rtol=2e-5)


def test_derivatives_of_both_orders(x64):
    """Against differences of values and of gradients; also at repeated eigenvalues."""
    rng = np.random.default_rng(3)
    eye = np.eye(3)
    cases = (
        (covariance(rng, 3), covariance(rng, 3) + eye),
        (eye, 1.1 * eye),
        (eye, eye),
        (eye, eye + 1e-2 * covariance(rng, 3)),
        (0.1 * eye, 3.0 * eye),
    )
    a, b = (jnp.stack(x) for x in zip(*cases, strict=True))
    m, n = jnp.asarray(0.1 * rng.normal(size=(2, len(cases), 3)))
    arrays = m, a, n, b
    direction = [jnp.asarray(rng.normal(size=x.shape)) for x in arrays]

    def values(*arrays):
        laws = Gaussian(arrays[0], symmetric(arrays[1])), Gaussian(arrays[2], symmetric(arrays[3]))
        names = ("kl", "renyi_0.7", "squared_wasserstein")
        return jnp.stack([ALL[name](*laws) for name in names], axis=-1)

    slopes = jax.jit(jax.vmap(jax.jacrev(values, range(4))))

    def differences(fn, step=1e-5):
        up, down = (fn(*(x + s * d for x, d in zip(arrays, direction, strict=True)))
                    for s in (step, -step))  # fmt: skip
        return jax.tree.map(lambda x, y: (x - y) / (2 * step), up, down)

    along = sum(
        jnp.sum((g * d[:, None]).reshape(len(cases), 3, -1), axis=-1)
        for g, d in zip(slopes(*arrays), direction, strict=True)
    )
    np.testing.assert_allclose(along, differences(jax.jit(values)), rtol=1e-7, atol=1e-8)
    curved = jax.jvp(slopes, arrays, tuple(direction))[1]
    for got, expected in zip(curved, differences(slopes), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_location_gradients(x64):
    """Of N(0, 1) and N(1, 1) by the second mean."""
    p = one(0.0, 1.0)
    for fn, expected in (
        (gaussian.kl, 1.0),
        (gaussian.squared_hellinger, np.exp(-1 / 8) / 4),
        (lambda p, q: 2 * gaussian.alpha(p, q, order=2.0), 2 * np.e),
        (lambda p, q: 2 * gaussian.alpha(p, q, order=-1.0), 2 * np.e),
        (partial(gaussian.alpha, order=0.5), 0.8824969026),
    ):
        slope = jax.grad(lambda m, fn=fn: fn(p, DiagonalGaussian(m, jnp.ones(1))))(jnp.ones(1))
        np.testing.assert_allclose(slope, [expected], rtol=1e-10)


LINE = np.array([3.0, 1.0])
SINGULAR = {  # p, q, and whether they live on one subspace
    "equal diracs": (flat([1, 2], 0, 0), flat([1, 2], 0, 0), True),
    "two diracs": (flat([1, 2], 0, 0), flat([1, 3], 0, 0), False),
    "dirac first": (flat([0, 0], 0, 0), flat([0.5, 0], 1, 2), False),
    "dirac second": (flat([0, 0], 1, 2), flat([0, 0], 0, 0), False),
    "one line": (flat([0, 0], 1, 0), flat([1, 0], 2, 0), True),
    "parallel lines": (flat([0, 0], 1, 0), flat([1, 1e-4], 2, 0), False),
    "crossing lines": (flat([0, 0], 1, 0), flat([0, 0], 0, 1), False),
    "line in plane": (flat([0, 0], 1, 0), flat([0, 0], 2, 3), False),
    "oblique line": (
        Gaussian(jnp.zeros(2), jnp.asarray(np.outer(LINE, LINE), jnp.float32)),
        Gaussian(jnp.asarray(LINE / 2, jnp.float32), jnp.asarray(2 * np.outer(LINE, LINE))),
        True,
    ),
}


@jax.jit
def renyi_of_orders(p, q):
    return jnp.stack([gaussian.renyi(p, q, order=a) for a in (0.0, 0.3, 0.5, 1.0, 1.1)])


@jax.jit
def curved_of(p, q):
    direction = jax.tree.map(lambda x: jnp.arange(1.0, 1.0 + x.size).reshape(x.shape), (p, q))
    return jax.jvp(pulls_of, (p, q), direction)[1]


@pytest.mark.parametrize("case", SINGULAR)
def test_singular_laws(case):
    p, q, same = SINGULAR[case]
    assert (np.isfinite(renyi_of_orders(p, q)) == same).all()
    assert same or (renyi_of_orders(p, q) == INF).all()
    values = dict(zip(ALL, all_of(p, q), strict=True))
    assert same or values["squared_hellinger"] == 1
    assert same or values["alpha_0.3"] == np.float32(1 / 0.21)
    assert np.isfinite(values["squared_wasserstein"])
    for slopes in (pulls_of(p, q), curved_of(p, q)):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_alpha_of_singular_laws():
    p, q, _ = SINGULAR["line in plane"]
    assert gaussian.alpha(p, q, order=2.0) == gaussian.alpha(p, q, order=-1.0) == INF
    slope = jax.grad(partial(gaussian.alpha, order=2.0))(p, q)
    assert (slope.mean == 0).all()


def test_values_on_a_common_subspace():
    """An oblique line is the one-dimensional pair N(0, 1), N(1/2, 2)."""
    p, q, _ = SINGULAR["oblique line"]
    a, b = one(0.0, 1.0), one(0.5, 2**0.5)
    np.testing.assert_allclose(all_of(p, q)[:-1], all_of(a, b)[:-1], rtol=1e-4)
    length = LINE @ LINE
    expected = length * gaussian.squared_wasserstein(a, b)
    np.testing.assert_allclose(gaussian.squared_wasserstein(p, q), expected, rtol=1e-5)
    rng = np.random.default_rng(4)
    for _ in range(3):  # a plane of random position
        span = np.linalg.qr(rng.normal(size=(4, 2)))[0]
        small = laws(rng, size=2)
        big = [
            Gaussian(
                *(jnp.asarray(x, jnp.float32) for x in (span @ m, symmetric(span @ c @ span.T)))
            )
            for m, c in small
        ]
        np.testing.assert_allclose(all_of(*big), all_of(*small), rtol=1e-3)


def test_wasserstein_of_singular_laws_is_exact():
    for case, expected in {
        "equal diracs": 0.0,
        "two diracs": 1.0,
        "dirac first": 3.25,
        "dirac second": 3.0,
        "one line": 1 + (2**0.5 - 1) ** 2,
        "crossing lines": 2.0,
        "line in plane": (2**0.5 - 1) ** 2 + 3,
    }.items():
        p, q, _ = SINGULAR[case]
        for a, b in ((p, q), (q, p)):
            value = gaussian.squared_wasserstein(a, b)
            np.testing.assert_allclose(value, expected, rtol=1e-6)
    slope, _ = jax.grad(gaussian.squared_wasserstein, (0, 1))(*SINGULAR["one line"][:2])
    expected = [[1 - 2**0.5, 0.0], [0.0, 1.0]]  # none has variance along the second axis
    np.testing.assert_allclose(slope.covariance, expected, atol=1e-6)


def test_where_it_is_infinite_the_means_still_pull():
    p, q, _ = SINGULAR["dirac first"]
    slope, _ = jax.grad(gaussian.kl, (0, 1))(p, q)
    np.testing.assert_allclose(slope.mean, (p.mean - q.mean) / jnp.array([1.0, 2.0]))
    thin = DiagonalGaussian(jnp.zeros(2), jnp.array([0.0, 1.0]))
    other = DiagonalGaussian(jnp.ones(2), jnp.array([0.0, 2.0]))
    assert gaussian.kl(thin, other) == INF
    np.testing.assert_allclose(jax.grad(gaussian.kl)(thin, other).mean, [0.0, -0.5])


def test_renyi_is_infinite_beyond_its_last_order():
    p, q = one(0.0, 2**0.5), one(0.0, 1.0)  # order B - (order - 1) A > 0 for order < 2
    assert np.isfinite(gaussian.renyi(p, q, order=1.99))
    assert gaussian.renyi(p, q, order=2.0) == INF
    value, slope = jax.value_and_grad(lambda p: gaussian.renyi(p, q, order=3.0))(p)
    assert value == INF
    assert slope.mean == slope.variance == 0


def test_types():
    p, q = one(0.0, 1.0), one(1.0, 1.5)
    low = [DiagonalGaussian(*(x.astype(jnp.bfloat16) for x in law)) for law in (p, q)]
    assert all_of(p, q).dtype == all_of(*low).dtype == jnp.float32
    assert jax.grad(gaussian.kl)(*low).mean.dtype == jnp.bfloat16
    np.testing.assert_allclose(gaussian.kl(*low), gaussian.kl(p, q), rtol=2e-2)


def test_float64_stays(x64):
    assert gaussian.kl(flat([0], 1), flat([1], 2)).dtype == jnp.float64
    assert gaussian.squared_wasserstein(flat([0], 1), flat([1], 2)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ((jnp.zeros(2), jnp.eye(2)), "p must be a Gaussian or DiagonalGaussian"),
        (Gaussian(jnp.zeros(2), jnp.ones(2)), r"p.covariance must be \[2, 2\], got float32 \[2\]"),
        (Gaussian(jnp.zeros(2), jnp.ones((2, 3))), r"p.covariance must be \[2, 2\]"),
        (DiagonalGaussian(jnp.zeros(2), jnp.ones(3)), r"p.variance must be \[2\]"),
        (Gaussian(jnp.zeros(()), jnp.ones(())), "p.mean must have at least 1 axes"),
        (Gaussian(jnp.zeros(3), jnp.eye(3)), r"q.mean must have the shape of p.mean, \[3\]"),
        (Gaussian(jnp.zeros(2, int), jnp.eye(2)), "p.mean must be a floating-point array"),
        (Gaussian(jnp.zeros(2), jnp.eye(2, dtype=int)), "p.covariance must be a floating-point"),
        (DiagonalGaussian(jnp.zeros(2), jnp.array([1.0, -1.0])), "p.variance must be >= 0"),
        (flat([0, 0], 1.0, -1.0), "p.covariance must be >= 0"),
        (Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.0, 1.0]])), "must be symmetric"),
        (Gaussian(jnp.zeros(2), jnp.array([[1.0, 2.0], [2.0, 1.0]])), "no negative eigenvalue.*-1"),
    ],
)
def test_bad_laws(p, message):
    with pytest.raises(ValueError, match=message):
        gaussian.kl(p, flat([0, 0], 1, 1))


def test_bad_orders():
    p = flat([0], 1)
    for order in (-1, INF, jnp.float32(0.5)):
        with pytest.raises(ValueError, match=r"gaussian\.renyi: order must be a finite"):
            gaussian.renyi(p, p, order=order)
    with pytest.raises(ValueError, match=r"gaussian\.alpha: order must be a finite"):
        gaussian.alpha(p, p, order=-INF)


def test_a_traced_variance_is_not_looked_at():
    assert np.isfinite(
        jax.jit(lambda v: gaussian.kl(DiagonalGaussian(v, v), one(0.0, 1.0)))(jnp.ones(1))
    )
    law = DiagonalGaussian(jnp.zeros(1), -jnp.ones(1))  # a constant inside a trace is
    with pytest.raises(ValueError, match="must be >= 0"):
        jax.jit(lambda m: gaussian.kl(law, DiagonalGaussian(m, jnp.ones(1))))(jnp.zeros(1))


def test_factorisations_of_value_and_gradient_are_few():
    """Batched LAPACK calls side by side can block each other, so derivatives have none."""

    def fn(p, q):
        return jnp.sum(gaussian.renyi(p, q, order=0.7))

    p, q = laws(np.random.default_rng(5), (2,))
    text = jax.jit(jax.value_and_grad(fn, (0, 1))).lower(p, q).compile().as_text()
    calls = Counter(re.findall(r'custom_call_target="lapack_\w(\w+?)_ffi"', text))
    assert calls == {"syevd": 1, "potrf": 2, "trsm": 2}


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("side", [0, 1])
def test_a_variance_that_is_nan_gives_nan(full, side):
    """And not what a singular law gives."""
    mean, variance = jnp.zeros(2), jnp.array([1.0, 2.0])

    def law(broken):
        spread = variance.at[0].set(jnp.nan) if broken else variance
        if full:
            return Gaussian(mean, jnp.diag(variance).at[0, 0].set(spread[0]))
        return DiagonalGaussian(mean, spread)

    pair = [law(i == side) for i in range(2)]
    for f in (gaussian.kl, gaussian.squared_hellinger, gaussian.bhattacharyya):
        assert jnp.isnan(f(*pair)), f
        assert jnp.isnan(jax.jit(f)(*pair)), f
    assert jnp.isnan(gaussian.squared_wasserstein(*pair))
    assert jnp.isnan(gaussian.renyi(*pair, order=0.5))


def test_digits_in_float32_go_with_the_condition_number():
    """What the docstring of kl says: 8 less its logarithm, to a factor of ten."""
    rng = np.random.default_rng(11)

    def covariance(condition):
        q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
        c = np.float32((q * np.geomspace(1, 1 / condition, 5)) @ q.T)
        return (c + c.T) / 2

    for condition in (1e1, 1e3, 1e5):
        m, n = np.float32(rng.normal(size=(2, 20, 5)))
        a, b = (np.stack([covariance(condition) for _ in range(20)]) for _ in range(2))
        value = jax.jit(gaussian.kl)(gaussian.Gaussian(m, a), gaussian.Gaussian(n, b))
        wide, other = np.float64(a), np.float64(b)
        inverse, d = np.linalg.inv(other), np.float64(n) - m
        quadratic = np.einsum("bi,bij,bj->b", d, inverse, d)
        traces = np.einsum("bij,bji->b", inverse, wide) - 5
        dets = np.linalg.slogdet(other)[1] - np.linalg.slogdet(wide)[1]
        error = np.abs(value / (0.5 * (quadratic + traces + dets)) - 1)
        assert np.median(error) < 1e-8 * condition + 1e-7
        assert error.max() < 1e-7 * condition + 1e-6


def test_derivatives_along_the_subspace_of_singular_laws():
    """Those of the laws of one dimension that they are; off it they mean nothing."""
    way = np.float32([0.6, 0.8])

    def kl(mean, spread, along):
        p = gaussian.Gaussian(mean * along, spread * jnp.outer(along, along))
        q = gaussian.Gaussian(jnp.zeros(2), 3.0 * jnp.outer(along, along))
        return gaussian.kl(p, q)

    value, slopes = jax.value_and_grad(kl, (0, 1))(jnp.float32(1.0), jnp.float32(2.0), way)
    np.testing.assert_allclose(value, 0.5 * (2 / 3 - 1 + np.log(1.5) + 1 / 3), rtol=1e-5)
    np.testing.assert_allclose(slopes, [1 / 3, 0.5 * (1 / 3 - 1 / 2)], rtol=1e-5)
