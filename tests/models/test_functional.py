"""What `apply` promises: noise only when train, from the key alone, carry handed through."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from divjax.core import Loss, masked_mean
from divjax.models import MLP, ResNet, batch_norm, split, split_with_carry
from divjax.train import data_mesh, make_step
from divjax.train.parallel import compile


def test_noise_needs_both_a_key_and_train():
    params, apply = split(MLP([4, 64, 3], dropout=0.5, rngs=nnx.Rngs(0)))
    x, key = jnp.ones((2, 4)), jax.random.key(0)
    plain, carry = apply(params, x, carry=(7,))
    assert carry == (7,)
    np.testing.assert_array_equal(apply(params, x, key=key)[0], plain)
    np.testing.assert_array_equal(apply(params, x, train=True)[0], plain)
    noisy, _ = apply(params, x, key=key, train=True)
    assert np.abs(noisy - plain).max() > 1e-3
    np.testing.assert_array_equal(apply(params, x, key=key, train=True)[0], noisy)
    other, _ = apply(params, x, key=jax.random.key(1), train=True)
    assert np.abs(noisy - other).max() > 1e-3


def test_layers_draw_different_noise():
    """Two equal layers under one key: with one mask for both, what survives survives twice."""
    params, apply = split(MLP([1, 256, 256, 256], dropout=0.5, rngs=nnx.Rngs(0)))
    first, second, last = params["layers"][0], params["layers"][1], params["layers"][2]
    eye, none = jnp.eye(256), jnp.zeros(256)
    params = {
        "layers": {
            0: {**first, "kernel": jnp.ones((1, 256)), "bias": none},
            1: {**second, "kernel": eye, "bias": none},
            2: {**last, "kernel": eye, "bias": none},
        }
    }
    out, _ = apply(params, jnp.ones((1, 1)), key=jax.random.key(0), train=True)
    assert abs(float((out > 0).mean()) - 0.25) < 0.1  # 0.5 if the masks were equal
    keys = jax.random.split(jax.random.key(0), 2)
    out, _ = apply(params, jnp.ones((2, 1)), key=keys, train=True)
    assert abs(float((out > 0).mean()) - 0.25) < 0.08


class _Other(nnx.Module):
    def __init__(self, part):
        self.part = part


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)), "part.mean"),
        (lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)), "part.rngs"),
    ],
)
def test_what_is_no_parameter_is_refused(part, name):
    """Statistics would be trained, and random streams differentiated."""
    with pytest.raises(ValueError, match=rf"split: the module must hold nnx.Param only.*{name}"):
        split(_Other(part()))


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_batch_norm_over_eight_devices_is_that_of_the_whole_batch(mode):
    """Its statistics and the gradient through them; without the axis name both are wrong."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 4, 2)) + 1, jnp.float32)
    y = jnp.asarray(np.random.default_rng(1).normal(size=(16, 3)), jnp.float32)

    def trained(axis_name, mode, mesh):
        norm = batch_norm(axis_name=axis_name)
        net = ResNet([2, 4, 8], classes=3, norm=norm, rngs=nnx.Rngs(0))
        params, apply, carry = split_with_carry(net)

        def objective(params, batch, ctx):
            out, carry = apply(params, batch["x"], train=True, carry=ctx.carry)
            return Loss({"fit": (1.0, masked_mean((out - batch["y"]) ** 2))}, carry=carry)

        step = make_step(objective, optax.sgd(1.0))
        update = compile(step, mode=mode, mesh=mesh, donate=False)
        state, _ = update(step.init(params, jax.random.key(0), carry), {"x": x, "y": y})
        moved = jax.tree.map(jnp.subtract, params, state.params)
        return ravel_pytree((moved, state.carry))[0]

    expected = trained(None, "jit", None)
    axis = None if mode == "jit" else "data"
    got = trained(axis, mode, data_mesh(8))
    size = jnp.linalg.norm(expected)
    assert jnp.linalg.norm(got - expected) < 1e-5 * size
    if mode != "jit":
        assert jnp.linalg.norm(trained(None, mode, data_mesh(8)) - expected) > 0.05 * size


def test_statistics_are_used_and_not_moved_outside_training():
    net = ResNet([1, 4], classes=2, norm=batch_norm(), rngs=nnx.Rngs(0))
    params, apply, carry = split_with_carry(net)
    x = jnp.ones((2, 4, 4, 1))
    first, kept = apply(params, x, carry=carry)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), kept, carry))
    _, moved = apply(params, x, train=True, carry=carry)
    assert not np.allclose(apply(params, x, carry=moved)[0], first)


def test_a_resnet_with_group_norm_has_nothing_to_carry():
    params, apply = split(ResNet([3, 8, 16], classes=5, blocks=2, rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    out, carry = apply(params, x)
    assert out.shape == (4, 5)
    assert carry == ()
    np.testing.assert_allclose(apply(params, x[1:2])[0], out[1:2], rtol=1e-4, atol=1e-5)
