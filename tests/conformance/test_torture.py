"""Type x case x transform x entrance for every record, against the stored mpmath table.

The cases are rows of one array and one jitted function evaluates all records, so there is one
compilation per type, entrance and transform.
"""

from functools import cache, partial

import f_table
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import f_divergence, f_divergence_from_logits, generators

DTYPES = ("float32", "bfloat16", "float16", "float64")
ENTRANCES = {"logits": f_divergence_from_logits, "log_probs": f_divergence}
NAMES = tuple(g.name for g in generators.ALL)

# (record, case, entrance, dtype, quantity) -> reason. Empty, and meant to stay so.
EXCEPTIONS: dict[tuple[str, str, str, str, str], str] = {}

# Relative tolerance of value, of gradients and jvp, of Hessian-vector products.
TOLERANCE = {"float32": (2e-5, 1e-4, 1e-3), "float64": (1e-10, 1e-10, 1e-9)}


def evaluate(divergence, p, q, where):
    """name -> (values [N], (gradient by p, by q) [N, 6]), by reverse mode."""

    def one(g):
        def total(p, q):
            values = divergence(p, q, g, where=where)
            return jnp.sum(values), values

        (_, values), grads = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(p, q)
        return values, grads

    return {g.name: one(g) for g in generators.ALL}


def by_reverse(divergence, p, q, where, directions):
    """Value, gradients, and by forward over reverse the jvp and the Hessian-vector products."""
    (values, tangents) = jax.jvp(lambda p, q: evaluate(divergence, p, q, where), (p, q), directions)
    return {
        name: {
            "value": values[name][0],
            "grad_p": values[name][1][0],
            "grad_q": values[name][1][1],
            "jvp": tangents[name][0],
            "hvp_p": tangents[name][1][0],
            "hvp_q": tangents[name][1][1],
        }
        for name in values
    }


def labelled(results):
    return {
        name: {"value": v, "grad_p": grads[0], "grad_q": grads[1]}
        for name, (v, grads) in results.items()
    }


def plain(divergence, p, q, where, directions):
    return labelled(evaluate(divergence, p, q, where))


def by_vmap(divergence, p, q, where, directions):
    return jax.vmap(partial(by_reverse, divergence))(p, q, where, directions)


def by_scan(divergence, p, q, where, directions):
    def body(carry, row):
        return carry, by_reverse(divergence, *row)

    return jax.lax.scan(body, None, (p, q, where, directions))[1]


TRANSFORMS = {
    "jit": (by_reverse, True),
    "eager": (plain, False),
    "vmap": (by_vmap, True),
    "scan": (by_scan, True),
}


@cache
def results(transform, entrance, dtype):
    """Every quantity of every record and case, as float64, with the types they came in."""
    function, compiled = TRANSFORMS[transform]
    rows = f_table.torture(entrance, dtype, NAMES)
    with jax.enable_x64(dtype == "float64"):
        p, q, *directions = (jnp.asarray(x, dtype) for x in (rows.p, rows.q, *rows.directions))
        run = partial(function, ENTRANCES[entrance])
        out = (jax.jit(run) if compiled else run)(p, q, jnp.asarray(rows.where), tuple(directions))
        return jax.tree.map(lambda x: (str(x.dtype), np.asarray(x.astype(float))), out)


def roundings(dtype):
    """Half a spacing, the largest finite and the smallest normal number of a type."""
    info = jnp.finfo(dtype)
    return float(info.eps) / 2, float(info.max), float(info.smallest_normal)


def value_error(got, expected, dtype, entrance, name, scale=None):
    """[N] error over tolerance; what overflows must be infinite."""
    wide = "float64" if dtype == "float64" else "float32"
    half, top, tiny = roundings(wide)
    relative = TOLERANCE[wide][0 if scale is None else 1]
    # Logits near equality: the normalisers carry roundings; second order in all records but tv.
    order = 1 if name == "tv" or scale is not None else 2
    floor = (32 * half) ** order if entrance == "logits" else 4 * tiny
    size = np.abs(expected) if scale is None else scale
    infinite = np.abs(expected) > top
    same = np.where(infinite, got == np.copysign(np.inf, expected), np.isfinite(got))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got - expected) / (relative * size + floor)
    return np.where(same, np.where(infinite, 0.0, error), np.inf)


