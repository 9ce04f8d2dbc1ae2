import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Loss, masked_mean
from divjax.optim import adaptive_kl, ema
from divjax.train import alternate, make_step

KEY = jax.random.key(0)
BATCH = {"x": jnp.array([1.0, 2.0, 3.0])}
PARAMS = {"fake": jnp.float32(4.0), "student": jnp.float32(-2.0)}


def pull(name, goal):
    def objective(p, batch, ctx):
        gap = masked_mean((p[name] - goal) ** 2 * batch["x"])
        return Loss({"kl": (ctx.knobs["beta"], gap)}, {f"{name}_steps": gap}, carry=ctx.carry + 1)

    return objective


def player(name, goal):
    return make_step(
        pull(name, goal),
        optax.adam(0.1),
        train=[name],
        controllers={"beta": adaptive_kl(target=1.0, horizon=3.0, initial=1.0)},
        references={"slow": ema(0.9)},
    )


def start(step):
    carry = {"fake": jnp.int32(0), "student": jnp.int32(0)}
    return step.init(PARAMS, KEY, carry=carry)


def test_players_take_turns_and_a_waiting_one_does_not_move():
    step = alternate({"fake": (player("fake", 1.0), 2), "student": (player("student", 1.0), 1)})
    update, state = jax.jit(step.update), start(step)
    order = ["fake", "fake", "student", "fake", "fake", "student"]
    for i, name in enumerate(order):
        new, info = update(state, BATCH)
        other = {"fake": "student", "student": "fake"}[name]
        for field in ["opt_state", "controllers", "refs", "carry"]:
            before, after = state._asdict()[field], new._asdict()[field]
            chex.assert_trees_all_equal(before[other], after[other])
            assert any(
                not np.array_equal(a, b)
                for a, b in zip(
                    jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
                )
            ), field
        assert float(state.params[other]) == float(new.params[other])
        assert float(state.params[name]) != float(new.params[name])
        assert int(new.step) == i + 1
        assert np.isfinite(info.value)
        assert np.isfinite(info.terms[f"{name}/kl"])
        assert np.isnan(info.terms[f"{other}/kl"])
        assert np.isnan(info.metrics[f"{other}/{other}_steps"])
        assert np.isfinite(info.metrics[f"{name}/empty_terms"])
        state = new
    assert (int(state.carry["fake"]), int(state.carry["student"])) == (4, 2)


def test_alternating_equals_two_separate_loops():
    """With independent objectives, each player's path is the one it takes alone."""
    step = alternate({"student": (player("student", 1.0), 1), "fake": (player("fake", 1.0), 3)})
    update, state = jax.jit(step.update), start(step)
    for _ in range(8):
        state, _ = update(state, BATCH)
    for name, count in {"student": 2, "fake": 6}.items():
        single = player(name, 1.0)
        alone = single.init(PARAMS, KEY, carry=jnp.int32(0))
        one = jax.jit(single.update)
        for _ in range(count):
            alone, _ = one(alone, BATCH)
        np.testing.assert_allclose(state.params[name], alone.params[name], rtol=1e-6)
        chex.assert_trees_all_close(state.opt_state[name], alone.opt_state, rtol=1e-6)


def test_bad_players():
    with pytest.raises(ValueError, match="players must not be empty"):
        alternate({})
    with pytest.raises(ValueError, match="updates of 'a' per round must be"):
        alternate({"a": (player("a", 0.0), 0)})
    with pytest.raises(ValueError, match=r"carry must be a dict with keys among \['fake'\]"):
        alternate({"fake": (player("fake", 1.0), 1)}).init(PARAMS, KEY, carry={"student": 1})
