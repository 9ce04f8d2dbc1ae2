"""What every f-divergence must do, walked over generators.ALL; Renyi where it applies.

One jitted function per entrance evaluates all records, so the tests cost few compilations.
"""

from dataclasses import replace
from functools import cache, partial

import f_exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import (
    f_divergence,
    f_divergence_from_logits,
    generators,
    kl,
    renyi,
    renyi_from_logits,
)

INF, NAN = np.inf, np.nan
BOTH = pytest.mark.parametrize(
    "divergence", [f_divergence, f_divergence_from_logits], ids=["log_probs", "logits"]
)
ORDERS = (0.5, 1.0, 2.0)
RENYI = {f_divergence: renyi, f_divergence_from_logits: renyi_from_logits}
BOUNDED = [g for g in generators.ALL if all(x < INF for x in f_exact.edges(g.name))]


# For what does not depend on the formula (axes, types): singular, bounded, kinked, overflowing.
SOME = (generators.kl, generators.js(0.1), generators.tv, generators.pearson)


def everything(divergence, p, q, axis=-1, where=None, records=generators.ALL):
    """[records, *E]: all records, then Renyi at three orders."""
    options = {"axis": axis, "where": where}
    values = [divergence(p, q, g, **options) for g in records]
    values += [RENYI[divergence](p, q, order=order, **options) for order in ORDERS]
    return jnp.stack(values)


def laws(shape=(3, 4, 6), seed=0, scale=1.5):
    """Two arrays of normalised log-probabilities, which serve as logits too."""
    z = np.random.RandomState(seed).normal(size=(2, *shape)) * scale
    return tuple(jnp.asarray(x, jnp.float32) for x in jax.nn.log_softmax(z))


def gradients(divergence, p, q, where=None, records=generators.ALL):
    """The gradients of all values by p and by q: [records, *E, K] each."""

    def total(p, q):
        values = everything(divergence, p, q, where=where, records=records)
        return values.sum(tuple(range(1, values.ndim)))

    return jax.jacrev(total, (0, 1))(p, q)


@cache
def compiled(divergence):
    """(values, gradients) of all records for [3, 4, 6]: the one compilation of most tests."""
    return jax.jit(
        lambda p, q, where: (
            everything(divergence, p, q, where=where),
            gradients(divergence, p, q, where),
        )
    )


ALL_TRUE = np.ones((3, 4, 6), bool)


@BOTH
def test_jit_vmap_and_a_loop_give_the_eager_numbers(divergence):
    """All records go through every transform in the torture matrix; here two example axes."""
    p, q = laws((2, 3, 5))
    run = partial(everything, divergence, records=SOME)
    expected = run(p, q)
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-9)
    close(jax.jit(run)(p, q), expected)
    close(jax.jit(jax.vmap(jax.vmap(run, out_axes=1), out_axes=1))(p, q), expected)
    row = jax.jit(run)
    loop = [[row(p[i, j], q[i, j]) for j in range(3)] for i in range(2)]
    close(np.moveaxis(np.array(loop), -1, 0), expected)


@BOTH
def test_masked_entries_are_inert(divergence):
    """NaN, infinities or any number behind the mask: same value, same gradient, zero there."""
    p, q = laws()
    where = ALL_TRUE.copy()
    where[..., [1, 4]] = False
    value, grads = compiled(divergence)(p, q, where)
    for fill_p, fill_q in ((NAN, NAN), (INF, -INF), (-INF, 3.0), (1e10, NAN), (88.0, -3e38)):
        filled = jnp.where(where, p, fill_p), jnp.where(where, q, fill_q)
        again, again_grads = compiled(divergence)(*filled, where)
        np.testing.assert_array_equal(again, value)
        for x, y in zip(again_grads, grads, strict=True):
            np.testing.assert_array_equal(x, y)
            assert not np.asarray(x)[..., [1, 4]].any()
    dropped = everything(divergence, p[..., [0, 2, 3, 5]], q[..., [0, 2, 3, 5]], records=SOME)
    same = [generators.ALL.index(g) for g in SOME] + [-3, -2, -1]
    np.testing.assert_allclose(value[np.array(same)], dropped, rtol=1e-5, atol=1e-7)


