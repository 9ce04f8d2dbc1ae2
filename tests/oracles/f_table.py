"""f_divergences.json as arrays, for the conformance tests."""

import json
from functools import cache
from typing import NamedTuple

import make_tables
import numpy as np


class Rows(NamedTuple):
    """The torture rows of one entrance and type: inputs and what each record must give."""

    cases: list[str]  # [N]
    p: np.ndarray  # [N, 6] float64 holding numbers of the type
    q: np.ndarray  # [N, 6]
    where: np.ndarray  # [N, 6] bool
    directions: tuple[np.ndarray, np.ndarray]  # [N, 6] each, for jvp and Hessian-vector products
    expect: dict[str, dict[str, np.ndarray]]  # record -> quantity -> [N] or [N, 6]


class Near(NamedTuple):
    """One pair near the teacher."""

    entrance: str
    dtype: str
    width: int
    target: float
    p: np.ndarray  # [width]
    q: np.ndarray
    expect: dict[str, tuple[float, np.ndarray, np.ndarray]]  # record -> value, gradients by p, q


QUANTITIES = ("value", "grad_p", "grad_q", "hvp_p", "hvp_q")


@cache
def table():
    return json.loads(make_tables.TABLE.read_text())


def known(name):
    """Raises with the remedy if a record is not in the table."""
    assert name in table()["torture"][0]["expect"], (
        f"no expected values for {name!r}: add its line to FORMULAS in tests/oracles/f_exact.py "
        "and run python tests/oracles/make_tables.py"
    )
    return name


@cache
def torture(entrance, dtype, names):
    """`Rows` of one entrance and type for the records of these names."""
    rows = [r for r in table()["torture"] if r["entrance"] == entrance and dtype in r["dtypes"]]
    p, q = (np.array([r[side] for r in rows], float) for side in "pq")
    where = np.array([r["where"] or [True] * p.shape[1] for r in rows])
    directions = tuple(np.broadcast_to(np.array(v, float), p.shape) for v in table()["directions"])
    expect = {
        known(name): {
            quantity: np.array([r["expect"][name][i] for r in rows], float)
            for i, quantity in enumerate(QUANTITIES)
        }
        for name in names
    }
    for x in expect.values():
        # The derivative along the directions, and the size it is small against.
        parts = [x[g] * v for g, v in zip(("grad_p", "grad_q"), directions, strict=True)]
        x["jvp"] = sum(part.sum(-1) for part in parts)
        x["jvp_scale"] = sum(np.abs(part).sum(-1) for part in parts)
    return Rows([r["case"] for r in rows], p, q, where, directions, expect)


@cache
def near():
    """All pairs near the teacher; gradients of wide rows are their norm and probe products."""
    out = []
    for r in table()["near"]:
        kind = "float64" if r["dtype"] == "float64" else "float32"
        expect = {
            name: (
                value,
                *(
                    make_tables.unpacked(g, kind) if isinstance(g, str) else np.array(g)
                    for g in grads
                ),
            )
            for name, (value, *grads) in r["expect"].items()
        }
        p, q = (make_tables.unpacked(r[side], r["dtype"]) for side in "pq")
        head = (r[k] for k in ("entrance", "dtype", "width", "target"))
        out.append(Near(*head, p, q, expect))
    return out
