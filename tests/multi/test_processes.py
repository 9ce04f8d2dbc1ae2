"""Two processes with two devices each are one mesh: they take the steps of one process, write one
checkpoint together, and go on from one that one process wrote."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Loss, masked_mean
from divjax.losses import sinkd
from divjax.train import checkpoint, data_mesh, make_step, parallel

PROGRAM = """
import json, sys
from divjax.train import parallel

processes, index, port, folder, source = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
parallel.start(f"127.0.0.1:{port}", processes, index)
parallel.start(f"127.0.0.1:{port}", processes, index)  # again, as in a notebook

import jax, jax.numpy as jnp, numpy as np, optax
from divjax.core import Loss, masked_mean, row_keys
from divjax.losses import sinkd
from divjax.train import checkpoint, make_step
from divjax.train.parallel import compile, data_mesh, fsdp, replicate, shard, shard_rows

def objective(w, batch, ctx):
    noise = jax.vmap(jax.random.normal)(row_keys(ctx))
    return Loss({"fit": (1.0, masked_mean((batch["x"] @ w - noise) ** 2, batch["mask"]))})

rng = np.random.default_rng(0)
batch = {"x": rng.normal(size=(8, 12)).astype(np.float32), "mask": np.arange(8) > 2}
rows = slice(index * 8 // processes, (index + 1) * 8 // processes)
mesh = data_mesh()
assert (mesh.size, jax.process_count(), jax.process_index()) == (4, processes, index)
mine = shard_rows({name: x[rows] for name, x in batch.items()}, mesh)
step = make_step(objective, optax.adam(0.1))
rule = fsdp(mesh, min_size=1)

def initial():
    return step.init(jnp.ones(12), jax.random.key(0))

def shown(state, info):
    assert len(state.params.addressable_shards) == 4 // processes
    return [*np.asarray(replicate(state.params, mesh)).tolist(), float(info.value)]

out = {}
for mode, layout in [("jit", None), ("shard_map", None), ("jit", rule)]:
    update = compile(step, mode=mode, mesh=mesh, rule=layout)
    state = initial()
    for _ in range(3):
        state, info = update(state, mine)
    name = mode if layout is None else "fsdp"
    out[name] = shown(state, info)
    checkpoint.save(f"{folder}-{name}", 3, state, {})
    like = replicate(initial(), mesh) if layout is None else shard(initial(), mesh, rule)
    restored, _ = checkpoint.restore(f"{folder}-{name}", like, {})
    assert restored.params.sharding == like.params.sharding
    assert shown(restored, info)[:-1] == out[name][:-1]

# the state in parts, in a loop: one writer, later steps dropped, old ones forgotten
store = checkpoint.open_checkpoints(f"{folder}-loop", {}, keep=2)
try:
    checkpoint.open_checkpoints(f"{folder}-loop", {})
    raise SystemExit("a second writer was let in")
except ValueError as error:
    assert "is open for writing" in str(error)
for i in [1, 2, 5, 3, 4]:
    store.save(i, state)
assert store.restore(shard(initial(), mesh, rule))[1] == 4
store.close()
checkpoint.open_checkpoints(f"{folder}-loop", {}).close()

if source != "-":  # what another number of processes wrote
    found, _ = checkpoint.restore(source, shard(initial(), mesh, rule), {})
    out["found"] = np.asarray(replicate(found.params, mesh)).tolist()
    found, info = update(found, mine)
    out["next"] = shown(found, info)
state, info = update(state, mine)
out["fsdp next"] = shown(state, info)

def coupled(w, batch, ctx):  # one transport plan between the rows of all processes
    z = batch["x"] * w
    mean, _ = sinkd(z[:, :6], z[:, 6:], mask=batch["mask"], axis_name=ctx.axis_name)
    return Loss({"plan": (8.0, mean)})

step = make_step(coupled, optax.trace(0.9))
out["plan"] = {}
for mode in ["jit", "shard_map"]:
    state, info = compile(step, mode=mode, mesh=mesh)(initial(), mine)
    out["plan"][mode] = [*np.asarray(state.opt_state.trace).tolist(), float(info.value)]
print(json.dumps(out))
"""


def launch(processes, devices, folder, source="-"):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(processes), str(i), port, str(folder), str(source)],
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
            assert process.returncode == 0, err[-3000:]
            results.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in started:
            process.kill()
            process.communicate()  # reads what is left, closes the pipes, waits
    return results


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("one") / "run", tmp_path_factory.mktemp("two") / "run"


@pytest.fixture(scope="module")
def alone(folders):
    return launch(1, 4, folders[0])[0]


@pytest.fixture(scope="module")
def together(folders, alone):
    return launch(2, 2, folders[1], source=f"{folders[0]}-fsdp")


def test_two_processes_take_the_step_of_one(alone, together):
    first, second = together
    assert first == second
    for name in alone.keys() - {"plan"}:
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-6)
        np.testing.assert_allclose(alone[name], alone["jit" if "next" not in name else name],
                                   rtol=1e-6)  # fmt: skip


def test_two_processes_make_one_transport_plan(together):
    """Value and gradient of a loss that couples all rows, against one device in this process."""
    rng = np.random.default_rng(0)
    x, mask = jnp.asarray(rng.normal(size=(8, 12)), jnp.float32), jnp.arange(8) > 2

    def loss(w):
        mean, _ = sinkd((x * w)[:, :6], (x * w)[:, 6:], mask=mask)
        return 8.0 * mean.value

    value, slope = jax.value_and_grad(loss)(jnp.ones(12))
    for found in together[0]["plan"].values():
        np.testing.assert_allclose(found[-1], value, rtol=1e-6)
        assert np.linalg.norm(slope - np.array(found[:-1])) < 1e-6 * np.linalg.norm(slope)


def test_two_processes_go_on_from_the_checkpoint_of_one(alone, together):
    assert together[0]["found"] == alone["fsdp"][:-1]
    np.testing.assert_allclose(together[0]["next"], alone["fsdp next"], rtol=1e-6)


def like(mesh=None):
    step = make_step(
        lambda w, batch, ctx: Loss({"fit": (1.0, masked_mean(batch["x"] @ w))}), optax.adam(0.1)
    )
    state = step.init(jnp.ones(12), jax.random.key(0))
    if mesh is None:
        return state
    return parallel.shard(state, mesh, parallel.fsdp(mesh, min_size=1))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_one_process_restores_the_checkpoint_of_two(devices, folders, together):
    for name, wanted in [
        ("fsdp", like(data_mesh(devices))),
        ("jit", like(data_mesh(devices))),
        ("fsdp", like()),
        ("loop", like()),
    ]:
        state, _ = checkpoint.restore(f"{folders[1]}-{name}", wanted, {})
        expected = together[0]["fsdp" if name == "loop" else name][:-1]
        assert np.asarray(state.params).tolist() == expected
        assert state.params.sharding == wanted.params.sharding


def test_each_process_writes_its_own_shards_and_the_first_the_description(folders, together):
    whole = folders[1].parent / "run-fsdp" / "3"
    for index in range(2):
        assert list((whole / "state" / f"ocdbt.process_{index}" / "d").iterdir())
    about = json.loads((whole / "about" / "metadata").read_text())
    sums = about["leaves"][".params"]["checksums"]
    assert sorted(sums) == ["0:3", "3:6", "6:9", "9:12"]
    assert sorted(p.name for p in (folders[1].parent / "run-loop").iterdir()) == ["3", "4", "lock"]


def test_a_changed_byte_of_one_process_is_noticed(folders, together, tmp_path):
    """Each shard has its checksum: also the process that reads alone checks them all."""
    whole = folders[1].parent / "run-fsdp" / "3" / "about" / "metadata"
    text, about = whole.read_text(), json.loads(whole.read_text())
    for region in about["leaves"][".params"]["checksums"]:
        changed = json.loads(text)
        changed["leaves"][".params"]["checksums"][region] ^= 1
        changed["checksum"] = checkpoint._text_checksum(
            {k: x for k, x in changed.items() if k != "checksum"}
        )
        whole.write_text(json.dumps(changed))
        try:
            with pytest.raises(ValueError, match=r"checksum of \.params is wrong"):
                checkpoint.restore(f"{folders[1]}-fsdp", like(), {})
        finally:
            whole.write_text(text)


ALONE = """
from divjax.train import parallel
parallel.start()
parallel.start(num_processes=1)
import jax
assert (jax.process_count(), jax.distributed.is_initialized()) == (1, False)
try:
    parallel.start()
except RuntimeError as error:
    assert "start: must come before any other use of JAX" in str(error), error
    print("late")
"""


def test_a_program_alone_has_nothing_to_join():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60)
    assert done.stdout == "late\n", done.stderr
    parallel.start(num_processes=1)  # also where JAX is in use
    parallel.start("10.0.0.1:1234", 1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.1:1234", None, None), "all or none"),
        ((None, 2, None), "all or none"),
        ((None, 2, 0), "all or none"),
        (("10.0.0.1:1234", 2, None), "all or none"),
        (("10.0.0.1:1234", 0, 0), r"num_processes must be an int > 0, got 0"),
        (("10.0.0.1:1234", 2, 2), r"process_id must be an int in 0\.\.1, got 2"),
        (("10.0.0.1:1234", 2, -1), r"process_id must be an int in 0\.\.1, got -1"),
        (("10.0.0.1", 2, 0), "coordinator must be 'host:port'"),
    ],
)
def test_wrong_arguments_of_start(arguments, message):
    with pytest.raises(ValueError, match=message):
        parallel.start(*arguments)
