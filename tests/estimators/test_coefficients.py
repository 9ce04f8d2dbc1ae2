"""What a mean cannot see: signs of control variates and baselines, read off single terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import generators
from divjax.estimators import k1, k3, score_under_p, score_under_q, under_p, under_q

LP, LQ = jnp.array([-1.0, -2.0, -0.3]), jnp.array([-1.5, -0.7, -0.3])
REVERSE = generators.reverse(generators.kl)


def test_k3_and_k1_are_the_controls_0_and_minus_1():
    """Under either law: q's samples measure KL(q || p) by the record reverse(kl)."""
    pairs = [
        (under_q(LP, LQ, REVERSE, control=-1.0), LQ - LP),
        (under_q(LP, LQ, REVERSE), k3(LQ, LP)),
        (under_p(LP, LQ, generators.kl, control=-1.0), LP - LQ),
        (under_p(LP, LQ, generators.kl), k3(LP, LQ)),
    ]
    for got, expected in pairs:
        np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(k1(LP, LQ), LP - LQ)


@pytest.mark.parametrize("baseline", [0.3, jnp.array([0.1, -2.0, 5.0])])
@pytest.mark.parametrize("g", generators.ALL, ids=lambda g: g.name)
def test_the_baseline_is_taken_from_each_weight(g, baseline):
    u = LP - LQ
    got = jax.grad(lambda p: score_under_p(p, LQ, g, baseline=baseline).sum())(LP)
    np.testing.assert_allclose(got, g.slope_p(u) - baseline, rtol=1e-6, atol=1e-7)
    got = jax.grad(lambda q: score_under_q(LP, q, g, baseline=baseline).sum())(LQ)
    np.testing.assert_allclose(got, g.slope_q(u) - baseline, rtol=1e-6, atol=1e-7)
