"""The language models against float64 loops; masks, cache, gradients, depth."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_decoder as oracle
import optax
import pytest
from flax import nnx

from divjax.core import Loss, masked_mean
from divjax.models import LogitTransform, gpt, language_model, llama, logits, truncate
from divjax.models._attention import masked_softmax
from divjax.train import make_step, parallel

VOCABULARY = 17
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, VOCABULARY, (2, 7)))


def moved(params):
    """Away from the initial zeros and ones, so that every bias and scale counts."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return tree.unflatten([x + 0.3 * rng.normal(size=x.shape).astype("f") for x in leaves])


def a_gpt(**more):
    decoder = gpt(VOCABULARY, 12, 3, heads=3, length=9, rngs=nnx.Rngs(0), **more)
    return decoder, partial(oracle.hidden, size=4, norm=oracle.layer_norm, mlp=oracle.plain_mlp)


def a_llama(interleaved=False, **more):
    decoder = llama(
        VOCABULARY, 16, 3, heads=4, kv_heads=2, inner=10, base=50.0, interleaved=interleaved,
        rngs=nnx.Rngs(0), **more,
    )  # fmt: skip
    turn = partial(oracle.rotated, base=50.0, interleaved=interleaved)
    expected = partial(oracle.hidden, size=4, norm=oracle.rms_norm, mlp=oracle.gated_mlp, turn=turn)
    return decoder, expected


@cache
def built(make, **more):
    decoder, expected = make(**more)
    params, model = language_model(decoder)
    model = model._replace(hidden=jax.jit(model.hidden))
    return moved(params), model, expected


each = pytest.mark.parametrize("make", [a_gpt, a_llama, partial(a_llama, True)])
both = pytest.mark.parametrize("make", [a_gpt, a_llama])


@each
def test_hidden_states_are_those_of_the_formulas(make):
    params, model, expected = built(make)
    found, cache = model.hidden(params, TOKENS)
    assert cache is None
    for row, tokens in zip(found, TOKENS, strict=True):
        np.testing.assert_allclose(row, expected(params, np.asarray(tokens)), atol=2e-5)


@both
def test_padding_on_both_sides_changes_nothing(make):
    """Each row alone, without padding, is the oracle; what pads may be any token at all."""
    params, model, expected = built(make)
    mask = np.zeros((3, 9), bool)
    mask[0, 3:], mask[1, :4], mask[2, 1:8] = True, True, True
    tokens = RNG.integers(0, VOCABULARY, mask.shape)
    junk = jnp.asarray(np.where(mask, tokens, [[-1], [VOCABULARY], [1 << 20]]))
    found, _ = model.hidden(params, junk, mask=jnp.asarray(mask))
    assert jnp.isfinite(found).all()
    for row, line, kept in zip(found, tokens, mask, strict=True):
        np.testing.assert_allclose(row[kept], expected(params, line[kept]), atol=2e-5)


@both
def test_a_row_of_padding_is_finite_with_finite_gradients(make):
    params, model, _ = built(make)
    mask = jnp.zeros(TOKENS.shape, bool).at[0].set(True)

    def total(params):
        return jnp.where(mask[..., None], model.hidden(params, TOKENS, mask=mask)[0], 0.0).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    alone = model.hidden(params, TOKENS[:1])[0].sum()
    np.testing.assert_allclose(value, alone, rtol=1e-4, atol=1e-4)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


@both
@pytest.mark.parametrize("cuts", [[1] * 7, [4, 1, 2], [7]])
def test_decoding_with_a_cache_is_the_full_pass(make, cuts):
    params, model, _ = built(make)
    mask = jnp.ones(TOKENS.shape, bool).at[0, :2].set(False).at[1, 4].set(False)
    full, _ = model.hidden(params, TOKENS, mask=mask)
    cache, states = model.init_cache(2, 8), []
    for a, b in zip(np.cumsum([0, *cuts]), np.cumsum(cuts), strict=False):
        state, cache = model.hidden(params, TOKENS[:, a:b], mask=mask[:, a:b], cache=cache)
        states.append(state)
    assert int(cache.length) == 7
    np.testing.assert_array_equal(cache.mask[:, :7], mask)
    found = jnp.concatenate(states, 1)
    np.testing.assert_allclose(found[mask], full[mask], atol=1e-5)


