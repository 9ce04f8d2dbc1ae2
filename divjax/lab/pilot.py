"""Settings are chosen on seeds that are never reported.

With a grid every setting runs on the pilot's seeds first, then on the reported ones. Without one,
as in small presets, only pilot seeds run: they never score a reported one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from divjax.lab.experiment import Cell
from divjax.lab.records import Record, Records

PILOT, REPORTED = 0, 1000  # first seeds


class Gridded(Protocol):
    """The fields of a config that this asks for."""

    @property
    def grid(self) -> bool:
        """Whether settings are chosen at all."""
        ...

    @property
    def seeds(self) -> int:
        """How many seeds a cell has."""
        ...


def piloted(
    config: Gridded,
    settings: Sequence[Mapping[str, Any]],
    name: Callable[[Mapping[str, Any]], str],
    *,
    apart: bool = False,
) -> list[Cell]:
    """Every setting with all its seeds in one cell, or in one for each seed; the pilot's first.

    Args:
        config: has `grid` and `seeds`.
        settings: columns of a cell's rows, one mapping per cell.
        name: of a setting; the pilot's cells have "pilot-" in front.
        apart: one cell a seed, with "-seed1000" behind its name.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(grid=True, seeds=2)
        >>> [(c.name, c.seeds) for c in piloted(config, [{"arm": "kl"}], lambda s: s["arm"])]
        [('pilot-kl', (0, 1)), ('kl', (1000, 1001))]
    """
    runs = {"pilot-": PILOT, "": REPORTED} if config.grid else {"": PILOT}
    cells = [
        Cell(prefix + name(setting), setting, range(first, first + config.seeds))
        for prefix, first in runs.items()
        for setting in settings
    ]
    if not apart:
        return cells
    return [Cell(f"{c.name}-seed{s}", c.settings, [s]) for c in cells for s in c.seeds]


def is_pilot(config: Gridded, seed: int) -> bool:
    """Whether a seed only serves the choice of settings.

    Example:
        >>> from types import SimpleNamespace
        >>> is_pilot(SimpleNamespace(grid=True, seeds=2), 1)
        True
    """
    return config.grid and seed < REPORTED


def parted(config: Gridded, records: Records) -> tuple[list[Record], list[Record]]:
    """(rows of the pilot's seeds, reported rows); without a grid there is no pilot.

    Example:
        >>> from types import SimpleNamespace
        >>> parted(SimpleNamespace(grid=False, seeds=2), [{"seed": 1}])
        ([], [{'seed': 1}])
    """
    pilot = [row for row in records if is_pilot(config, row["seed"])]
    return pilot, [row for row in records if not is_pilot(config, row["seed"])]
