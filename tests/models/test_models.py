"""Models as (params, apply); nnx, Linen and a plain function through one step."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from divjax.core import Loss, masked_mean, row_keys
from divjax.models import CNN, MLP, dropout, split
from divjax.train import make_step, parallel

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6)), jnp.float32)
Y = jnp.arange(16) % 3


def train(params, apply, steps=60):
    def objective(params, batch, ctx):
        logits = apply(params, batch["x"], ctx)
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return Loss({"ce": (1.0, masked_mean(ce))})

    step = make_step(objective, optax.adam(3e-2))
    update, state = parallel.compile(step), step.init(params, jax.random.key(0))
    values = []
    for _ in range(steps):
        state, info = update(state, {"x": X, "y": Y})
        values.append(float(info.value))
    return values


def nnx_model():
    params, apply = split(MLP([6, 16, 3], dropout=0.1, rngs=nnx.Rngs(0)))
    return params, lambda p, x, ctx: apply(p, x, key=row_keys(ctx), train=True)[0]


def linen_model():
    model = linen.Sequential([linen.Dense(16), linen.relu, linen.Dense(3)])
    return model.init(jax.random.key(0), X), lambda p, x, ctx: model.apply(p, x)


def plain_function():
    key = jax.random.key(0)
    params = {"a": 0.3 * jax.random.normal(key, (6, 16)), "b": jnp.zeros((16, 3))}
    return params, lambda p, x, ctx: jax.nn.relu(x @ p["a"]) @ p["b"]


@pytest.mark.parametrize("model", [nnx_model, linen_model, plain_function])
def test_any_model_passes_through_the_same_step(model):
    values = train(*model())
    assert values[-1] < 0.5 * values[0]


def test_params_are_plain_dicts_and_apply_matches_the_formula():
    params, apply = split(MLP([6, 5, 3], rngs=nnx.Rngs(1)))
    assert {
        type(x) for x in jax.tree.leaves(params, is_leaf=lambda x: not isinstance(x, dict))
    } <= {
        jax.Array,
        type(X),
    }
    first, second = params["layers"][0], params["layers"][1]
    hidden = np.maximum(X @ first["kernel"] + first["bias"], 0)
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(apply(params, X)[0], expected, rtol=1e-5, atol=1e-6)


def test_cnn_is_translated_to_params_and_depends_on_its_image():
    params, apply = split(CNN([1, 8, 8], classes=4, dropout=0.5, rngs=nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    out, carry = jax.jit(apply)(params, images)
    assert out.shape == (3, 4)
    assert carry == ()
    alone, _ = apply(params, images[1:2])  # no batch statistics
    np.testing.assert_allclose(out[1:2], alone, rtol=1e-5, atol=1e-6)
    noisy, _ = apply(params, images, key=jax.random.key(1), train=True)
    assert np.abs(noisy - out).max() > 1e-3


def test_dropout_noise_belongs_to_the_row():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 1000))
    whole = dropout(x, 0.3, keys)
    np.testing.assert_array_equal(whole[2:], dropout(x[2:], 0.3, keys[2:]))
    assert not np.array_equal(whole[0], whole[1])
    assert abs(float((whole > 0).mean()) - 0.7) < 0.03
    np.testing.assert_allclose(whole[whole > 0], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(dropout(x, 0.3, None), x)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\), got 1.0"):
        dropout(x, 1.0, keys)
    with pytest.raises(ValueError, match=r"key must be one key or keys \[4\]"):
        dropout(x, 0.5, keys[:2])
