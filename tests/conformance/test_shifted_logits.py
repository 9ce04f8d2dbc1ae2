"""Close laws whose logits stand at different heights: accurate at the arrays handed in.

The difference of two logits of different size is rounded at the larger of them, and what is left
after the heights are subtracted may be smaller than that rounding. Two heads that were trained
apart, or a teacher with a large bias, look like this.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import f_divergence_from_logits, generators

OFFSETS = (0.0, 37.0, -300.0, 1000.0, -6e4)
# record -> value and slopes (by p, by q) as functions of u, without cancellation
CURVES = {
    "kl": (
        generators.kl,
        lambda u, p, q: p * (u + np.expm1(-u)),
        lambda u: u,
        lambda u: -np.expm1(u),
    ),
    "reverse_kl": (
        generators.reverse(generators.kl),
        lambda u, p, q: q * (np.expm1(u) - u),
        lambda u: -np.expm1(-u),
        lambda u: -u,
    ),
    "squared_hellinger": (
        generators.squared_hellinger,
        lambda u, p, q: q * np.expm1(u / 2) ** 2 / 2,
        lambda u: -np.expm1(-u / 2) / 2,
        lambda u: -np.expm1(u / 2) / 2,
    ),
    "pearson": (
        generators.pearson,
        lambda u, p, q: q * np.expm1(u) ** 2,
        lambda u: 2 * np.expm1(u),
        lambda u: -np.expm1(2 * u),
    ),
}


@cache
def logits(which):
    """[5, 64] float32 twice: the offset on one side, noise of some spacings of the larger side."""
    rng = np.random.default_rng(0)
    z = np.float32(2 * rng.normal(size=(len(OFFSETS), 64)))
    offset = np.array(OFFSETS)[:, None]
    noise = rng.normal(size=z.shape) * np.maximum(3e-4, 10 * np.spacing(np.float32(abs(offset))))
    moved = np.float32(z + offset + noise)
    return (z, moved) if which == "second" else (moved, z)


def log_softmax(z):
    z = z.astype(np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@partial(jax.jit, static_argnums=2)
def ours(z_p, z_q, g):
    def total(z_p, z_q):
        values = f_divergence_from_logits(z_p, z_q, g)
        return values.sum(), values

    (_, values), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(z_p, z_q)
    return values, *grads


@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("name", CURVES)
def test_height_of_the_logits(name, which):
    g, cost, slope_p, slope_q = CURVES[name]
    z_p, z_q = logits(which)
    log_p, log_q = log_softmax(z_p), log_softmax(z_q)
    p, q, u = np.exp(log_p), np.exp(log_q), log_p - log_q
    value, *grads = ours(jnp.asarray(z_p), jnp.asarray(z_q), g)
    expected = cost(u, p, q).sum(-1)
    assert (expected > 1e-10).all()
    assert (expected >= 1e-4).any()
    tolerance = np.where(expected >= 1e-4, 1e-5, 2e-3)
    assert (np.abs(np.float64(value) - expected) <= tolerance * expected).all()
    for got, law, slope in ((grads[0], p, slope_p(u)), (grads[1], q, slope_q(u))):
        truth = law * (slope - (law * slope).sum(-1, keepdims=True))
        error = np.linalg.norm(np.asarray(got) - truth, axis=-1)
        assert (error <= 2e-3 * np.linalg.norm(truth, axis=-1)).all()
