"""Plackett-Luce against enumeration, Cox's partial likelihood against loops over its definition."""

from itertools import permutations

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from divjax import divergences
from divjax.divergences.ranking import breslow, efron, positions

plackett_luce = jax.jit(divergences.plackett_luce, static_argnames="ties")

pytestmark = pytest.mark.usefixtures("x64")


def cox(scores, times, events, efrons):
    """Negative log partial likelihood, by the sums of the textbook."""
    total = 0.0
    for time in np.unique(times[events]):
        died = np.flatnonzero(events & (times == time))
        worth, dying = np.exp(scores[times >= time]).sum(), np.exp(scores[died]).sum()
        for place, i in enumerate(died):
            share = place / len(died) if efrons else 0.0
            total += np.log(worth - share * dying) - scores[i]
    return total


def test_probabilities_of_all_orders_sum_to_one():
    scores = jnp.array([0.5, 0.2, -0.3, 0.1])
    orders = jnp.array(list(permutations(range(4))))
    ranks = jnp.argsort(orders, axis=1)
    terms = plackett_luce(jnp.broadcast_to(scores, ranks.shape), ranks)
    chances = jnp.exp(-terms.sum(-1))
    np.testing.assert_allclose(chances.sum(), 1.0, rtol=1e-12)
    at = orders.tolist().index([1, 0, 2, 3])
    np.testing.assert_allclose(chances[at], 0.0490335390, rtol=1e-8)  # printed in pld


@pytest.mark.parametrize("ties", [breslow, efron], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(4))
def test_cox_with_ties_and_censoring(ties, seed):
    rng = np.random.default_rng(seed)
    scores, times = rng.normal(size=(3, 12)) * 3, rng.integers(0, 4, (3, 12)).astype(float)
    events = rng.uniform(size=(3, 12)) < 0.6
    got = plackett_luce(*map(jnp.asarray, (scores, times)), events=jnp.asarray(events), ties=ties)
    expected = [cox(s, t, e, ties is efron) for s, t, e in zip(scores, times, events, strict=True)]
    np.testing.assert_allclose(got.sum(-1), expected, rtol=1e-12)


def test_efron_of_two_tied_by_hand():
    worth = np.exp([0.3, -0.2, 0.9])
    expected = np.log(worth.sum()) - 0.3, np.log(worth.sum() - 0.5 * worth[:2].sum()) + 0.2
    got = plackett_luce(jnp.array([0.3, -0.2, 0.9]), jnp.array([1.0, 1.0, 2.0]))
    np.testing.assert_allclose(got[:2], expected, rtol=1e-12)


def test_a_list_of_the_best_does_not_see_the_order_of_the_rest():
    rng = np.random.default_rng(0)
    scores, ranks = jnp.asarray(rng.normal(size=7)), jnp.asarray(rng.permutation(7))
    best = ranks < 3
    whole = plackett_luce(scores, ranks)
    listed = plackett_luce(scores, jnp.minimum(ranks, 3), events=best)
    np.testing.assert_allclose(listed, jnp.where(best, whole, 0.0), rtol=1e-12)


def test_a_masked_item_is_a_deleted_item():
    rng = np.random.default_rng(1)
    scores, ranks = rng.normal(size=6), rng.permutation(6)
    where = np.array([True, True, False, True, False, True])
    dirty = jnp.asarray(np.where(where, scores, np.nan))

    def total(s):
        return plackett_luce(s, jnp.asarray(ranks), where=jnp.asarray(where)).sum()

    def kept(s):
        return plackett_luce(s, jnp.asarray(ranks[where])).sum()

    np.testing.assert_allclose(total(dirty), kept(jnp.asarray(scores[where])), rtol=1e-12)
    gradient = jax.jit(jax.grad(total))(dirty)
    np.testing.assert_allclose(gradient[where], jax.jit(jax.grad(kept))(jnp.asarray(scores[where])))
    assert (gradient[~where] == 0).all()
    np.testing.assert_allclose(jax.jit(jax.jacfwd(total))(dirty), gradient, atol=1e-14)
    nothing = jnp.zeros(6, bool)
    assert not plackett_luce(dirty, jnp.asarray(ranks), where=nothing).any()


