"""NaN in an unmasked entry gives NaN out of that row, and of no other: never a perfect loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import divergences, losses
from divjax.divergences import gaussian, generators, plackett_luce, ranking

P, Q, R = (
    jax.nn.log_softmax(jnp.asarray(z, jnp.float32))
    for z in np.random.default_rng(0).normal(size=(3, 3, 4))
)
LINE = jnp.exp(R)
RANKS = jnp.asarray([[1.0, 0.0, 1.0, 2.0]] * 3)
EVENTS = jnp.array([[True, False, True, True]] * 3)
LABELS = jnp.array([0, 1, 2])
SPREAD = jnp.asarray([[2.0, 0.5, 0.0, 0.0]] * 3), jnp.eye(4)
FULL = jnp.stack([jnp.eye(4) * s + 0.1 for s in (1.0, 2.0, 3.0)])
SOLVERS = {"unrolled": divergences.transport.unrolled(5), "ott": divergences.transport.converged()}


def rows(fn):
    """A function of one row or cloud, of each row alone."""
    return jax.vmap(fn)


def of_means(loss):
    return rows(lambda *row: loss(*(x[None] for x in row)).value)


def clouds(loss):
    """SinKD of two rows, of which the second is known."""
    return rows(lambda s, t: loss(jnp.stack([s, P[0]]), jnp.stack([t, Q[0]]))[0].value)


def of_laws(fn):
    """Of full and of diagonal Gaussians."""

    def run(mean, covariance, other, second):
        full = gaussian.Gaussian(mean, covariance), gaussian.Gaussian(other, second)
        diagonal = (gaussian.DiagonalGaussian(x.mean, jax.vmap(jnp.diag)(x.covariance))
                    for x in full)  # fmt: skip
        return jnp.stack([fn(*full), fn(*diagonal)], axis=-1)

    return run


FREE = {name: vars(divergences)[name] for name in (
    "jeffreys", "js", "kl", "lecam", "neyman", "pearson", "reverse_kl", "skew_kl",
    "skew_reverse_kl", "soft_reverse_kl", "squared_hellinger", "tv",
)}  # fmt: skip
POTENTIALS = (
    divergences.negative_entropy, divergences.minus_log, divergences.density_power(0.5),
    divergences.half_square, divergences.categorical_log_partition,
)  # fmt: skip

# Name -> (a function of rows, its arguments, [3, ...] each).
CASES = {
    **{f"divergences.{name}": (fn, P, Q) for name, fn in FREE.items()},
    "divergences.alpha": (partial(divergences.alpha, order=0.3), P, Q),
    "divergences.tsallis": (partial(divergences.tsallis, order=1.5), P, Q),
    "divergences.renyi": (
        lambda p, q: [divergences.renyi(p, q, order=a) for a in (0.0, 0.5, 1.0, 2.0)], P, Q),
    "divergences.renyi_from_logits": (
        lambda p, q: [divergences.renyi_from_logits(p, q, order=a) for a in (0.0, 0.5, 1.0, 2.0)],
        P, Q),
    "divergences.f_divergence": (
        lambda p, q: [divergences.f_divergence(p, q, g) for g in generators.ALL], P, Q),
    "divergences.f_divergence_from_logits": (
        lambda p, q: [divergences.f_divergence_from_logits(p, q, g) for g in generators.ALL],
        P, Q),
    "divergences.conjugate": (
        lambda s: [divergences.conjugate(g, s) for g in generators.ALL], -jnp.exp(P)),
    "divergences.inverse_slope": (
        lambda s: [divergences.inverse_slope(g, s) for g in generators.ALL], -jnp.exp(P)),
    "divergences.bregman": (
        lambda x, y: [divergences.bregman(x, y, phi) for phi in POTENTIALS],
        jnp.exp(P), jnp.exp(Q)),
    "divergences.fenchel_young": (
        lambda z, y: divergences.fenchel_young(
            z, y, divergences.negative_entropy, divergences.categorical_log_partition),
        P, jnp.exp(Q)),
    "divergences.exponential_family_kl": (
        lambda p, q: [divergences.exponential_family_kl(p, q, a) for a in (
            divergences.categorical_log_partition, divergences.poisson_log_partition)], P, Q),
    "divergences.exponential_family_renyi": (
        lambda p, q: [divergences.exponential_family_renyi(
            p, q, divergences.bernoulli_log_partition, order=a) for a in (0.0, 0.5, 2.0)], P, Q),
    **{f"divergences.{name}": (vars(divergences)[name], LINE) for name in (
        "bernoulli_log_partition", "categorical_log_partition", "poisson_log_partition",
        "half_square", "minus_log", "negative_entropy")},
    **{f"divergences.gaussian.{name}": (of_laws(fn), P, FULL, Q, FULL[::-1]) for name, fn in {
        "alpha": partial(gaussian.alpha, order=0.3), "bhattacharyya": gaussian.bhattacharyya,
        "kl": gaussian.kl, "renyi": partial(gaussian.renyi, order=2.0),
        "squared_hellinger": gaussian.squared_hellinger,
        "squared_wasserstein": gaussian.squared_wasserstein}.items()},
    "divergences.plackett_luce": (
        lambda s, r: [plackett_luce(s, r, events=e, ties=ties).sum(-1)
            for e in (None, EVENTS) for ties in (ranking.efron, ranking.breslow)], P, RANKS),
    "divergences.squared_euclidean": (
        rows(lambda x, y: divergences.squared_euclidean(x[:, None], y[:, None]).sum()), P, Q),
    "divergences.manhattan": (
        rows(lambda x, y: divergences.manhattan(x[:, None], y[:, None]).sum()), P, Q),
    "divergences.wasserstein_1d": (
        lambda x, y, a, b: [divergences.wasserstein_1d(x, y, a, b, power=k) for k in (1.0, 2.0)],
        LINE, LINE[::-1], P, Q),
    "divergences.sliced_wasserstein": (
        rows(lambda x, y, a, b: divergences.sliced_wasserstein(
            jax.random.key(0), x[:, None], y[:, None], a, b).value), LINE, LINE[::-1], P, Q),
    "divergences.sinkhorn": (
        rows(lambda x, a, b: [divergences.sinkhorn(
            jnp.abs(x[:, None] - x) , a, b, epsilon=0.5, solver=s)[:2] for s in SOLVERS.values()]),
        LINE, P, Q),
    "divergences.sinkhorn_divergence": (
        rows(lambda x, y, a, b: [divergences.sinkhorn_divergence(
            x[:, None], y[:, None], a, b, epsilon=0.5, solver=s).value for s in SOLVERS.values()]),
        LINE, LINE[::-1], P, Q),
    "divergences.token_log_prob": (lambda z: divergences.token_log_prob(z, LABELS), P),
    "divergences.token_log_probs": (
        lambda z: divergences.token_log_probs(divergences.Logits(z), LABELS, block=2), P),
    "divergences.entropies": (lambda z: divergences.entropies(divergences.Logits(z), block=2), P),
    "divergences.log_normalisers": (
        lambda z: divergences.log_normalisers(divergences.Logits(z), block=2), P),
    "divergences.fused_divergence": (
        lambda p, h: divergences.fused_divergence(
            divergences.Logits(p), divergences.Linear(h, SPREAD[1]), generators.kl, block=2),
        P, Q),
    "divergences.fused_rows": (
        lambda h: divergences.fused_rows(
            lambda z: z.sum(-1), divergences.Linear(h, SPREAD[1]), block=2),
        Q),
    "divergences.fused_sum": (
        lambda h: divergences.fused_sum(
            lambda z: z.sum(-1), jnp.ones(3), divergences.Linear(h, SPREAD[1]), block=2)[1],
        Q),
    "divergences.top_k": (
        lambda z: list(divergences.top_k(divergences.Logits(z), 2)[1:]), P),
    "divergences.top_k_bounds": (
        lambda z: list(divergences.top_k_bounds(
            divergences.top_k(divergences.Logits(P), 2), z, generators.kl)), Q),
    "losses.forward_kl": (losses.forward_kl, P, Q),
    "losses.temperature_kd": (of_means(losses.temperature_kd), P, Q),
    "losses.balanced_kd": (of_means(losses.balanced_kd), P, Q),
    "losses.entropy_balance": (lambda s, t: list(losses.entropy_balance(s, t)), P, Q),
    "losses.pld": (
        lambda s, t: [of_means(loss)(s, t) for loss in (
            losses.pld, lambda s, t: losses.pld(s, t, jnp.array([1])),
            lambda s, t: losses.pld(s, t, weights=jnp.ones_like(s)))], P, Q),
    "losses.sinkd": (clouds(losses.sinkd), P, Q),
    "losses.sinkd_debiased": (clouds(losses.sinkd_debiased), P, Q),
}  # fmt: skip
NO_FLOATS_OUT = {
    "divergences.Bounds", "divergences.Linear", "divergences.Logits", "divergences.TopK",
    "divergences.Power", "divergences.density_power", "divergences.gaussian",
    "divergences.generators", "divergences.ranking", "divergences.transport",
    "losses.Balance", "losses.FromLogits",
    "losses.pld_ranks",  # places are integers; the losses that use them know the logits
}  # fmt: skip


def test_every_public_function_is_here():
    names = {f"{room.__name__.removeprefix('divjax.')}.{name}"
             for room in (divergences, losses) for name in room.__all__}  # fmt: skip
    assert names <= set(CASES) | NO_FLOATS_OUT


@pytest.mark.parametrize("name", CASES)
def test_nan_comes_out_of_its_row_alone(name):
    fn, *arguments = CASES[name]
    run = jax.jit(lambda *args: jnp.concatenate(
        [jnp.reshape(x, (3, -1)) for x in jax.tree.leaves(fn(*args))], axis=1))  # fmt: skip
    clean = run(*arguments)
    assert not np.isnan(clean).any()
    alone = name in ("divergences.conjugate", "divergences.inverse_slope")  # entry by entry
    for i, argument in enumerate(arguments):
        for place in range(4):
            spoilt = argument.at[1, place].set(jnp.nan)
            out = run(*arguments[:i], spoilt, *arguments[i + 1 :])
            bad = np.isnan(out[1]).reshape(-1, 4)[:, place] if alone else np.isnan(out[1])
            assert bad.all(), (i, place, out[1])
            np.testing.assert_array_equal(out[::2], clean[::2])