@BOTH
def test_padding_by_minus_infinity_changes_nothing(divergence):
    """Wherever the padding stands, and the same as a mask."""
    p, q = laws()
    where = ALL_TRUE.copy()
    where[..., [4, 5]] = False
    p, q = jnp.where(where, p, -INF), jnp.where(where, q, -INF)
    value, grads = compiled(divergence)(p, q, ALL_TRUE)
    masked, masked_grads = compiled(divergence)(p, q, where)
    np.testing.assert_array_equal(masked, value)
    order = np.array([4, 0, 1, 5, 2, 3])
    moved, moved_grads = compiled(divergence)(p[..., order], q[..., order], ALL_TRUE)
    np.testing.assert_allclose(moved, value, rtol=1e-6, atol=1e-9)
    for x, y, z in zip(grads, masked_grads, moved_grads, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_allclose(z, np.asarray(x)[..., order], rtol=1e-5, atol=1e-7)
        assert not np.asarray(x)[..., 4:].any()


@BOTH
def test_a_fully_masked_row_is_zero(divergence):
    p, q = (x.at[1].set(NAN) for x in laws())
    where = ALL_TRUE.copy()
    where[1] = False
    value, grads = compiled(divergence)(p, q, where)
    assert not np.asarray(value)[:, 1].any()
    assert np.isfinite(value).all()
    assert all(np.isfinite(x).all() for x in grads)


@BOTH
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_values_in_float32_gradients_in_the_type_of_the_input(divergence, dtype):
    p, q = (x.astype(dtype) for x in laws((1, 2, 5)))
    assert jax.eval_shape(partial(everything, divergence), p, q).dtype == jnp.float32
    shapes = jax.eval_shape(partial(gradients, divergence, records=SOME), p, q)
    assert all(x.dtype == p.dtype for x in shapes)


@BOTH
def test_float64_stays_float64_and_mixed_types_keep_their_own_gradients(divergence, x64):
    p, q = laws((1, 2, 5))
    p = p.astype(jnp.float64)
    q = q.astype(jnp.bfloat16)
    assert jax.eval_shape(partial(everything, divergence), p, q).dtype == jnp.float64
    grad_p, grad_q = jax.eval_shape(partial(gradients, divergence, records=SOME), p, q)
    assert (grad_p.dtype, grad_q.dtype) == (jnp.float64, jnp.bfloat16)


@BOTH
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_equal_laws_are_exactly_zero_with_zero_gradient(divergence, scale):
    p = laws(scale=scale)[0].at[0, :, 2].set(-INF)
    count = len(generators.ALL)
    values, grads = compiled(divergence)(p, p, ALL_TRUE)
    assert not np.asarray(values)[:count].any()
    np.testing.assert_allclose(values, 0, atol=1e-6)  # Renyi of laws that sum to 1 + 1e-7
    for x in grads:
        np.testing.assert_allclose(x[:count], 0, atol=1e-7)


@BOTH
def test_values_are_never_negative(divergence):
    """Close pairs, where a sum that cancels comes out below zero."""
    rng = np.random.RandomState(1)
    for seed, power in enumerate(np.linspace(0, -30, 200)):
        p, _ = laws(seed=seed, scale=2.0)
        q = p + np.float32(rng.normal(size=p.shape) * 10.0**power)
        values = np.asarray(compiled(divergence)(p, q, ALL_TRUE)[0])[: len(generators.ALL)]
        assert (values >= 0).all()


@BOTH
def test_axis_is_the_support(divergence):
    p, q = laws((3, 2, 5))
    where = jnp.asarray(np.random.RandomState(2).uniform(size=p.shape) < 0.7)
    run = partial(everything, divergence, records=SOME)
    expected = jax.jit(run)(p, q, where=where)
    for axis, place in ((0, 0), (1, 1), (-3, 0)):
        moved = [jnp.moveaxis(x, -1, place) for x in (p, q, where)]
        got = jax.jit(partial(run, axis=axis))(*moved[:2], where=moved[2])
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
    count = len(SOME) + len(ORDERS)
    assert jax.eval_shape(run, p[0, 0], q[0, 0]).shape == (count,)
    assert run(p[:0], q[:0]).shape == (count, 0, 2)


def test_one_support_point():
    """V = 1: from logits the only law there is; from log-probs the masses as given."""
    p, q = jnp.array([[3.0], [-1.0], [0.5]]), jnp.array([[-2.0], [5.0], [-INF]])
    run = partial(everything, f_divergence_from_logits)
    assert not np.asarray(jax.jit(run)(p[:2], q[:2])).any()
    for x in jax.jit(jax.jacrev(run, (0, 1)))(p[:2], q[:2]):
        assert not np.asarray(x).any()
    values = jax.jit(partial(everything, f_divergence))(p, q)
    for g, got in zip(generators.ALL, values, strict=False):
        exact = [
            float(f_exact.row(g.name, a.tolist(), b.tolist(), limit=3.4e38, normalise=False)[0])
            for a, b in zip(p, q, strict=True)
        ]
        np.testing.assert_allclose(got, exact, rtol=2e-5, err_msg=g.name)


@pytest.mark.parametrize("g", BOUNDED, ids=lambda g: g.name)
def test_bounded_records_have_finite_gradients_for_any_logits(g):
    z = np.random.RandomState(3).uniform(-200, 200, size=(2, 400, 7)).astype(np.float32)
    z[0, :100, 2:4], z[1, :50, 3:6] = -INF, -INF
    value, grads = jax.jit(
        lambda p, q: (
            f_divergence_from_logits(p, q, g),
            jax.grad(lambda p, q: f_divergence_from_logits(p, q, g).sum(), (0, 1))(p, q),
        )
    )(*z)
    top = max(g.at_zero, g.at_inf, g.at_zero + g.at_inf)
    assert (np.asarray(value) <= top * (1 + 1e-5)).all()
    for x in grads:
        assert np.isfinite(x).all()
        np.testing.assert_allclose(np.sum(x, -1), 0, atol=1e-5)


def test_factories_are_cached_so_a_jitted_caller_traces_once():
    traces = []

    @partial(jax.jit, static_argnums=2)
    def run(p, q, g):
        traces.append(g.name)
        return f_divergence(p, q, g)

    p, q = laws((2, 2, 3))
    makers = [
        partial(generators.alpha, 0.3),
        partial(generators.js, 0.1),
        partial(generators.skew_kl, 0.2),
        partial(generators.skew_reverse_kl, 0.2),
        partial(generators.reverse, generators.kl),
    ]
    for make in makers:
        assert make() is make()
        assert hash(make()) == hash(make())
        run(p, q, make())
        run(p, q, make())
    assert len(traces) == len(makers)


BAD = [
    ("mask of floats", {"where": jnp.ones((2, 5))}, r"where must be bool \[2, 5\].*> 0"),
    ("trailing axis", {"where": jnp.ones((2, 5, 1), bool)}, r"where must be bool.*\[\.\.\., 0\]"),
    ("mask of rows", {"where": jnp.ones((2,), bool)}, r"where must be bool \[2, 5\]"),
    ("mask of other rows", {"where": jnp.ones((3, 5), bool)}, r"where must be bool \[2, 5\]"),
    ("axis", {"axis": 2}, "axis must be in"),
    ("negative axis", {"axis": -3}, "axis must be in"),
    ("integers", {"p": jnp.zeros((2, 5), int)}, "must be a floating-point array.*int32"),
    ("list", {"q": [[0.0] * 5] * 2}, "must be a floating-point array"),
    ("scalars", {"p": jnp.float32(0), "q": jnp.float32(0)}, "at least 1 ax"),
    ("rank", {"p": jnp.zeros((5,))}, r"must have the shape of .*\[5\]"),
    ("order of axes", {"p": jnp.zeros((5, 2))}, r"must have the shape of .*\[5, 2\]"),
    ("rows", {"q": jnp.zeros((1, 5))}, r"must have the shape of .*\[2, 5\]"),
    ("vocabulary", {"q": jnp.zeros((2, 4))}, r"must have the shape of .*\[2, 5\].*-inf"),
]


@BOTH
@pytest.mark.parametrize(("changes", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_arrays_are_refused_when_traced(divergence, changes, message):
    arguments = {"p": jnp.zeros((2, 5)), "q": jnp.zeros((2, 5))} | changes
    p, q = arguments.pop("p"), arguments.pop("q")
    names = {
        f_divergence: ("f_divergence", "renyi"),
        f_divergence_from_logits: ("f_divergence_from_logits", "renyi_from_logits"),
    }[divergence]
    with pytest.raises(ValueError, match=f"{names[0]}: .*{message}"):
        jax.eval_shape(lambda: divergence(p, q, generators.kl, **arguments))
    with pytest.raises(ValueError, match=f"{names[1]}: .*{message}"):
        jax.eval_shape(lambda: RENYI[divergence](p, q, order=0.5, **arguments))


def test_probabilities_are_refused_where_their_values_are_known():
    """log_p > 0 cannot be a log-probability of a law; traced values cannot be looked at."""
    p, q = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.5, 0.3])
    with pytest.raises(ValueError, match=r"f_divergence: log_p .*log"):
        f_divergence(p, q, generators.kl)


@pytest.mark.parametrize(
    "make",
    [
        partial(generators.js, -0.1),
        partial(generators.js, 1.5),
        partial(generators.js, 0.0),
        partial(generators.js, 1.0),
        partial(generators.js, NAN),
        partial(generators.skew_kl, 1.1),
        partial(generators.skew_reverse_kl, -0.2),
        partial(generators.alpha, NAN),
        partial(generators.alpha, INF),
        lambda: renyi(jnp.zeros(3), jnp.zeros(3), order=-1.0),
        lambda: renyi(jnp.zeros(3), jnp.zeros(3), order=NAN),
    ],
    ids=[
        "js -",
        "js >1",
        "js 0",
        "js 1",
        "js nan",
        "skew",
        "skew_r",
        "a nan",
        "a inf",
        "R -",
        "R nan",
    ],
)
def test_bad_orders_and_weights_are_refused_at_once(make):
    with pytest.raises(ValueError, match=r"(weight|order) must"):
        make()


RENYI_PRINTED = {
    0.5: 0.105799536750,
    2.0: 0.446820293790,
    0.9: 0.199775787620,
    1.1: 0.247824410462,
    INF: 0.916290731874,
    1.0: 0.223804657186,
}


def test_renyi_printed_values_limits_and_symmetry(x64):
    p, q = (jnp.log(jnp.array(x, jnp.float64)) for x in ((0.5, 0.3, 0.2), (0.2, 0.5, 0.3)))
    for order, value in RENYI_PRINTED.items():
        for function in (renyi, renyi_from_logits):
            assert float(function(p, q, order=order)) == pytest.approx(value, abs=6e-13), order
    assert float(renyi(q, p, order=2.0)) == pytest.approx(0.309932681387, abs=6e-13)
    for a in (0.2, 0.7):  # (1 - a) R_a(p || q) = a R_{1-a}(q || p)
        left, right = (1 - a) * renyi(p, q, order=a), a * renyi(q, p, order=1 - a)
        assert float(left) == pytest.approx(float(right), rel=1e-12)
    near = [float(renyi(p, q, order=1 + e)) for e in (-1e-6, 1e-6)]
    assert near == pytest.approx([RENYI_PRINTED[1.0]] * 2, abs=1e-6)


def test_logits_are_refused_where_log_probs_are_wanted():
    logits = jnp.array([2.0, -1.0, 0.0])
    with pytest.raises(ValueError, match=r"kl: log_q must be log-probabilities.*from_logits"):
        kl(jax.nn.log_softmax(logits), logits)
    measure = f_divergence(logits, logits - 1.0, generators.kl)  # takes measures, too
    np.testing.assert_allclose(measure, np.sum(np.exp(np.float64(logits))) / np.e, rtol=1e-5)
    even = jnp.full(4, 0.25)  # as logits, the same law as zeros
    assert f_divergence_from_logits(even, jnp.zeros(4), generators.kl) == 0


@BOTH
@pytest.mark.parametrize("wrong", ["kl", generators.js, f_divergence])
def test_what_is_no_record_is_refused(divergence, wrong):
    with pytest.raises(ValueError, match="generator must be a Generator"):
        divergence(jnp.zeros(3), jnp.zeros(3), wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"under_q": lambda u: u * jnp.exp(u), "under_p": lambda u: u}, "under_q"),
        ({"slope_p": lambda u: 1 + u, "slope_q": lambda u: -jnp.exp(u)}, "slope_p"),
        ({"under_p": lambda u: u}, "under_p"),
        ({"slope_q": lambda u: jnp.expm1(u)}, "slope_q"),
        ({"log_pull": lambda u: 2 * u}, "log_pull"),
    ],
)
def test_a_record_of_another_gauge_is_refused(changes, message):
    """t log t has the values of kl at a distance and wrong ones near p = q."""
    wrong = replace(generators.kl, name=f"wrong {message}", **changes)
    with pytest.raises(ValueError, match=rf"wrong {message}.*{message}"):
        f_divergence_from_logits(jnp.zeros(3), jnp.ones(3), wrong)


