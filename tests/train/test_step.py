import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import Loss, Mean, masked_mean, row_keys
from divjax.optim import Reference, adaptive_kl, ema
from divjax.train import loss_and_grad, make_step, over_seeds

KEY = jax.random.key(0)


def batch_of(rows=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, 4)),
        "y": rng.integers(0, 3, rows),
        "mask": np.arange(rows) % 3 != 1,
        "other": np.arange(rows) < 2,
    }


def params_of(seed=1):
    rng = np.random.default_rng(seed)
    return {"w": 0.5 * rng.normal(size=(4, 5)), "v": 0.5 * rng.normal(size=(5, 3))}


def objective(params, batch, ctx):
    hidden = jnp.tanh(batch["x"] @ params["w"])
    logits = hidden @ params["v"]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return Loss(
        {
            "ce": (1.0, masked_mean(nll, batch["mask"])),
            "energy": (0.2, masked_mean(jnp.sum(hidden**2, -1), batch["other"])),
        },
        {"hits": masked_mean(logits.argmax(-1) == batch["y"], batch["mask"])},
    )


def numpy_step(params, m, v, t, batch, *, lr=0.01, b1=0.9, b2=0.999, eps=1e-8):
    """Forward, backward and Adam, written out."""
    hidden = np.tanh(batch["x"] @ params["w"])
    logits = hidden @ params["v"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(p))
    weight = batch["mask"] / batch["mask"].sum()
    value = -np.sum(weight * np.log(p[rows, batch["y"]]))
    other = batch["other"] / batch["other"].sum()
    energy = np.sum(other * (hidden**2).sum(1))
    d_logits = p.copy()
    d_logits[rows, batch["y"]] -= 1
    d_logits *= weight[:, None]
    d_hidden = d_logits @ params["v"].T + 0.2 * other[:, None] * 2 * hidden
    grads = {"w": batch["x"].T @ (d_hidden * (1 - hidden**2)), "v": hidden.T @ d_logits}
    m = {k: b1 * m[k] + (1 - b1) * grads[k] for k in grads}
    v = {k: b2 * v[k] + (1 - b2) * grads[k] ** 2 for k in grads}
    new = {
        k: params[k] - lr * (m[k] / (1 - b1**t)) / (np.sqrt(v[k] / (1 - b2**t)) + eps)
        for k in grads
    }
    hits = np.sum(weight * (logits.argmax(1) == batch["y"]))
    return new, m, v, (value, energy, hits)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_those_written_by_hand_in_numpy(x64, accumulate):
    step = make_step(objective, optax.adam(0.01), accumulate=accumulate)
    params = params_of()
    state, update = step.init(params, KEY), jax.jit(step.update)
    m = v = {k: np.zeros_like(p) for k, p in params.items()}
    for t in range(1, 4):
        batch = batch_of(seed=t)
        state, info = update(state, batch)
        params, m, v, (ce, energy, hits) = numpy_step(params, m, v, t, batch)
        np.testing.assert_allclose(info.terms["ce"], ce, rtol=1e-12)
        np.testing.assert_allclose(info.terms["energy"], energy, rtol=1e-12)
        np.testing.assert_allclose(info.value, ce + 0.2 * energy, rtol=1e-12)
        np.testing.assert_allclose(info.metrics["hits"], hits, rtol=1e-12)
        assert int(state.step) == t
        for k in params:
            np.testing.assert_allclose(state.params[k], params[k], rtol=1e-10)


def test_init_copies():
    params = {"w": jnp.ones(3)}
    step = make_step(objective, optax.adam(0.01), references={"slow": ema(0.5)})
    state = step.init(params, KEY)
    leaves = jax.tree.leaves((params, state))
    arrays = [x for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)


def scalar_step(objective, tx=None, **options):
    step = make_step(objective, optax.sgd(1.0) if tx is None else tx, **options)
    return step, step.init(jnp.float32(2.0), KEY)


def linear(knob):
    """The gradient is the knob: what moved is read off the update."""

    def objective(w, batch, ctx):
        return Loss(
            {"kl": (knob(ctx), Mean(w * jnp.sum(batch["x"]), jnp.float32(batch["x"].size)))}
        )

    return objective


