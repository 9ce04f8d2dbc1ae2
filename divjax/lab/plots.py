"""Figures in one restrained style; matplotlib is imported when a figure is drawn."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from divjax.lab.records import Records
from divjax.lab.select import by_seed, final
from divjax.lab.verdict import CONTRADICTED, REPRODUCED, Part, t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RULE = "#1f2933", "#6b7785", "#d8dee4"
# Distinguishable with any colour vision; the order is that of the arms.
COLOURS = ("#0b6e99", "#d1603d", "#4f8a3c", "#8757a4", "#b8860b", "#222222", "#a6396b", "#5f6b73")
STATUS_COLOURS = {REPRODUCED: "#2b7a4b", CONTRADICTED: "#b3362b"}
WIDTH = 6.4  # inches; narrow enough for the letters to be read on a phone
STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlepad": 7,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "divjax",
}


@contextmanager
def _figure(width: float, height: float) -> "Iterator[Figure]":
    """A figure without pyplot, so that nothing is global and no display is needed."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(dict(STYLE)):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: "Figure", format: str) -> bytes:
    """The picture as svg or png bytes, the same for the same figure."""
    import io

    import matplotlib

    buffer = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {"Software": None}
    with matplotlib.rc_context(dict(STYLE)):
        figure.savefig(buffer, format=format, dpi=160, metadata=metadata)
    return buffer.getvalue()


def intervals(parts: Sequence[Part]) -> "Figure":
    """Each part on its own scale: differences by seed, mean, 95 % interval, zero, threshold.

    The shaded side is where the interval must lie for the claim to hold.
    """
    with _figure(WIDTH, 0.45 + 1.15 * len(parts)) as figure:
        axes = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
        for ax, part in zip(axes, parts, strict=True):
            _interval(ax, part)
        axes[-1].set_xlabel("difference, larger is better for the claim", color=SOFT)
        return figure


def _interval(ax: "Axes", part: Part) -> None:
    colour = STATUS_COLOURS.get(part.status, SOFT)
    seeds = list(part.differences.values())
    ends = [v for v in (part.low, part.high) if np.isfinite(v)]
    points = [0.0, part.threshold, part.estimate, *ends, *seeds]
    pad = 0.08 * (max(points) - min(points) or 1.0)
    left, right = min(points) - pad, max(points) + pad
    ax.set_xlim(left, right)
    ax.set_ylim(-1, 1)
    ax.axvspan(part.threshold, right, color="#2b7a4b", alpha=0.07, linewidth=0)
    ax.axvline(0, color=INK, linewidth=0.9)
    ax.axvline(part.threshold, color="#2b7a4b", linewidth=1.1, linestyle=(0, (4, 2)))
    ax.plot(seeds, [-0.5] * len(seeds), "o", color=colour, alpha=0.35, markersize=4)
    if ends:
        ax.plot([part.low, part.high], [0.15, 0.15], color=colour, linewidth=2.4)
    ax.plot([part.estimate], [0.15], "o", color=colour, markersize=7, markeredgecolor="white")
    ax.set_title(textwrap.fill(f"{part.name}: {part.status}", 66))
    ax.annotate("0", (0, 1), (3, -8), textcoords="offset points", color=INK, fontsize=8)
    if part.threshold:
        text = "threshold"
        at_right = part.threshold < left + 0.7 * (right - left)
        ax.annotate(
            text,
            (part.threshold, -1),
            (3 if at_right else -3, 3),
            textcoords="offset points",
            color="#2b7a4b",
            fontsize=8,
            ha="left" if at_right else "right",
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6},
        )
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=False)


