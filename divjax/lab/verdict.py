"""The one rule by which a claim is judged; see `conclude`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from divjax.core.check import require

REPRODUCED, CONTRADICTED, INCONCLUSIVE = "reproduced", "contradicted", "inconclusive"
STATUSES = REPRODUCED, CONTRADICTED, INCONCLUSIVE
BESIDE = "beside the verdict"  # of a preset, never of a part
PROVISIONAL = ("smoke", "demo")  # presets too small to decide anything


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a claim: an interval and the number it must lie above.

    Attributes:
        name: what is claimed, in words.
        estimate: the mean difference, oriented so that larger is better for the claim.
        low: lower end of its 95 % interval; -inf when there are fewer than two seeds.
        high: upper end, +inf likewise.
        threshold: m for superiority, -m for not worse, the bound of a claim of another shape.
        status: reproduced when low > threshold, contradicted when high < threshold.
        differences: seed -> oriented difference; what the interval was computed from.
    """

    name: str
    estimate: float
    low: float
    high: float
    threshold: float
    status: str
    differences: Mapping[int, float] = dataclasses.field(default_factory=dict)

    @property
    def zero(self) -> str:
        """Where zero lies: 'below', 'inside' or 'above' the interval, ends counted inside."""
        return "below" if self.low > 0 else "above" if self.high < 0 else "inside"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Status of the whole claim, or `BESIDE`; the reason in a sentence; the parts as evidence."""

    status: str
    reason: str
    parts: Sequence[Part]


def t_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean with its 95 % Student-t interval: mean -+ t(0.975, n - 1) s / sqrt(n).

    Args:
        values: [N] finite numbers, N >= 1.

    Returns:
        (mean, low, high); the interval is the whole line when N = 1.

    Example:
        >>> mean, low, high = t_interval([1.0, 2.0, 3.0])
        >>> round(mean, 3), round(low, 3), round(high, 3)
        (2.0, -0.484, 4.484)
    """
    x = np.asarray(values, np.float64)
    require(x.ndim == 1 and x.size > 0, "t_interval", "values must be [N] with N >= 1", x, "pass N")
    require(bool(np.isfinite(x).all()), "t_interval", "values must be finite", values, "see NaN")
    mean = float(x.mean())
    if x.size == 1:
        return mean, -math.inf, math.inf
    half = float(stdtrit(x.size - 1, 0.975) * x.std(ddof=1) / math.sqrt(x.size))
    return mean, mean - half, mean + half


def judge(low: float, high: float, threshold: float) -> str:
    """The rule: reproduced above the threshold, contradicted below it, else inconclusive."""
    if low > threshold:
        return REPRODUCED
    return CONTRADICTED if high < threshold else INCONCLUSIVE


def stated(
    name: str,
    estimate: float,
    low: float,
    high: float,
    *,
    threshold: float,
    differences: Mapping[int, float] | None = None,
) -> Part:
    """A claim of any shape (a fit, an order, a bound) that brings its own 95 % interval.

    Args:
        name: what is claimed, in words.
        estimate: [] oriented so that larger is better for the claim.
        low: [] lower end of the 95 % interval.
        high: [] upper end.
        threshold: [] the number that the interval must lie above.
        differences: seed -> value, where there are seeds.

    Raises:
        ValueError: an end is NaN, or low <= estimate <= high does not hold.

    Example:
        >>> stated("order of convergence above 1.5", 1.9, 1.7, 2.1, threshold=1.5).status
        'reproduced'
    """
    ordered = low <= estimate <= high and math.isfinite(estimate) and math.isfinite(threshold)
    require(
        ordered,
        name,
        "need low <= estimate <= high and finite estimate and threshold",
        (low, estimate, high, threshold),
        "a NaN here means that rows of the records are not finite",
    )
    numbers = float(estimate), float(low), float(high), float(threshold)
    return Part(name, *numbers, judge(*numbers[1:]), dict(differences or {}))


def superior(
    name: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    *,
    margin: float,
    larger_is_better: bool = True,
) -> Part:
    """Ours better than theirs by more than the margin: the interval lies above +margin.

    Args:
        name: what is claimed, in words.
        ours: seed -> metric of the claimed arm.
        theirs: seed -> metric of the arm it is compared with, the same seeds.
        margin: m >= 0, in units of the metric.
        larger_is_better: False for errors and losses.

    Raises:
        ValueError: seeds differ, a value is not finite, or the margin is negative.

    Example:
        >>> ours, theirs = {1: 0.10, 2: 0.12, 3: 0.11}, {1: 0.20, 2: 0.21, 3: 0.22}
        >>> superior("error lower", ours, theirs, margin=0.05, larger_is_better=False).status
        'reproduced'
    """
    return _paired(name, ours, theirs, margin, 1.0, larger_is_better)