X = {"x": jnp.ones(4)}


def test_order_knob_then_gradient_then_references_then_controllers():
    seen = []

    def reference_update(ref, params, step, **signals):
        seen.append("reference")
        assert set(signals) == {"value", "kl", "empty_terms"}
        return params + 0.0 * step

    class Recorder:
        def init(self):
            return jnp.float32(0.5)

        def __call__(self, state, **_):
            seen.append("knob")
            return state

        def update(self, state, *, kl, **_):
            seen.append("controller")
            return state + kl

    def objective(w, batch, ctx):
        seen.append("objective")
        return linear(lambda ctx: ctx.knobs["k"])(w, batch, ctx)

    def tx_update(grads, state, params, **extra):
        seen.append("tx")
        assert set(extra) == {"value", "kl", "empty_terms"}
        return -grads, state

    step, state = scalar_step(
        objective,
        optax.GradientTransformationExtraArgs(lambda p: (), tx_update),
        controllers={"k": Recorder()},
        references={"r": Reference(lambda p: p, reference_update)},
    )
    new, info = step.update(state, X)
    assert seen == ["knob", "objective", "tx", "reference", "controller"]
    assert float(new.params) == 2.0 - 0.5  # the knob of before this step
    assert float(new.refs["r"]) == 1.5  # the params of after this step
    assert float(new.controllers["k"]) == 0.5 + 2.0  # the signal of this step
    assert (float(info.value), float(info.terms["kl"])) == (1.0, 2.0)


def test_every_part_of_the_context_acts():
    """Each entry of ctx, in turn, is the gradient; changing it changes the update."""
    reads = {
        "knobs": lambda ctx: ctx.knobs["beta"],
        "refs": lambda ctx: ctx.refs["slow"],
        "frozen": lambda ctx: ctx.frozen,
        "carry": lambda ctx: ctx.carry,
        "step": lambda ctx: ctx.step.astype(jnp.float32),
        "key": lambda ctx: jax.random.uniform(ctx.key),
    }
    seen = {}
    for name, read in reads.items():

        def objective(w, batch, ctx, read=read):
            return linear(read)(w, batch, ctx)._replace(carry=ctx.carry + 1)

        step = make_step(
            objective,
            optax.sgd(1.0),
            controllers={"beta": adaptive_kl(target=1.0, horizon=2.0, initial=0.25)},
            references={"slow": ema(0.5)},
        )
        state = step.init(jnp.float32(2.0), KEY, carry=jnp.float32(7.0))
        moves = []
        for _ in range(2):
            new, _ = step.update(state, X, jnp.float32(3.0))
            moves.append(float(state.params - new.params))
            state = new
        seen[name] = moves
    first, second = jax.random.fold_in(KEY, 0), jax.random.fold_in(KEY, 1)
    noise = [float(jax.random.uniform(k)) for k in (first, second)]
    expected = {
        "knobs": [0.25, 0.25 * 1.1],
        "refs": [2.0, 1.0],
        "frozen": [3.0, 3.0],
        "carry": [7.0, 8.0],
        "step": [0.0, 1.0],
        "key": noise,
    }
    for name, moves in expected.items():
        np.testing.assert_allclose(seen[name], moves, rtol=1e-5, err_msg=name)


def test_rows_are_numbered_and_noise_belongs_to_the_row():
    def objective(w, batch, ctx):
        noise = jax.vmap(jax.random.normal)(row_keys(ctx))
        return Loss(
            {"n": (1.0, masked_mean(w * noise * batch["x"]))},
            {"rows": Mean(jnp.sum(ctx.rows * batch["x"]), jnp.float32(1.0))},
        )

    x = jnp.array([1.0, 10.0, 100.0, 1000.0])
    values = []
    for accumulate in [1, 2, 4]:
        step, state = scalar_step(objective, accumulate=accumulate)
        _, info = step.update(state, {"x": x})
        # a metric of weight 1 per microbatch: the sum over rows, divided by their number
        assert float(info.metrics["rows"]) * accumulate == 0 + 10 + 200 + 3000
        values.append(float(info.value))
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_optimiser_sees_value_and_metrics():
    tx = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))

    def objective(w, batch, ctx):
        return Loss({"c": (1.0, Mean(w * 0.0 + 1.0 + 1e-9 * w, jnp.float32(1.0)))})

    step, state = scalar_step(objective, tx)
    for _ in range(4):
        state, _ = step.update(state, X)
    assert float(state.opt_state[1].scale) < 1.0


