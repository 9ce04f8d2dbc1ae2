"""Every public device function, with its gradient, is lowered for four platforms in one call."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

from divjax import core, divergences, estimators, losses, measure
from divjax.divergences import gaussian, generators
from divjax.models import MLP, split
from divjax.optim import adaptive_kl, ema
from divjax.train import make_eval, make_step

PLATFORMS = ("tpu", "cuda", "rocm", "cpu")
ROOMS = ("core", "divergences", "divergences.gaussian", "estimators", "losses", "measure")

P, Q = jnp.log(jnp.array([[0.5, 0.3, 0.2]] * 4)), jnp.log(jnp.array([[0.2, 0.5, 0.3]] * 4))
X, MASK = jnp.array([-1.0, 0.5, -2.0, 0.1]), jnp.array([True, False, True, True])
WHERE = jnp.ones((4, 3), bool)
LABELS = jnp.array([0, 1, 2, 0])
CONTEXT = core.Context(jax.random.key(0), jnp.int32(0), jnp.arange(4))
ENTRANCES = (divergences.f_divergence, divergences.f_divergence_from_logits)
SOLVERS = (divergences.transport.unrolled(20), divergences.transport.converged())
MEAN = core.Mean(jnp.float32(6.0), jnp.float32(4.0))

MEANS, SPREAD = jnp.array([[0.0, 1.0], [1.0, -1.0]]), jnp.array([[2.0, 0.5], [0.5, 1.0]])
COVARIANCES = jnp.stack([SPREAD, jnp.eye(2)])


def both_kinds(divergence):
    """Of full and of diagonal laws; [N, D], [N, D, D] against the laws in turned order."""

    def run(mean, covariance):
        full = gaussian.Gaussian(mean, covariance)
        diagonal = gaussian.DiagonalGaussian(mean, jnp.linalg.diagonal(covariance))
        return [divergence(law, type(law)(*(x[::-1] for x in law))) for law in (full, diagonal)]

    return run


def over_devices(fn):
    """fn(x, axis_name) on four devices, one value each."""
    return lambda x: jax.vmap(partial(fn, axis_name="i"), axis_name="i")(x)


def all_records(divergence):
    return lambda p, q, where: jnp.stack([divergence(p, q, g, where=where) for g in generators.ALL])


# Name -> (function, arguments): the gradient by every array of floats among the arguments.
CASES = {
    "core.Loss": (lambda total: core.Loss({"a": (0.5, MEAN._replace(total=total))}).value, X[0]),
    "core.Mean": (lambda total: MEAN._replace(total=total).value, X[0]),
    "core.all_rows": (over_devices(core.all_rows), P),
    "core.all_sum": (over_devices(core.all_sum), P),
    "core.exprel": (core.exprel, X),
    "core.log1mexp": (core.log1mexp, -jnp.abs(X)),
    "core.log_mean_exp": (core.log_mean_exp, P),
    "core.masked_mean": (core.masked_mean, X, MASK),
    "core.masked_sum": (core.masked_sum, X, MASK),
    "core.mul_exp": (core.mul_exp, X, X),
    "core.row_keys": (lambda rows: jax.random.key_data(
        core.row_keys(CONTEXT._replace(rows=rows))), jnp.arange(4)),
    "core.safe_norm": (core.safe_norm, P),
    "core.safe_sqrt": (core.safe_sqrt, jnp.abs(X)),
    "core.sum_over_devices": (over_devices(core.sum_over_devices), X),
    "core.vary": (over_devices(core.vary), X),
    "core.vary_like": (core.vary_like, X, X),
    "core.whole_batch": (over_devices(core.whole_batch), X),
    "core.xlogy": (core.xlogy, X, jnp.abs(X)),
    "divergences.f_divergence": (all_records(ENTRANCES[0]), P, Q, WHERE),
    "divergences.f_divergence_from_logits": (all_records(ENTRANCES[1]), P, Q, WHERE),
    **{
        f"divergences.{name}": (vars(divergences)[name], P, Q)
        for name in (
            "jeffreys", "js", "kl", "lecam", "neyman", "pearson", "reverse_kl", "skew_kl",
            "skew_reverse_kl", "soft_reverse_kl", "squared_hellinger", "tv",
        )
    },
    "divergences.alpha": (partial(divergences.alpha, order=0.3), P, Q),
    "divergences.tsallis": (partial(divergences.tsallis, order=1.5), P, Q),
    "divergences.entropies": (lambda z: divergences.entropies(divergences.Logits(z)), P),
    "divergences.fused_divergence": (
        lambda h, w, p: divergences.fused_divergence(
            divergences.Logits(p), divergences.Linear(h, w), generators.kl, block=2),
        P, Q[:3], P),
    "divergences.fused_rows": (
        lambda h, w: divergences.fused_rows(
            lambda z: jnp.max(z, -1), divergences.Linear(h, w, soft_cap=3.0), block=2),
        P, Q[:3]),
    "divergences.fused_sum": (
        lambda h, w, p, weights: divergences.fused_sum(
            lambda a, b: divergences.f_divergence_from_logits(a, b, generators.js(0.5)),
            weights, divergences.Logits(p), divergences.Linear(h, w), block=2)[0],
        P, Q[:3], P, X),
    "divergences.log_normalisers": (
        lambda z: divergences.log_normalisers(divergences.Logits(z)), P),
    "divergences.token_log_prob": (divergences.token_log_prob, P, LABELS),
    "divergences.token_log_probs": (
        lambda z, ids: divergences.token_log_probs(divergences.Logits(z), ids), P, LABELS),
    "divergences.top_k": (lambda z: divergences.top_k(divergences.Logits(z), 2), P),
    "divergences.top_k_bounds": (
        lambda p, z: divergences.top_k_bounds(
            divergences.top_k(divergences.Logits(p), 2), z, generators.kl),
        P, Q),
    "divergences.renyi": (partial(divergences.renyi, order=2.0), P, Q),
    "divergences.renyi_from_logits": (partial(divergences.renyi_from_logits, order=0.5), P, Q),
    "divergences.bernoulli_log_partition": (divergences.bernoulli_log_partition, P),
    "divergences.bregman": (
        lambda x, y, where: [
            divergences.bregman(x, y, phi, where=where)
            for phi in (divergences.negative_entropy, divergences.half_square)
        ],
        jnp.exp(P), jnp.exp(Q), WHERE),
    "divergences.categorical_log_partition": (divergences.categorical_log_partition, P),
    "divergences.density_power": (divergences.density_power(0.5), jnp.exp(P)),
    "divergences.exponential_family_kl": (
        lambda p, q: divergences.exponential_family_kl(p, q, divergences.poisson_log_partition),
        P, Q),
    "divergences.exponential_family_renyi": (
        lambda p, q: divergences.exponential_family_renyi(
            p, q, divergences.poisson_log_partition, order=0.5),
        P, Q),
    "divergences.fenchel_young": (
        lambda z, y: divergences.fenchel_young(
            z, y, divergences.negative_entropy, divergences.categorical_log_partition),
        P, jnp.exp(Q)),
    "divergences.half_square": (divergences.half_square, P),
    "divergences.minus_log": (divergences.minus_log, jnp.exp(P)),
    "divergences.negative_entropy": (divergences.negative_entropy, jnp.exp(P)),
    "divergences.poisson_log_partition": (divergences.poisson_log_partition, P),
    **{
        f"divergences.gaussian.{name}": (both_kinds(fn), MEANS, COVARIANCES)
        for name, fn in {
            "alpha": partial(gaussian.alpha, order=0.3),
            "bhattacharyya": gaussian.bhattacharyya,
            "kl": gaussian.kl,
            "renyi": partial(gaussian.renyi, order=2.0),
            "squared_hellinger": gaussian.squared_hellinger,
            "squared_wasserstein": gaussian.squared_wasserstein,
        }.items()
    },
    "divergences.conjugate": (
        lambda s: [divergences.conjugate(g, s) for g in generators.ALL], X),
    "divergences.inverse_slope": (
        lambda s: [divergences.inverse_slope(g, s) for g in generators.ALL], X),
    "estimators.estimate": (estimators.estimate, X),
    "estimators.standard_error": (lambda x: estimators.standard_error(estimators.estimate(x)), X),
    "estimators.k1": (estimators.k1, X, X[::-1]),
    "estimators.k2": (estimators.k2, X, X[::-1]),
    "estimators.k3": (estimators.k3, X, X[::-1]),
    **{
        f"estimators.{fn.__name__}": (
            lambda p, q, mask, fn=fn: [fn(p, q, g, mask=mask) for g in generators.ALL],
            X, X[::-1], MASK,
        )
        for fn in (
            estimators.under_p, estimators.under_q,
            estimators.score_under_p, estimators.score_under_q,
        )
    },
    "estimators.with_gradient": (estimators.with_gradient, X, X),
    "divergences.plackett_luce": (
        lambda s, r, w: divergences.plackett_luce(s, r, where=w), P, Q, WHERE),
    "divergences.squared_euclidean": (divergences.squared_euclidean, P, Q),
    "divergences.manhattan": (divergences.manhattan, P, Q),
    "divergences.wasserstein_1d": (partial(divergences.wasserstein_1d, power=2.0), P, Q),
    "divergences.sliced_wasserstein": (
        lambda x, y: divergences.sliced_wasserstein(jax.random.key(0), x, y), P, Q),
    "divergences.sinkhorn": (
        lambda cost, a: [divergences.sinkhorn(cost, a, epsilon=0.1, solver=s) for s in SOLVERS],
        P, jax.nn.log_softmax(X)),
    "divergences.sinkhorn_divergence": (
        lambda x, y: [
            divergences.sinkhorn_divergence(x, y, epsilon=0.1, solver=s) for s in SOLVERS],
        P, Q),
    "losses.pld": (lambda s, t: losses.pld(s, t, LABELS), P, Q),
    "losses.pld_ranks": (lambda t: losses.pld_ranks(t, LABELS), P),
    "losses.sinkd": (losses.sinkd, P, Q),
    "losses.sinkd_debiased": (losses.sinkd_debiased, P, Q),
    "losses.balanced_kd": (partial(losses.balanced_kd, temperature=2.0), P, Q),
    "losses.entropy_balance": (losses.entropy_balance, P, Q),
    "losses.forward_kl": (losses.forward_kl, P, Q),
    "losses.temperature_kd": (partial(losses.temperature_kd, temperature=2.0), P, Q),
    "measure.brier_score": (measure.brier_score, P, LABELS),
    "measure.calibration": (measure.calibration, P, LABELS),
    "measure.negative_log_likelihood": (measure.negative_log_likelihood, P, LABELS),
    "measure.expected_calibration_error": (
        lambda x: measure.expected_calibration_error(measure.Calibration(x, x, x)), X),
}  # fmt: skip

# Not functions of arrays, or no function at all.
NOTHING_TO_EXPORT = {
    "core.Array", "core.Batch", "core.Context", "core.Divergence", "core.Estimate", "core.GradFn",
    "core.Objective", "core.PyTree", "core.Scalar", "divergences.Bounds",
    "divergences.Linear", "divergences.Logits", "divergences.Power", "divergences.TopK",
    "divergences.gaussian", "divergences.gaussian.DiagonalGaussian",
    "divergences.gaussian.Gaussian", "divergences.generators",
    "divergences.ranking", "divergences.transport", "losses.Balance",
    "losses.FromLogits", "measure.Calibration",
}  # fmt: skip

# Name -> reason. Empty, and meant to stay so.
EXCEPTIONS: dict[str, str] = {}


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def cotangent(x):
    return jnp.ones_like(x) if is_float(x) else np.ones(x.shape, jax.dtypes.float0)


def with_gradient(fn):
    """(fn, its vjp for a cotangent of ones by all arguments of floats)."""

    def run(*arguments):
        def of_floats(*floats):
            given = iter(floats)
            return fn(*(next(given) if is_float(x) else x for x in arguments))

        value, pull = jax.vjp(of_floats, *filter(is_float, arguments))
        ones = jax.tree.map(cotangent, value)
        return value, pull(ones)

    return run


def exported(fn, *arguments):
    return export.export(jax.jit(fn), platforms=PLATFORMS)(*arguments)


def test_every_public_name_is_listed():
    modules = [importlib.import_module(f"divjax.{room}") for room in ROOMS]
    names = {f"{room}.{n}" for room, m in zip(ROOMS, modules, strict=True) for n in m.__all__}
    assert names == {*CASES, *NOTHING_TO_EXPORT, *EXCEPTIONS}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    fn, *arguments = CASES[name]
    made = exported(with_gradient(fn), *arguments)
    assert set(made.platforms) == set(PLATFORMS)
    assert "callback" not in made.mlir_module()


def test_there_are_no_exceptions():
    assert not EXCEPTIONS


def test_what_is_exported_gives_the_numbers_of_the_function():
    fn, *arguments = CASES["divergences.f_divergence_from_logits"]
    made, direct = exported(with_gradient(fn), *arguments), jax.jit(with_gradient(fn))
    for x, y in zip(
        *map(jax.tree.leaves, (made.call(*arguments), direct(*arguments))), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rows", [2048, 2049], ids=["whole blocks", "a rest"])
@pytest.mark.parametrize("divergence", ENTRANCES, ids=lambda fn: fn.__name__)
def test_large_arrays_go_block_by_block(divergence, rows):
    """The cases above are one block; shapes alone are traced, so the size costs nothing."""
    logits, where = (jax.ShapeDtypeStruct((rows, 512), t) for t in (jnp.float32, jnp.bool_))

    def fn(p, q, mask):
        return divergence(p, q, generators.kl, where=mask)

    made = exported(with_gradient(fn), logits, logits, where)
    assert set(made.platforms) == set(PLATFORMS)
    assert "stablehlo.while" in made.mlir_module()
    assert "callback" not in made.mlir_module()


def test_python_inside_would_be_noticed():
    def fn(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises(NotImplementedError, match="callback"):
        exported(fn, X)


def objective(apply, params, batch, ctx):
    logits, _ = apply(params, batch["x"], key=core.row_keys(ctx), train=True)
    teacher, slow = (apply(p, batch["x"])[0] for p in (ctx.frozen, ctx.refs["slow"]))
    kd = losses.balanced_kd(logits, teacher, mask=batch["mask"])
    kl = losses.temperature_kd(logits, slow, temperature=2.0)
    return core.Loss({"kd": (1.0, kd), "kl": (ctx.knobs["beta"], kl)})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_train_step(accumulate):
    params, apply = split(MLP([5, 8, 3], dropout=0.1, rngs=nnx.Rngs(0)))
    step = make_step(
        lambda p, batch, ctx: objective(apply, p, batch, ctx),
        optax.adamw(1e-3),
        accumulate=accumulate,
        controllers={"beta": adaptive_kl(target=0.1, horizon=10.0, initial=1.0)},
        references={"slow": ema(0.9)},
    )
    state = step.init(params, jax.random.key(0))
    made = exported(step.update, state, {"x": jnp.ones((4, 5)), "mask": MASK}, params)
    assert set(made.platforms) == set(PLATFORMS)


def test_the_evaluation():
    def metrics(params, batch, mask):
        return {"out": core.masked_mean(batch["x"] * params, mask)}

    made = exported(make_eval(metrics, batch_size=3), jnp.float32(2.0), {"x": X})
    assert set(made.platforms) == set(PLATFORMS)
