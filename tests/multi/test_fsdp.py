"""A state kept in parts takes the steps of a whole one, and the batch stays where it is."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from divjax.core import Loss, masked_mean, row_keys
from divjax.optim import adaptive_kl, ema
from divjax.train import alternate, checkpoint, data_mesh, make_step, over_seeds
from divjax.train.parallel import _jit, compile, fsdp, replicate, shard, shardings

ROWS = 112  # 14 of each device: a size that no weight has
WIDTHS = [(24, 64), (64, 40), (40, 8)]  # rows or columns are the larger axis


def make_params(seed):
    rng = np.random.default_rng(seed)
    made = {f"w{i}": 0.3 * rng.normal(size=shape) for i, shape in enumerate(WIDTHS)}
    return {**{k: x.astype(np.float32) for k, x in made.items()}, "b": np.zeros(8, np.float32)}


def apply(params, x, keep=1.0):
    x = keep * jnp.tanh(x @ params["w0"])
    return jnp.tanh(x @ params["w1"]) @ params["w2"] + params["b"]


def make_batch():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(ROWS, 24)).astype(np.float32)
    return {"x": x, "mask": np.arange(ROWS) % 3 > 0}


def objective(params, batch, ctx):
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.9, (64,)))(row_keys(ctx))
    out = apply(params, batch["x"], keep)
    teacher = apply(ctx.frozen, batch["x"])
    slow = apply(ctx.refs["slow"], batch["x"])
    kl = masked_mean(jnp.sum((out - teacher) ** 2, -1), batch["mask"])
    lag = masked_mean(jnp.sum((out - slow) ** 2, -1), batch["mask"])
    return Loss({"kl": (ctx.knobs["beta"], kl), "lag": (0.1, lag)})


def full_step(accumulate=1):
    return make_step(
        objective,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
        controllers={"beta": adaptive_kl(target=0.1, horizon=5.0, initial=1.0)},
        references={"slow": ema(0.5)},
        accumulate=accumulate,
    )


def setting():
    mesh = data_mesh(8)
    return mesh, fsdp(mesh, min_size=100)


def initial(step):
    return step.init(make_params(0), jax.random.key(1))


def close(a, b, tolerance=1e-6):
    """Relative to the size of each leaf."""
    chex.assert_trees_all_equal_structs(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.linalg.norm(x - y) <= tolerance * max(np.linalg.norm(y), 1.0)


def parts(tree):
    """Path -> fraction of the array that one device holds."""
    return {
        jax.tree_util.keystr(path): x.addressable_shards[0].data.size / x.size
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("accumulate", [1, 2])
def test_numbers_are_those_of_the_replicated_step(accumulate):
    mesh, rule = setting()
    step = full_step(accumulate)
    whole, split = compile(step, mesh=mesh), compile(step, mesh=mesh, rule=rule)
    expected, state, frozen = initial(step), initial(step), make_params(1)
    for _ in range(3):
        expected, expected_info = whole(expected, make_batch(), frozen)
        state, info = split(state, make_batch(), shard(frozen, mesh, rule))
        close(info, expected_info)
    close(state, expected)


def test_each_device_holds_its_part_and_no_more():
    mesh, rule = setting()
    state, info = compile(full_step(), mesh=mesh, rule=rule)(
        initial(full_step()), make_batch(), make_params(1)
    )
    found = parts(state)
    large = {name for name in found if re.search(r"\['w\d'\]$", name)}
    assert len(large) == 4 * 3  # params, two moments and the average of three weights
    assert all((fraction == 1 / 8) == (name in large) for name, fraction in found.items())
    assert all(x.is_fully_replicated for x in jax.tree.leaves(info))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state._replace(key=())))
    everything = sum(x.nbytes for x in jax.tree.leaves(state._replace(key=())))
    assert held < everything / 7


COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(step, rule, frozen, mesh):
    """{(kind, shape)} of the compiled step."""
    state = shard(initial(step), mesh, rule)
    text = _jit(step, mesh, (0,), rule).lower(state, make_batch(), frozen).compile().as_text()
    return {
        (kind, tuple(map(int, filter(None, shape.split(",")))))
        for types, kind in COLLECTIVE.findall(text)
        for shape in re.findall(r"\w+\[([\d,]*)\]", types)
    }


def turned(shapes):
    return {*shapes, *(shape[::-1] for shape in shapes)}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_gathered_and_rows_are_not(accumulate):
    """Weights may move whole, gradients whole or in parts; nothing that has a row per example."""
    mesh, rule = setting()
    step = full_step(accumulate)
    for split in [rule, lambda path, shape: PartitionSpec()]:
        moved = collectives(step, split, shard(make_params(1), mesh, rule), mesh)
        gathered = {shape for kind, shape in moved if kind == "all-gather"}
        reduced = {shape for kind, shape in moved if kind in ("all-reduce", "reduce-scatter")}
        gradients = turned(
            [shape for a, b in WIDTHS for shape in [(a, b), (a // 8, b), (a, b // 8)]]
        )
        assert {kind for kind, _ in moved} <= {"all-gather", "all-reduce", "reduce-scatter"}
        assert gathered <= turned(WIDTHS)
        assert turned(gathered) >= {*WIDTHS}
        assert reduced <= {(), (8,), *gradients}
        assert len(reduced & gradients) >= len(WIDTHS)


def test_a_rule_by_path():
    """The teacher of another layout, and a rule that looks at names."""
    mesh, _ = setting()

    def rule(path, shape):
        return PartitionSpec("data") if path == "['w1']" else PartitionSpec()

    state, _ = compile(full_step(), mesh=mesh, rule=rule)(
        initial(full_step()), make_batch(), make_params(1)
    )
    found = parts(state)
    assert {name for name, fraction in found.items() if fraction < 1} == {
        name for name in found if name.endswith("['w1']")
    }


def test_donation_and_one_compilation():
    mesh, rule = setting()
    traces = []

    def counted(params, batch, ctx):
        traces.append(1)
        return objective(params, batch, ctx)

    step = make_step(
        counted,
        optax.adam(1e-2),
        controllers={"beta": adaptive_kl(target=0.1, horizon=5.0, initial=1.0)},
        references={"slow": ema(0.5)},
    )
    update = compile(step, mesh=mesh, rule=rule)
    teacher = shard(make_params(1), mesh, rule)
    first = shard(initial(step), mesh, rule)
    second, _ = update(first, make_batch(), teacher)
    third, _ = update(second, make_batch(), teacher)
    for old in (first, second):
        assert all(x.is_deleted() for x in jax.tree.leaves((old.params, old.opt_state, old.refs)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((teacher, third)))
    assert len(traces) == 1
    for x, place in zip(
        jax.tree.leaves(third), jax.tree.leaves(shardings(third, mesh, rule)), strict=True
    ):
        assert x.sharding == place
    # a state that comes whole is split first, and goes on alike
    whole, _ = update(replicate(jax.tree.map(jnp.copy, third), mesh), make_batch(), teacher)
    close(whole, update(third, make_batch(), teacher)[0])
    assert len(traces) == 1


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_a_teacher_is_taken_as_it_lies(mode):
    """Split, whole, on one device or in NumPy: the same numbers, and it stays as it was."""
    mesh, rule = setting()
    step, teacher = full_step(), make_params(1)
    update = compile(step, mode=mode, mesh=mesh)
    expected, _ = update(initial(step), make_batch(), teacher)
    for lying in [
        shard(teacher, mesh, rule),
        replicate(teacher, mesh),
        jax.device_put(teacher, jax.devices()[3]),
        jax.tree.map(jnp.asarray, teacher),
        {**shard(teacher, mesh, rule), "b": teacher["b"]},
    ]:
        before = jax.tree.map(lambda x: getattr(x, "sharding", None), lying)
        close(update(initial(step), make_batch(), lying)[0], expected)
        assert jax.tree.map(lambda x: getattr(x, "sharding", None), lying) == before


def test_checkpoint_keeps_the_layout(tmp_path):
    mesh, rule = setting()
    step, teacher = full_step(), make_params(1)
    update = compile(step, mesh=mesh, rule=rule)
    state, _ = update(initial(step), make_batch(), teacher)
    checkpoint.save(tmp_path, 1, state, {})
    like = shard(initial(step), mesh, rule)
    restored, _ = checkpoint.restore(tmp_path, like, {})
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert x.sharding == y.sharding
    close(restored, state, 0.0)
    on_one, _ = checkpoint.restore(tmp_path, initial(step), {})
    close(on_one, state, 0.0)
    expected, _ = update(state, make_batch(), teacher)
    close(update(restored, make_batch(), teacher)[0], expected, 0.0)
    close(compile(step)(on_one, make_batch(), teacher)[0], expected)


def test_players_and_seeds_follow_the_rule():
    mesh, rule = setting()

    def player(name):
        def fit(p, batch, ctx):
            return Loss({"fit": (1.0, masked_mean(jnp.sum((batch["x"] @ p[name]["w"]) ** 2, -1)))})

        return make_step(fit, optax.adam(0.1), train=[name])

    step = over_seeds(alternate({"a": (player("a"), 1), "b": (player("b"), 1)}))
    rng = np.random.default_rng(0)
    params = {n: {"w": rng.normal(size=(3, 24, 16)).astype(np.float32)} for n in "ab"}
    keys = jax.random.split(jax.random.key(0), 3)
    expected, whole = step.init(params, keys), compile(step, mesh=mesh)
    state, split = step.init(params, keys), compile(step, mesh=mesh, rule=rule)
    for _ in range(2):
        expected, _ = whole(expected, make_batch())
        state, _ = split(state, make_batch())
    close(state, expected)
    found = parts(state)
    assert sum(fraction == 1 / 8 for fraction in found.values()) == 2 + 2 * 2
    assert found[".opt_state['a'][0].mu['a']['w']"] == 1 / 8


def test_what_is_not_shaped_like_a_parameter_stays_whole():
    """A factored optimiser keeps vectors under the paths of matrices."""
    mesh, rule = setting()
    step = make_step(
        objective,
        optax.adafactor(1e-2, min_dim_size_to_factor=8),
        controllers={"beta": adaptive_kl(target=0.1, horizon=5.0, initial=1.0)},
        references={"slow": ema(0.5)},
    )
    state = initial(step)
    for path, place in jax.tree_util.tree_leaves_with_path(shardings(state, mesh, rule)):
        if place.spec != PartitionSpec():
            assert re.search(r"\['w\d'\]$", jax.tree_util.keystr(path))
    expected, _ = compile(step, mesh=mesh)(initial(step), make_batch(), make_params(1))
    close(compile(step, mesh=mesh, rule=rule)(state, make_batch(), make_params(1))[0], expected)


def test_the_ready_rule():
    mesh = data_mesh(8)
    rule = fsdp(mesh, min_size=64)
    assert rule("w", (8, 16)) == PartitionSpec(None, "data")
    assert rule("w", (16, 8)) == PartitionSpec("data")
    assert rule("w", (100, 8)) == PartitionSpec(None, "data")  # the larger is not divisible
    assert rule("w", (8, 8)) == PartitionSpec("data")
    assert rule("w", (7, 9)) == rule("w", (8,)) == rule("w", ()) == rule("w", (0, 8))
    assert rule("w", ()) == PartitionSpec()
    assert fsdp(mesh)("w", (128, 120)) == PartitionSpec()
    assert fsdp(mesh)("w", (128, 128)) == PartitionSpec("data")


def test_bad_rules():
    mesh, rule = setting()
    with pytest.raises(ValueError, match=r"must split \['w2'\] \[40, 8\] evenly over 8 .* Part"):
        shard(
            {"w2": jnp.ones((40, 8))}, mesh, lambda path, shape: PartitionSpec(None, None, "data")
        )
    with pytest.raises(ValueError, match=r"must split \['a'\] \[9\] evenly"):
        shard({"a": jnp.ones(9)}, mesh, lambda path, shape: PartitionSpec("data"))
    for mode in ["shard_map", "pmap"]:
        with pytest.raises(ValueError, match="a rule needs a mesh and mode 'jit'"):
            compile(full_step(), mode=mode, mesh=mesh, rule=rule)
    with pytest.raises(ValueError, match="a rule needs a mesh"):
        compile(full_step(), rule=rule)


def test_shapes_alone_have_a_layout():
    """A state that no device could hold is made in parts: jit(init, out_shardings=...)."""
    mesh, rule = setting()
    step = full_step()
    make = lambda: step.init(jax.tree.map(jnp.asarray, make_params(0)), jax.random.key(1))  # noqa: E731
    places = shardings(jax.eval_shape(make), mesh, rule)
    state = jax.jit(make, out_shardings=places)()
    close(state, initial(step))
    assert isinstance(state.params["w0"].sharding, NamedSharding)
    assert parts(state) == parts(shard(initial(step), mesh, rule))
