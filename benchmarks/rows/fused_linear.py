"""A divergence of two heads, with gradients of hidden states and head, against chunked peers.

h [2048, 512], W [V, 512] float32, V = 32000 and 131072, a separate teacher head; the mean of all
rows. `resident` is the growth of the process while a call runs, results included, sampled every
millisecond; `temp` is what XLA says.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import heads
from benchmarks.harness import MISSING, Limit, Row, doubts, growth, interleaved, temporaries, timed
from divjax.divergences import (
    Linear,
    f_divergence_from_logits,
    fused_rows,
    fused_sum,
    generators,
    token_log_prob,
)

ROWS, WIDTH, FAST = 2048, 512, 512  # FAST: rows a block where a quarter of naive's memory is there


def naive_kl(p, q):
    """Of two arrays of log-probabilities."""
    return jnp.sum(jnp.exp(p) * (p - q), -1)


def naive_js(p, q):
    """With equal weights."""
    m = jnp.logaddexp(p, q) - jnp.log(2.0)
    return 0.5 * naive_kl(p, m) + 0.5 * naive_kl(q, m)


RECORDS: Mapping[str, tuple[Any, Callable]] = {
    "forward KL": (generators.kl, naive_kl),
    "reverse KL": (generators.reverse(generators.kl), lambda p, q: naive_kl(q, p)),
    "JS": (generators.js(0.5), naive_js),
    "alpha 0.5": (generators.alpha(0.5), lambda p, q: 4 - 4 * jnp.sum(jnp.exp((p + q) / 2), -1)),
}


def forms(record: str) -> dict[str, Callable]:
    """Name -> (h, W, teacher's h, teacher's W) -> the mean."""
    g, plain = RECORDS[record]

    def row(p, q):
        return f_divergence_from_logits(p, q, g)

    def naive(h, w, hp, wp):
        return plain(jax.nn.log_softmax(hp @ wp.T), jax.nn.log_softmax(h @ w.T)).mean()

    def weighted(h, w, hp, wp, *, block=None):
        weights = jnp.full(len(h), 1 / len(h))
        return fused_sum(row, weights, Linear(hp, wp), Linear(h, w), block=block)[0]

    def recomputed(h, w, hp, wp):
        return fused_rows(row, Linear(hp, wp), Linear(h, w)).mean()

    return {
        "ours": weighted,
        "ours, large blocks": partial(weighted, block=FAST),
        "ours, per row": recomputed,
        "naive jnp": naive,
    }


def draw(size: int, rows: int = ROWS, width: int = WIDTH) -> list[np.ndarray]:
    """Student's h and W, teacher's h and W; logits of unit size."""
    rng = np.random.default_rng(0)
    shapes = [(rows, width), (size, width)] * 2
    scales = [1.0, width**-0.5] * 2
    return [
        (s * rng.standard_normal(x)).astype(np.float32) for s, x in zip(scales, shapes, strict=True)
    ]


def compare(record: str, arrays: list[np.ndarray], peers: bool, rounds: int, settle: float) -> Row:
    """One divergence at one size of the vocabulary."""
    z = tuple(map(jnp.asarray, arrays))
    compiled = {
        name: jax.jit(jax.value_and_grad(f, (0, 1))).lower(*z).compile()
        for name, f in forms(record).items()
    }
    calls: dict[str, Any] = {name: partial(f, *z) for name, f in compiled.items()}
    theirs = heads.torch_peers(arrays) if peers else {}
    calls, absent = heads.agreeing({**calls, **theirs}, "naive jnp")
    if peers:
        absent |= {name: MISSING for name in heads.TORCH if name not in theirs}
    sizes = {name: growth(call) for name, call in calls.items()}
    calls["limit"] = partial(_gemms(z), *z)
    times = interleaved(calls, rounds=rounds, settle=settle)
    row = timed("fused_linear", f"{record}, V = {len(arrays[1])}", times, absent=absent)
    row.note = doubts(row)
    row.temp_bytes = {name: temporaries(f) for name, f in compiled.items()}
    row.error = {
        name: {
            "resident MiB": round(size / 2**20),
            "GEMM limits": round(times.wall[name] / times.wall["limit"], 2),
        }
        for name, size in sizes.items()
    }
    row.limits = _limits(row, arrays, sizes)
    return row


def _gemms(z: tuple) -> Any:
    """The four products that cannot be avoided."""

    def four(h, w, hp, wp):
        a, b = h @ w.T, hp @ wp.T
        return a[0, 0] + b[0, 0], b @ w, b.T @ h

    return jax.jit(four).lower(*z).compile()


def _limits(row: Row, arrays: list[np.ndarray], sizes: Mapping[str, int]) -> list[Limit]:
    naive, temp = row.peers["naive jnp"], row.temp_bytes
    results = arrays[0].nbytes + arrays[1].nbytes
    fast, rows = (row.peers[f"ours, {name}"] / naive for name in ("large blocks", "per row"))
    limits = [
        Limit("time / naive", row.ratios["naive jnp"], 1.10),
        Limit("temporaries / (dW + dh)", temp["ours"] / results, 1.2),
        Limit("large blocks: time / naive", fast, 0.95),
        Limit(
            "large blocks: temporaries / naive",
            temp["ours, large blocks"] / temp["naive jnp"],
            0.25,
        ),
        Limit("per row: time / naive", rows, 1.6),
        Limit("per row: temporaries / naive", temp["ours, per row"] / temp["naive jnp"], 0.25),
        Limit("time / naive", row.ratios["naive jnp"], 0.80, must=False),
        Limit("per row: time / naive", rows, 1.25, must=False),
    ]
    for name in heads.TORCH:
        if name in row.ratios:
            limits += [
                Limit(f"time / {name}", row.ratios[name], 1.0),
                Limit(f"resident / {name}", sizes["ours"] / max(sizes[name], 1), 1.0),
            ]
    return limits


def cross_entropy(arrays: list[np.ndarray], rounds: int, settle: float) -> Row:
    """The one quantity that JAX libraries fuse."""
    h, w = map(jnp.asarray, arrays[:2])
    labels = jnp.arange(len(h)) % len(w)
    weights = jnp.full(len(h), 1 / len(h))

    def ours(h, w):
        return -fused_sum(token_log_prob, weights, Linear(h, w), labels)[0]

    def naive(h, w):
        return -token_log_prob(h @ w.T, labels).mean()

    named = {"ours": ours, "naive jnp": naive, **heads.jax_peers(labels)}
    compiled = {
        name: jax.jit(jax.value_and_grad(f, (0, 1))).lower(h, w).compile()
        for name, f in named.items()
    }
    calls, absent = heads.agreeing(
        {name: partial(f, h, w) for name, f in compiled.items()}, "naive jnp"
    )
    absent |= {name: MISSING for name in heads.JAX if name not in named}
    times = interleaved(calls, rounds=rounds, settle=settle)
    row = timed("fused_linear", f"cross-entropy, V = {len(w)}", times, absent=absent)
    row.note = doubts(row)
    row.temp_bytes = {name: temporaries(f) for name, f in compiled.items()}
    for name in heads.JAX:
        value = row.ratios.get(name)
        size = None if value is None else row.temp_bytes["ours"] / row.temp_bytes[name]
        row.limits = [
            *row.limits,
            Limit(f"time / {name}", value, 1.0),
            Limit(f"temporaries / {name}", size, 1.0),
        ]
    return row


def measure(small: bool) -> list[Row]:
    """Four records at 32000, two at 131072, and cross-entropy."""
    if small:
        arrays = draw(300, 64, 16)
        return [compare("forward KL", arrays, False, 2, 0.0), cross_entropy(arrays, 2, 0.0)]
    rows = []
    for size, records, rounds in ((32000, RECORDS, 5), (131072, ("forward KL", "JS"), 3)):
        arrays = draw(size)
        rows += [compare(name, arrays, name == "forward KL", rounds, 0.2) for name in records]
        rows.append(cross_entropy(arrays, rounds, 0.2))
    return rows
