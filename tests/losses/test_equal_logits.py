"""A student that equals its teacher gets no gradient: not small, but 0, at any temperature."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import f_divergence_from_logits, generators
from divjax.losses import balanced_kd, temperature_kd


def slopes(student, teacher, temperature):
    """Of every record, and of BD-KD."""
    losses = [partial(temperature_kd, divergence=partial(f_divergence_from_logits, generator=g))
              for g in generators.ALL]  # fmt: skip
    return [
        jax.value_and_grad(lambda s, f=f: f(s, teacher, temperature=temperature).value)(student)
        for f in (*losses, balanced_kd)
    ]


@pytest.mark.parametrize("temperature", [1, 2.0, 3.0, 7.3])
def test_equal_logits_give_exactly_zero(temperature):
    """Total variation turns a difference of one rounding into a gradient of full size."""
    logits = np.random.default_rng(0).normal(size=(5, 11)) * 3
    z = jnp.asarray(logits, jnp.float32)
    runs = [
        slopes(z, z, temperature),
        jax.jit(lambda s: slopes(s, z, temperature))(z),  # the teacher is a constant
        jax.jit(slopes)(z, z, temperature),
    ]
    for value, slope in runs[0] + runs[1] + runs[2]:
        assert value == 0
        assert (slope == 0).all()


def test_softened_logits_are_the_quotient():
    """Infinite ones too, which are classes that are not there."""
    student = jnp.array([[3.0, -jnp.inf, 1.0]])
    teacher = jnp.array([[0.0, -jnp.inf, 2.0]])
    kd, slope = jax.value_and_grad(lambda s: temperature_kd(s, teacher, temperature=3.0).value)(
        student
    )
    p, q = (np.exp(z) / np.exp(z).sum() for z in (np.array([0, 2]) / 3, np.array([3, 1]) / 3))
    np.testing.assert_allclose(kd, 9 * np.sum(p * np.log(p / q)), rtol=1e-6)
    np.testing.assert_allclose(slope[0, ::2], 3 * (q - p), rtol=1e-5)
    assert slope[0, 1] == 0
