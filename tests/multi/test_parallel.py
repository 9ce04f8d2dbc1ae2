"""What compile promises beyond equal numbers: donation, carries, sharding, clear errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from divjax.core import Loss, Mean, all_sum, masked_mean, row_keys, whole_batch
from divjax.optim import adaptive_kl, ema
from divjax.train import alternate, data_mesh, make_step, over_seeds
from divjax.train.parallel import compile

MODES = ["jit", "shard_map", "pmap"]


def batch_of(rows=8):
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(rows, 4)).astype(np.float32), "mask": np.arange(rows) % 3 > 0}


def objective(params, batch, ctx):
    """Everything a step has: a knob, a reference, a teacher, a carry, noise."""
    noise = jax.vmap(jax.random.normal)(row_keys(ctx))
    out = batch["x"] @ params["w"] + 0.1 * noise
    teacher = batch["x"] @ ctx.frozen["w"]
    follow = batch["x"] @ ctx.refs["slow"]["w"]
    kl = masked_mean((out - teacher) ** 2, batch["mask"])
    count = all_sum(jnp.sum(batch["mask"], dtype=jnp.int32), ctx.axis_name)
    mean = all_sum(jnp.sum(out), ctx.axis_name) / (count + 1)
    return Loss(
        {"kl": (ctx.knobs["beta"], kl), "slow": (0.1, masked_mean((out - follow) ** 2))},
        {"rows": whole_batch(count.astype(jnp.float32), ctx.axis_name)},
        carry={"count": ctx.carry["count"] + count, "mean": 0.9 * ctx.carry["mean"] + 0.1 * mean},
    )


def full_step():
    return make_step(
        objective,
        optax.adam(1e-2),
        controllers={"beta": adaptive_kl(target=0.1, horizon=5.0, initial=1.0)},
        references={"slow": ema(0.5)},
    )


PARAMS = {"w": np.float32([0.5, -0.3, 0.2, 0.1])}
CARRY = {"count": np.int32(0), "mean": np.float32(0.0)}
FROZEN = {"w": np.float32([1.0, 1.0, 0.0, 0.0])}


def train(mode, devices, steps=3):
    step = full_step()
    state = step.init(PARAMS, jax.random.key(1), CARRY)
    update = compile(step, mode=mode, mesh=data_mesh(devices))
    for _ in range(steps):
        state, info = update(state, batch_of(), FROZEN)
    return state, info


@pytest.mark.parametrize("mode", MODES)
def test_knobs_references_frozen_and_carry_agree_in_every_mode(mode):
    step = full_step()
    expected = step.init(PARAMS, jax.random.key(1), CARRY)
    plain = jax.jit(step.update)
    for _ in range(3):
        expected, expected_info = plain(expected, batch_of(), FROZEN)
    state, info = train(mode, 4)
    assert int(state.carry["count"]) == 3 * int(batch_of()["mask"].sum())
    assert float(info.metrics["rows"]) == batch_of()["mask"].sum()
    for ours, theirs in zip(
        jax.tree.leaves((state._replace(key=()), info)),
        jax.tree.leaves((expected._replace(key=()), expected_info)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_donated_state_is_gone_and_everything_else_stays(mode):
    step = full_step()
    mine = jax.tree.map(jnp.asarray, (PARAMS, CARRY))
    key, frozen, batch = jax.random.key(1), jax.tree.map(jnp.asarray, FROZEN), batch_of()
    batch = jax.tree.map(jnp.asarray, batch)
    state = step.init(*mine[:1], key, mine[1])
    update = compile(step, mode=mode, mesh=data_mesh(2))
    first, _ = update(state, batch, frozen)
    second, _ = update(first, batch, frozen)
    assert first.params["w"].is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves((mine, key, frozen, batch, second)))
    np.testing.assert_array_equal(mine[0]["w"], PARAMS["w"])

    kept = compile(step, mode=mode, mesh=data_mesh(2), donate=False)
    again, _ = kept(second, batch, frozen)
    assert not second.params["w"].is_deleted()
    assert int(again.step) == 3


def test_one_buffer_is_never_donated_twice():
    """A reference that equals params at every step, and an optimiser that starts as params."""
    step = make_step(
        lambda p, batch, ctx: Loss({"fit": (1.0, masked_mean(p["w"] * batch["x"][0]))}),
        optax.GradientTransformation(lambda p: p, lambda g, s, p=None: (g, p)),
        references={"copy": ema(0.0)},
    )
    update = compile(step)
    state = step.init(jax.tree.map(jnp.asarray, PARAMS), jax.random.key(0))
    for _ in range(3):
        state, _ = update(state, batch_of())
    np.testing.assert_array_equal(state.refs["copy"]["w"], state.params["w"])


@pytest.mark.parametrize("mode", MODES)
def test_carry_computed_per_device_is_that_of_the_first(mode):
    """By contract it is equal on all devices; shard_map cannot see that and must be told."""

    def objective(w, batch, ctx):
        seen = all_sum(jnp.ones((), bool).astype(jnp.int32), ctx.axis_name) > 0
        return Loss({"fit": (1.0, masked_mean(w * batch["x"]))}, carry=seen & ctx.carry)

    step = make_step(objective, optax.sgd(0.1))
    update = compile(step, mode=mode, mesh=data_mesh(4))
    state, _ = update(step.init(jnp.float32(1), jax.random.key(0), jnp.array(True)), batch_of())
    assert state.carry.dtype == bool
    assert bool(state.carry)


@pytest.mark.parametrize("mode", MODES)
def test_alternating_players_and_seeds_on_devices(mode):
    def fit(name, target):
        return lambda p, batch, ctx: Loss(
            {name: (1.0, masked_mean((p[name] - target) ** 2 * batch["x"][:, 0] ** 2))}
        )

    def player(name, target):
        return make_step(fit(name, target), optax.sgd(0.2), train=[name])

    step = over_seeds(alternate({"a": (player("a", 1.0), 2), "b": (player("b", -1.0), 1)}))
    params = {"a": np.zeros(3, np.float32), "b": np.arange(3, dtype=np.float32)}
    keys = jax.random.split(jax.random.key(0), 3)
    plain, expected = jax.jit(step.update), step.init(params, keys)
    update, state = compile(step, mode=mode, mesh=data_mesh(2)), step.init(params, keys)
    for _ in range(4):
        expected, _ = plain(expected, batch_of())
        state, info = update(state, batch_of())
    assert state.step.tolist() == [4, 4, 4]
    assert info.value.shape == (3,)
    for name in "ab":
        np.testing.assert_allclose(state.params[name], expected.params[name], rtol=1e-5)


def test_microbatches_of_a_sharded_batch_move_no_rows():
    def objective(w, batch, ctx):
        return Loss({"fit": (1.0, masked_mean((batch["x"] @ w) ** 2))})

    step = make_step(objective, optax.sgd(0.1), accumulate=4)
    mesh = data_mesh(4)
    everywhere, split = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data"))
    )
    state = step.init(jnp.ones(4), jax.random.key(0))
    lowered = jax.jit(step.update, in_shardings=(everywhere, split), out_shardings=everywhere)
    text = lowered.lower(state, {"x": batch_of(64)["x"]}).compile().as_text()
    assert "all-reduce" in text
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)


def test_state_of_one_mode_goes_on_in_another():
    state, _ = train("pmap", 4, steps=2)
    state, _ = compile(full_step(), mode="shard_map", mesh=data_mesh(4))(state, batch_of(), FROZEN)
    expected, _ = train("jit", 2, steps=3)
    np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_the_devices_do_not_divide(mode):
    step = full_step()
    update = compile(step, mode=mode, mesh=data_mesh(4))
    state = step.init(PARAMS, jax.random.key(0), CARRY)
    with pytest.raises(ValueError, match=r"batch\['mask'\] must be a multiple of 4 devices"):
        update(state, batch_of(6), FROZEN)
    assert not state.params["w"].is_deleted()
    update(state, batch_of(8), FROZEN)


def test_bad_modes_and_meshes():
    with pytest.raises(ValueError, match="mode must be one of"):
        compile(full_step(), mode="pjit")
    with pytest.raises(ValueError, match=r"devices must lie in 1\.\.8"):
        data_mesh(9)
    square = jax.make_mesh((2, 2), ("a", "b"), devices=jax.devices()[:4])
    with pytest.raises(ValueError, match="mesh must have one axis"):
        compile(full_step(), mesh=square)


def test_one_compilation_serves_all_steps():
    traces = []

    def counted(params, batch, ctx):
        traces.append(1)
        return objective(params, batch, ctx)

    step = make_step(
        counted,
        optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 10)),
        controllers={"beta": adaptive_kl(target=0.1, horizon=5.0, initial=1.0)},
        references={"slow": ema(0.5)},
    )
    for update in [compile(step), *(compile(step, mode=m, mesh=data_mesh(2)) for m in MODES)]:
        traces.clear()
        state = step.init(PARAMS, jax.random.key(1), CARRY)
        for _ in range(3):
            state, _ = update(state, batch_of(), FROZEN)
        assert len(traces) == 1
    assert isinstance(state.step, jax.Array)


def test_whole_batch_statistic_with_a_mean_of_its_own():
    """Mean(value / n, 1 / n) adds up to (value, 1)."""
    step = make_step(
        lambda w, batch, ctx: Loss({"s": (1.0, whole_batch(w * 2.0, ctx.axis_name))}),
        optax.sgd(1.0),
    )
    for mode in MODES:
        update = compile(step, mode=mode, mesh=data_mesh(8))
        state, info = update(step.init(jnp.float32(5.0), jax.random.key(0)), batch_of())
        assert (float(state.params), float(info.value)) == (3.0, 10.0)
    assert isinstance(Mean(state.params, state.params), Mean)