def test_where_may_have_axes_of_one():
    p, q = laws((2, 3, 5))
    rows = jnp.array([[[True], [False], [True]]])
    got = f_divergence(p, q, generators.kl, where=rows)
    expected = jnp.where(rows[..., 0], f_divergence(p, q, generators.kl), 0.0)
    np.testing.assert_allclose(got, expected)


def test_logits_beyond_the_largest_difference_of_their_type():
    """3e38 - (-3e38) is infinite: a limit, not NaN."""
    p, q = jnp.array([3e38, 0.0]), jnp.array([-3e38, 0.0])
    for g in generators.ALL:
        value, gradient = jax.value_and_grad(f_divergence_from_logits, 1)(p, q, g)
        assert not jnp.isnan(value)
        assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(f_divergence_from_logits(p, q, generators.tv), 1.0, rtol=1e-6)


def test_parameters_of_records_are_static():
    with pytest.raises(ValueError, match=r"js: weight must be a Python number.*float\(weight\)"):
        generators.js(jnp.float32(0.5))
    assert generators.js(weight=0.5) is generators.js()
    assert generators.alpha(1 + 1e-7).name != generators.alpha(1.0).name


@BOTH
def test_forward_mode_behind_a_mask(divergence):
    """A tangent of NaN at a masked entry counts for nothing."""
    p, q = laws((2, 5))
    where = jnp.array([[True] * 4 + [False], [True] * 5])
    tangent = jnp.where(where, 1.0, NAN)
    out, change = jax.jvp(lambda q: divergence(p, q, generators.kl, where=where), (q,), (tangent,))
    assert jnp.isfinite(out).all()
    assert jnp.isfinite(change).all()
