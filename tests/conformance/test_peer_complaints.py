"""One test per complaint filed against a peer library that an f-divergence of ours could share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import f_divergence, f_divergence_from_logits, generators

INF, NAN = np.inf, np.nan
P = np.float32([[1.0, -0.5, 2.0, 0.3], [0.0, 1.5, -1.0, 0.2]])
Q = np.float32([[0.2, 0.9, -1.0, 1.1], [2.0, -0.3, 0.4, 0.0]])
ALL = generators.ALL


@partial(jax.jit, static_argnames="records")
def value_and_gradients(z_p, z_q, where=None, records=ALL):
    """Values [records, N], gradients by both sides [records, N, K]."""

    def one(g):
        def total(z_p, z_q):
            values = f_divergence_from_logits(z_p, z_q, g, where=where)
            return values.sum(), values

        (_, values), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(z_p, z_q)
        return values, *grads

    return [jnp.stack(x) for x in zip(*map(one, records), strict=True)]


def test_optax_1786_masked_logits_and_zero_targets():
    """KL was NaN for masked logits, its gradient NaN at zero targets."""
    pad = np.full((2, 2), -INF, np.float32)
    values, *grads = value_and_gradients(P, Q)
    padded, *padded_grads = value_and_gradients(np.hstack([P, pad]), np.hstack([Q, pad]))
    np.testing.assert_allclose(padded, values, rtol=1e-6)
    for x, y in zip(padded_grads, grads, strict=True):
        np.testing.assert_allclose(x[..., :4], y, rtol=1e-5, atol=1e-7)
        assert not x[..., 4:].any()
    target = P.copy()
    target[:, 1] = -INF  # a zero target alone
    values, *grads = value_and_gradients(target, Q)
    for g, value in zip(ALL, values, strict=True):
        assert np.isfinite(value).all() == (g.at_zero < INF), g.name
    assert all(np.isfinite(x).all() for x in grads)
    assert not grads[0][..., 1].any()


def test_optax_1762_forward_mode_at_minus_infinity():
    """Forward mode was NaN at -inf logits where reverse mode was not."""
    z_p, z_q = P[0].copy(), Q[0].copy()
    z_p[[0, 2]], z_q[[0, 3]] = -INF, -INF

    def d(z_p, z_q):
        return jnp.stack([f_divergence_from_logits(z_p, z_q, g) for g in ALL])

    @jax.jit
    def run(z_p, z_q):
        shift = jnp.ones_like(z_p), jnp.ones_like(z_q)
        modes = [mode(d, (0, 1))(z_p, z_q) for mode in (jax.jacfwd, jax.jacrev)]
        return modes, jax.jvp(d, (z_p, z_q), shift)[1]

    (forward, backward), along = run(z_p, z_q)
    for x, y in zip(forward, backward, strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(along, 0, atol=1e-5)


@pytest.mark.parametrize("gap", [120.0, 1e4])
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_liger_769_underflowed_mixture(gap, weight):
    """JSD took the log of a mixture that had become 0."""
    z_p = np.float32([[0.0, -gap, -gap, -2 * gap]])
    z_q = np.float32([[-gap, 0.0, -gap, -3 * gap]])
    value, *grads = value_and_gradients(z_p, z_q, records=(generators.js(weight),))
    apart = -weight * np.log(weight) - (1 - weight) * np.log1p(-weight)
    np.testing.assert_allclose(value, apart, rtol=1e-6)
    assert all(np.isfinite(x).all() for x in grads)


def test_trl_5594_ms_swift_9767_mask_before_exp():
    """A sentinel at padding was masked after exp: exp(1e10) * 0 = NaN, in value or in gradient."""
    where = np.array([[True, True, True, False], [True, False, True, True]])
    expected = value_and_gradients(P, Q, where)
    for fill in np.float32([-INF, INF, NAN, 1e10, -1e10]):
        for z_p, z_q in ((np.where(where, P, fill), Q), (P, np.where(where, Q, fill))):
            got = value_and_gradients(z_p, z_q, where)
            for x, y in zip(got, expected, strict=True):
                np.testing.assert_array_equal(x, y)
            assert not any(np.asarray(x)[:, ~where].any() for x in got[1:])


def kl(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), -1)


def laws():
    return [np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in np.float64((P, Q))]


def test_trl_3043_orientation_and_limits_of_the_js_weight(x64):
    """beta weighed the wrong side: each limit and each orientation has its oracle."""
    p, q = laws()
    for b in (0.1, 0.25, 0.5, 0.9):
        m = b * p + (1 - b) * q
        expected = b * kl(p, m) + (1 - b) * kl(q, m)
        got = f_divergence(jnp.log(p), jnp.log(q), generators.js(b))
        np.testing.assert_allclose(got, expected, rtol=1e-12)
        swapped = f_divergence(jnp.log(q), jnp.log(p), generators.js(1 - b))
        np.testing.assert_allclose(swapped, expected, rtol=1e-12)
    b = 1e-7
    low = f_divergence(jnp.log(p), jnp.log(q), generators.js(b)) / b
    high = f_divergence(jnp.log(p), jnp.log(q), generators.js(1 - b)) / b
    np.testing.assert_allclose(low, kl(p, q), rtol=1e-5)
    np.testing.assert_allclose(high, kl(q, p), rtol=1e-5)
    for weight, limit in ((b, kl(p, q)), (1 - b, kl(q, p))):
        record = generators.js(weight, normalise=True)
        np.testing.assert_allclose(f_divergence(jnp.log(p), jnp.log(q), record), limit, rtol=1e-5)
    pair = [jnp.log(jnp.array(x, jnp.float64)) for x in ((0.5, 0.3, 0.2), (0.2, 0.5, 0.3))]
    printed = float(f_divergence(*pair, generators.js(1e-4))) / 1e-4
    assert printed == pytest.approx(0.2237764916, abs=6e-11)


def test_trl_2202_mixture_is_of_probabilities_not_of_logs(x64):
    """The mixture was taken in log space, b log p + (1 - b) log q."""
    p, q = laws()
    got = np.asarray(f_divergence(jnp.log(p), jnp.log(q), generators.js(0.5)))
    wrong = np.exp(0.5 * np.log(p) + 0.5 * np.log(q))
    arithmetic, geometric = (0.5 * (kl(p, m) + kl(q, m)) for m in ((p + q) / 2, wrong))
    np.testing.assert_allclose(got, arithmetic, rtol=1e-12)
    assert (np.abs(got - geometric) > 1e-3).all()


@pytest.mark.parametrize(
    ("divergence", "names"),
    [
        (f_divergence, ("log_p", "log_q")),
        (f_divergence_from_logits, ("logits_p", "logits_q")),
    ],
)
def test_modelopt_2489_trl_2215_unequal_vocabularies(divergence, names):
    """152064 columns against 151936: the error must name the arrays, both sizes and the cure."""
    z_p, z_q = (jax.ShapeDtypeStruct((2, size), jnp.float32) for size in (152064, 151936))
    with pytest.raises(ValueError, match="vocabular") as error:
        jax.eval_shape(lambda a, b: divergence(a, b, generators.kl), z_p, z_q)
    for word in (*names, "152064", "151936", "-inf"):
        assert word in str(error.value)
    # and the cure works: padding the shorter side is a vocabulary without these tokens
    short = np.log(laws()[1]).astype(np.float32)
    padded = np.pad(short, ((0, 0), (0, 3)), constant_values=-INF)
    longer = np.pad(np.log(laws()[0]).astype(np.float32), ((0, 0), (0, 3)), constant_values=-INF)
    np.testing.assert_allclose(
        divergence(longer, padded, generators.kl),
        divergence(longer[:, :4], short, generators.kl),
        rtol=1e-6,
    )


def test_liger_974_every_argument_acts():
    """`ignore_index` was accepted and never used."""
    base = np.asarray(f_divergence_from_logits(P, Q, generators.js(0.3)))
    where = jnp.array([[True, True, False, True]] * 2)
    changed = [
        f_divergence_from_logits(P, Q, generators.js(0.4)),
        f_divergence_from_logits(P, Q, generators.js(0.3, normalise=True)),
        f_divergence_from_logits(P, Q, generators.js(0.3), where=where),
        f_divergence_from_logits(P, Q, generators.js(0.3), max_log_ratio=0.5),
        f_divergence_from_logits(P.T, Q.T, generators.js(0.3), axis=1)[:2],
    ]
    for x in changed:
        assert (np.abs(np.asarray(x) - base) > 1e-3).all()