@pytest.mark.parametrize("ties", [breslow, efron], ids=lambda f: f.__name__)
def test_derivatives(ties):
    rng = np.random.default_rng(2)
    scores, ranks = jnp.asarray(rng.normal(size=8)), jnp.asarray(rng.integers(0, 4, 8))

    def total(s):
        return plackett_luce(s, ranks, ties=ties).sum()

    jax.test_util.check_grads(jax.jit(total), (scores,), order=2, rtol=1e-5)
    hessian = jax.jit(jax.hessian(total))(scores)
    np.testing.assert_allclose(hessian @ np.ones(8), 0.0, atol=1e-12)  # shifts change nothing
    assert np.linalg.eigvalsh(hessian).min() > -1e-12  # convex
    np.testing.assert_allclose(total(scores + 1e4), total(scores), rtol=1e-11)


def test_impossible_items():
    scores = jnp.array([0.5, 0.2, -jnp.inf, 0.1])
    last = jnp.array([1, 0, 3, 2])  # forced: nothing else is left
    terms = plackett_luce(scores, last)
    np.testing.assert_allclose(terms[2], 0.0)
    chosen = plackett_luce(scores, jnp.array([1, 0, 2, 3]))
    assert chosen[2] == jnp.inf
    assert jnp.isfinite(chosen[jnp.array([0, 1, 3])]).all()
    for ranks in (last, jnp.array([1, 0, 2, 3]), jnp.array([0, 0, 0, 1])):
        for ties in (breslow, efron):
            gradient = jax.grad(lambda s, r=ranks, t=ties: plackett_luce(s, r, ties=t).sum())(
                scores
            )
            assert jnp.isfinite(gradient).all()
            assert gradient[2] == 0


def test_a_clear_choice_keeps_its_digits_in_float32():
    """log-sum minus score is exactly 0 there; the truth is 1.089e-7 (printed in pld)."""
    scores = jnp.array([32.0, 48.0, 16.0, 0.0], jnp.float32)
    weights = jax.nn.softmax(jnp.array([2.0, 1.0, 0.0, -1.0]))[jnp.array([0, 1, 2, 3])]
    terms = plackett_luce(scores, jnp.array([1, 0, 2, 3]))
    assert terms.dtype == jnp.float32
    np.testing.assert_allclose(jnp.dot(weights, terms), 1.0892746e-7, rtol=1e-5)


def test_transforms_and_types():
    rng = np.random.default_rng(3)
    scores, ranks = (
        jnp.asarray(rng.normal(size=(2, 3, 5))),
        jnp.asarray(rng.integers(0, 3, (2, 3, 5))),
    )
    whole = plackett_luce(scores, ranks)
    loops = [[plackett_luce(scores[i, j], ranks[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(whole, loops, rtol=1e-14)
    np.testing.assert_allclose(divergences.plackett_luce(scores, ranks), whole, rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(plackett_luce)(scores, ranks), whole, rtol=1e-14)
    half = plackett_luce(scores.astype(jnp.bfloat16), ranks)
    assert half.dtype == jnp.float32


def test_positions_are_stable():
    assert positions(jnp.array([2.0, 1.0, 2.0, -jnp.inf])).tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.zeros((2, 3)), jnp.zeros(3)), "ranks must have the shape of scores"),
        ((jnp.zeros(3, int), jnp.zeros(3)), "scores must be a floating-point array"),
        ((jnp.zeros(0), jnp.zeros(0)), "the list must not be empty"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        plackett_luce(*arguments)


def test_scores_that_are_nan_are_not_impossible():
    terms = plackett_luce(jnp.array([0.0, jnp.nan, 1.0]), jnp.array([0, 1, 2]))
    assert jnp.isnan(terms[:2]).all()  # the last choice has no risk set with NaN


def test_ties_by_name():
    with pytest.raises(ValueError, match=r"ties must be a function .*ranking\.efron"):
        plackett_luce(jnp.zeros(3), jnp.zeros(3), ties="efron")


def test_bad_masks():
    with pytest.raises(ValueError, match="events must be bool"):
        plackett_luce(jnp.zeros(3), jnp.zeros(3), events=jnp.ones(3))
    with pytest.raises(ValueError, match="where must be bool"):
        plackett_luce(jnp.zeros(3), jnp.zeros(3), where=jnp.ones((3, 1), bool))
