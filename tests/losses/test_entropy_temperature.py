"""The two temperatures of BD-KD are two: one of the divergences, one of the entropies."""

import jax.numpy as jnp
import numpy as np
import pytest

from divjax.losses import balanced_kd, entropy_balance

# At temperature 1 the student is the flatter law of the two, at 4 the sharper.
STUDENT, TEACHER = np.array([[0.0, 6.0, 6.0, 0.0]]), np.array([[6.0, 3.0, 3.0, 3.0]])
S, T = jnp.float32(STUDENT), jnp.float32(TEACHER)


def law(z, temperature):
    e = np.exp(z / temperature)
    return e / e.sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize(("temperature", "weights"), [(1.0, (1, 2)), (4.0, (2, 1))])
def test_the_sharper_law_depends_on_the_temperature_of_the_entropies(temperature, weights):
    student, teacher = law(STUDENT, temperature), law(TEACHER, temperature)
    assert (entropy(teacher) > entropy(student)).item() == (weights == (2, 1))
    balance = entropy_balance(S, T, temperature=temperature)
    assert (balance.forward.item(), balance.reverse.item()) == weights


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("entropies", "weights"), [(1.0, (1, 2)), (4.0, (2, 1))])
def test_each_temperature_has_its_own_effect(temperature, entropies, weights):
    p, q = law(TEACHER, temperature), law(STUDENT, temperature)
    expected = temperature**2 * (weights[0] * kl(p, q) + weights[1] * kl(q, p))
    got = balanced_kd(S, T, temperature=temperature, entropy_temperature=entropies)
    np.testing.assert_allclose(got.value, expected[0], rtol=1e-5)
