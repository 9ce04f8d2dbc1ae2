"""The one rule, against intervals by scipy.stats and cases worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from divjax.lab import conclude, not_worse, stated, superior, t_interval
from divjax.lab.verdict import CONTRADICTED, INCONCLUSIVE, REPRODUCED


@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_interval_is_that_of_scipy(n):
    x = np.random.default_rng(n).normal(3.0, 2.0, n)
    mean, low, high = t_interval(x)
    expected = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose((mean, low, high), (x.mean(), *expected), rtol=1e-12)


def test_interval_by_hand():
    # mean 2, s = 1; with 2 degrees of freedom t(p) = (2p - 1) / sqrt(2 p (1 - p))
    mean, low, high = t_interval([1.0, 2.0, 3.0])
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    np.testing.assert_allclose((mean, low, high), (2.0, 2 - half, 2 + half), rtol=1e-10)


def by_seed(values):
    return dict(enumerate(values, 100))


# ours - theirs = exactly `d` for each of three seeds, so that a = b = d
@pytest.mark.parametrize(
    ("part", "d", "margin", "expected"),
    [
        (superior, 2.0, 1.0, REPRODUCED),
        (superior, 1.0, 1.0, INCONCLUSIVE),  # a == m is not above
        (superior, 0.5, 1.0, CONTRADICTED),
        (superior, 0.0, 0.0, INCONCLUSIVE),
        (superior, -1.0, 0.0, CONTRADICTED),
        (not_worse, -0.5, 1.0, REPRODUCED),
        (not_worse, -1.0, 1.0, INCONCLUSIVE),  # a == b == -m
        (not_worse, -2.0, 1.0, CONTRADICTED),
        (not_worse, 0.0, 0.0, INCONCLUSIVE),
    ],
)
@pytest.mark.parametrize("larger", [True, False])
def test_rule_at_its_boundaries(part, d, margin, expected, larger):
    theirs = by_seed([4.0, 8.0, 16.0])
    sign = 1 if larger else -1
    ours = {seed: value + sign * d for seed, value in theirs.items()}
    made = part("x", ours, theirs, margin=margin, larger_is_better=larger)
    assert (made.low, made.high) == (d, d)
    assert made.status == expected
    assert made.zero == ("below" if d > 0 else "above" if d < 0 else "inside")


def test_differences_are_paired_by_seed_not_by_order():
    ours, theirs = {1: 1.0, 2: 11.0, 3: 21.0}, {3: 20.0, 1: 0.0, 2: 10.0}
    part = superior("x", ours, theirs, margin=0.5)
    assert part.differences == {1: 1.0, 2: 1.0, 3: 1.0}
    assert part.status == REPRODUCED


def test_interval_across_the_threshold_is_inconclusive():
    ours, theirs = by_seed([1.0, 2.0, 3.0]), by_seed([0.0, 0.0, 0.0])
    part = superior("x", ours, theirs, margin=1.0)
    assert part.low < 1.0 < part.high
    assert part.status == INCONCLUSIVE
    assert part.zero == "inside"


def test_one_seed_decides_nothing():
    part = superior("x", {1: 9.0}, {1: 0.0}, margin=0.0)
    assert (part.estimate, part.low, part.high) == (9.0, -math.inf, math.inf)
    assert part.status == INCONCLUSIVE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_an_error(bad):
    with pytest.raises(ValueError, match=r"finite, got \[101\]"):
        superior("x", by_seed([0.0, bad]), by_seed([0.0, 0.0]), margin=0.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "margin", "message"),
    [
        ({1: 0.0}, {2: 0.0}, 0.0, "same seeds"),
        ({}, {}, 0.0, "same seeds"),
        ({1: 0.0}, {1: 0.0}, -0.1, "margin must be >= 0"),
        ({1: 0.0}, {1: 0.0}, math.nan, "margin must be >= 0"),
    ],
)
def test_bad_arguments(ours, theirs, margin, message):
    with pytest.raises(ValueError, match=message):
        not_worse("x", ours, theirs, margin=margin)


def test_stated_interval():
    assert stated("slope", 2.0, 1.5, 2.5, threshold=1.0).status == REPRODUCED
    assert stated("slope", 2.0, 1.0, 2.5, threshold=1.0).status == INCONCLUSIVE
    assert stated("slope", 0.0, -1.0, 0.9, threshold=1.0).status == CONTRADICTED
    for numbers in [(2.0, 2.1, 2.5), (math.nan, 0.0, 1.0), (0.0, math.nan, 1.0)]:
        with pytest.raises(ValueError, match="low <= estimate <= high"):
            stated("slope", *numbers, threshold=1.0)


GOOD = stated("good", 2.0, 1.5, 2.5, threshold=1.0)
OPEN = stated("open", 2.0, 0.5, 2.5, threshold=1.0)
BAD = stated("bad", 0.0, -0.5, 0.5, threshold=1.0)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([GOOD], REPRODUCED),
        ([GOOD, OPEN], INCONCLUSIVE),
        ([GOOD, BAD], CONTRADICTED),
        ([OPEN, BAD], CONTRADICTED),
    ],
)
def test_claims_of_several_parts(parts, expected):
    assert conclude(parts, preset="cpu").status == expected
    assert conclude(parts, preset="tpu").status == expected
    for preset in ("smoke", "demo"):
        small = conclude(parts, preset=preset)
        assert [small.status, *(part.status for part in small.parts)] == [INCONCLUSIVE] * (
            len(parts) + 1
        )


def test_reason_names_the_parts():
    assert conclude([GOOD, BAD, OPEN], preset="cpu").reason == "contradicted: bad"
    assert conclude([GOOD, OPEN], preset="cpu").reason == "not decided: open"


def test_a_verdict_needs_parts_with_different_names():
    with pytest.raises(ValueError, match="at least one part"):
        conclude([], preset="cpu")
    with pytest.raises(ValueError, match="must differ"):
        conclude([GOOD, GOOD], preset="cpu")
