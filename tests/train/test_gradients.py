import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Context, Loss, Mean, masked_mean
from divjax.train import extragradient, loss_and_grad, make_step

KEY = jax.random.key(0)


def context(rows, carry=()):
    return Context(KEY, jnp.int32(0), jnp.arange(rows), carry=carry)


def network(params, batch, ctx, *, carry):
    hidden = jnp.tanh(batch["x"] @ params["a"])
    out = (hidden @ params["b"])[:, 0]
    terms = {
        "fit": (1.0, masked_mean((out - batch["y"]) ** 2, batch["mask"])),
        "size": (0.5, masked_mean(out**2, ~batch["mask"])),
    }
    return Loss(terms, {"m": masked_mean(out)}, carry=carry(ctx.carry, hidden))


PARAMS = {"a": 0.3 * jnp.ones((4, 8)), "b": jnp.linspace(-1, 1, 8)[:, None]}
BATCH = {
    "x": jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)), jnp.float32),
    "y": jnp.linspace(0, 1, 12),
    "mask": jnp.arange(12) % 5 > 1,
}
CARRIES = {
    "none": (lambda old, hidden: (), ()),
    "statistics": (lambda old, hidden: 0.9 * old + 0.1 * hidden.mean(0), jnp.zeros(8)),
}


@pytest.mark.parametrize(("carry", "start"), CARRIES.values(), ids=CARRIES)
def test_collecting_the_weights_adds_no_matrix_product(carry, start):
    """Forward and backward of one microbatch, once: as many products as without microbatches."""

    def products(accumulate):
        grad_fn = loss_and_grad(
            lambda p, b, c: network(p, b, c, carry=carry), accumulate=accumulate
        )
        lowered = jax.jit(grad_fn).lower(PARAMS, BATCH, context(12, start)._replace(axis_name=None))
        return len(re.findall(r" dot\(|custom-call.*matmul", lowered.compile().as_text()))

    assert products(3) == products(1) > 0


def test_carry_runs_through_the_microbatches_in_order():
    def objective(w, batch, ctx):
        queue = jnp.concatenate([ctx.carry[1:], jnp.mean(batch["x"])[None]])
        return Loss({"t": (1.0, masked_mean(w * batch["x"]))}, carry=queue)

    x = jnp.array([1.0, 2.0, 3.0, 10.0, 20.0, 30.0])
    grad_fn = loss_and_grad(objective, accumulate=3)
    _, loss = grad_fn(jnp.float32(1.0), {"x": x}, context(6, jnp.full(4, -1.0)))
    assert loss.carry.tolist() == [-1.0, 5.5, 11.0, 16.5]  # rows (0, 3), (1, 4), (2, 5)


def test_weights_that_depend_on_the_carry_are_summed_as_they_are_used():
    """A queue fills up within the step: later microbatches have larger weights."""

    def objective(w, batch, ctx):
        count = ctx.carry + 1.0
        return Loss({"t": (1.0, Mean(jnp.sum(w * count * batch["x"]), count))}, carry=count)

    x = jnp.array([1.0, 2.0, 3.0])
    grads, loss = loss_and_grad(objective, accumulate=3)(
        jnp.float32(1.0), {"x": x}, context(3, jnp.float32(0.0))
    )
    np.testing.assert_allclose(grads, (1 * 1 + 2 * 2 + 3 * 3) / (1 + 2 + 3), rtol=1e-6)
    assert float(loss.carry) == 3.0


def test_metrics_and_carry_carry_no_gradient():
    def objective(w, batch, ctx):
        return Loss(
            {"t": (1.0, masked_mean(w * batch["x"]))},
            {"m": masked_mean(w**2 * batch["x"])},
            carry=w * 3.0,
        )

    grads, loss = loss_and_grad(objective)(
        jnp.float32(2.0), {"x": jnp.ones(2)}, context(2, jnp.float32(0.0))
    )
    assert (float(grads), float(loss.metrics["m"].value), float(loss.carry)) == (1.0, 4.0, 6.0)


def test_coefficients_may_be_traced_and_may_be_learned():
    def objective(p, batch, ctx):
        return Loss({"t": (jnp.exp(p["log_c"]), masked_mean(p["w"] * batch["x"]))})

    params = {"log_c": jnp.float32(0.5), "w": jnp.float32(3.0)}
    for accumulate in [1, 2]:
        grad_fn = loss_and_grad(objective, accumulate=accumulate)
        grads, _ = jax.jit(lambda p, f=grad_fn: f(p, {"x": jnp.ones(4)}, context(4)))(params)
        np.testing.assert_allclose(grads["w"], np.exp(0.5), rtol=1e-6)
        np.testing.assert_allclose(grads["log_c"], 3 * np.exp(0.5), rtol=1e-6)


def test_extragradient_converges_where_gradient_descent_does_not():
    """min_x max_y x y: plain simultaneous descent spirals out, the look-ahead spirals in."""

    def grad_fn(p, batch, ctx):
        return {"x": p["y"], "y": -p["x"]}, Loss({"t": (1.0, Mean(p["x"] * p["y"], jnp.ones(())))})

    def radius(grad_fn):
        step = make_step(None, optax.sgd(0.2), grad_fn=grad_fn)
        state = step.init({"x": jnp.float32(1.0), "y": jnp.float32(0.0)}, KEY)
        batch = {"unused": jnp.zeros(1)}
        state = jax.lax.fori_loop(0, 50, lambda _, s: step.update(s, batch)[0], state)
        return float(jnp.hypot(state.params["x"], state.params["y"]))

    # the exact moduli of 1 + i lr and 1 + i lr - lr^2
    np.testing.assert_allclose(radius(grad_fn), abs(1 + 0.2j) ** 50, rtol=1e-4)
    look_ahead = extragradient(grad_fn, 0.2)
    np.testing.assert_allclose(radius(look_ahead), abs(1 + 0.2j - 0.04) ** 50, rtol=1e-4)


def test_extragradient_moves_only_what_is_trained():
    def objective(p, batch, ctx):
        return Loss({"t": (1.0, masked_mean(p["a"] ** 2 * p["b"] ** 2 * batch["x"]))})

    inner = loss_and_grad(objective, train=["a"])
    grads, loss = extragradient(inner, 0.1)(
        {"a": jnp.float32(1.0), "b": jnp.float32(2.0)}, {"x": jnp.ones(1)}, context(1)
    )
    ahead = 1.0 - 0.1 * 2 * 4  # b stays 2
    assert set(grads) == {"a"}
    np.testing.assert_allclose(grads["a"], 2 * ahead * 4, rtol=1e-5)
    np.testing.assert_allclose(loss.terms["t"][1].value, ahead**2 * 4, rtol=1e-5)


def test_extragradient_checks_its_step_size():
    with pytest.raises(ValueError, match="step_size must be a finite number > 0"):
        extragradient(loss_and_grad(lambda p, b, c: Loss({})), 0.0)
