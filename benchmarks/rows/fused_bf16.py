"""What is left of a distillation gradient in bfloat16: two heads, against float64 at equal inputs.

h [512, 512], W [32000, 512] in bfloat16; the student's head is the teacher's, moved a little (KL
about 3e-3) or far. Relative error of the gradients of h and of W, results in bfloat16.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import MISSING, Limit, Row
from benchmarks.heads import TORCH, torch_peers
from benchmarks.rows.fused_linear import forms


def draw(distance: float, rows: int, width: int, size: int) -> list[np.ndarray]:
    """Values that bfloat16 holds: student's h and W, teacher's h and W."""
    rng = np.random.default_rng(0)
    h, w = rng.standard_normal((rows, width)), rng.standard_normal((size, width)) * width**-0.5
    moved = w + distance * width**-0.5 * rng.standard_normal((size, width))
    low = (jnp.asarray(x, jnp.bfloat16) for x in (h, moved, h, w))
    return [np.asarray(x, np.float32) for x in low]


def exact(arrays: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
    """Value and gradients in float64."""
    h, w, hp, wp = (x.astype(np.float64) for x in arrays)
    p, q = (_log_softmax(x @ y.T) for x, y in ((hp, wp), (h, w)))
    u = p - q
    value = (np.exp(p) * (u + np.expm1(-u))).sum(-1).mean()
    dz = np.exp(p) * np.expm1(-u) / len(h)
    return value, [dz @ w, dz.T @ h]


def _log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def errors(found: Any, value: float, slopes: list[np.ndarray]) -> dict[str, float]:
    """Relative errors of (value, (dh, dW))."""
    off = [
        np.linalg.norm(np.asarray(g, np.float64) - s) / np.linalg.norm(s)
        for g, s in zip(found[1], slopes, strict=True)
    ]
    numbers = {"value": abs(float(found[0]) / value - 1), "dh": off[0], "dW": off[1]}
    return {name: float(f"{x:.2g}") for name, x in numbers.items()}


def measure(small: bool) -> list[Row]:
    """Near and far."""
    shape = (32, 16, 300) if small else (512, 512, 32000)
    rows = []
    for distance in (0.08, 1.0):
        arrays = draw(distance, *shape)
        value, slopes = exact(arrays)
        z = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
        calls = {n: jax.jit(jax.value_and_grad(f, (0, 1))) for n, f in forms("forward KL").items()}
        found: dict[str, Any] = {n: errors(f(*z), value, slopes) for n, f in calls.items()}
        peers = {} if small else torch_peers(arrays, half=True)
        found |= dict.fromkeys(set(TORCH) - set(peers), MISSING)
        for name, call in peers.items():
            try:
                found[name] = errors(call(), value, slopes)
            except (RuntimeError, TypeError) as problem:
                found[name] = f"failed: {type(problem).__name__}"
        row = Row("fused_bf16", f"forward KL {value:.1e}", error=found)
        row.limits = [
            Limit(f"{name}: error of {array}", found[name][array], 3e-3)
            for name in ("ours", "ours, per row")
            for array in ("dh", "dW")
        ]
        rows.append(row)
    return rows
