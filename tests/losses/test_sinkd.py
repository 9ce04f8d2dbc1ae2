"""SinKD against the numbers and the loop of the released algorithm, on one device and on eight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from divjax.divergences.transport import converged, unrolled
from divjax.losses import sinkd, sinkd_debiased

STUDENT = np.array([[2, 0.1, -1], [0.3, 1, -0.2], [-1, 0.4, 3]])
TEACHER = np.array([[3, -0.3, 0.2], [0, 2, 0.5], [-0.1, 0.15, 1]])
x64 = pytest.mark.usefixtures("x64")


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def released(student, teacher, iterations=20, epsilon=0.1, temperature=2.0):
    """Divide every row by its sum, then every column, so many times; sum of plan times cost."""
    p, q = softmax(student / temperature), softmax(teacher / temperature)
    cost = np.abs(p[:, None] - q).sum(-1)
    plan = np.exp(-cost / epsilon)
    for _ in range(iterations):
        plan /= plan.sum(1, keepdims=True)
        plan /= plan.sum(0, keepdims=True)
    return (plan * cost).sum()


def logits(n=6, k=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)) * 2, rng.normal(size=(n, k)) * 2


@x64
def test_printed_numbers():
    mean, plan = sinkd(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    np.testing.assert_allclose(mean.total, 1.0002227410, rtol=1e-9)
    np.testing.assert_allclose(mean.value, 1.0002227410 / 3, rtol=1e-9)
    assert mean.weight == 3
    np.testing.assert_allclose(
        jnp.exp(plan.log_plan)[0], [0.99535073, 0.00289826, 0.00346874], atol=1e-8
    )
    np.testing.assert_allclose(
        jnp.exp(plan.log_plan).sum(1), [1.00171773, 1.00005409, 0.99822818], atol=1e-8
    )
    gradient = jax.grad(lambda s: sinkd(s, jnp.asarray(TEACHER))[0].total)(jnp.asarray(STUDENT))
    expected = [[-0.15734741, 0.18962073, -0.03227332], [0.23534747, -0.16689107, -0.0684564],
                [-0.06791979, -0.13925286, 0.20717266]]  # fmt: skip
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    values = {1: 0.97114682, 2: 0.97698166, 5: 0.98834520, 10: 0.99666796, 1000: 1.00082462}
    for n, value in values.items():
        total = sinkd(jnp.asarray(STUDENT), jnp.asarray(TEACHER), solver=unrolled(n))[0].total
        np.testing.assert_allclose(total, value, atol=1e-8)
    for clouds, bias in ((STUDENT, 0.002766152967), (TEACHER, 0.007037341808)):
        total = sinkd(jnp.asarray(clouds), jnp.asarray(clouds))[0].total
        np.testing.assert_allclose(total, bias, rtol=1e-8)


@x64
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_released_loop(seed):
    s, t = logits(seed=seed)
    for epsilon, temperature in ((0.1, 2.0), (0.3, 1.0)):
        options = {"epsilon": epsilon, "temperature": temperature}
        got = sinkd(jnp.asarray(s), jnp.asarray(t), **options)[0].total
        np.testing.assert_allclose(got, released(s, t, **options), rtol=1e-10)


def test_float32():
    got = sinkd(jnp.asarray(STUDENT, jnp.float32), jnp.asarray(TEACHER, jnp.float32))[0].total
    np.testing.assert_allclose(got, 1.0002227, rtol=1e-6)
    small = sinkd(
        jnp.asarray(STUDENT, jnp.float32), jnp.asarray(TEACHER, jnp.float32), epsilon=0.005
    )
    assert jnp.isfinite(small[0].total)  # the kernel itself underflows there


@x64
def test_limits():
    s, t = jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    cost = np.abs(softmax(STUDENT / 2)[:, None] - softmax(TEACHER / 2)).sum(-1)
    np.testing.assert_allclose(sinkd(s, t, epsilon=1e6)[0].total, cost.sum() / 3, rtol=1e-5)
    best = cost[linear_sum_assignment(cost)].sum()
    np.testing.assert_allclose(
        sinkd(s, t, epsilon=0.005, solver=unrolled(2000))[0].total, best, rtol=1e-9
    )
    one = sinkd(s[:1], t[:1])[0]
    np.testing.assert_allclose(
        one.total, cost[0, 0], rtol=1e-12
    )  # b = 1: twice the total variation
    first = np.array([0.3, 1, -2, 0.5]), np.array([2, -1, 0.1, 0.7])
    pair = [jnp.stack([jnp.asarray(z), jnp.zeros(4)], 1) for z in first]
    np.testing.assert_allclose(
        sinkd(*pair, epsilon=0.001, solver=unrolled(3000))[0].total, 0.533144043, rtol=1e-5
    )
    np.testing.assert_allclose(sinkd(*pair)[0].total, 0.677476968, rtol=1e-8)


@x64
def test_rows_are_not_paired():
    s, t = map(jnp.asarray, logits())
    np.testing.assert_allclose(sinkd(s, t[::-1])[0].total, sinkd(s, t)[0].total, rtol=1e-12)


@x64
def test_the_mean_does_not_depend_on_the_size_of_the_batch():
    s, t = map(jnp.asarray, logits())
    solver = converged(tolerance=1e-9, max_iterations=5000)
    once, twice = (
        sinkd(jnp.tile(s, (n, 1)), jnp.tile(t, (n, 1)), solver=solver)[0] for n in (1, 2)
    )
    np.testing.assert_allclose(twice.value, once.value, rtol=1e-7)
    np.testing.assert_allclose(twice.total, 2 * once.total, rtol=1e-7)


@x64
@pytest.mark.parametrize("loss", [sinkd, sinkd_debiased], ids=lambda f: f.__name__)
def test_masked_rows_are_deleted_rows(loss):
    s, t = logits()
    mask = np.array([True, False, True, True, False, True])
    dirty_s, dirty_t = (jnp.asarray(np.where(mask[:, None], z, np.nan)) for z in (s, t))
    run = jax.jit(jax.value_and_grad(lambda s, t, m: loss(s, t, mask=m)[0].total))
    masked = run(dirty_s, dirty_t, jnp.asarray(mask))
    kept = run(jnp.asarray(s[mask]), jnp.asarray(t[mask]), jnp.ones(4, bool))
    np.testing.assert_allclose(masked[0], kept[0], rtol=1e-10)
    np.testing.assert_allclose(masked[1][mask], kept[1], atol=1e-12)
    assert (np.asarray(masked[1])[~mask] == 0).all()
    nothing = loss(dirty_s, dirty_t, mask=jnp.zeros(6, bool))[0]
    assert nothing.value == nothing.total == nothing.weight == 0


@x64
@pytest.mark.parametrize("loss", [sinkd, sinkd_debiased], ids=lambda f: f.__name__)
def test_the_teacher_gets_no_gradient_and_the_student_the_right_one(loss):
    s, t = map(jnp.asarray, logits())
    fn = jax.jit(lambda s, t: loss(s, t)[0].value)
    assert (jax.grad(fn, 1)(s, t) == 0).all()
    gradient = jax.grad(fn)(s, t)
    step = jnp.zeros_like(s).at[2, 1].set(1e-5)
    np.testing.assert_allclose(
        gradient[2, 1], (fn(s + step, t) - fn(s - step, t)) / 2e-5, atol=1e-9
    )


@x64
def test_the_debiased_one_is_zero_where_it_should_be():
    s, t = map(jnp.asarray, logits())
    solver = converged(tolerance=1e-10, max_iterations=20000)
    np.testing.assert_allclose(sinkd_debiased(s, s[::-1], solver=solver)[0].value, 0.0, atol=1e-12)
    gradient = jax.grad(lambda z: sinkd_debiased(z, s, solver=solver)[0].value)(s)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-8)
    assert sinkd_debiased(s, t, solver=solver)[0].value > 0
    biased = jax.grad(lambda z: sinkd(z, s, solver=solver)[0].value)(s)
    assert jnp.abs(biased).max() > 1e-3


@pytest.mark.parametrize("loss", [sinkd, sinkd_debiased], ids=lambda f: f.__name__)
def test_one_plan_over_all_devices(loss):
    """Value and gradient of the whole batch, in one place and with its rows on four devices."""
    s, t = (jnp.asarray(z, jnp.float32) for z in logits(n=16))
    mask = jnp.asarray(np.arange(16) % 5 != 0).at[4:8].set(False)  # one device has no valid row

    def shard(s, t, m):
        return loss(s, t, mask=m, axis_name="i")[0]

    def over_devices(s, t, m):
        parts = jax.vmap(shard, axis_name="i")(*(z.reshape(4, 4, *z.shape[1:]) for z in (s, t, m)))
        return jax.tree.map(lambda x: x.sum(0), parts)

    whole, parts = loss(s, t, mask=mask)[0], over_devices(s, t, mask)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    expected = jax.grad(lambda s: loss(s, t, mask=mask)[0].total)(s)
    got = jax.grad(lambda s: over_devices(s, t, mask).total)(s)
    np.testing.assert_allclose(got, expected, atol=1e-6 * jnp.abs(expected).max())
    local = jax.vmap(lambda s, t, m: loss(s, t, mask=m)[0], axis_name="i")(
        *(z.reshape(4, 4, *z.shape[1:]) for z in (s, t, mask)))  # fmt: skip
    assert not np.isclose(local.total.sum(), whole.total, rtol=1e-3)  # another loss, on purpose


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: sinkd(z[0], z[0]), r"logits must be \[B, K\]"),
        (lambda z: sinkd(z, z, temperature=0.0), "temperature must be"),
        (lambda z: sinkd(z, z, epsilon=-1.0), "^sinkd: epsilon must be"),
        (lambda z: sinkd_debiased(z, z, epsilon=0.0), "^sinkd_debiased: epsilon must be"),
        (lambda z: sinkd(z, z[:, :2]), "vocabularies of two sizes"),
        (lambda z: sinkd_debiased(z, z, mask=jnp.ones((4, 1))), "mask must be bool"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((4, 3)))


def test_nothing_calls_back_to_python():
    z = jnp.zeros((4, 3))
    for solver in (unrolled(20), converged()):
        gradient = jax.grad(lambda s, r=solver: partial(sinkd, solver=r)(s, z)[0].value)
        assert "callback" not in str(jax.make_jaxpr(gradient)(z))
