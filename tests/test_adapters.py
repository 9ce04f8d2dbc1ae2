"""Models of other libraries through one step, with the same numbers on one and eight devices."""

from types import SimpleNamespace

import distrax
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import adapters, divergences
from divjax.core import Loss, masked_mean, row_keys
from divjax.train import data_mesh, make_step
from divjax.train.parallel import compile

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)


class Linen(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(3)(nn.Dropout(self.rate, deterministic=not train)(x))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))


class Eqx(eqx.Module):
    layer: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __call__(self, x, *, key=None):
        return self.layer(self.dropout(x, key=key))


def by_linen():
    module = Linen()
    variables = module.init(jax.random.key(0), X)
    return adapters.linen(module, variables, train_keyword="train")


def by_equinox():
    model = Eqx(eqx.nn.Linear(4, 3, key=jax.random.key(0)), eqx.nn.Dropout(0.5))
    return adapters.equinox(model, inference=eqx.nn.inference_mode)


def by_haiku():
    def apply(params, rng, x, is_training):
        keep = jax.random.bernoulli(rng, 0.5, x.shape) if is_training else 1.0
        return (x * keep / 0.5 if is_training else x) @ params["w"]

    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)}
    return adapters.haiku(SimpleNamespace(apply=apply), params, train_keyword="is_training")


MODELS = pytest.mark.parametrize(
    "model", [by_linen, by_equinox, by_haiku], ids=lambda f: f.__name__
)


@MODELS
def test_without_a_key_there_is_no_noise(model):
    params, apply, carry = model()
    once, twice = (apply(params, X)[0] for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    assert once.shape == (16, 3)
    assert carry == ()
    same = apply(params, X, key=jax.random.key(0))[0]  # a key alone is not training
    np.testing.assert_array_equal(same, once)
    noisy = apply(params, X, key=jax.random.key(0), train=True)[0]
    assert not np.allclose(noisy, once)


@MODELS
def test_the_noise_of_a_row_does_not_depend_on_its_batch(model):
    params, apply, _ = model()
    keys = jax.random.split(jax.random.key(1), 16)
    whole = apply(params, X, key=keys, train=True)[0]
    half = apply(params, X[8:], key=keys[8:], train=True)[0]
    np.testing.assert_allclose(half, whole[8:], rtol=1e-5, atol=1e-6)


@MODELS
@pytest.mark.parametrize("mode", ["jit", "shard_map"])
def test_one_step_on_one_and_on_eight_devices(model, mode):
    params, apply, _ = model()

    def objective(params, batch, ctx):
        out = apply(params, batch["x"], key=row_keys(ctx), train=True)[0]
        return Loss({"fit": (1.0, masked_mean((out**2).sum(-1), batch["mask"]))})

    step = make_step(objective, optax.sgd(0.1))
    batch = {"x": X, "mask": jnp.arange(16) % 3 > 0}
    updates = compile(step, donate=False), compile(step, mode=mode, mesh=data_mesh(8), donate=False)
    one, eight = (run(step.init(params, jax.random.key(2)), batch)[0].params for run in updates)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0)), "activation must be an array, got a c"),
        (
            eqx.nn.Sequential([eqx.nn.Dropout()]),
            r"layers\[0\].inference must be an array",
        ),
        ({"net": Linen()}, r"\['net'\] must be an array, got a callable of type Linen"),
        ({"w": "path/to/w.npy"}, r"\['w'\] must be an array, got 'path/to/w.npy'"),
    ],
    ids=["function", "switch", "linen", "text"],
)
def test_a_module_that_is_no_tree_of_arrays_is_refused_at_the_start(module, said):
    def objective(params, batch, ctx):
        return Loss({"fit": (1.0, masked_mean(batch["x"]))})

    step = make_step(objective, optax.sgd(0.1))
    with pytest.raises(ValueError, match=said) as refused:
        step.init(module, jax.random.key(0))
    assert "partition it: params, apply, carry = adapters.equinox(module)" in str(refused.value)


def test_numbers_and_numpy_are_arrays_enough():
    step = make_step(lambda params, batch, ctx: None, optax.sgd(0.1))
    params = step.init({"a": 1.0, "b": np.ones(2), "c": np.float32(3)}, jax.random.key(0)).params
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))


def test_statistics_of_linen_travel_as_carry():
    module = Normed()
    variables = module.init(jax.random.key(0), X)
    params, apply, carry = adapters.linen(module, variables, train_keyword="train")

    def objective(params, batch, ctx):
        out, carry = apply(params, batch["x"], key=ctx.key, train=True, carry=ctx.carry)
        return Loss({"fit": (1.0, masked_mean(out**2))}, carry=carry)

    step = make_step(objective, optax.sgd(0.1))
    state, _ = step.update(step.init(params, jax.random.key(0), carry), {"x": X})
    moved = state.carry["batch_stats"]["BatchNorm_0"]["mean"]
    expected = 0.01 * (X @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]).mean(0)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="key must be one key for a model with statistics"):
        apply(params, X, key=jax.random.split(jax.random.key(0), 16), train=True, carry=carry)


