"""From rows to what a verdict, a table or a figure needs."""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from divjax.lab.records import LabError, Record, Records, nearest, same
from divjax.lab.verdict import t_interval

if TYPE_CHECKING:
    import pandas as pd


def final(records: Records, metric: str) -> list[Record]:
    """The last row that has the metric, for each cell and seed.

    Raises:
        LabError: no row has the metric; the message names the nearest.

    Example:
        >>> rows = [{"cell": "a", "seed": 1, "step": s, "loss": 1 / s} for s in (1, 2)]
        >>> final(rows, "loss")
        [{'cell': 'a', 'seed': 1, 'step': 2, 'loss': 0.5}]
    """
    last = {(row["cell"], row.get("seed")): row for row in records if metric in row}
    if not last:
        known = sorted({key for row in records for key in row})
        raise LabError(f"no row has the metric '{metric}'; {nearest(metric, known)}")
    return list(last.values())


def by_seed(records: Records, metric: str, *, by: str) -> dict[Any, dict[int, float]]:
    """{group: {seed: value}}: what `superior` and `not_worse` take.

    Args:
        records: one row for each group and seed; pass them through `final` first.
        metric: the column of values.
        by: the column that names the group, for example "arm".

    Raises:
        LabError: two rows for one group and seed, which would be paired at random.

    Example:
        >>> by_seed([{"cell": "a", "arm": "kl", "seed": 1, "ece": 0.1}], "ece", by="arm")
        {'kl': {1: 0.1}}
    """
    groups: dict[Any, dict[int, float]] = {}
    for row in records:
        group = groups.setdefault(row[by], {})
        if row["seed"] in group:
            raise LabError(
                f"two rows of '{metric}' for {by} {row[by]!r}, seed {row['seed']}; take the last "
                "rows with final(), and one setting for each group with choose() and keep()"
            )
        group[row["seed"]] = row[metric]
    return groups


def choose(
    records: Records, metric: str, *, by: str, over: Sequence[str], larger_is_better: bool = True
) -> dict[Any, dict[str, Any]]:
    """The best setting of each group by the mean of a validation metric over seeds.

    Args:
        records: rows of a grid; the last row of each cell and seed counts.
        metric: a metric of the validation split.
        by: the column that names the group.
        over: the columns that form the grid.
        larger_is_better: False for errors and losses.

    Returns:
        {group: {column of `over`: value}}; a setting whose mean is NaN is never chosen, and the
        first of equals wins.

    Raises:
        LabError: groups with grids of different sizes (no arm may search harder than another),
            or a group without a finite mean.

    Example:
        >>> columns = {"arm": "kl", "seed": 1}
        >>> rows = [{"cell": f"{lr}", "lr": lr, "loss": lr, **columns} for lr in (1, 2)]
        >>> choose(rows, "loss", by="arm", over=["lr"], larger_is_better=False)
        {'kl': {'lr': 1}}
    """
    values: dict[Any, dict[tuple[Any, ...], list[float]]] = {}
    for row in final(records, metric):
        setting = tuple(row[column] for column in over)
        values.setdefault(row[by], {}).setdefault(setting, []).append(row[metric])
    sizes = {group: len(grid) for group, grid in values.items()}
    if len(set(sizes.values())) > 1:
        raise LabError(f"choose: every {by} needs a grid of the same size, got {sizes}")
    sign = 1.0 if larger_is_better else -1.0
    chosen = {}
    for group, grid in values.items():
        means = {s: sign * float(np.mean(v)) for s, v in grid.items()}
        finite = {s: m for s, m in means.items() if not math.isnan(m)}
        if not finite:
            raise LabError(f"choose: '{metric}' of {by} {group!r} is NaN for every setting")
        best = max(finite.items(), key=itemgetter(1))[0]  # the first of equals
        chosen[group] = dict(zip(over, best, strict=True))
    return chosen


def keep(records: Records, choice: Mapping[Any, Mapping[str, Any]], *, by: str) -> list[Record]:
    """The rows of the chosen settings.

    Example:
        >>> rows = [{"cell": f"{lr}", "arm": "kl", "lr": lr} for lr in (1, 2)]
        >>> keep(rows, {"kl": {"lr": 1}}, by="arm")
        [{'cell': '1', 'arm': 'kl', 'lr': 1}]
    """
    return [row for row in records if all(same(row[k], v) for k, v in choice[row[by]].items())]


def frame(records: Records) -> "pd.DataFrame":
    """The rows as a pandas table.

    Example:
        >>> frame([{"cell": "a", "seed": 1}, {"cell": "a", "seed": 2}]).shape
        (2, 2)
    """
    import pandas as pd

    return pd.DataFrame.from_records([dict(row) for row in records])


def plus_minus(values: Sequence[float]) -> str:
    """'0.1234 ± 0.0056': the mean with its 95 % half-width, rounded by the latter.

    Example:
        >>> plus_minus([1.0, 2.0, 3.0])
        '2.0 ± 2.5'
    """
    if not np.isfinite(values).all():
        return "not finite"
    return rounded(*t_interval(values))


def rounded(mean: float, low: float, high: float) -> str:
    """'0.1234 ± 0.0056' of a mean and its interval; the mean alone where there is none.

    Example:
        >>> rounded(2.0, -0.484, 4.484)
        '2.0 ± 2.5'
    """
    if math.isnan(mean):
        return "not finite"
    half = (high - low) / 2
    if not math.isfinite(half):
        return f"{mean:.4g}"
    two = float(f"{half:.1e}")  # 0.00998 counts as 0.010
    digits = 4 if two == 0 else min(max(1 - math.floor(math.log10(two)), 0), 12)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def summary(records: Records, metrics: Sequence[str], *, by: str) -> "pd.DataFrame":
    """One line a group: number of seeds, and mean ± 95 % half-width of each metric's last row.

    Example:
        >>> rows = [{"cell": "a", "arm": "kl", "seed": s, "ece": float(s)} for s in (1, 2, 3)]
        >>> print(summary(rows, ["ece"], by="arm").to_string(index=False))
        arm  seeds       ece
         kl      3 2.0 ± 2.5
    """
    import pandas as pd

    columns = {metric: by_seed(final(records, metric), metric, by=by) for metric in metrics}
    groups = list(dict.fromkeys(row[by] for row in records))
    lines = []
    for group in groups:
        held = {metric: list(columns[metric].get(group, {}).values()) for metric in metrics}
        seeds = max(len(values) for values in held.values())
        cells = {m: plus_minus(values) if values else "" for m, values in held.items()}
        lines.append({by: group, "seeds": seeds, **cells})
    return pd.DataFrame(lines)
