"""Renyi divergences from logits on the torture rows, against mpmath on the spot."""

from functools import cache

import f_exact
import f_table
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from divjax.divergences import generators, renyi_from_logits

ORDERS = (0.3, 0.5, 2.0, 3.0)
TOLERANCE = {"float32": 2e-5, "float64": 1e-10}


def exact(order, z_p, z_q):
    """Value and gradients a (w - p) / (a - 1), q - w; w is the normalised p^a q^(1-a)."""
    nothing = [0.0] * len(z_p)
    with mp.workdps(f_exact.DIGITS):
        if all(x == y == -mp.inf for x, y in zip(z_p, z_q, strict=True)):
            return 0.0, nothing, nothing
        a = mp.mpf(order)
        p, q = f_exact.log_normalise(z_p), f_exact.log_normalise(z_q)
        if order > 1 and any(x > y == -mp.inf for x, y in zip(p, q, strict=True)):
            return np.inf, None, None
        both = [-mp.inf if -mp.inf in (x, y) else a * x + (1 - a) * y for x, y in zip(p, q)]
        total = mp.fsum(mp.exp(x) for x in both)
        if total == 0:
            return np.inf, None, None
        w = [mp.exp(x) / total for x in both]
        by_p = [a * (t - mp.exp(x)) / (a - 1) for t, x in zip(w, p, strict=True)]
        by_q = [mp.exp(y) - t for t, y in zip(w, q, strict=True)]
        value = mp.log(total) / (a - 1)
        return float(value), [float(x) for x in by_p], [float(x) for x in by_q]


@cache
def results(dtype):
    """Per order: values [N], gradients [N, 6]."""
    rows = f_table.torture("logits", dtype, tuple(g.name for g in generators.ALL))
    where = jnp.asarray(rows.where)

    def one(order, p, q):
        def total(p, q):
            values = renyi_from_logits(p, q, order=order, where=where)
            return values.sum(), values

        (_, values), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(p, q)
        return values, *grads

    with jax.enable_x64(dtype == "float64"):
        p, q = jnp.asarray(rows.p, dtype), jnp.asarray(rows.q, dtype)
        out = jax.jit(lambda p, q: [one(order, p, q) for order in ORDERS])(p, q)
        return rows, jax.tree.map(np.asarray, out)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_renyi_on_the_torture_rows(dtype, order):
    rows, out = results(dtype)
    tolerance, bad = TOLERANCE[dtype], []
    floor = 64 * float(np.finfo(dtype).eps)  # a logarithm near 0: roundings of 1
    for i, case in enumerate(rows.cases):
        keep = rows.where[i]
        value, *grads = exact(order, rows.p[i][keep].tolist(), rows.q[i][keep].tolist())
        got, *got_grads = (x[i] for x in out[ORDERS.index(order)])
        close = got == value or abs(got - value) <= tolerance * abs(value) + floor
        if not (close and got >= 0):
            bad.append(f"{case}: got {got}, expected {value}")
        for side, x, y in zip("pq", got_grads, grads, strict=True):
            if np.isnan(x).any() or x[~keep].any():
                bad.append(f"{case}: gradient by {side} is {x}")
            elif y is not None and not np.abs(x[keep] - y).max(initial=0.0) <= 5 * floor:
                bad.append(f"{case}: gradient by {side} is {x[keep]}, expected {y}")
    assert not bad, "\n".join(bad)
