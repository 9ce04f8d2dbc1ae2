"""What `apply` promises: noise only when train, from the key alone, carry handed through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from divjax.models import MLP, split


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
