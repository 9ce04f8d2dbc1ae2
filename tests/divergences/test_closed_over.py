"""A concrete array in the closure of a jitted function: the usual way to hand in a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import f_divergence, f_divergence_from_logits, generators, renyi

P = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
Q = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]))


@pytest.mark.parametrize(
    "divergence",
    [
        lambda p, q: f_divergence(p, q, generators.kl),
        lambda p, q: f_divergence_from_logits(p, q, generators.kl),
        lambda p, q: renyi(p, q, order=2.0),
    ],
)
def test_a_constant_teacher_under_jit_grad_and_vmap(divergence):
    expected = divergence(P, Q)
    np.testing.assert_allclose(jax.jit(lambda q: divergence(P, q))(Q), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda p: divergence(p, Q))(P), expected, rtol=1e-6)
    rows = jax.jit(jax.vmap(lambda q: divergence(P[0], q)))(Q)
    np.testing.assert_allclose(rows[0], expected[0], rtol=1e-6)
    slope = jax.jit(jax.grad(lambda q: divergence(P, q).sum()))(Q)
    assert np.isfinite(slope).all()


def test_probabilities_in_a_closure_are_refused_under_jit_too():
    teacher = jnp.exp(P)
    with pytest.raises(ValueError, match=r"log_p must not be probabilities.*pass jnp.log\(log_p\)"):
        jax.jit(lambda q: f_divergence(teacher, q, generators.kl))(Q)
    with pytest.raises(ValueError, match="logits_p must not be probabilities"):
        jax.jit(lambda q: f_divergence_from_logits(teacher, q, generators.kl))(Q)
