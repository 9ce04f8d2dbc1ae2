"""The step protocol against its later clients: each method in about 20 lines, with its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Loss, Mean, all_sum, masked_mean, row_keys
from divjax.optim import swap_when, windowed
from divjax.train import alternate, data_mesh, extragradient, loss_and_grad, make_step
from divjax.train.parallel import compile

KEY = jax.random.key(0)


# --- balance to a constraint (arXiv 2512.07142): an optax transformation on the reduced gradient


def balance_to_constraint(constraint, *, smoothing):
    """g + lam g_c with lam from gradient norms, smoothed; g_c and its size from the constraint."""

    def norm(tree):
        largest = jnp.maximum(optax.tree.norm(tree, ord=jnp.inf), 1e-12)  # 1e-25 squared is 0
        return largest * optax.tree.norm(jax.tree.map(lambda x: x / largest, tree))

    def update(grads, state, params):
        gap, push = jax.value_and_grad(constraint)(params)
        wanted = jnp.where(gap > 0, norm(grads) / (norm(push) + 1e-12), 0.0)
        mixed = (1 - smoothing) * state["lam"] + smoothing * wanted
        lam = jnp.where(state["count"] == 0, wanted, mixed)
        new = jax.tree.map(lambda g, p: g + lam * p, grads, push)
        return new, {"lam": lam, "count": state["count"] + 1}

    init = {"lam": jnp.zeros(()), "count": jnp.int32(0)}
    return optax.GradientTransformation(lambda params: init, update)


def test_balance_to_constraint(x64):
    def gap(phi):
        return 100.0 * (jnp.sum(jax.nn.sigmoid(phi)) / 1.1 - 1)

    def objective(phi, batch, ctx):
        return Loss({"task": (1.0, masked_mean(batch["g"] @ phi))})

    step = make_step(
        objective, optax.chain(balance_to_constraint(gap, smoothing=0.01), optax.scale(-1.0))
    )
    phi, update = jnp.array([1.0, 0.0, -1.0, -2.0]), jax.jit(step.update)
    trace = [
        (0.0, [-0.3, 0.1, 0.02, -0.05], 0.009085475096),
        (0.0, [0.1, -0.2, 0.05, 0.0], 0.009059516595),
        (-3.0, [0.1, -0.2, 0.05, 0.0], 0.008968921429),
    ]
    outputs = [
        (-0.13760793, 0.30648807, 0.18239207, 0.03671969),
        (0.2619281, 0.0058981, 0.2119281, 0.08647192),
    ]
    state = step.init(phi, KEY)
    for i, (shift, g, lam) in enumerate(trace):
        state = state._replace(params=phi + shift)
        rows = {"g": jnp.array(g) + jnp.array([[1.0], [-1.0]])}  # two rows whose mean is g
        new, _ = update(state, rows)
        np.testing.assert_allclose(new.opt_state[0]["lam"], lam, rtol=1e-9)
        if i < 2:
            np.testing.assert_allclose(phi - new.params, outputs[i], atol=1e-8)
        state = new


# --- extragradient in a game (arXiv 2505.19731): mirror prox is a GradFn


def test_extragradient_in_a_matrix_game(x64):
    """Rock, paper, scissors on logits: the last iterate of the look-ahead reaches (1/3, 1/3, 1/3).

    In the geometry of the simplex a step adds the payoff P pi to the logits: that is the GradFn.
    """
    payoff = jnp.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])

    def ascent(logits, batch, ctx):
        policy = jax.nn.softmax(logits)
        win = masked_mean(batch["rows"] * (policy @ payoff @ policy))
        return -(payoff @ policy), Loss({"win": (1.0, win)})

    def last(grad_fn, steps):
        step = make_step(None, optax.sgd(2.0), grad_fn=grad_fn)
        state = step.init(jnp.log(jnp.array([0.5, 0.3, 0.2])), KEY)
        batch = {"rows": jnp.ones(1)}
        state = jax.lax.fori_loop(0, steps, lambda _, s: step.update(s, batch)[0], state)
        return jax.nn.softmax(state.params)

    found = last(extragradient(ascent, 2.0), 100)
    np.testing.assert_allclose(found, [0.33333334, 0.33333278, 0.33333389], atol=1e-8)
    # plain mirror descent with as many queries leaves the interior
    np.testing.assert_allclose(last(ascent, 200), [0.99957, 8.8e-8, 4.3e-4], atol=5e-6)


# --- forward-only learning with a memory (arXiv 2504.03214): GradFn and Loss.carry


def ska(weights, batch, ctx):
    """-x^T grad_z H / B with grad_z H = -(z D(1-D) + dD) / ln 2; no backward pass anywhere."""
    z = batch["x"] @ weights["w"] + weights["b"]
    decision = jax.nn.sigmoid(z)
    moved = decision - ctx.carry["decision"]
    started = ctx.carry["steps"] > 0
    pull = jnp.where(started, -(z * decision * (1 - decision) + moved) / jnp.log(2.0), 0.0)
    total = {"w": batch["x"].T @ pull, "b": jnp.sum(pull, 0)}
    count = all_sum(jnp.float32(z.shape[0]), ctx.axis_name)
    grads = jax.tree.map(lambda g: all_sum(g, ctx.axis_name) / count, total)
    entropy = jnp.where(started, -jnp.sum(z * moved) / jnp.log(2.0), 0.0)
    carry = {"decision": decision, "steps": ctx.carry["steps"] + 1}
    return grads, Loss({"entropy": (1.0, Mean(entropy, jnp.float32(1.0)))}, carry=carry)


def test_forward_only_update_with_a_carry(x64):
    x = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    before = x @ jnp.array([[0.05], [0.2]])  # the decisions of the previous step
    step = make_step(None, optax.sgd(0.01), grad_fn=ska)
    carry = {"decision": jax.nn.sigmoid(before), "steps": jnp.int32(1)}
    state = step.init({"w": jnp.array([[0.1], [0.2]]), "b": jnp.zeros(1)}, KEY, carry)
    new, info = step.update(state, {"x": x})
    np.testing.assert_allclose(new.params["w"].ravel(), [0.10082076, 0.20208992], atol=1e-8)
    np.testing.assert_allclose(info.value, -0.00718278, atol=1e-8)
    np.testing.assert_allclose(new.carry["decision"], jax.nn.sigmoid(x @ state.params["w"]))
    first = step.init(state.params, KEY, {**carry, "steps": jnp.int32(0)})
    unmoved, _ = step.update(first, {"x": x})  # no decision shift yet, no update
    np.testing.assert_array_equal(unmoved.params["w"], state.params["w"])


# --- two alternating nets (arXiv 2502.15681): a fake that tracks the student, a student that moves


@pytest.mark.parametrize("mode", ["jit", "shard_map"])
def test_two_alternating_nets(mode):
    """A Gaussian student N(m, 1) of a teacher N(2, 1); the fake learns the student's mean.

    The score difference between teacher and fake is 2 - fake, so the student stops at 2, and only
    because the fake follows it. The teacher is `frozen`.
    """

    def samples(p, ctx):
        return p["student"] + jax.vmap(jax.random.normal)(row_keys(ctx))

    def fit_fake(p, batch, ctx):
        x = jax.lax.stop_gradient(samples(p, ctx))
        return Loss({"fit": (0.5, masked_mean((x - p["fake"]) ** 2))})

    def move_student(p, batch, ctx):
        score = jax.lax.stop_gradient(ctx.frozen["mean"] - p["fake"])
        return Loss({"vsd": (-1.0, masked_mean(samples(p, ctx) * score))})

    step = alternate(
        {
            "fake": (make_step(fit_fake, optax.sgd(0.5), train=["fake"]), 4),
            "student": (make_step(move_student, optax.adam(0.05), train=["student"]), 1),
        }
    )
    update = compile(step, mode=mode, mesh=data_mesh(2))
    state = step.init({"fake": jnp.float32(-1.0), "student": jnp.float32(0.0)}, KEY)
    batch, frozen = {"x": jnp.zeros(256)}, {"mean": jnp.float32(2.0)}
    for _ in range(400):
        state, _ = update(state, batch, frozen)
    np.testing.assert_allclose(state.params["student"], 2.0, atol=0.1)
    np.testing.assert_allclose(state.params["fake"], state.params["student"], atol=0.15)
    assert int(state.opt_state["student"][0].count) == 80  # Adam's count stood while it waited


# --- a vector controller (arXiv 2510.21978): weights from convergence and instability


def recap(size, window, temperature):
    """lam = K softmax((c + i) / T), c = mean / previous mean, i = std / (mean + previous mean)."""

    def knob(memory):
        previous, current = memory.values[:, :window], memory.values[:, window:]
        old, new = previous.mean(1), current.mean(1)
        full = memory.filled == 2 * window
        safe = jnp.where(full, old, 1.0)
        score = jnp.where(full, new / safe + current.std(1) / (new + safe), 1.0)
        return size * jax.nn.softmax(score / temperature)

    def read(*, signals, present, **_):
        return signals, present > 0

    return windowed(size, 2 * window, knob=knob, read=read)


def test_vector_controller_weights_the_terms(x64):
    history = jnp.array(
        [
            [0.10, 0.06, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04],
            [0.9, 0.7, 0.95, 0.8, 0.85, 0.6, 0.9, 0.75],
            [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3],
        ]
    )
    one = jnp.ones(())

    def objective(w, batch, ctx):
        total = batch["losses"][0] * w
        terms = {f"l{k}": (ctx.knobs["lam"][k] / 3, Mean(total[k], one)) for k in range(3)}
        seen = {"signals": batch["losses"][0], "present": batch["here"][0]}
        return Loss(terms, {name: Mean(x, one) for name, x in seen.items()})

    step = make_step(objective, optax.sgd(1.0), controllers={"lam": recap(3, 4, 5.0)})
    state, update = step.init(jnp.zeros(()), KEY), jax.jit(step.update)
    for losses in history.T:
        state, info = update(state, {"losses": losses[None], "here": jnp.ones((1, 3))})
    assert float(info.metrics["empty_terms"]) == 0
    state = state._replace(params=jnp.zeros(()))
    absent = {"losses": jnp.array([[9.0, 5.0, 1.0]]), "here": jnp.zeros((1, 3))}
    new, _ = update(state, absent)  # absent from a step: the history stands
    np.testing.assert_array_equal(new.controllers["lam"].values, state.controllers["lam"].values)
    expected = np.array([0.968106, 1.034106, 0.997788])
    np.testing.assert_allclose(-new.params, np.mean(expected * [9.0, 5.0, 1.0]), atol=1e-5)
    lam = recap(3, 4, 5.0)(state.controllers["lam"])
    np.testing.assert_allclose(lam, expected, atol=1e-6)


# --- a reference swapped by a metric (arXiv 2302.08215): the adaptive proposal


def test_proposal_is_swapped_when_the_policy_is_nearer_to_the_target():
    """q <- pi at every 4th step where KL(p || pi) < KL(p || q); samples are q's, weights pi / q."""
    log_p = jnp.log(jnp.array([0.5, 0.3, 0.2]))

    def objective(logits, batch, ctx):
        log_pi, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ctx.refs["proposal"])
        x = jax.vmap(jax.random.categorical, (0, None))(row_keys(ctx), log_q)
        weight = jnp.exp(log_p - log_q)[x]  # forward KL: gradient -E_q[(p / q) grad log pi]
        metrics = {
            "kl_policy": masked_mean((log_p - log_pi)[x] * weight),
            "kl_proposal": masked_mean((log_p - log_q)[x] * weight),
        }
        return Loss({"dpg": (1.0, masked_mean(-weight * log_pi[x]))}, metrics)

    better = swap_when(
        lambda step, *, kl_policy, kl_proposal, **_: (step % 4 == 0) & (kl_policy < kl_proposal)
    )
    step = make_step(objective, optax.sgd(0.5), references={"proposal": better})
    state, update = step.init(jnp.array([-1.0, 0.0, 1.0]), KEY), jax.jit(step.update)
    swaps, batch = [], {"rows": jnp.zeros(512)}
    for i in range(1, 41):
        before = state.refs["proposal"]
        state, info = update(state, batch)
        if not np.array_equal(before, state.refs["proposal"]):
            np.testing.assert_array_equal(state.refs["proposal"], state.params)
            assert info.metrics["kl_policy"] < info.metrics["kl_proposal"]
            swaps.append(i)
    assert swaps[0] == 4
    assert all(i % 4 == 0 for i in swaps)
    np.testing.assert_allclose(jax.nn.softmax(state.refs["proposal"]), jnp.exp(log_p), atol=0.05)


def test_clients_share_one_default_gradient():
    """loss_and_grad is what make_step uses; handing it over changes nothing."""

    def objective(w, batch, ctx):
        return Loss({"fit": (1.0, masked_mean((w - batch["x"]) ** 2))})

    batch = {"x": jnp.arange(4.0)}
    plain = make_step(objective, optax.sgd(0.1))
    handed = make_step(None, optax.sgd(0.1), grad_fn=loss_and_grad(objective))
    one, two = (s.update(s.init(jnp.float32(9.0), KEY), batch)[0] for s in (plain, handed))
    assert float(one.params) == float(two.params)
