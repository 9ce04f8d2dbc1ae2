import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from divjax.core import Mean, masked_mean
from divjax.train import data_mesh, make_eval

RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(13, 3)).astype(np.float32), "keep": RNG.random(13) < 0.5}
W = np.float32([1.0, -2.0, 0.5])


def metrics(w, batch, mask):
    out = batch["x"] @ w
    bins = jax.nn.one_hot((out > 0).astype(int), 2) * mask[:, None]
    return {
        "out": masked_mean(out, mask),
        "kept": masked_mean(out, mask & batch["keep"]),
        "by_sign": Mean(bins.T @ jnp.abs(out), bins.sum(0)),
    }


def truth():
    out = (DATA["x"].astype(np.float64)) @ W
    sign = [np.abs(out)[out <= 0].mean(), np.abs(out)[out > 0].mean()]
    return {"out": out.mean(), "kept": out[DATA["keep"]].mean(), "by_sign": sign}


@pytest.mark.parametrize("batch_size", [1, 4, 5, 13, 64])
def test_padding_changes_nothing(batch_size):
    found = jax.jit(make_eval(metrics, batch_size=batch_size))(W, DATA)
    for name, value in truth().items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_mean_of_batch_means_is_another_number():
    """What the test above would see: the usual average over batches of 5, 5 and 3 rows."""
    out = DATA["x"] @ W
    usual = np.mean([out[:5].mean(), out[5:10].mean(), out[10:].mean()])
    assert abs(usual - truth()["out"]) > 1e-3


def test_over_devices():
    data = {k: x[:12] for k, x in DATA.items()}
    evaluate = make_eval(metrics, batch_size=2)
    mapped = jax.shard_map(
        functools.partial(evaluate, axis_name="data"),
        mesh=data_mesh(4),
        in_specs=(P(), P("data")),
        out_specs=P(),
    )
    found, expected = jax.jit(mapped)(W, data), jax.jit(evaluate)(W, data)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_low_precision_means_are_summed_in_float32():
    def metrics(w, batch, mask):
        return {"m": Mean(jnp.sum(batch["x"] * mask).astype(jnp.bfloat16), jnp.bfloat16(1))}

    found = make_eval(metrics, batch_size=1)(W, {"x": jnp.full(600, 1.0)})
    assert float(found["m"]) == 1.0


def test_bad_data():
    with pytest.raises(ValueError, match="batch_size must be"):
        make_eval(metrics, batch_size=0)
    evaluate = make_eval(metrics, batch_size=4)
    for bad in [{}, {"x": jnp.zeros((0, 3))}, {"x": jnp.zeros((4, 3)), "keep": jnp.zeros(3, bool)}]:
        with pytest.raises(ValueError, match="one N > 0"):
            evaluate(W, bad)
