import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Loss, masked_mean, row_keys
from divjax.optim import adaptive_kl, ema
from divjax.train import checkpoint, data_mesh, make_step, over_seeds
from divjax.train.parallel import compile, replicate


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 0.01
    widths: tuple[int, ...] = (4, 3)


def objective(params, batch, ctx):
    noise = jax.vmap(jax.random.normal)(row_keys(ctx))
    out = batch["x"] @ params["w"].astype(jnp.float32)
    kl = masked_mean((out[:, 0] - noise) ** 2)
    return Loss({"kl": (ctx.knobs["beta"], kl)}, carry={"n": ctx.carry["n"] + 1})


STEP = make_step(
    objective,
    optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.1, 0.0, 20))),
    controllers={"beta": adaptive_kl(target=0.1, horizon=5.0, initial=1.0)},
    references={"slow": ema(0.5)},
)
UPDATE = jax.jit(STEP.update)


def start(seed=0):
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16),
        "b": jnp.float32(0.0),
    }
    return STEP.init(params, jax.random.key(seed), {"n": jnp.int32(0)})


def batches(i):
    return {"x": np.random.default_rng(i).normal(size=(8, 4)).astype(np.float32)}


def train(state, first, last):
    for i in range(first, last):
        state, _ = UPDATE(state, batches(i))
    return state


def held(folder):
    """The names in a folder, besides the lock."""
    return sorted(p.name for p in folder.iterdir() if p.name != "lock")