def test_train_updates_only_the_named_entries():
    params = {"student": jnp.ones(2), "teacher": jnp.ones(2), "ids": jnp.arange(2)}

    def objective(p, batch, ctx):
        assert set(p) == {"student", "teacher", "ids"}
        return Loss({"fit": (1.0, masked_mean(p["student"] * p["teacher"] * batch["x"]))})

    for accumulate in [1, 2]:
        step = make_step(objective, optax.adam(0.1), train=("student",), accumulate=accumulate)
        state = step.init(params, KEY)
        assert jax.tree.map(jnp.shape, state.opt_state[0].mu) == {"student": (2,)}
        new, _ = step.update(state, {"x": jnp.ones((4, 2))})
        np.testing.assert_allclose(new.params["student"], 0.9, rtol=1e-5)
        np.testing.assert_array_equal(new.params["teacher"], 1.0)
        np.testing.assert_array_equal(new.params["ids"], params["ids"])


def test_custom_grad_fn_may_return_more_than_is_trained():
    grad_fn = loss_and_grad(
        lambda p, batch, ctx: Loss({"fit": (1.0, masked_mean(p["a"] * p["b"] * batch["x"]))})
    )
    step = make_step(None, optax.sgd(1.0), grad_fn=grad_fn, train=["a"])
    state, _ = step.update(step.init({"a": jnp.float32(3), "b": jnp.float32(2)}, KEY), X)
    assert (float(state.params["a"]), float(state.params["b"])) == (1.0, 2.0)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_compute_dtype_is_seen_by_the_objective_only(accumulate):
    def objective(params, batch, ctx):
        assert params["w"].dtype == jnp.bfloat16
        assert params["n"].dtype == jnp.int32
        out = batch["x"].astype(jnp.bfloat16) @ params["w"]
        assert out.dtype == jnp.bfloat16
        return Loss({"fit": (1.0, Mean(jnp.sum(out**2), jnp.bfloat16(1)))}, {"m": masked_mean(out)})

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4096, 8)).astype(np.float32)
    w = rng.normal(size=8).astype(np.float32)
    step = make_step(
        objective,
        optax.adam(0.1),
        compute_dtype=jnp.bfloat16,
        train=["w"],
        accumulate=accumulate,
    )
    state = step.init({"w": w, "n": jnp.int32(1)}, KEY)
    new, info = step.update(state, {"x": x})
    chex.assert_trees_all_equal_dtypes(new, state)
    assert {y.dtype for y in jax.tree.leaves(info)} == {jnp.dtype(jnp.float32)}
    assert new.params["w"].dtype == jnp.float32


def test_sums_of_low_precision_totals_are_float32():
    """1024 totals of 3: in bf16 they add up to 1024 at most, their weights to 256."""

    def objective(w, batch, ctx):
        return Loss(
            {"s": (1.0, Mean(jnp.sum(w * batch["x"]).astype(jnp.bfloat16), jnp.bfloat16(1)))}
        )

    step, state = scalar_step(objective, accumulate=1024)
    _, info = step.update(state._replace(params=jnp.float32(1.0)), {"x": jnp.full(1024, 3.0)})
    assert float(info.value) == 3.0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trl_5885_fully_masked_batch_is_zero_not_nan_and_is_counted(accumulate):
    def objective(w, batch, ctx):
        return Loss(
            {
                "masked": (1.0, masked_mean(w * batch["x"], batch["mask"])),
                "kept": (1.0, masked_mean(w * batch["x"], ~batch["mask"])),
                "zero": (1.0, masked_mean(0.0 * batch["x"])),  # a value of 0 is not an empty term
            }
        )

    step, state = scalar_step(objective, accumulate=accumulate)
    poisoned = {"x": jnp.array([1.0, 2.0, 3.0, 4.0]), "mask": jnp.zeros(4, bool)}
    new, info = step.update(state, poisoned)
    assert float(info.terms["masked"]) == 0.0
    assert float(info.metrics["empty_terms"]) == 1.0
    assert float(state.params - new.params) == 2.5

    def only(w, batch, ctx):
        return Loss({"masked": (1.0, masked_mean(w * batch["x"], batch["mask"]))})

    step, state = scalar_step(only, accumulate=accumulate)
    new, info = step.update(state, poisoned)
    assert (float(new.params), float(info.value)) == (2.0, 0.0)


