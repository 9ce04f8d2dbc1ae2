"""Heads in blocks against the same quantities of whole arrays of logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import (
    Linear,
    Logits,
    bregman,
    entropies,
    f_divergence_from_logits,
    fused_divergence,
    fused_rows,
    fused_sum,
    generators,
    log_normalisers,
    negative_entropy,
    renyi_from_logits,
    token_log_prob,
    token_log_probs,
)

kl = partial(f_divergence_from_logits, generator=generators.kl)


def draw(shape, seed, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def heads(size, rows=11, width=6):
    """(hidden, head, bias) of a student, (hidden, head) of a teacher, and weights of the rows."""
    student = draw((rows, width), 0), draw((size, width), 1), draw(size, 2)
    arrays = (*student, draw((rows, width), 3), draw((size, width), 4))
    return arrays, 0.5 + jnp.abs(draw(rows, 5))  # of one sign: no cancellation


def sources(arrays):
    hidden, head, bias, hidden_p, head_p = arrays
    return Linear(hidden_p, head_p), Linear(hidden, head, bias)


def whole(arrays):
    hidden, head, bias, hidden_p, head_p = arrays
    return hidden_p @ head_p.T, hidden @ head.T + bias


def by_rows(row_fn, arrays, weights, **options):
    return jnp.tensordot(weights, fused_rows(row_fn, *sources(arrays), **options), 1)


def by_sum(row_fn, arrays, weights, **options):
    return fused_sum(row_fn, weights, *sources(arrays), **options)[0]


ENTRANCES = {"rows": by_rows, "sum": by_sum}


def close(ours, theirs, tolerance=1e-6):
    """Trees of arrays, each to a tolerance of its own norm."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-12


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_record_renyi_and_bregman(entrance):
    """Value and gradients by both hidden states, both heads and the bias."""

    def row_fn(p, q):
        laws = jax.nn.softmax(p), jax.nn.softmax(q)
        values = [f_divergence_from_logits(p, q, g) for g in generators.ALL]
        values += [renyi_from_logits(p, q, order=0.5), bregman(*laws, negative_entropy)]
        return sum(v / (1 + i) for i, v in enumerate(values))

    arrays, weights = heads(37)
    fused = partial(ENTRANCES[entrance], row_fn, weights=weights, block=4)
    dense = lambda arrays: jnp.tensordot(weights, row_fn(*whole(arrays)), 1)  # noqa: E731
    ours = jax.jit(jax.value_and_grad(lambda arrays: fused(arrays=arrays)))(arrays)
    close(ours, jax.jit(jax.value_and_grad(dense))(arrays), 3e-6)