def vector_error(got, expected, dtype, entrance, order):
    """[N] error of a whole vector over tolerance, one rounding to the type of the input allowed.

    An entry beyond the type is infinite; the others are judged against the largest of them.
    """
    wide = "float64" if dtype == "float64" else "float32"
    half, top, tiny = roundings(dtype)
    one_rounding = half if dtype in ("bfloat16", "float16") else 0.0
    floor = 32 * roundings(wide)[0] if entrance == "logits" else 4 * tiny
    infinite = np.abs(expected) > top
    same = np.where(infinite, got == np.copysign(np.inf, expected), np.isfinite(got)).all(-1)
    finite = np.where(infinite, 0.0, expected)
    size = np.abs(finite).max(-1, keepdims=True)
    allowed = one_rounding * np.abs(finite) + TOLERANCE[wide][order] * size + floor + 4 * tiny
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(infinite, 0.0, np.abs(got - finite) / allowed).max(-1)
    return np.where(same, error, np.inf)


def failures(transform, quantity, entrance, dtype):
    """Lines 'record | case: got ..., expected ...' of everything outside its tolerance."""
    rows = f_table.torture(entrance, dtype, NAMES)
    lines = []
    for name in NAMES:
        expect = rows.expect[name]
        kind, got = results(transform, entrance, dtype)[name][quantity]
        if quantity in ("value", "jvp"):
            assert kind == ("float64" if dtype == "float64" else "float32")
            scale = expect["jvp_scale"] if quantity == "jvp" else None
            error = value_error(got, expect[quantity], dtype, entrance, name, scale)
        else:
            assert kind == dtype
            order = 2 if quantity.startswith("hvp") else 1
            error = vector_error(got, expect[quantity], dtype, entrance, order)
        for i in np.flatnonzero(~(error <= 1)):
            key = (name, rows.cases[i], entrance, dtype, quantity)
            if key not in EXCEPTIONS:
                lines.append(
                    f"{name} | {rows.cases[i]}: got {got[i]}, expected {expect[quantity][i]}"
                )
    return lines


def no_failures(lines):
    assert not lines, f"{len(lines)} rows\n" + "\n".join(lines)


MATRIX = [(e, d) for d in DTYPES for e in ENTRANCES]


@pytest.mark.parametrize("quantity", [*f_table.QUANTITIES, "jvp"])
@pytest.mark.parametrize(("entrance", "dtype"), MATRIX)
def test_jit(entrance, dtype, quantity):
    no_failures(failures("jit", quantity, entrance, dtype))


@pytest.mark.parametrize("transform", ["eager", "vmap", "scan"])
@pytest.mark.parametrize(("entrance", "dtype"), MATRIX)
def test_transforms(entrance, dtype, transform):
    """Eagerly the value and both gradients, whose dispatch takes long enough; else everything."""
    everything = (*f_table.QUANTITIES, "jvp")
    quantities = ("value", "grad_p", "grad_q") if transform == "eager" else everything
    no_failures([x for k in quantities for x in failures(transform, k, entrance, dtype)])


@pytest.mark.parametrize(("entrance", "dtype"), MATRIX)
def test_values_are_never_negative_and_equality_is_exactly_zero(entrance, dtype):
    cases = f_table.torture(entrance, dtype, NAMES).cases
    for name in NAMES:
        values = results("jit", entrance, dtype)[name]["value"][1]
        assert (values >= 0).all(), (name, [c for c, v in zip(cases, values, strict=True) if v < 0])
        assert values[cases.index("equal")] == 0, name


def test_there_are_no_exceptions():
    assert not EXCEPTIONS
