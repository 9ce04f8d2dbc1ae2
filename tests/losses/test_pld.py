"""PLD against its printed numbers and a loop over the steps of the ranking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.losses import pld, pld_ranks

T, S = np.array([[2.0, 1.0, 0.0, -1.0]]), np.array([[0.5, 0.2, -0.3, 0.1]])
Y = np.array([1])
x64 = pytest.mark.usefixtures("x64")


def by_steps(student, teacher, label, weights=None, temperature=1.0):
    """The definition: choose the label, then the best of the rest by the teacher, and so on."""
    order = [label, *(k for k in np.argsort(-teacher, kind="stable") if k != label)]
    if weights is None:
        weights = np.exp(teacher / temperature)
        weights = weights / weights.sum()
    total = 0.0
    for place, k in enumerate(order):
        total += weights[k] * (np.log(np.exp(student[order[place:]]).sum()) - student[k])
    return total


def value(student, teacher, labels, **options):
    return pld(*map(jnp.asarray, (student, teacher, labels)), **options).value


@x64
def test_printed_numbers():
    np.testing.assert_allclose(value(S, T, Y), 0.8833301397, rtol=1e-9)
    for temperature, expected in ((0.5, 0.8224068003), (2.0, 0.8675808580), (4.0, 0.8248493788)):
        np.testing.assert_allclose(value(S, T, Y, temperature=temperature), expected, rtol=1e-9)
    gradient = jax.grad(lambda s: value(s, T, Y))(jnp.asarray(S))
    expected = [[-0.25731819, -0.17553371, 0.12153658, 0.31131532]]
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    np.testing.assert_allclose(value(0 * S, T, Y), 1.0962052726, rtol=1e-9)
    wrong = np.array([[4.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(value(S, wrong, Y), 0.7514284481, rtol=1e-9)
    at_teacher = jax.value_and_grad(lambda s: value(s, T, np.array([0])))(jnp.asarray(T))
    np.testing.assert_allclose(at_teacher[0], 0.4072982498, rtol=1e-9)
    np.testing.assert_allclose(
        at_teacher[1][0], [-0.229289, 0.073234, 0.090649, 0.065406], atol=1e-6
    )
    for c, expected in ((1, 0.394035646), (2, 0.137463240), (4, 0.017859608), (16, 1.089274e-7)):
        np.testing.assert_allclose(value(c * np.array([[2.0, 3, 1, 0]]), T, Y), expected, rtol=1e-6)


@x64
def test_weights_give_its_relatives():
    ranks = pld_ranks(jnp.asarray(T), jnp.asarray(Y))
    assert ranks.tolist() == [[1, 0, 2, 3]]
    one_hot = jax.nn.one_hot(jnp.asarray(Y), 4)
    cross_entropy = -jax.nn.log_softmax(jnp.asarray(S))[0, 1]
    np.testing.assert_allclose(value(S, T, Y, weights=one_hot), cross_entropy, rtol=1e-12)
    np.testing.assert_allclose(
        value(S, T, Y, weights=jnp.full((1, 4), 0.25)), 0.7538126863, rtol=1e-9
    )
    aware = 2.0 ** (3 - ranks) - 1
    np.testing.assert_allclose(value(S, T, Y, weights=aware), 12.6236616460, rtol=1e-9)
    best = jnp.where(ranks < 2, jax.nn.softmax(jnp.asarray(T)), 0.0)
    expected = by_steps(S[0], T[0], 1, weights=np.asarray(best[0]))
    np.testing.assert_allclose(value(S, T, Y, weights=best), expected, rtol=1e-12)


@x64
def test_random_batches_and_two_classes():
    rng = np.random.default_rng(0)
    s, t, y = rng.normal(size=(5, 7)) * 3, rng.normal(size=(5, 7)) * 3, rng.integers(0, 7, 5)
    for temperature in (1.0, 4.0):
        expected = np.mean(
            [by_steps(*row, temperature=temperature) for row in zip(s, t, y, strict=True)]
        )
        np.testing.assert_allclose(value(s, t, y, temperature=temperature), expected, rtol=1e-12)
    np.testing.assert_allclose(value(s + 1e4, t, y), value(s, t, y), rtol=1e-11)
    s, t, y = s[:, :2], t[:, :2], y % 2
    teacher = jax.nn.softmax(jnp.asarray(t))[np.arange(5), y]
    cross_entropy = -jax.nn.log_softmax(jnp.asarray(s))[np.arange(5), y]
    np.testing.assert_allclose(value(s, t, y), (teacher * cross_entropy).mean(), rtol=1e-12)


@x64
def test_ties_of_the_teacher_keep_the_order_of_the_classes():
    t = np.array([[1.0, 1.0, 1.0]])
    assert pld_ranks(jnp.asarray(t), jnp.array([2])).tolist() == [[1, 2, 0]]
    assert pld_ranks(jnp.asarray(t)).tolist() == [[0, 1, 2]]


@x64
def test_padded_classes_and_masked_rows():
    rng = np.random.default_rng(1)
    s, t, y = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), np.array([0, 3, 2])
    pad = np.full((3, 2), -np.inf)
    padded = np.concatenate([s, pad], 1), np.concatenate([t, pad], 1)
    run = jax.jit(jax.value_and_grad(lambda s, t, y: pld(s, t, y).value))
    plain, wide = run(s, t, y), run(*padded, y)
    np.testing.assert_allclose(wide[0], plain[0], rtol=1e-12)
    np.testing.assert_allclose(wide[1][:, :4], plain[1], atol=1e-15)
    assert (wide[1][:, 4:] == 0).all()
    mask = np.array([True, False, True])
    dirty = [np.where(mask[:, None], z, np.nan) for z in (s, t)]
    got = jax.jit(
        jax.value_and_grad(
            lambda s: (
                pld(
                    s, jnp.asarray(dirty[1]), jnp.where(mask, y, -100), mask=jnp.asarray(mask)
                ).value
            )
        )
    )(dirty[0])
    kept = run(s[mask], t[mask], y[mask])
    np.testing.assert_allclose(got[0], kept[0], rtol=1e-12)
    np.testing.assert_allclose(got[1][mask], kept[1], atol=1e-15)
    assert (got[1][1] == 0).all()


def test_a_label_that_is_no_class_is_not_passed_over():
    assert jnp.isnan(value(S, T, np.array([4])))
    assert jnp.isnan(value(S, T, np.array([-100])))


def test_the_teacher_gets_no_gradient_and_bf16_is_taken():
    s, t = (jnp.asarray(z, jnp.bfloat16) for z in (S, T))
    loss = pld(s, t, jnp.asarray(Y))
    assert loss.total.dtype == jnp.float32
    gradients = jax.grad(lambda s, t: pld(s, t, jnp.asarray(Y)).value, (0, 1))(s, t)
    assert gradients[0].dtype == jnp.bfloat16
    assert (gradients[1] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pld(S, T, jnp.array([1.0])), "labels must be int"),
        (lambda: pld(S, T, jnp.array([[1]])), "labels must be int"),
        (lambda: pld(S, T[:, :2], Y), "vocabularies of two sizes"),
        (lambda: pld(S, T, Y, temperature=-1.0), "temperature must be"),
        (lambda: pld(S, T, Y, weights=T[0]), "weights must have the shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_nan_is_no_perfect_loss():
    z, labels = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([1])
    for broken in (z.at[0, 0].set(jnp.nan), jnp.full_like(z, jnp.nan)):
        assert jnp.isnan(pld(broken, z, labels).value)
        assert jnp.isnan(pld(z, broken, labels).value)