def test_a_cache_travels_through_a_compiled_loop():
    params, model, _ = built(a_llama)

    def one(cache, token):
        state, cache = model.hidden(params, token[:, None], cache=cache)
        return cache, state[:, 0]

    _, states = jax.jit(lambda c, t: jax.lax.scan(one, c, t.T))(model.init_cache(2, 7), TOKENS)
    full, _ = model.hidden(params, TOKENS)
    np.testing.assert_allclose(states.transpose(1, 0, 2), full, atol=1e-5)


def test_a_full_cache_is_an_error_and_under_a_trace_not_a_number():
    params, model = language_model(a_llama()[0])
    compiled = jax.jit(model.hidden)
    _, cache = compiled(params, TOKENS, cache=model.init_cache(2, 8))
    with pytest.raises(ValueError, match="cache must have 14 places, got 8"):
        model.hidden(params, TOKENS, cache=cache)
    late, _ = compiled(params, TOKENS, cache=cache)
    assert jnp.isnan(late).all()


def test_given_positions_are_used():
    params, model, _ = built(a_gpt)
    found, _ = model.hidden(params, TOKENS[:, :1], positions=jnp.full((2, 1), 3))
    table = {**params, "table": params["table"][3:]}
    expected, _ = model.hidden(table, TOKENS[:, :1])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_tokens_and_positions_that_are_not_there_are_not_numbers():
    params, model, _ = built(a_gpt)
    for wrong in (VOCABULARY, -1, -VOCABULARY - 1):
        state, _ = model.hidden(params, TOKENS.at[0, 3].set(wrong))
        assert jnp.isnan(state[0, 3:]).all()
        assert jnp.isfinite(state[1]).all()
    long, _ = model.hidden(params, jnp.zeros((1, 10), int))
    assert jnp.isnan(long[0, 9]).all()


@partial(jax.jit, static_argnums=1)
@jax.grad
def cubes(params, hidden):
    return jnp.sum(hidden(params, TOKENS)[0] ** 3)


@both
def test_recomputing_blocks_changes_no_gradient(make):
    gradients = []
    for remat in (False, True):
        params, model, _ = built(make, remat=remat)
        gradients.append(cubes(params, model.hidden))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_finite_differences(x64):
    params, model, _ = built(a_llama)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    direction = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), params)
    loss = jax.jit(lambda p: jnp.sum(jnp.sin(model.hidden(p, TOKENS)[0])))
    up, down = (jax.tree.map(lambda x, d, e=e: x + e * d, params, direction) for e in (1e-6, -1e-6))
    expected = (loss(up) - loss(down)) / 2e-6
    _, forward = jax.jvp(loss, (params,), (direction,))
    terms = jax.tree.map(lambda g, d: jnp.sum(g * d), jax.grad(loss)(params), direction)
    np.testing.assert_allclose(forward, expected, rtol=1e-6)
    np.testing.assert_allclose(sum(jax.tree.leaves(terms)), expected, rtol=1e-6)


@both
def test_a_student_is_the_first_blocks(make):
    params, model, expected = built(make)
    student = truncate(params, 2)
    tokens = np.asarray(TOKENS[0])
    found, _ = model.hidden(student, TOKENS)
    np.testing.assert_allclose(found[0], expected(student, tokens), atol=2e-5)
    cache = model.init_cache(2, 7, layers=2)
    np.testing.assert_allclose(model.hidden(student, TOKENS, cache=cache)[0], found, atol=1e-5)
    with pytest.raises(ValueError, match=r"cache must have 2 blocks .* got 3; .*layers=2"):
        model.hidden(student, TOKENS, cache=model.init_cache(2, 7))
    with pytest.raises(ValueError, match=r"layers must be 1\.\.3"):
        truncate(params, 4)


def test_the_compiled_program_does_not_grow_with_depth():
    def size(depth):
        params, model = language_model(
            llama(VOCABULARY, 8, depth, heads=2, inner=8, rngs=nnx.Rngs(0))
        )
        run = jax.jit(jax.grad(lambda p: model.hidden(p, TOKENS)[0].sum()))
        return len(run.lower(params).as_text().splitlines())

    assert size(12) == size(2)