@pytest.mark.parametrize("size", [1, 2, 1000, 2047, 2049, 32003])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_any_vocabulary_and_any_rows(entrance, size):
    """Sizes that are no multiple of a block; 35 rows in blocks of 16."""
    arrays, weights = heads(size, rows=35)
    ours = jax.value_and_grad(lambda a: ENTRANCES[entrance](kl, a, weights, block=16))(arrays)
    theirs = jax.value_and_grad(lambda a: jnp.tensordot(weights, kl(*whole(a)), 1))(arrays)
    close(ours, theirs)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_forward_mode_and_second_order(entrance):
    arrays, weights = heads(17)
    along = jax.tree.map(jnp.sin, arrays)
    fused = lambda a: ENTRANCES[entrance](kl, a, weights, block=4)  # noqa: E731
    dense = lambda a: jnp.tensordot(weights, kl(*whole(a)), 1)  # noqa: E731

    def dotted(f):
        return lambda a: sum(map(jnp.vdot, jax.grad(f)(a), along))

    close(jax.jvp(fused, (arrays,), (along,)), jax.jvp(dense, (arrays,), (along,)))
    product = jax.jvp(jax.grad(dense), (arrays,), (along,))[1]
    close(jax.jvp(jax.grad(fused), (arrays,), (along,))[1], product, 3e-6)
    close(jax.grad(dotted(fused))(arrays), product, 3e-6)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_transform_of_the_logits(entrance):
    """Scale, cap, temperature and padding: 3 tanh((2 z + 2 b) / 3) / 1.5 of the first 13."""
    (hidden, head, bias, hidden_p, head_p), weights = heads(17)
    given = (hidden, head, bias, jnp.float32(2.0), jnp.float32(1.5))

    def sources(hidden, head, bias, scale, temperature):
        options = {"bias": bias, "scale": scale, "temperature": temperature}
        q = Linear(hidden, head, **options, soft_cap=3.0, valid=13)
        return Linear(hidden_p, head_p[:13]), q

    def dense(hidden, head, bias, scale, temperature):
        z = (3.0 * jnp.tanh(scale * (hidden @ head.T + bias) / 3.0) / temperature)[:, :13]
        return jnp.tensordot(weights, kl(hidden_p @ head_p[:13].T, z), 1)

    def fused(*given):
        if entrance == "sum":
            return fused_sum(kl, weights, *sources(*given), block=4)[0]
        return jnp.tensordot(weights, fused_rows(kl, *sources(*given), block=4), 1)

    every = tuple(range(5))
    close(jax.value_and_grad(fused, every)(*given), jax.value_and_grad(dense, every)(*given), 3e-6)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_masked_rows_are_inert(entrance):
    """NaN behind the mask changes neither value nor gradient; no row left gives zeros."""
    arrays, weights = heads(17)
    mask = jnp.arange(11) % 3 > 0
    spoilt = tuple(x.at[~mask].set(jnp.nan) if x.shape[0] == 11 else x for x in arrays)
    fused = jax.value_and_grad(lambda a, m: ENTRANCES[entrance](kl, a, weights, block=4, mask=m))
    dense = jax.value_and_grad(lambda a: jnp.tensordot(weights * mask, kl(*whole(a)), 1))
    close(fused(spoilt, mask), dense(arrays))
    for x in jax.tree.leaves(fused(spoilt, mask & False)[1]):
        assert (np.nan_to_num(x, nan=1.0) == 0).all()


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_what_the_row_function_closes_over_has_a_gradient(entrance):
    arrays, weights = heads(17)

    def fused(power):
        return ENTRANCES[entrance](lambda p, q: kl(p, power * q), arrays, weights, block=4)

    def dense(power):
        p, q = whole(arrays)
        return jnp.tensordot(weights, kl(p, power * q), 1)

    close(jax.value_and_grad(fused)(0.7), jax.value_and_grad(dense)(0.7))


def test_several_outputs_in_one_pass_and_rows_of_any_shape():
    """[2, 5] rows; a divergence, log-probs of tokens and an entropy from one head."""
    hidden, head, tokens = draw((2, 5, 4), 0), draw((9, 4), 1), jnp.arange(10).reshape(2, 5) % 9
    teacher = draw((2, 5, 9), 2)
    log_q = jax.nn.log_softmax(hidden @ head.T)

    def row_fn(z, p, ids):
        return {"kl": kl(p, z), "nll": -token_log_prob(z, ids)}

    weights = {"kl": draw((2, 5), 3), "nll": jnp.ones((2, 5))}
    given = Linear(hidden, head), Logits(teacher), tokens
    total, values = fused_sum(row_fn, weights, *given, block=3)
    nll = -jnp.take_along_axis(log_q, tokens[..., None], -1)[..., 0]
    close(values, {"kl": kl(teacher, log_q), "nll": nll})
    close(total, jnp.sum(weights["kl"] * kl(teacher, log_q)) + nll.sum())
    close(token_log_probs(given[0], tokens, block=3), -nll)
    close(entropies(given[0], block=3), -jnp.sum(jnp.exp(log_q) * log_q, -1))
    close(log_normalisers(given[0]), jax.nn.logsumexp(hidden @ head.T, -1))
    close(fused_divergence(given[1], given[0], generators.kl), kl(teacher, log_q))


def test_weights_have_their_gradient_and_values_none():
    arrays, weights = heads(17)
    values = kl(*whole(arrays))
    close(jax.grad(lambda w: by_sum(kl, arrays, w, block=4))(weights), values)
    silent = jax.grad(lambda a: fused_sum(kl, weights, *sources(a), block=4)[1].sum())(arrays)
    assert all((x == 0).all() for x in silent)


