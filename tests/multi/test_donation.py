"""Without a mesh, the state is donated too, and only when asked for."""

import jax
import jax.numpy as jnp
import optax
import pytest

from divjax.core import Loss, masked_mean
from divjax.train import make_step
from divjax.train.parallel import compile

BATCH = {"x": jnp.ones((2, 3))}


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
@pytest.mark.parametrize("donate", [True, False])
def test_one_device(mode, donate):
    def objective(p, batch, ctx):
        return Loss({"fit": (1.0, masked_mean((p["w"] - batch["x"]) ** 2))})

    step = make_step(objective, optax.adam(0.1))
    update = compile(step, mode=mode, donate=donate)
    first, _ = update(step.init({"w": jnp.zeros(3)}, jax.random.key(0)), BATCH)
    second, _ = update(first, BATCH)
    assert first.params["w"].is_deleted() == donate
    assert not second.params["w"].is_deleted()
    if donate:  # the words that the docstring of compile quotes
        with pytest.raises((ValueError, RuntimeError), match=r"[Bb]uffer has been deleted|donated"):
            update(first, BATCH)
        with pytest.raises(RuntimeError, match="Array has been deleted"):
            float(first.params["w"][0])