@pytest.mark.parametrize("tied", [True, False])
def test_logits(tied):
    params, model, expected = built(a_llama, tied=tied)
    assert ("head" in params) != tied
    head = params["embedding"] if tied else params["head"]
    assert model.head(params) is head
    states, _ = model.hidden(params, TOKENS)
    z = expected(params, np.asarray(TOKENS[0])) @ np.asarray(head, np.float64).T
    np.testing.assert_allclose(logits(model, params, states)[0], z, atol=1e-4)
    model = model._replace(logit_transform=LogitTransform(scale=0.5, soft_cap=2.0, valid=9))
    found = logits(model, params, states)[0]
    np.testing.assert_allclose(found, 2 * np.tanh(0.5 * z[:, :9] / 2), atol=1e-4)


def test_half_precision_stays_near():
    params, model, _ = built(a_llama)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found, _ = model.hidden(half, TOKENS)
    assert found.dtype == jnp.bfloat16
    assert logits(model, half, found).dtype == jnp.float32
    whole, _ = model.hidden(jax.tree.map(lambda x: x.astype(jnp.float32), half), TOKENS)
    np.testing.assert_allclose(found.astype(jnp.float32), whole, atol=0.15)


@both
def test_rows_over_devices_are_the_same_rows(make):
    """Value and gradient in every mode; rows differ in their padding."""
    params, model, _ = built(make)
    tokens = jnp.asarray(RNG.integers(0, VOCABULARY, (8, 6)))
    mask = jnp.arange(6) < jnp.arange(8)[:, None]

    def objective(params, batch, ctx):
        states, _ = model.hidden(params, batch["tokens"], mask=batch["mask"])
        return Loss({"l": (1.0, masked_mean(jnp.sin(states).sum(-1), batch["mask"]))})

    found = []
    for mode, devices in (("jit", 1), ("jit", 4), ("shard_map", 4)):
        step = make_step(objective, optax.sgd(1.0))
        update = parallel.compile(step, mesh=parallel.data_mesh(devices), mode=mode)
        state = step.init(jax.tree.map(jnp.copy, params), jax.random.key(0))
        state, info = update(state, {"tokens": tokens, "mask": mask})
        found.append((info.value, *jax.tree.leaves(jax.device_get(state.params))))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_masked_softmax_at_the_edges():
    scores = jnp.array([[1e4, 1e4 - 1, 3e4], [1.0, 2.0, jnp.nan], [0.0, 0.0, 0.0]])
    where = jnp.array([[True, True, False], [False, True, False], [False, False, False]])
    sigmoid = 1 / (1 + np.exp(-1.0))
    expected = [[sigmoid, 1 - sigmoid, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(masked_softmax(scores, where), expected, atol=1e-6)
    gradient = jax.grad(lambda s: jnp.sum(masked_softmax(s, where) ** 2))(scores)
    assert jnp.isfinite(gradient).all()
    assert (gradient[~where] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: m.hidden(p, TOKENS[0]), r"tokens must be integers \[B, T\], got int32 \[7\]"),
        (lambda m, p: m.hidden(p, TOKENS * 1.0), "tokens must be integers"),
        (lambda m, p: m.hidden(p, TOKENS, mask=jnp.ones((2, 7))), "mask must be bool"),
        (lambda m, p: m.hidden(p, TOKENS, positions=jnp.arange(7)), "positions must be integers"),
        (lambda m, p: m.hidden(p, TOKENS, cache=m.init_cache(3, 9)), "the 2 rows of tokens, got 3"),
        (lambda m, p: m.hidden(p, TOKENS, cache=m.init_cache(2, 6)), "7 places, got 6"),
        (lambda m, p: gpt(5, 10, 1, heads=3, length=2, rngs=nnx.Rngs(0)), "heads must divide 10"),
        (
            lambda m, p: llama(5, 8, 1, heads=4, kv_heads=3, inner=2, rngs=nnx.Rngs(0)),
            "kv_heads must divide 4",
        ),
    ],
)
def test_wrong_calls_say_so(call, message):
    params, model, _ = built(a_gpt)
    with pytest.raises(ValueError, match=message):
        call(model, params)