def control(
    name: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    *,
    larger_is_better: bool = True,
) -> Part:
    """How much better ours is than theirs: a figure that is shown, and no part of the verdict.

    Args:
        name: what is compared, in words.
        ours: seed -> metric.
        theirs: seed -> metric, the same seeds.
        larger_is_better: False for errors and losses.

    Raises:
        ValueError: as `superior`.

    Example:
        >>> control("new better by", {1: 0.4, 2: 0.5}, {1: 0.1, 2: 0.3}).status
        'a control, outside the verdict'
    """
    part = superior(name, ours, theirs, margin=0.0, larger_is_better=larger_is_better)
    return dataclasses.replace(part, status="a control, outside the verdict")


def not_worse(
    name: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    *,
    margin: float,
    larger_is_better: bool = True,
) -> Part:
    """Ours not worse than theirs by the margin or more: the interval lies above -margin.

    Args and Raises are those of `superior`.

    Example:
        >>> not_worse("accuracy", {1: 0.90, 2: 0.91}, {1: 0.90, 2: 0.91}, margin=0.01).status
        'reproduced'
    """
    return _paired(name, ours, theirs, margin, -1.0, larger_is_better)


def _paired(
    name: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    margin: float,
    side: float,
    larger_is_better: bool,
) -> Part:
    require(0 <= margin < math.inf, name, "margin must be >= 0", margin, "for example margin=0.0")
    require(
        len(ours) > 0 and set(ours) == set(theirs),
        name,
        "differences are paired by seed, so both arms need the same seeds",
        (sorted(ours), sorted(theirs)),
        "run the missing seeds",
    )
    sign = 1.0 if larger_is_better else -1.0
    differences = {seed: sign * (float(ours[seed]) - float(theirs[seed])) for seed in sorted(ours)}
    broken = [seed for seed, value in differences.items() if not math.isfinite(value)]
    require(not broken, name, "metrics must be finite", broken, "look at the rows of these seeds")
    return stated(
        name,
        *t_interval(list(differences.values())),
        threshold=side * float(margin) + 0.0,
        differences=differences,
    )


def conclude(parts: Sequence[Part], *, preset: str, beside: bool = False) -> Verdict:
    """All parts reproduced: reproduced; one contradicted: contradicted; else inconclusive.

    The presets of `PROVISIONAL` are too small to decide, so they and each of their parts are
    inconclusive whatever the figures say. Figures on other data than the claim's are no verdict;
    their parts keep the status that the rule gives them.

    Args:
        parts: at least one.
        preset: the preset that the records come from.
        beside: these are other data than the claim's.

    Raises:
        ValueError: there is no part, or two have one name.

    Example:
        >>> part = stated("slope above 0", 1.0, 0.5, 1.5, threshold=0.0)
        >>> conclude([part], preset="cpu").status, conclude([part], preset="demo").status
        ('reproduced', 'inconclusive')
        >>> conclude([part], preset="cifar10", beside=True).status
        'beside the verdict'
    """
    names = [part.name for part in parts]
    require(len(names) > 0, "conclude", "a verdict needs at least one part", names, "add one")
    require(
        len(set(names)) == len(names), "conclude", "names of parts must differ", names, "rename"
    )
    if preset in PROVISIONAL:
        undecided = [dataclasses.replace(part, status=INCONCLUSIVE) for part in parts]
        return Verdict(INCONCLUSIVE, f"the preset '{preset}' is too small to decide", undecided)
    if beside:
        seeds = max(len(part.differences) for part in parts)
        reason = f"figures on another data set, {seeds} seeds; the preset 'cpu' judges the claim"
        return Verdict(BESIDE, reason, parts)
    contradicted = [part.name for part in parts if part.status == CONTRADICTED]
    open_parts = [part.name for part in parts if part.status == INCONCLUSIVE]
    if contradicted:
        return Verdict(CONTRADICTED, "contradicted: " + "; ".join(contradicted), parts)
    if open_parts:
        return Verdict(INCONCLUSIVE, "not decided: " + "; ".join(open_parts), parts)
    return Verdict(REPRODUCED, "every part lies above its threshold", parts)
