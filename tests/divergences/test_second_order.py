"""Second derivatives by reverse over reverse, which transposes what forward mode only evaluates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import (
    f_divergence,
    f_divergence_from_logits,
    generators,
    renyi,
    renyi_from_logits,
)

LAWS = jnp.array([1.0, 2.0, 0.5, -3.0]), jnp.array([0.0, 1.0, 3.0, -1.0])
ALONG = jnp.sin(LAWS[0]), jnp.cos(LAWS[1])


def of_log_probs(f):
    return lambda p, q, *rest: f(jax.nn.log_softmax(p), jax.nn.log_softmax(q), *rest)


ENTRANCES = {
    "logits": lambda p, q: [f_divergence_from_logits(p, q, g) for g in generators.ALL],
    "log-probs": lambda p, q: [of_log_probs(f_divergence)(p, q, g) for g in generators.ALL],
    "renyi": lambda p, q: [
        renyi_from_logits(p, q, order=0.5),
        of_log_probs(lambda a, b: renyi(a, b, order=0.5))(p, q),
    ],
}


@pytest.mark.parametrize("name", ENTRANCES)
def test_reverse_over_reverse_is_forward_over_reverse(name):
    """d/dz <grad, v> against d grad along v, for all records at once."""

    def gradients(laws):
        return jax.jacrev(lambda laws: jnp.stack(ENTRANCES[name](*laws)))(laws)

    def dotted(laws):
        return sum(jnp.tensordot(g, v, 1) for g, v in zip(gradients(laws), ALONG, strict=True))

    backwards = jax.jit(jax.jacrev(dotted))(LAWS)
    forwards = jax.jit(lambda laws: jax.jvp(gradients, (laws,), (ALONG,))[1])(LAWS)
    for ours, theirs in zip(backwards, forwards, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
