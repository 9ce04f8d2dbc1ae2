"""Heads in blocks on eight devices: rows in parts, or the vocabulary, and what is communicated."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from divjax.divergences import Linear, f_divergence_from_logits, fused_rows, fused_sum, generators
from divjax.train import data_mesh

ROWS, WIDTH, SIZE = 64, 16, 96
kl = partial(f_divergence_from_logits, generator=generators.kl)


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


ARRAYS = (
    draw((ROWS, WIDTH), 0), draw((SIZE, WIDTH), 1), draw((ROWS, WIDTH), 2), draw((SIZE, WIDTH), 3)
)  # fmt: skip
WEIGHTS = 0.5 + jnp.abs(draw(ROWS, 4))


def by_sum(h, w, hp, wp):
    return fused_sum(kl, WEIGHTS, Linear(hp, wp), Linear(h, w), block=16)[0]


def by_rows(h, w, hp, wp):
    return WEIGHTS @ fused_rows(kl, Linear(hp, wp), Linear(h, w), block=16)


PARTS = {
    "rows": (PartitionSpec("data"), PartitionSpec()),
    "vocabulary": (PartitionSpec(), PartitionSpec("data")),
}


@pytest.mark.parametrize("fn", [by_sum, by_rows])
@pytest.mark.parametrize("part", PARTS)
def test_value_gradient_and_communication(part, fn):
    """Equal to one device; no array of hidden states, of a head or of logits is gathered."""
    mesh = data_mesh(8)
    hidden, head = (NamedSharding(mesh, spec) for spec in PARTS[part])
    placed = [jax.device_put(x, s) for x, s in zip(ARRAYS, (hidden, head) * 2, strict=True)]
    step = jax.jit(jax.value_and_grad(fn, (0, 1)), out_shardings=(None, (hidden, head)))
    compiled = step.lower(*placed).compile()
    value, slopes = compiled(*placed)
    true, expected = jax.value_and_grad(fn, (0, 1))(*ARRAYS)
    np.testing.assert_allclose(value, true, rtol=1e-6)
    for ours, theirs in zip(slopes, expected, strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-6 * np.linalg.norm(theirs)
    gathered = re.findall(
        r"= (\S+) (all-gather|all-to-all|collective-permute)\(", compiled.as_text()
    )
    sizes = [
        np.prod([int(n) for n in re.findall(r"\d+", s.split("{")[0])[1:]]) for s, _ in gathered
    ]
    assert max(sizes, default=0) <= ROWS, gathered