def learning_curves(
    records: Records, metric: str, *, by: str = "arm", x: str = "step", label: str | None = None
) -> "Figure":
    """The mean over seeds of each group, with its 95 % t-interval as a band.

    Args:
        records: rows; those without the metric are passed over.
        metric: column on the y axis.
        by: column that names the group.
        x: column on the x axis.
        label: name of the y axis, the metric's when None.
    """
    with _figure(WIDTH, 3.4) as figure:
        ax = figure.subplots()
        groups = list(dict.fromkeys(row[by] for row in records if metric in row))
        ends = []
        for group, colour in zip(groups, _colours(len(groups)), strict=True):
            held: dict[float, list[float]] = {}
            for row in records:
                if row[by] == group and metric in row and x in row:
                    held.setdefault(row[x], []).append(row[metric])
            steps = sorted(held)
            bands = np.array([_band(held[step]) for step in steps])
            ax.plot(steps, bands[:, 0], color=colour, linewidth=1.7, label=str(group))
            ax.fill_between(steps, bands[:, 1], bands[:, 2], color=colour, alpha=0.13, linewidth=0)
            ends.append((bands[-1, 0], str(group), colour))
        ax.set_xlabel(x)
        ax.set_ylabel((label or metric).replace("_", " "))
        ax.margins(x=0.01)
        _name_lines(figure, len(ends))
        return figure


def _band(values: Sequence[float]) -> tuple[float, float, float]:
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return float("nan"), float("nan"), float("nan")
    mean, low, high = t_interval(finite)
    return (mean, low, high) if len(finite) > 1 else (mean, mean, mean)


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _name_lines(figure: "Figure", n: int) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=min(n, 4), fontsize=9)


def by_arm(records: Records, metric: str, *, by: str = "arm", label: str | None = None) -> "Figure":
    """The last value of each group: a dot for every seed, the mean and its 95 % interval.

    Args:
        records: one setting for each group.
        metric: column to show.
        by: column that names the group.
        label: name of the x axis, the metric's when None.
    """
    groups = by_seed(final(records, metric), metric, by=by)
    with _figure(WIDTH, 0.9 + 0.36 * len(groups)) as figure:
        ax = figure.subplots()
        for row, ((_, held), colour) in enumerate(
            zip(groups.items(), _colours(len(groups)), strict=True)
        ):
            values = list(held.values())
            mean, low, high = _band(values)
            ax.plot(values, [row + 0.17] * len(values), "o", color=colour, alpha=0.35, markersize=4)
            ax.plot([low, high], [row - 0.13] * 2, color=colour, linewidth=2.4)
            ax.plot([mean], [row - 0.13], "o", color=colour, markersize=7, markeredgecolor="white")
        ax.set_yticks(range(len(groups)), [str(group) for group in groups])
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(label or metric)
        return figure


def reliability(
    confidence: Mapping[str, Sequence[float]],
    accuracy: Mapping[str, Sequence[float]],
    count: Mapping[str, Sequence[float]],
) -> "Figure":
    """Accuracy against confidence in bins, one panel an arm; a calibrated model is on the diagonal.

    Args:
        confidence: arm -> mean confidence of each bin.
        accuracy: arm -> share of right answers of each bin.
        count: arm -> number of examples of each bin; empty bins are left out, and the area of a
            dot is its share of the examples.
    """
    arms = list(confidence)
    columns = min(len(arms), 4)
    lines = -(-len(arms) // columns)
    with _figure(WIDTH, 2.15 * lines + 0.3) as figure:
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for ax, arm, colour in zip(panels.flat, arms, _colours(len(arms)), strict=False):
            n = np.asarray(count[arm], np.float64)
            held = n > 0
            x, y = np.asarray(confidence[arm])[held], np.asarray(accuracy[arm])[held]
            ax.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=(0, (4, 2)))
            ax.plot(x, y, color=colour, linewidth=1.2, alpha=0.6)
            area = 6 + 160 * n[held] / n.sum()
            ax.scatter(x, y, s=area, color=colour, linewidths=0, zorder=3, clip_on=False)
            ax.set_title(arm, fontsize=9)
            ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        for ax in panels.flat[len(arms) :]:
            ax.set_visible(False)
        figure.supxlabel("confidence", fontsize=9.5)
        figure.supylabel("accuracy", fontsize=9.5)
        return figure
