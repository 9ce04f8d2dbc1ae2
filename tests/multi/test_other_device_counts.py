"""Saved on n devices, restored on m: one test per complaint filed against a peer library."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from divjax.core import Loss, masked_mean, row_keys
from divjax.optim import ema
from divjax.train import checkpoint, make_step
from divjax.train.parallel import compile, data_mesh, fsdp, replicate, shard, shardings

task = json.loads(sys.argv[1])
devices, folder = task["devices"], task["folder"]
assert jax.device_count() == devices  # the other devices are not there at all
mesh = data_mesh()
rule = fsdp(mesh, min_size=1)

def objective(params, batch, ctx):
    noise = jax.vmap(jax.random.normal)(row_keys(ctx))
    out = jnp.tanh(batch["x"] @ params["w"].astype(jnp.float32)) @ params["v"]
    slow = jnp.tanh(batch["x"] @ ctx.refs["slow"]["w"].astype(jnp.float32)) @ params["v"]
    return Loss({"fit": (1.0, masked_mean((out - noise) ** 2 + (out - slow) ** 2, batch["mask"]))})

step = make_step(objective, optax.adam(0.1), references={"slow": ema(0.9)})
rng = np.random.default_rng(0)
params = {"w": rng.normal(size=(12, 16)), "v": rng.normal(size=16)}
types = {"w": jnp.bfloat16, "v": jnp.float32}

def initial():
    ready = {name: jnp.asarray(x, types[name]) for name, x in params.items()}
    return step.init(ready, jax.random.key(1))

def batch(i):
    rng = np.random.default_rng(i)
    return {"x": rng.normal(size=(16, 12)).astype(np.float32), "mask": np.arange(16) % 5 > 0}

def bits(state):
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(x).tobytes().hex() for x in jax.tree.leaves(state)]

def abstract():
    shapes = jax.eval_shape(initial)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes, shardings(shapes, mesh, rule))

made = {"plain": initial, "replicated": lambda: replicate(initial(), mesh),
        "sharded": lambda: shard(initial(), mesh, rule), "abstract": abstract}
out = {}
for layout in task["layouts"]:
    update = compile(step, mesh=mesh, rule=None if layout in ("plain", "replicated") else rule)
    if task["save"]:
        state = made[layout]()
        for i in range(2):
            state, _ = update(state, batch(i))
        checkpoint.save(f"{folder}-{layout}", 2, state, {})
        found = {"bits": bits(state)}
        state, info = update(state, batch(2))
        found["next"] = [float(info.value), *np.asarray(state.params["v"]).tolist(),
                         *np.asarray(state.params["w"], np.float32).ravel().tolist()]
        out[layout] = {layout: found}
        continue
    out[layout] = {}
    for saved in ["replicated", "sharded"]:
        like = made[layout]()
        state, at = checkpoint.restore(f"{folder}-{saved}", like, {})
        assert at == int(state.step) == 2
        for x, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
            assert x.sharding == wanted.sharding
        parts = len({str(s.index) for s in state.params["w"].addressable_shards})
        assert parts == (devices if layout in ("sharded", "abstract") else 1)
        found = {"bits": bits(state)}
        state, info = update(state, batch(2))
        found["next"] = [float(info.value), *np.asarray(state.params["v"]).tolist(),
                         *np.asarray(state.params["w"], np.float32).ravel().tolist()]
        out[layout][saved] = found
print(json.dumps(out))
"""


def run(devices, folder, layouts, *, save):
    task = {"devices": devices, "folder": str(folder), "layouts": layouts, "save": save}
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """{(devices that saved, devices that restored): (what was read, what was written)}."""
    found = {}
    for saved, readers in [(8, [1, 2, 4]), (1, [8])]:
        folder = tmp_path_factory.mktemp("saved") / "run"
        written = run(saved, folder, ["replicated", "sharded"], save=True)
        for devices in readers:
            layouts = ["plain" if devices == 1 else "replicated", "sharded", "abstract"]
            found[saved, devices] = run(devices, folder, layouts, save=False), written
    return found


COUNTS = [(8, 1), (8, 2), (8, 4), (1, 8)]


def same_bits_and_same_next_step(by_saved, written):
    assert set(by_saved) == {"replicated", "sharded"}
    for saved, got in by_saved.items():
        expected = written[saved][saved]
        assert got["bits"] == expected["bits"]
        got, expected = np.array(got["next"]), np.array(expected["next"])
        assert np.linalg.norm(got - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("counts", COUNTS)
def test_orbax_648_restored_on_another_number_of_devices(counts, restored):
    """The layout was stored with the numbers, and asked for devices that are not there."""
    found, written = restored[counts]
    for layout in set(found) - {"abstract"}:
        same_bits_and_same_next_step(found[layout], written)


@pytest.mark.parametrize("counts", COUNTS)
def test_flax_5110_shapes_with_a_layout_get_that_layout(counts, restored):
    """Arrays came back as they had lain when they were saved, whatever layout was asked for.

    `like` is made of shapes here: nothing is held twice, and no device holds the whole. That the
    layout is the one asked for is asserted by the program.
    """
    found, written = restored[counts]
    same_bits_and_same_next_step(found["abstract"], written)


def test_shapes_without_a_layout_come_back_free(tmp_path):
    from divjax.train import checkpoint, data_mesh
    from divjax.train.parallel import replicate

    state = replicate({"w": jnp.arange(6.0), "key": jax.random.key(3)}, data_mesh(8))
    checkpoint.save(tmp_path, 1, state, {})
    found, _ = checkpoint.restore(tmp_path, jax.eval_shape(lambda: state), {})
    assert not found["w"].committed
    assert not found["key"].committed
    assert found["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert jax.random.key_data(found["key"]).tolist() == [0, 3]
