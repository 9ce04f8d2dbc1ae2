"""Sample estimators against exact expectations, by enumeration in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import estimators
from divjax.divergences import f_divergence, generators

P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
LP, LQ = jnp.log(jnp.float32(P)), jnp.log(jnp.float32(Q))


def moments(terms):
    terms = np.float64(terms)
    mean = P @ terms
    return mean, P @ (terms - mean) ** 2


@pytest.mark.parametrize(
    ("estimator", "mean", "variance"),
    [
        (estimators.k1, 0.0252671539, 0.0490863856),
        (estimators.k2, 0.0248624073, 0.0002054825),
        (estimators.k3, 0.0252671539, 0.0002545944),
    ],
)
def test_k1_k2_k3_means_and_variances(estimator, mean, variance):
    np.testing.assert_allclose(moments(estimator(LP, LQ)), (mean, variance), rtol=2e-5)


def test_best_control_coefficient_has_the_least_variance():
    best = estimators.under_p(LP, LQ, generators.kl, control=-1 + 0.9577980)
    np.testing.assert_allclose(moments(best), (0.0252671539, 0.0001596073), rtol=1e-4)


@pytest.mark.parametrize("g", generators.ALL, ids=lambda g: g.name)
def test_every_record_is_unbiased_under_either_law_and_never_negative(g):
    exact = float(f_divergence(LP, LQ, g))
    from_q, from_p = estimators.under_q(LP, LQ, g), estimators.under_p(LP, LQ, g)
    np.testing.assert_allclose(Q @ np.float64(from_q), exact, rtol=2e-5, atol=1e-8)
    np.testing.assert_allclose(P @ np.float64(from_p), exact, rtol=2e-5, atol=1e-8)
    assert (np.asarray(from_q) >= 0).all()
    assert (np.asarray(from_p) >= 0).all()
    # a control variate moves the terms and not the mean
    moved = estimators.under_q(LP, LQ, g, control=0.7)
    assert np.abs(moved - from_q).max() > 0.01
    np.testing.assert_allclose(Q @ np.float64(moved), exact, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("g", generators.ALL, ids=lambda g: g.name)
def test_scores_have_the_gradient_of_the_exact_divergence(g):
    def check(law, score, exact):
        expected = jax.grad(lambda z: exact(jax.nn.log_softmax(z)))(law)
        weights = jnp.exp(law)
        got = jax.grad(lambda z: jnp.sum(weights * score(jax.nn.log_softmax(z))))(law)
        np.testing.assert_allclose(got, expected, atol=2e-6 * (1 + np.abs(expected).max()))

    baseline = 0.3
    check(
        LP,
        lambda p: estimators.score_under_p(p, LQ, g, baseline=baseline),
        lambda p: f_divergence(p, LQ, g),
    )
    check(
        LQ,
        lambda q: estimators.score_under_q(LP, q, g, baseline=baseline),
        lambda q: f_divergence(LP, q, g),
    )


def test_verl_891_k3_overflows_to_inf_and_not_to_nan():
    terms = estimators.k3(jnp.array([-200.0, -1.0]), jnp.array([-1.0, -200.0]))
    assert terms.tolist() == [float("inf"), pytest.approx(198.0)]


def test_ms_swift_9767_a_masked_sample_is_masked_before_the_exponential():
    log_p = jnp.array([-1.0, -1e10, jnp.nan])
    log_q = jnp.array([-1.5, 0.0, -jnp.inf])
    mask = jnp.array([True, False, False])

    def total(p, q):
        return sum(
            jnp.sum(f(p, q))
            for f in (
                lambda p, q: estimators.k1(p, q, mask=mask),
                lambda p, q: estimators.k2(p, q, mask=mask),
                lambda p, q: estimators.k3(p, q, mask=mask),
                lambda p, q: estimators.under_q(p, q, generators.pearson, mask=mask),
                lambda p, q: estimators.score_under_p(p, q, generators.kl, mask=mask),
            )
        )

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(log_p, log_q)
    alone = total(log_p.at[1:].set(-1.0), log_q.at[1:].set(-1.0))
    assert value == alone
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert (gradient[1:] == 0).all()
        assert gradient[0] != 0


def test_trl_4967_the_value_and_the_gradient_are_chosen_apart():
    terms, slopes = jax.vjp(lambda p: estimators.with_gradient(estimators.k3(p, LQ), p * 3), LP)
    np.testing.assert_allclose(terms, estimators.k3(LP, LQ))
    np.testing.assert_allclose(slopes(jnp.ones(3))[0], 3.0)


def test_estimate_and_standard_error_count_the_unmasked():
    terms = jnp.array([1.0, 4.0, jnp.nan, 7.0])
    e = estimators.estimate(terms, mask=jnp.array([True, True, False, True]))
    kept = np.array([1.0, 4.0, 7.0])
    assert float(e.value) == kept.mean()
    assert float(e.n_effective) == 3
    expected = kept.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(estimators.standard_error(e), expected, rtol=1e-6)
    one = estimators.estimate(jnp.array([2.0]))
    assert np.isnan(estimators.standard_error(one))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], jnp.zeros(1)), r"log_p must be a floating-point array, got \[0.0\]"),
        ((jnp.zeros(2), jnp.zeros(3)), r"log_q must have the shape of log_p, \[2\]"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimators.k3(*arguments)
    with pytest.raises(
        ValueError, match=r"mask must be bool \[2\], got float32 \[2, 1\].*mask\[..., 0\] > 0"
    ):
        estimators.k3(jnp.zeros(2), jnp.zeros(2), mask=jnp.ones((2, 1)))


EDGES = (
    (-np.inf, -1.0), (-1.0, -np.inf), (-np.inf, -np.inf), (-1.0, -201.0), (-201.0, -1.0),
    (-1e10, -1.0), (-1.0, -1e10),
)  # fmt: skip


@pytest.mark.parametrize("estimator", [estimators.under_q, estimators.under_p])
def test_no_derivative_is_nan_at_the_edges(estimator):
    """All records in one function: values, both gradients, forward mode and second derivatives."""
    p, q = jnp.array(EDGES, jnp.float32).T

    def one(p, q):
        return jnp.stack([estimator(p, q, g) for g in generators.ALL])

    def derivatives(p, q):
        return one(p, q), jax.jacrev(one, (0, 1))(p, q), jax.jacfwd(jax.jacrev(one), (0, 1))(p, q)

    for x in jax.tree.leaves(jax.jit(jax.vmap(derivatives))(p, q)):
        assert not jnp.isnan(x).any()


def test_samples_where_the_other_law_is_zero_cost_the_limit():
    """f(0) for a sample of q that p cannot reach, f'(inf) for one of p that q cannot reach."""
    nothing, sample = jnp.float32(-np.inf), jnp.float32(-1.0)
    for g in generators.ALL:
        assert estimators.under_q(nothing, sample, g) == np.float32(g.at_zero)
        assert estimators.under_p(sample, nothing, g) == np.float32(g.at_inf)
        for score in (estimators.score_under_p, estimators.score_under_q):
            for pair in ((nothing, sample), (sample, nothing), (nothing, nothing)):
                gradients = jax.grad(lambda p, q, f=score, g=g: f(p, q, g), (0, 1))(*pair)
                assert jnp.isfinite(jnp.stack(gradients)).all()
    assert estimators.k3(nothing, sample) == np.inf
    assert estimators.k1(nothing, nothing) == estimators.k2(nothing, nothing) == 0
    assert jax.grad(estimators.k2)(sample, nothing) == 0


def test_the_gradient_of_a_sample_value_is_the_derivative_of_its_formula(x64):
    u = jnp.linspace(-3.0, 3.0, 25)
    for g in generators.ALL:
        if g.taylor is None:
            continue
        slope = jax.vmap(jax.grad(lambda p, g=g: estimators.under_q(p, jnp.zeros(()), g)))(u)
        np.testing.assert_allclose(slope, jnp.exp(u) * g.slope_p(u), rtol=1e-9, atol=1e-12)
        bend = jax.vmap(jax.grad(jax.grad(lambda p, g=g: estimators.under_q(p, jnp.zeros(()), g))))(
            u
        )
        second = jax.vmap(jax.grad(jax.grad(g.under_q)))(jnp.where(u == 0, 1e-3, u))
        np.testing.assert_allclose(jnp.where(u == 0, second, bend), second, rtol=1e-6, atol=1e-9)