def same(a, b):
    chex.assert_trees_all_equal_structs(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_resume_bit_for_bit(tmp_path):
    """Typed key, bfloat16, optax's nested states, controller, reference and carry."""
    straight = train(start(), 0, 6)
    checkpoint.save(tmp_path, 3, train(start(), 0, 3), Config())
    state, step = checkpoint.restore(tmp_path, start(seed=9), Config())
    assert step == 3
    same(state, train(start(), 0, 3))
    same(train(state, 3, 6), straight)


def test_nothing_there_is_none(tmp_path):
    assert checkpoint.restore(tmp_path / "no", start(), {}) is None
    assert not (tmp_path / "no").exists()
    assert checkpoint.restore(tmp_path, start(), {}) is None
    assert checkpoint.open_checkpoints(tmp_path, {}).restore(start()) is None


def test_a_loop_keeps_the_newest_and_may_donate_at_once(tmp_path):
    update = compile(STEP)
    store = checkpoint.open_checkpoints(tmp_path, {}, keep=2)
    state = start()
    for i in range(5):
        state, _ = update(state, batches(i))
        store.save(i + 1, state)
    store.close()
    assert held(tmp_path) == ["4", "5"]
    restored, step = checkpoint.restore(tmp_path, start(), {})
    assert step == 5
    same(restored, train(start(), 0, 5))


def test_what_is_written_in_the_background_is_what_was_handed_in(tmp_path):
    """A state large enough to be still on its way while the next steps reuse its memory."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    store, x = checkpoint.open_checkpoints(tmp_path, {}, keep=None), jnp.zeros(2_000_000)
    for i in range(3):
        store.save(i, {"x": x})
        for _ in range(10):
            x = add(x)
    store.close()
    for i in (2, 1, 0):
        found, step = checkpoint.restore(tmp_path, {"x": x}, {})
        assert step == i
        assert np.all(np.asarray(found["x"]) == 10 * i)
        shutil.rmtree(tmp_path / str(i))


def test_saving_an_earlier_step_drops_the_abandoned_future(tmp_path):
    store = checkpoint.open_checkpoints(tmp_path, {}, keep=None)
    for step in [10, 20, 30]:
        store.save(step, {"x": jnp.float32(step)})
    store.save(20, {"x": jnp.float32(-1)})
    assert float(store.restore({"x": jnp.float32(0)})[0]["x"]) == -1
    store.close()
    assert held(tmp_path) == ["10", "20"]


def test_restored_state_is_as_free_to_move_as_the_one_it_replaces(tmp_path):
    """Saved from one device, resumed on four by shard_map, and back."""
    checkpoint.save(tmp_path, 3, train(start(), 0, 3), {})
    mesh = data_mesh(4)
    update = compile(STEP, mode="shard_map", mesh=mesh)
    expected, _ = update(train(start(), 0, 3), batches(3))
    for like in [start(), replicate(start(), mesh)]:
        state, _ = checkpoint.restore(tmp_path, like, {})
        assert state.params["w"].sharding == like.params["w"].sharding
        assert state.params["w"].committed == like.params["w"].committed
        state, _ = update(state, batches(3))
        same(state, expected)
    checkpoint.save(tmp_path, 4, state, {})
    back, _ = checkpoint.restore(tmp_path, start(), {})
    same(back, expected)


def test_seeds(tmp_path):
    step = over_seeds(STEP)
    params = {"w": jnp.ones((2, 4, 3)), "b": jnp.zeros(2)}
    state = step.init(params, jax.random.split(jax.random.key(0), 2), {"n": jnp.zeros(2, int)})
    state, _ = jax.jit(step.update)(state, batches(0))
    checkpoint.save(tmp_path, 1, state, {})
    same(checkpoint.restore(tmp_path, state, {})[0], state)


def test_half_written_checkpoint_is_not_taken_for_a_whole_one(tmp_path):
    checkpoint.save(tmp_path, 3, train(start(), 0, 3), {})
    checkpoint.save(tmp_path, 6, train(start(), 0, 6), {})
    # orbax writes under a name of this form and renames when all is on disk
    (tmp_path / "6").rename(tmp_path / "6.orbax-checkpoint-tmp")
    state, step = checkpoint.restore(tmp_path, start(), {})
    assert step == 3
    same(state, train(start(), 0, 3))
    assert held(tmp_path) == ["3", "6.orbax-checkpoint-tmp"]  # reading removes nothing
    checkpoint.save(tmp_path, 6, train(state, 3, 6), {})  # the same step again
    assert held(tmp_path) == ["3", "6"]
    same(checkpoint.restore(tmp_path, start(), {})[0], train(start(), 0, 6))


KILLED = """
import sys, jax, jax.numpy as jnp
from divjax.train import checkpoint
store = checkpoint.open_checkpoints(sys.argv[1], {}, keep=3)
x = jnp.zeros(1_000_000)
for step in range(1, 10_000):
    x = x + 1
    store.save(step, {"x": x})
    print(step, flush=True)
"""


def test_kill_9_between_and_during_saves(tmp_path):
    """Whatever moment the process dies at, the newest checkpoint is whole and saving goes on."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    seen = [int(process.stdout.readline()) for _ in range(6)][-1]
    time.sleep(0.013)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = checkpoint.open_checkpoints(tmp_path, {})
    state, step = store.restore({"x": jnp.zeros(1_000_000)})
    assert step >= seen - 1  # save(n) begins when n - 1 is on disk
    assert np.all(np.asarray(state["x"]) == step)
    store.save(step + 1, {"x": state["x"] + 1})
    store.close()
    assert checkpoint.restore(tmp_path, state, {})[1] == step + 1
    assert all(name.isdigit() for name in held(tmp_path))  # the torn one is swept up


def test_config_mismatch_names_the_keys(tmp_path):
    checkpoint.save(tmp_path, 3, start(), Config())
    assert checkpoint.restore(tmp_path, start(), {"widths": [4, 3], "lr": 0.01}) is not None
    with pytest.raises(ValueError, match=r"another config \(lr: saved 0\.01, now 0\.02\)") as error:
        checkpoint.restore(tmp_path, start(), Config(lr=0.02))
    assert str(tmp_path / "3") in str(error.value)
    assert "start in a new directory" in str(error.value)
    match = r"depth: saved absent, now 2; widths: saved \[4, 3\], now absent"
    with pytest.raises(ValueError, match=match):
        checkpoint.restore(tmp_path, start(), {"lr": 0.01, "depth": 2})


def test_config_must_be_json(tmp_path):
    for bad in [{"f": jnp.tanh}, 3, None]:
        with pytest.raises(ValueError, match="config must"):
            checkpoint.open_checkpoints(tmp_path, bad)


def test_state_of_another_shape_names_the_leaf(tmp_path):
    checkpoint.save(tmp_path, 3, start(), {})
    other = start()._replace(carry={"n": jnp.int32(0), "m": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"carry\['m'\] of like must be absent as in"):
        checkpoint.restore(tmp_path, other, {})
    other = start()._replace(params={"w": jnp.zeros((4, 3)), "b": jnp.float32(0)})
    with pytest.raises(ValueError, match=r"params\['w'\] of like must be bfloat16.* got float32"):
        checkpoint.restore(tmp_path, other, {})


def test_foreign_directories(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="must be a directory, got a file"):
        checkpoint.save(tmp_path / "file", 1, start(), {})
    with pytest.raises(ValueError, match=r"must hold checkpoints only, got \['file'\]"):
        checkpoint.restore(tmp_path, start(), {})


def test_foreign_checkpoint(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
    with pytest.raises(ValueError, match=r"must hold checkpoints only, got \['5'\]"):
        checkpoint.restore(tmp_path, start(), {})


@pytest.mark.parametrize(
    "name", ["2024", "007", "1.5", "-1", "\u00b2", "metadata", "5.old", "lock"]
)
def test_a_foreign_directory_is_refused_and_never_deleted(name, tmp_path):
    """A folder of photographs by year was taken for checkpoints and cleaned up."""
    checkpoint.save(tmp_path, 3, {"x": jnp.ones(2)}, {})
    if name == "lock":
        (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name / "photo.jpg").write_text("x")
    for attempt in [
        lambda: checkpoint.save(tmp_path, 4, {"x": jnp.ones(2)}, {}),
        lambda: checkpoint.restore(tmp_path, {"x": jnp.ones(2)}, {}),
        lambda: checkpoint.open_checkpoints(tmp_path, {}, keep=1),
    ]:
        with pytest.raises(ValueError, match="must hold checkpoints only") as error:
            attempt()
        assert repr(name) in str(error.value)
    assert (tmp_path / name / "photo.jpg").exists()


def test_what_comes_into_the_folder_while_it_is_open_stays(tmp_path):
    store = checkpoint.open_checkpoints(tmp_path, {}, keep=1)
    for name in ["2024", "album.orbax-checkpoint-tmp", "2.orbax-checkpoint-tmp"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_text("x")
    for step in [1, 2, 3]:
        store.save(step, {"x": jnp.ones(2)})
    store.close()
    # the third is what a killed writer leaves behind
    assert held(tmp_path) == ["2024", "3", "album.orbax-checkpoint-tmp"]


def test_a_checkpoint_that_was_half_deleted_is_no_foreign_directory(tmp_path, monkeypatch):
    """Whole or gone: dropping one begins with a rename, so that a kill leaves a torn directory."""
    store = checkpoint.open_checkpoints(tmp_path, {}, keep=1)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # killed before that
    for step in [1, 2]:
        store.save(step, {"x": jnp.full(2, step)})
    store.close()
    assert len(held(tmp_path)) == 2
    monkeypatch.undo()
    state, step = checkpoint.restore(tmp_path, {"x": jnp.zeros(2, int)}, {})
    assert step == 2
    checkpoint.save(tmp_path, 3, state, {})
    assert held(tmp_path) == ["2", "3"]


def test_a_second_writer_is_refused(tmp_path):
    """Two writers removed each other's unfinished files."""
    store = checkpoint.open_checkpoints(tmp_path, {})
    store.save(1, {"x": jnp.ones(2)})
    for attempt in [
        lambda: checkpoint.open_checkpoints(tmp_path, {}),
        lambda: checkpoint.save(tmp_path, 2, {"x": jnp.ones(2)}, {}),
    ]:
        with pytest.raises(ValueError, match="is open for writing") as error:
            attempt()
        assert str(tmp_path) in str(error.value)
        assert "close" in str(error.value)
    store.restore({"x": jnp.zeros(2)})  # waits for the write
    assert checkpoint.restore(tmp_path, {"x": jnp.zeros(2)}, {})[1] == 1  # readers may
    store.save(2, {"x": jnp.ones(2)})
    store.close()
    store.close()  # closing twice is no error
    checkpoint.save(tmp_path, 3, {"x": jnp.ones(2)}, {})
    assert held(tmp_path) == ["1", "2", "3"]


def test_a_writer_that_was_dropped_or_refused_holds_no_lock(tmp_path):
    store = checkpoint.open_checkpoints(tmp_path, {})
    del store
    (tmp_path / "foreign").mkdir()
    with pytest.raises(ValueError, match="must hold checkpoints only"):
        checkpoint.open_checkpoints(tmp_path, {})
    (tmp_path / "foreign").rmdir()
    checkpoint.open_checkpoints(tmp_path, {}).close()


WRITER = """
import sys, time
import jax.numpy as jnp
from divjax.train import checkpoint
store = checkpoint.open_checkpoints(sys.argv[1], {})
store.save(1, {"x": jnp.ones(2)})
store.restore({"x": jnp.ones(2)})
print("open", flush=True)
time.sleep(100)
"""


def test_another_process_is_refused_until_the_first_is_killed(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match="is open for writing"):
            checkpoint.open_checkpoints(tmp_path, {})
        assert checkpoint.restore(tmp_path, {"x": jnp.ones(2)}, {})[1] == 1
        process.send_signal(signal.SIGKILL)
    checkpoint.save(tmp_path, 2, {"x": jnp.ones(2)}, {})
    assert held(tmp_path) == ["1", "2"]


def test_a_config_with_nan_equals_itself(tmp_path):
    config = {"skip": float("nan"), "deep": {"a": [1.0, float("nan")], "b": 2}, "lr": 1}
    checkpoint.save(tmp_path, 3, {"x": jnp.ones(2)}, config)
    again = {"lr": 1.0, "deep": {"b": 2, "a": [1, float("nan")]}, "skip": float("nan")}
    assert checkpoint.restore(tmp_path, {"x": jnp.ones(2)}, again)[1] == 3
    with pytest.raises(ValueError, match=r"config \(deep: saved .*; skip: saved nan, now 0\.0\)"):
        checkpoint.restore(tmp_path, {"x": jnp.ones(2)}, {"lr": 1, "deep": {}, "skip": 0.0})


def test_leaves_without_elements_are_kept(tmp_path):
    state = {
        "none": jnp.zeros((0, 3), jnp.bfloat16),
        "keys": jax.random.split(jax.random.key(0), 0),
        "x": jnp.ones(2),
    }
    checkpoint.save(tmp_path, 3, state, {})
    restored, _ = checkpoint.restore(tmp_path, state, {})
    same(restored, state)
    with pytest.raises(
        ValueError, match=r"\['none'\] of like must be .* \[0, 3\].* got .*\[0, 4\]"
    ):
        checkpoint.restore(tmp_path, {**state, "none": jnp.zeros((0, 4))}, {})
    with pytest.raises(ValueError, match=r"\['none'\] of like must be .* got no such leaf"):
        checkpoint.restore(tmp_path, {"x": state["x"], "keys": state["keys"]}, {})


@pytest.mark.parametrize("state", [{}, (), None, {"none": jnp.zeros((0, 3))}])
def test_a_state_without_a_number_is_refused(state, tmp_path):
    with pytest.raises(ValueError, match="save: state must hold an array with elements"):
        checkpoint.save(tmp_path, 3, state, {})
    store = checkpoint.open_checkpoints(tmp_path, {})
    with pytest.raises(ValueError, match="save: state must hold an array with elements"):
        store.save(3, state)
    store.save(3, {"x": jnp.ones(2)})
    assert store.restore({"x": jnp.ones(2)})[1] == 3
    store.close()


def test_a_run_belongs_to_its_teacher(tmp_path):
    """The teacher is saved once; its fingerprint in the config refuses to go on with another."""
    teacher = {"w": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(1)}
    config = {"lr": 0.1, "teacher": checkpoint.fingerprint(teacher)}
    checkpoint.save(tmp_path / "teacher", 0, teacher, {})
    checkpoint.save(tmp_path / "run", 3, start(), config)
    found, _ = checkpoint.restore(tmp_path / "teacher", teacher, {})
    assert checkpoint.fingerprint(found) == config["teacher"]
    same(checkpoint.restore(tmp_path / "run", start(), config)[0], start())
    other = {"lr": 0.1, "teacher": checkpoint.fingerprint({**found, "w": found["w"] + 1e-6})}
    with pytest.raises(ValueError, match=r"another config \(teacher: saved '\w{64}', now '\w{64}'"):
        checkpoint.restore(tmp_path / "run", start(), other)


def test_fingerprint_sees_names_types_shapes_and_values():
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.float32(1)}
    same_tree = {"b": jnp.float32(1), "a": jnp.zeros((2, 3))}
    assert checkpoint.fingerprint(tree) == checkpoint.fingerprint(same_tree)
    spread = replicate(same_tree, data_mesh(4))
    assert checkpoint.fingerprint(tree) == checkpoint.fingerprint(spread)
    others = [
        {"c": tree["a"], "b": tree["b"]},
        {"a": tree["a"].T, "b": tree["b"]},
        {"a": tree["a"].astype(jnp.bfloat16), "b": tree["b"]},
        {"a": tree["a"].view(np.int32), "b": tree["b"]},
        {"a": tree["a"] - 0.0 * tree["b"] - 1e-30, "b": tree["b"]},
    ]
    assert len({checkpoint.fingerprint(x) for x in [tree, *others]}) == 6


DAMAGED = """
import json, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np
from divjax.train import checkpoint

folder = Path(sys.argv[1])
state = {"x": jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)}
checkpoint.save(folder, 4, state, {})
outcomes = []
for path in sorted(p for p in (folder / "4").rglob("*") if p.is_file()):
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(b ^ 0x55 for b in whole[middle : middle + 1])
    flipped += whole[middle + 1 :]
    for data in [whole[:middle], flipped, None]:
        path.unlink() if data is None else path.write_bytes(data)
        try:
            found, _ = checkpoint.restore(folder, state, {})
            outcomes.append("right" if np.array_equal(found["x"], state["x"]) else f"wrong {path}")
        except ValueError as error:
            outcomes.append(str(error))
        path.write_bytes(whole)
print(json.dumps(outcomes))
"""


def test_damaged_checkpoint_never_restores_wrong_numbers(tmp_path):
    """Each file cut, changed in a byte or removed: the right state, or an error with a remedy.

    In a process of its own: orbax leaves tasks behind that complain whenever they are collected.
    """
    command = [sys.executable, "-c", DAMAGED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outcomes = [text for text in json.loads(done.stdout) if text != "right"]
    assert len(outcomes) >= 8
    assert any("checksum of ['x'] is wrong" in text for text in outcomes)
    for text in outcomes:
        assert text.startswith(str(tmp_path / "4"))
        assert "delete" in text or "move it away" in text


TYPED = """
import shutil, sys
import jax
from divjax.train import checkpoint
state = {"key": jax.random.key(3)}
checkpoint.save(sys.argv[1], 4, state, {})
shutil.rmtree(sys.argv[1] + "/4/state/array_metadatas")  # where orbax keeps that it is a key
try:
    found, _ = checkpoint.restore(sys.argv[1], state, {})
    print(found["key"].dtype)
except ValueError as error:
    print(error)
"""


def test_a_lost_type_is_damage(tmp_path):
    command = [sys.executable, "-c", TYPED, str(tmp_path / "run")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "['key'] came as uint32 [2], not key<fry> []" in out


def test_importing_train_does_not_import_orbax():
    code = "import sys, divjax.train, divjax.optim; sys.exit('orbax' in str(list(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Path(checkpoint.__file__).name == "checkpoint.py"


def test_one_save_keeps_the_steps_beside_it(tmp_path):
    for step in (5, 10, 6):
        checkpoint.save(tmp_path, step, {"w": jnp.ones(2)}, {})
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [5, 6, 10]
    with pytest.raises(ValueError, match="step must be one that"):
        checkpoint.save(tmp_path, 5, {"w": jnp.zeros(2)}, {})
    with pytest.raises(ValueError, match="step must be an int >= 0"):
        checkpoint.save(tmp_path, -1, {"w": jnp.zeros(2)}, {})
    with pytest.raises(ValueError, match="step must be an int >= 0, got True; pass save"):
        checkpoint.save(tmp_path, True, {"w": jnp.zeros(2)}, {})
    with pytest.raises(ValueError, match=r"leaf \['w'\] must be an array or a number, got 'text'"):
        checkpoint.save(tmp_path, 7, {"w": "text"}, {})
    with pytest.raises(ValueError, match=r"leaf \['w'\] must be an array or a number, got <obj"):
        checkpoint.restore(tmp_path, {"w": object()}, {})
    assert checkpoint.restore(tmp_path, {"w": jnp.zeros(2)}, {})[1] == 10