def test_statistics_that_were_forgotten():
    variables = Normed().init(jax.random.key(0), X)
    params, apply, _ = adapters.linen(Normed(), variables, train_keyword="train")
    for train in (False, True):
        with pytest.raises(ValueError, match=r"carry must hold \['batch_stats'\].*pass carry="):
            apply(params, X, train=train)


def test_variables_without_params():
    with pytest.raises(ValueError, match='linen: variables must have "params"'):
        adapters.linen(Linen(), {"batch_stats": {}})


def random_laws(kind):
    rng = np.random.default_rng(2)
    m, s = (np.float32(x) for x in (rng.normal(size=(2, 4, 3)), rng.uniform(0.5, 2, (2, 4, 3))))
    a = np.float32(rng.normal(size=(2, 4, 3, 3)))
    full = a @ np.swapaxes(a, -1, -2) + np.eye(3, dtype=np.float32)
    make = {
        "categorical": lambda i: distrax.Categorical(logits=m[i]),
        "bernoulli": lambda i: distrax.Bernoulli(logits=m[i]),
        "normal": lambda i: distrax.Normal(m[i], s[i]),
        "diagonal": lambda i: distrax.MultivariateNormalDiag(m[i], s[i]),
        "triangular": lambda i: distrax.MultivariateNormalTri(m[i], np.linalg.cholesky(full[i])),
        "full": lambda i: distrax.MultivariateNormalFullCovariance(m[i], full[i]),
    }[kind]
    return make(0), make(1)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_discrete_distributions(kind):
    p, q = random_laws(kind)
    got = divergences.kl(*adapters.laws(p, q))
    np.testing.assert_allclose(got, p.kl_divergence(q), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
def test_probabilities_of_zero_have_finite_slopes(q):
    """log(p/q) less its mean, and 1 - p/q; 0 by what is 0 itself."""
    q = jnp.array(q)

    def kl(p, q):
        return divergences.kl(*adapters.laws(*(distrax.Categorical(probs=x) for x in (p, q))))

    p = jnp.array([0.25, 0.75, 0.0])
    value, (by_p, by_q) = jax.value_and_grad(kl, (0, 1))(p, q)
    terms = np.log(p[:2] / q[:2])
    np.testing.assert_allclose(value, p[:2] @ terms, rtol=1e-6)
    np.testing.assert_allclose(by_p, np.append(terms, 0.0) - p[:2] @ terms, rtol=1e-5)
    np.testing.assert_allclose(by_q, np.append(1 - p[:2] / q[:2], q[2] > 0), rtol=1e-5, atol=1e-6)
    far, slopes = jax.value_and_grad(kl, (0, 1))(q, p)
    assert far == (np.inf if q[2] > 0 else far)
    assert all(np.isfinite(s).all() for s in slopes)


@pytest.mark.parametrize("coin", [0.0, 1.0, 0.3])
def test_a_coin_is_a_law_of_two_outcomes(coin):
    other = jnp.float32(0.6)
    pair = lambda c: jnp.stack([1 - c, c])  # noqa: E731
    makes = [
        (lambda c: distrax.Bernoulli(probs=c), lambda c: distrax.Categorical(probs=pair(c))),
        (lambda c: distrax.Bernoulli(probs=c), lambda c: distrax.Bernoulli(probs=c)),
    ]
    p = np.array([1 - coin, coin])[[coin < 1, coin > 0]] if coin in (0, 1) else pair(coin)
    q = pair(0.6) if coin not in (0, 1) else pair(0.6)[int(coin)][None]
    for first, second in makes:
        fn = lambda c, a=first, b=second: divergences.kl(*adapters.laws(a(c), b(other)))  # noqa: E731
        value, slope = jax.value_and_grad(fn)(jnp.float32(coin))
        np.testing.assert_allclose(value, np.sum(p * np.log(p / q)), rtol=1e-5)
        assert np.isfinite(slope)
        assert np.isfinite(jax.grad(lambda c, a=first, b=second: divergences.kl(
            *adapters.laws(b(other), a(c))))(jnp.float32(coin)))  # fmt: skip
    with pytest.raises(
        ValueError, match=r"laws: p and q must have the same batch.*a Bernoulli has"
    ):
        adapters.laws(distrax.Bernoulli(probs=0.5), distrax.Categorical(probs=jnp.ones(3)))


@pytest.mark.parametrize("kind", ["normal", "diagonal", "triangular", "full"])
def test_gaussian_distributions(kind):
    p, q = random_laws(kind)
    got = divergences.gaussian.kl(*adapters.laws(p, q))
    np.testing.assert_allclose(got, p.kl_divergence(q), rtol=1e-4)


def test_other_distributions_are_refused():
    p, _ = random_laws("normal")
    with pytest.raises(ValueError, match="laws: p and q must be of one kind"):
        adapters.laws(p, random_laws("categorical")[1])
    with pytest.raises(ValueError, match="laws: q must be a Categorical, Bernoulli or"):
        adapters.laws(p, distrax.Gamma(1.0, 1.0))
