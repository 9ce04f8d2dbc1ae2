"""Two processes with two devices each are one mesh, and take the step of one process."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax

processes, index, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)
from divjax.core import Loss, masked_mean, row_keys
from divjax.train import checkpoint, make_step
from divjax.train.parallel import compile, data_mesh, shard_rows

def objective(w, batch, ctx):
    noise = jax.vmap(jax.random.normal)(row_keys(ctx))
    return Loss({"fit": (1.0, masked_mean((batch["x"] @ w - noise) ** 2, batch["mask"]))})

rng = np.random.default_rng(0)
batch = {"x": rng.normal(size=(8, 3)).astype(np.float32), "mask": np.arange(8) > 2}
rows = slice(index * 8 // processes, (index + 1) * 8 // processes)
mine = {name: x[rows] for name, x in batch.items()}
mesh = data_mesh()
assert mesh.size == 4
step = make_step(objective, optax.adam(0.1))
out = {}
for mode in ["jit", "shard_map"]:
    update = compile(step, mode=mode, mesh=mesh)
    state = step.init(jnp.ones(3), jax.random.key(0))
    for _ in range(3):
        state, info = update(state, shard_rows(mine, mesh))
    out[mode] = [*np.asarray(state.params).tolist(), float(info.value)]
checkpoint.save(folder, 3, state, {})
restored, _ = checkpoint.restore(folder, state, {})
assert np.array_equal(np.asarray(restored.params), np.asarray(state.params))
print(json.dumps(out))
"""


def launch(processes, devices, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(processes), str(i), port, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(processes)
    ]
    results = []
    try:
        for process in started:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err[-2000:]
            results.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in started:
            process.kill()
            process.communicate()  # reads what is left, closes the pipes, waits
    return results


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch(1, 4, tmp_path_factory.mktemp("one") / "run")[0]


def test_two_processes_take_the_step_of_one(alone, tmp_path):
    first, second = launch(2, 2, tmp_path / "run")
    assert first == second
    for mode in ["jit", "shard_map"]:
        np.testing.assert_allclose(first[mode], alone[mode], rtol=1e-6)
    np.testing.assert_allclose(alone["jit"], alone["shard_map"], rtol=1e-6)