def test_distillm_5_same_seed_same_bits():
    step = make_step(objective, optax.adam(0.01))

    def final():
        state, update = step.init(params_of(), jax.random.key(7)), jax.jit(step.update)
        for i in range(5):
            state, _ = update(state, batch_of(seed=i))
        return state

    chex.assert_trees_all_equal(final().params, final().params)


def test_eight_seeds_are_one_compilation_and_equal_the_loop():
    chex.clear_trace_counter()
    single = make_step(objective, optax.adam(0.01), references={"slow": ema(0.9)})
    step = over_seeds(single)
    keys = jax.random.split(KEY, 8)
    params = jax.tree.map(lambda *x: jnp.stack(x), *(params_of(seed) for seed in range(8)))
    update = jax.jit(chex.assert_max_traces(step.update, n=1))
    state = step.init(params, keys)
    for i in range(3):
        state, info = update(state, batch_of(seed=i))
    assert info.terms["ce"].shape == (8,)

    one = jax.jit(single.update)
    for s in [0, 5]:
        alone = single.init(params_of(s), keys[s])
        for i in range(3):
            alone, _ = one(alone, batch_of(seed=i))
        mine = jax.tree.map(lambda x, s=s: x[s], (state.params, state.refs))
        chex.assert_trees_all_close(mine, (alone.params, alone.refs), rtol=1e-5, atol=1e-7)


def test_seeds_with_batches_of_their_own():
    step = over_seeds(make_step(linear(lambda ctx: 1.0), optax.sgd(1.0)), batch_axis=0)
    state = step.init(jnp.zeros(2), jax.random.split(KEY, 2))
    state, _ = step.update(state, {"x": jnp.array([[1.0, 1.0], [2.0, 2.0]])})
    assert state.params.tolist() == [-1.0, -2.0]


def test_arguments_are_checked_at_once():
    with pytest.raises(ValueError, match="exactly one of objective and grad_fn"):
        make_step(objective, optax.sgd(1.0), grad_fn=loss_and_grad(objective))
    with pytest.raises(ValueError, match="exactly one of objective and grad_fn"):
        make_step(None, optax.sgd(1.0))
    with pytest.raises(ValueError, match="accumulate and compute_dtype belong to the default"):
        make_step(None, optax.sgd(1.0), grad_fn=loss_and_grad(objective), accumulate=2)
    with pytest.raises(ValueError, match=r"controllers\['lr'\] must have init.*WrappedSchedule"):
        make_step(objective, optax.sgd(1.0), controllers={"lr": optax.linear_schedule(1, 0, 3)})
    for bad in [0, -1, 1.5]:
        with pytest.raises(ValueError, match="accumulate must be"):
            make_step(objective, optax.sgd(1.0), accumulate=bad)


def test_keys_are_checked():
    step = make_step(objective, optax.sgd(1.0))
    with pytest.raises(ValueError, match=r"key must be a typed PRNG key, got uint32 \[2\]"):
        step.init(params_of(), jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"key must be one key.*over_seeds"):
        step.init(params_of(), jax.random.split(KEY, 2))


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ({"x": jnp.ones(4), "y": jnp.ones(3)}, r"one B > 0, got \{\"\['x'\]\": \[4\]"),
        ({"x": jnp.ones(0)}, "one B > 0"),
        ({"x": jnp.float32(1.0)}, "one B > 0"),
        ({}, "one B > 0"),
    ],
)
def test_batches_are_checked(batch, match):
    step, state = scalar_step(linear(lambda ctx: 1.0))
    with pytest.raises(ValueError, match=match):
        step.update(state, batch)


