"""int_0^1 h(t) dt and int_0^1 t h(t) dt of h >= 0, row by row, with an estimate of the error.

Clenshaw-Curtis panels of nine points, ends included, so that what lies in a narrow layer at an end
is seen; five of the nine judge the nine. Of each row the worst panel is halved until the row is as
good as its type, or no panel is left. A row comes out the same whatever rows stand beside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array

PANELS = 40  # per row at most; a layer of relative width 2^-20 takes about 25


def _weights(n: int) -> np.ndarray:
    """Of the n + 1 points (1 - cos(k pi / n)) / 2 on [0, 1]; n even."""
    j = np.arange(1, n // 2 + 1)
    waves = np.where(j < n // 2, 2.0, 1.0) / (4.0 * j**2 - 1.0)
    k = np.arange(n + 1)
    ends = np.where((k == 0) | (k == n), 1.0, 2.0)
    weights: np.ndarray = ends * (1.0 - np.cos(2 * np.pi * np.outer(k, j) / n) @ waves) / (2 * n)
    return weights


POINTS = np.sin(np.pi * np.arange(9) / 16) ** 2
FINE, COARSE = _weights(8), np.zeros(9)
COARSE[::2] = _weights(4)


def error(fine: Array, coarse: Array) -> Array:
    """Of the nine points: with twice the order their relative error is the square of the five's."""
    gap, size = jnp.abs(fine - coarse), jnp.abs(fine)
    return gap * jnp.minimum(10.0 * gap / jnp.where(size > 0, size, 1.0), 1.0)


class _Panels(NamedTuple):
    fresh: Array  # bool, not measured yet; [M, *E] all
    low: Array
    width: Array  # 0: no panel
    mass: Array
    moment: Array
    coarse: Array  # the mass by the five points

    def error(self) -> Array:
        """Of the moment: all that is wrong in the mass, at the panel's upper end."""
        return (self.low + self.width) * error(self.mass, self.coarse)

    def worst(self) -> Array:
        """[*E] the slot of one that is fresh, or of the largest error."""
        largest = float(np.finfo(self.low.dtype).max)
        known = jnp.nan_to_num(self.error(), nan=largest, posinf=largest)
        return jnp.argmax(jnp.where(self.fresh, jnp.inf, known), axis=0)


class Integral(NamedTuple):
    """Sums over the panels, [*E] each.

    Attributes:
        moment: int t h.
        mass: int h.
        error: of the moment, without rounding.
        spread: of the mass, between the nine points and the five, rounding included.
    """

    moment: Array
    mass: Array
    error: Array
    spread: Array


def _measured(h: Callable[[Array], Array], low: Array, width: Array) -> _Panels:
    """One panel per row, [*E]."""
    points, fine, coarse = (
        jnp.asarray(c, low.dtype).reshape((-1,) + (1,) * low.ndim) for c in (POINTS, FINE, COARSE)
    )
    t = low + points * width
    heights = jax.lax.map(h, t)
    sums = ((w * x).sum(0) for w, x in ((fine, heights), (fine, t * heights), (coarse, heights)))
    return _Panels(jnp.zeros_like(low, bool), low, width, *(width * x for x in sums))


def integrate(h: Callable[[Array], Array], wanted: Array, dtype: Any) -> Integral:
    """One panel where it will do; where `wanted`, as many as it takes.

    Args:
        h: t [*E] -> [*E].
        wanted: bool [*E].
        dtype: of t and h(t).

    Returns:
        Integral, [*E].
    """
    eps = float(np.finfo(dtype).eps)
    slot = jnp.arange(PANELS).reshape((-1,) + (1,) * wanted.ndim)
    one = (slot == 0) & (wanted | True)
    none = jnp.where(one, 0.0, 0.0).astype(dtype)
    start = _Panels(one, none, one.astype(dtype), none, none, none)

    def unfinished(panels: _Panels) -> Array:
        """Rows with a panel to measure, or with one to halve and room for it."""
        poor = panels.error().sum(0) > 4.0 * eps * jnp.abs(panels.moment.sum(0))
        return panels.fresh.any(0) | (wanted & poor & (panels.width[-1] == 0))

    def one_more(panels: _Panels) -> _Panels:
        """Measures a panel: one that is fresh, or the left half of the worst."""
        busy, worst = unfinished(panels), slot == panels.worst()
        fresh, low, width = (jnp.where(worst, a, 0).sum(0) for a in panels[:3])
        rest = jnp.where(fresh > 0, 0.0, 0.5 * width)
        measured = _measured(h, low, width - rest)
        right = _Panels(rest > 0, low + rest, rest, *(0.0 * rest for _ in range(3)))
        here, there = busy & worst, busy & (rest > 0) & (slot == (panels.width > 0).sum(0))
        put = lambda old, a, b: jnp.where(here, a, jnp.where(there, b, old))  # noqa: E731
        return _Panels(*map(put, panels, measured, right))

    panels = jax.lax.while_loop(lambda p: jnp.any(unfinished(p)), one_more, start)
    spread = jnp.abs(panels.mass - panels.coarse)
    return Integral(*(a.sum(0) for a in (panels.moment, panels.mass, panels.error(), spread)))
