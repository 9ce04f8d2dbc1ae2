"""A decoder by loops in float64 NumPy, one row without padding: the oracle of both styles."""

import math

import numpy as np


def wide(tree):
    """Every array in float64, blocks apart."""
    if isinstance(tree, dict):
        return {k: wide(v) for k, v in tree.items()}
    return np.asarray(tree, np.float64)


def block_of(tree, i):
    if isinstance(tree, dict):
        return {k: block_of(v, i) for k, v in tree.items()}
    return tree[i]


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def rms_norm(p, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain_mlp(p, x):
    return linear(p["down"], gelu(linear(p["up"], x)))


def gated_mlp(p, x):
    gate = linear(p["gate"], x)
    return linear(p["down"], gate / (1 + np.exp(-gate)) * linear(p["up"], x))


def turned(x, position, base, pairs):
    """One head [D] at one position, as complex numbers."""
    out = np.empty_like(x)
    for i, (a, b) in enumerate(pairs):
        z = complex(x[a], x[b]) * np.exp(1j * position * base ** (-2 * i / len(x)))
        out[a], out[b] = z.real, z.imag
    return out


def rotated(x, base, interleaved):
    """[T, N, D]."""
    size = x.shape[-1]
    near = [(2 * i, 2 * i + 1) for i in range(size // 2)]
    far = [(i, i + size // 2) for i in range(size // 2)]
    pairs = near if interleaved else far
    return np.array([[turned(h, t, base, pairs) for h in row] for t, row in enumerate(x)])


def attention(p, x, size, turn):
    q, k, v = (linear(p[n], x).reshape(len(x), -1, size) for n in ("query", "key", "value"))
    q, k = turn(q), turn(k)
    out = np.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for t in range(len(x)):
        for head in range(q.shape[1]):
            keys, values = k[: t + 1, head // group], v[: t + 1, head // group]
            scores = np.exp(keys @ q[t, head] / math.sqrt(size))
            out[t, head] = scores @ values / scores.sum()
    return linear(p["out"], out.reshape(len(x), -1))


def hidden(params, tokens, *, size, norm, mlp, turn=lambda x: x):
    """[T, H] of one row of tokens."""
    params = wide(params)
    x = params["embedding"][tokens]
    if "table" in params:
        x = x + params["table"][: len(tokens)]
    depth = len(params["blocks"]["attention"]["query"]["kernel"])
    for i in range(depth):
        p = block_of(params["blocks"], i)
        x = x + attention(p["attention"], norm(p["attention_norm"], x), size, turn)
        x = x + mlp(p["mlp"], norm(p["mlp_norm"], x))
    return norm(params["norm"], x)
