"""Values of 1e-2 down to 1e-9, where p and q almost agree, at the arrays handed in.

Relative error of the value: 1e-5 from 1e-4 on, 2e-3 down to 1e-9 (and 2e-3 of 1e-9 below), in
float64 1e-10. Gradient as a whole vector: 2e-3 in float32, 1e-10 in float64. In bfloat16 and
float16 "one rounding of the type" is taken literally: the norm of the error is at most that of
half the spacing of the type at each entry, with 5 % and 2e-4 of the gradient for the arithmetic
before the rounding.
"""

from functools import cache

import f_table
import jax
import jax.numpy as jnp
import make_tables
import numpy as np
import pytest

from divjax.divergences import f_divergence, f_divergence_from_logits, generators

ENTRANCES = {"logits": f_divergence_from_logits, "log_probs": f_divergence}
SMOOTH = [g for g in generators.ALL if g.taylor is not None]
GROUPS = sorted({(r.entrance, r.dtype, r.width) for r in f_table.near()})


def rows(group):
    return [r for r in f_table.near() if (r.entrance, r.dtype, r.width) == group]


@cache
def results(group):
    """name -> values [N], gradients by p and q [N, width], all float64."""
    entrance, dtype, _ = group
    divergence = ENTRANCES[entrance]

    def one(g, p, q):
        def total(p, q):
            values = divergence(p, q, g)
            return jnp.sum(values), values

        (_, values), grads = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(p, q)
        return values, *grads

    with jax.enable_x64(dtype == "float64"):
        p, q = (jnp.asarray(np.stack([getattr(r, k) for r in rows(group)]), dtype) for k in "pq")
        out = jax.jit(lambda p, q: {g.name: one(g, p, q) for g in SMOOTH})(p, q)
        return jax.tree.map(lambda x: np.asarray(x, np.float64), out)


def half_spacing(g, dtype):
    """Half the distance to the next number of the type, entry by entry."""
    info = jnp.finfo(dtype)
    return np.maximum(np.abs(g), float(info.smallest_normal)) * float(info.eps) / 2


def gradient_bound(g, dtype):
    """The norm of the error that is allowed for the gradient g."""
    norm = np.linalg.norm(g)
    if dtype in ("float32", "float64"):
        return (2e-3 if dtype == "float32" else 1e-10) * norm
    return 1.05 * np.linalg.norm(half_spacing(g, dtype)) + 2e-4 * norm


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_values(group):
    bad = []
    for i, r in enumerate(rows(group)):
        for g in SMOOTH:
            expected = r.expect[f_table.known(g.name)][0]
            relative = 1e-10 if r.dtype == "float64" else 1e-5 if expected >= 1e-4 else 2e-3
            got = results(group)[g.name][0][i]
            error = abs(got - expected) / (relative * max(expected, 1e-9))
            if not error <= 1:
                bad.append(f"{g.name} at {expected:.3e}: got {got:.9e}, {error:.1f} tolerances")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("group", [g for g in GROUPS if g[2] <= 64], ids=str)
def test_gradients(group):
    bad = []
    for i, r in enumerate(rows(group)):
        for g in SMOOTH:
            for side in (1, 2):
                got, expected = results(group)[g.name][side][i], r.expect[g.name][side]
                error = np.linalg.norm(got - expected)
                bound = gradient_bound(expected, r.dtype)
                if not error <= bound:
                    norm = np.linalg.norm(expected)
                    bad.append(
                        f"{g.name} by {'_pq'[side]} at {r.target}: relative error "
                        f"{error / norm:.2e}, allowed {bound / norm:.2e}"
                    )
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("group", [g for g in GROUPS if g[2] > 64], ids=str)
def test_wide_gradients_by_probes(group):
    """Against norm and inner products with +-1: an error e moves each by about |e|."""
    dtype, width = group[1:]
    probes, bad = make_tables.probes(width), []
    for i, r in enumerate(rows(group)):
        for g in SMOOTH:
            for side in (1, 2):
                got, stored = results(group)[g.name][side][i], r.expect[g.name][side]
                bound = 3 * gradient_bound(got, dtype)
                moved = np.abs(np.r_[np.linalg.norm(got), probes @ got] - stored)
                if not (moved <= bound).all():
                    bad.append(f"{g.name} by {'_pq'[side]} at {r.target}: {moved} > {bound}")
    assert not bad, "\n".join(bad)
