"""make_step against the same step, with the same outputs, written by hand with optax."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Limit, Row, interleaved, timed
from divjax.core import Loss, masked_mean
from divjax.train import make_step, parallel


def network(sizes: list[int]) -> list[dict[str, jax.Array]]:
    """Weights of an MLP."""
    rng = np.random.default_rng(0)
    return [
        {"w": jnp.asarray(rng.normal(size=(a, b)) / a**0.5, jnp.float32), "b": jnp.zeros(b)}
        for a, b in pairwise(sizes)
    ]


def logits_of(params, x):
    """The forward pass of both steps."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def objective(params, batch, ctx):
    """Cross-entropy, with accuracy as a metric."""
    z = logits_of(params, batch["x"])
    ce = optax.softmax_cross_entropy_with_integer_labels(z, batch["y"])
    right = (z.argmax(-1) == batch["y"]).astype(jnp.float32)
    mask = batch["mask"]
    return Loss({"ce": (1.0, masked_mean(ce, mask))}, {"accuracy": masked_mean(right, mask)})


def by_hand(tx):
    """What a careful user writes: masked means, the same outputs, one jit with donation."""

    def loss(params, batch):
        z = logits_of(params, batch["x"])
        ce = optax.softmax_cross_entropy_with_integer_labels(z, batch["y"])
        weight = batch["mask"].sum()
        safe = jnp.where(weight > 0, weight, 1)
        mean = jnp.where(batch["mask"], ce, 0.0).sum() / safe
        right = jnp.where(batch["mask"], z.argmax(-1) == batch["y"], False).sum() / safe
        return mean, (right, (weight == 0).astype(jnp.float32))

    def step(state, batch):
        count, params, opt_state, key = state
        (value, (accuracy, empty)), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        info = {"value": value, "ce": value, "accuracy": accuracy, "empty_terms": empty}
        return (count + 1, params, opt_state, key), info

    return jax.jit(step, donate_argnums=0)


class Loop:
    """A call that goes on from where the last one stopped; donation leaves no other way."""

    def __init__(self, update, state, batch):
        self.update, self.state, self.batch = update, state, batch

    def __call__(self):
        """One step."""
        self.state, info = self.update(self.state, self.batch)
        return info


def compare(sizes: list[int], rows: int, rounds: int, repeat: int) -> tuple[Row, int]:
    """Times of both, and how often ours was compiled."""
    rng = np.random.default_rng(1)
    batch = {
        "x": jnp.asarray(rng.normal(size=(rows, sizes[0])), jnp.float32),
        "y": jnp.asarray(rng.integers(0, sizes[-1], rows)),
        "mask": jnp.asarray(rng.uniform(size=rows) > 0.2),
    }
    tx = optax.adam(1e-3)
    step = make_step(objective, tx)
    update = parallel.compile(step)
    params = network(sizes)
    own = jax.tree.map(jnp.array, params)
    hand_state = (jnp.int32(0), own, tx.init(own), jax.random.key(0))
    calls = {
        "ours": Loop(update, step.init(params, jax.random.key(0)), batch),
        "by hand": Loop(by_hand(tx), hand_state, batch),
    }
    for _ in range(3):
        info, expected = calls["ours"](), calls["by hand"]()
        outputs = {"value": info.value, **info.terms, **info.metrics}
        assert outputs.keys() == expected.keys()
        for name, value in outputs.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, err_msg=name)
    times = interleaved(calls, rounds=rounds, repeat=repeat)
    variant = "-".join(map(str, sizes)) + f", batch {rows}"
    return timed("step_overhead", variant, times), update._cache_size()


def measure(small: bool) -> list[Row]:
    """A step of several milliseconds, and a tiny one."""
    if small:
        large, compilations = compare([64, 32, 10], 64, rounds=3, repeat=1)
        tiny, tiny_compilations = compare([64, 12, 10], 128, rounds=5, repeat=10)
    else:
        large, compilations = compare([256, 512, 512, 10], 768, rounds=101, repeat=5)
        tiny, tiny_compilations = compare([64, 12, 10], 128, rounds=101, repeat=200)
    large.limits = [
        Limit("time / by hand", large.ratios["by hand"], 1.03),
        Limit("compilations", compilations, 1),
    ]
    extra = tiny.ours_ms - tiny.peers["by hand"]
    tiny.limits = [
        Limit("microseconds more than by hand", extra * 1e3, 30.0),
        Limit("compilations", tiny_compilations, 1),
    ]
    return [large, tiny]