def test_padded_logits_of_the_teacher_get_no_gradient():
    z, q = draw((3, 8), 0), draw((3, 5), 1)
    slope = jax.grad(lambda z: fused_rows(kl, Logits(z, valid=5), Logits(q)).sum())(z)
    assert (slope[:, 5:] == 0).all()
    close(slope[:, :5], jax.grad(lambda z: kl(z, q).sum())(z[:, :5]))


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("distance", [0.03, 1.0])
def test_bfloat16_heads_keep_their_gradient(entrance, distance):
    """Near the teacher (KL about 1e-3) and far: one rounding of the result, no more."""
    rows, width, size = 256, 32, 500
    hidden, head = draw((rows, width), 0), draw((size, width), 1, width**-0.5)
    moved = hidden + distance * draw((rows, width), 2)
    low = tuple(x.astype(jnp.bfloat16) for x in (moved, head, hidden, head))
    weights = jnp.full(rows, 1 / rows)

    def total(moved, head, hidden, head_p):
        given = Linear(hidden, head_p), Linear(moved, head)
        if entrance == "sum":
            return fused_sum(kl, weights, *given, block=16)[0]
        return jnp.tensordot(weights, fused_rows(kl, *given, block=16), 1)

    value, slopes = jax.value_and_grad(total, (0, 1))(*low)
    with jax.enable_x64(True):
        exact = tuple(jnp.asarray(x, jnp.float64) for x in low)
        dense = lambda h, w, hp, wp: weights @ kl(hp @ wp.T, h @ w.T)  # noqa: E731
        true, expected = jax.value_and_grad(dense, (0, 1))(*exact)
    assert abs(float(value) / float(true) - 1) < 1e-5
    for ours, theirs in zip(slopes, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.asarray(ours, np.float64) - np.asarray(theirs)
        assert np.linalg.norm(error) < 2e-3 * np.linalg.norm(theirs)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_temporaries_are_blocks_and_no_array_of_all_logits(entrance):
    """N V grows fourfold, the temporaries by what belongs to the rows; hard budgets in bytes."""
    width, size, block = 64, 4096, 32

    def temporaries(rows):
        shapes = [(rows, width), (size, width)] * 2
        arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]

        def total(h, w, hp, wp):
            given, weights = (Linear(hp, wp), Linear(h, w)), jnp.full(rows, 1 / rows)
            if entrance == "sum":
                return fused_sum(kl, weights, *given, block=block)[0]
            return weights @ fused_rows(kl, *given, block=block)

        compiled = jax.jit(jax.grad(total, (0, 1))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits, head, hidden = 4 * block * size, 4 * size * width, 4 * 512 * width
    # Eight blocks of logits; the recomputing one also has a head's gradient of one block.
    budget = 8 * logits + (2 if entrance == "rows" else 0.25) * head
    assert temporaries(512) < budget + 4 * hidden
    assert temporaries(2048) < budget + 16 * hidden


def test_errors_name_what_came():
    arrays, weights = heads(17)
    p, q = sources(arrays)
    with pytest.raises(ValueError, match=r"head must be \[V, H\].*pass head.T"):
        fused_rows(kl, Linear(arrays[0], arrays[1].T), q)
    with pytest.raises(ValueError, match=r"both vocabularies must have one size.*set valid="):
        fused_divergence(Linear(arrays[0], arrays[1][:5]), q, generators.kl)
    with pytest.raises(ValueError, match=r"valid must be in 1..17.*got 18"):
        fused_rows(kl, p, Linear(*arrays[:3], valid=18))
    with pytest.raises(ValueError, match="every source must have rows"):
        fused_rows(kl, p, Linear(arrays[0][:5], arrays[1]))
    with pytest.raises(ValueError, match=r"mask must be bool \[11\]"):
        fused_rows(kl, p, q, mask=weights)
    with pytest.raises(ValueError, match=r"weights must be \[11\] for each output"):
        fused_sum(kl, weights[:3], p, q)
    with pytest.raises(ValueError, match="needs a source"):
        fused_rows(kl, arrays[0])
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        fused_rows(kl, p, Linear(*arrays[:3], temperature=0.0))
    with pytest.raises(ValueError, match="tokens must be int"):
        token_log_probs(q, weights)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_several_heads_side_by_side(entrance):
    """Under vmap, as the seeds of an experiment are."""
    arrays, weights = heads(17)
    both = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), arrays)
    fused = jax.value_and_grad(lambda a: ENTRANCES[entrance](kl, a, weights, block=4))
    dense = jax.value_and_grad(lambda a: jnp.tensordot(weights, kl(*whole(a)), 1))
    close(jax.vmap(fused)(both), jax.vmap(dense)(both))