def test_microbatches_must_divide_the_rows():
    step, state = scalar_step(linear(lambda ctx: 1.0), accumulate=3)
    with pytest.raises(ValueError, match="accumulate must divide the 4 rows of one call, got 3"):
        step.update(state, X)


@pytest.mark.parametrize("name", ["value", "grad", "params", "state", "empty_terms"])
def test_reserved_metric_names(name):
    def objective(w, batch, ctx):
        return Loss({"t": (1.0, masked_mean(w * batch["x"]))}, {name: masked_mean(batch["x"])})

    step, state = scalar_step(objective)
    with pytest.raises(ValueError, match="must not be called"):
        step.update(state, X)


def test_train_must_name_entries():
    step = make_step(objective, optax.sgd(1.0), train=["student"])
    with pytest.raises(ValueError, match=r"\['student'\] are none, got \['v', 'w'\]"):
        step.init(params_of(), KEY)


@pytest.mark.parametrize("carry", [(), {"count": jnp.float32(0)}, {"count": jnp.zeros(2, int)}])
def test_state_keeps_its_types(carry):
    """A carry that is forgotten, or changes its type, would be lost or recompile each step."""

    def objective(w, batch, ctx):
        return Loss({"t": (1.0, masked_mean(w * batch["x"]))}, carry=carry)

    step = make_step(objective, optax.sgd(1.0))
    state = step.init(jnp.float32(0.0), KEY, carry={"count": jnp.int32(0)})
    with pytest.raises(ValueError, match=r"carry\['count'\] must stay int32 \[\]"):
        step.update(state, X)


def test_weak_types_do_not_compile_twice():
    """A Python number in carry or knobs is weakly typed in one call and not in the other."""

    class Fixed:
        def init(self):
            return 0.5

        def __call__(self, state, **_):
            return state

        def update(self, state, **_):
            return 0.5

    def objective(w, batch, ctx):
        return linear(lambda ctx: ctx.knobs["k"])(w, batch, ctx)._replace(carry=1.0)

    step = make_step(objective, optax.sgd(1.0), controllers={"k": Fixed()})
    update = jax.jit(step.update)
    state = step.init(jnp.float32(2.0), KEY, carry=0.0)
    for _ in range(3):
        state, info = update(state, X)
    assert update._cache_size() == 1
    assert not any(jax.typeof(x).weak_type for x in jax.tree.leaves(info))


def test_objective_may_be_a_partial_and_params_a_bare_array():
    step, state = scalar_step(functools.partial(linear(lambda ctx: 1.0)))
    assert float(step.update(state, X)[0].params) == 1.0


def test_a_metric_named_like_a_term_is_refused():
    def objective(w, batch, ctx):
        mean = masked_mean(batch["x"] * w)
        return Loss({"kl": (1.0, mean)}, {"kl": mean})

    step = make_step(objective, optax.sgd(0.1))
    state = step.init(jnp.float32(1.0), jax.random.key(0))
    with pytest.raises(ValueError, match=r"must not have the name of a term, got \['kl'\]"):
        step.update(state, X)


MEAN = Mean(jnp.float32(1.0), jnp.float32(1.0))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (jnp.float32(1.0), r"must return a divjax.core.Loss"),
        (Loss({"fit": MEAN}), r"term 'fit' must be \(coefficient, Mean\)"),
        (Loss({"fit": (1.0, jnp.float32(2.0))}), r"term 'fit' must be"),
        (Loss({}, {"acc": jnp.float32(2.0)}), "metric 'acc' must be a Mean"),
    ],
)
def test_what_an_objective_must_return(returned, message):
    step = make_step(lambda w, batch, ctx: returned, optax.sgd(0.1))
    state = step.init(jnp.float32(1.0), jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        step.update(state, X)


def test_parts_of_a_step():
    with pytest.raises(ValueError, match="tx must be an optax transformation"):
        make_step(lambda *_: Loss({}), 1e-3)
    with pytest.raises(ValueError, match=r"references\['slow'\] must be a Reference"):
        make_step(lambda *_: Loss({}), optax.sgd(0.1), references={"slow": 0.9})
