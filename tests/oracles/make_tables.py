"""Writes f_divergences.json, the expected values of the conformance tests; imports no divjax.

    python make_tables.py            write the table (some minutes)
    python make_tables.py --check    recompute a handful of entries and compare (seconds)

Inputs are rounded to the type first; expectations are those of the rounded numbers.
"""

import json
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import f_exact
import numpy as np

TABLE = Path(__file__).with_name("f_divergences.json")
DTYPES = ("float32", "bfloat16", "float16", "float64")
ENTRANCES = ("logits", "log_probs")
SMOOTH = [name for name in f_exact.FORMULAS if name != "tv"]
V_P, V_Q = (1, -0.5, 0.25, 2, -1, 0.5), (0.5, 1, -2, -0.25, 1, -1)  # Hessian-vector directions
N, X = -np.inf, np.nan
RNG = np.random.RandomState(2026)  # a frozen stream


def to_bfloat16(x):
    """Nearest bfloat16 as float64, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    up = ((bits >> 16) & 1) + 0x7FFF
    out = ((bits + up) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(x), out, x).astype(np.float64)


def rounded(x, dtype):
    """Nearest number of the type, as float64."""
    if dtype == "bfloat16":
        return to_bfloat16(x)
    return np.asarray(x, np.float64).astype(dtype).astype(np.float64)


def common(x):
    """Numbers of every type at once: 8 significant bits, tiny ones made 0."""
    x = to_bfloat16(x)
    return np.where(np.isfinite(x) & (np.abs(x) < 2.0**-10), 0.0, x)


def limit(dtype):
    """The largest number of the result type, which is float32 at least."""
    return float(np.finfo("float64" if dtype == "float64" else "float32").max)


def cases():
    """name -> (logits of p, of q, where or None), width 6; rows of one array."""
    p, q = RNG.normal(size=(2, 6)) * 1.5
    wide_p, wide_q = np.random.RandomState(0).normal(size=(2, 6)) * 20
    one = np.r_[0.0, [-200.0] * 5]
    some = [True, True, False, True, False, False]
    rows = {
        "ordinary": (p, q, None),
        "scale 20": (wide_p, wide_q, None),
        "equal": (p, p, None),
        "-inf shared": (put(p, N, 1, 4), put(q, N, 1, 4), None),
        "-inf in p": (put(p, N, 2), q, None),
        "-inf in q": (p, put(q, N, 3), None),
        "-inf in each": (put(p, N, 0), put(q, N, 5), None),
        "disjoint": (put(p, N, 0, 1, 2), put(q, N, 3, 4, 5), None),
        "disjoint and shared": (put(p, N, 0, 1, 2), put(q, N, 2, 3, 4, 5), None),
        "1e4 opposed": (put(p, 9984, 0) + put(0 * p, -9984, 1), put(q, 9984, 1), None),
        "1e4 close": (
            [9984, 9984, 9920, -9984, -9984, 9856],
            [9984, 9920, 9920, -9984, -9984, -9984],
            None,
        ),
        "one-hot p": (one, q, None),
        "one-hot q": (p, one, None),
        "one-hot, equal": (one, one, None),
        "one-hot, apart": (one, one[::-1], None),
        "one entry": (put(p, N, 1, 2, 3, 4, 5), put(q, N, 1, 2, 3, 4, 5), None),
        "one entry in p": (put(p, N, 1, 2, 3, 4, 5), q, None),
        "one entry in q": (p, put(q, N, 0, 1, 2, 3, 4), None),
        "nothing": ([N] * 6, [N] * 6, None),
        "all masked": (p, q, [False] * 6),
        "all masked NaN": ([X] * 6, [X] * 6, [False] * 6),
        "masked": (p, q, some),
        "masked NaN": (put(p, X, 2, 4), put(q, X, 4, 5), some),
        "masked inf": (put(p, -N, 2, 4), put(q, N, 2, 5), some),
        "masked NaN, -inf shared": (put(put(p, X, 2), N, 1), put(put(q, X, 4), N, 1), some),
        "mass 1e-30 in p": (put(p, -69, 2), q, None),
        "mass 1e-30 in q": (p, put(q, -69, 2), None),
        "mass 1e-30 in both": (put(p, -69, 2), put(p, -72, 2), None),
        "mass 1e-30 over 1e-73": (put(p, -69, 2), put(q, -169, 2), None),
        "mass 1e-73 over 1e-30": (put(p, -169, 2), put(q, -69, 2), None),
    }
    rows = {k: (common(a), common(b), w) for k, (a, b, w) in rows.items()}
    # An offset leaves different digits in each type: rounded type by type, later.
    return rows | {"offset in p": (p + 4096, q, None), "offset in q": (p, q - 4096, None)}


def put(x, value, *where):
    x = np.array(x, float)
    x[list(where)] = value
    return x


def log_softmax(z, where):
    """Log-probs of the entries that count; the others as they are."""
    keep = np.isfinite(z) & (np.ones(6, bool) if where is None else np.array(where))
    if not keep.any():
        return z
    top = z[keep].max()
    return np.where(keep, z - top - np.log(np.sum(np.exp(z[keep] - top))), z)


def inputs(entrance, dtype, z_p, z_q, where):
    """The arrays of one case at one entrance, as numbers of the type."""
    if entrance == "log_probs":
        z_p, z_q = common(log_softmax(z_p, where)), common(log_softmax(z_q, where))
    return rounded(z_p, dtype), rounded(z_q, dtype)


def expectation(name, entrance, dtype, p, q, where):
    """[value, gradient by p, by q, Hessian-vector product by p, by q], zeros where masked."""
    keep = np.ones(len(p), bool) if where is None else np.array(where)
    exact = f_exact.row(
        name,
        *(x[keep].tolist() for x in (p, q)),
        limit=limit(dtype),
        normalise=entrance == "logits",
        directions=[np.array(v)[keep].tolist() for v in (V_P, V_Q)],
    )
    out = [number(exact[0])] + [spread(x, keep) for x in exact[1:]]
    top = 65504.0 if dtype == "float16" else limit(dtype)  # a tie with overflow tests nothing
    assert not any(0.9 < abs(x) / top < 1.1 for xs in out[1:] for x in xs), (name, p, q)
    return out


def number(x):
    """12 significant digits; what is below the smallest float64 becomes 0."""
    x = float(f"{float(x):.12g}")
    return 0 if x == 0 else x


def spread(xs, keep):
    out = np.zeros(len(keep))
    out[keep] = [number(x) for x in xs]
    return [0 if x == 0 else float(x) for x in out]


def torture():
    """Rows of every case and entrance; types with equal numbers and equal results share one."""
    rows = []
    for case, (z_p, z_q, where) in cases().items():
        for entrance in ENTRANCES:
            shared = {}
            for dtype in DTYPES:
                p, q = inputs(entrance, dtype, z_p, z_q, where)
                expect = {
                    name: expectation(name, entrance, dtype, p, q, where)
                    for name in f_exact.FORMULAS
                }
                key = json.dumps([p.tolist(), q.tolist(), expect])
                entry = {"case": case, "entrance": entrance, "dtypes": []}
                entry |= {"p": p.tolist(), "q": q.tolist(), "where": where, "expect": expect}
                shared.setdefault(key, entry)
                shared[key]["dtypes"].append(dtype)
            rows += shared.values()
            print(case, entrance, len(shared), flush=True)
    return rows


def divergence_64(p, q, entrance):
    """Forward KL in float64, good enough to aim with."""
    if entrance == "logits":
        d = p - q
        w = np.exp(p - p.max())
        d = d - np.sum(w * d) / np.sum(w)
        return np.log1p(np.sum(w * (np.expm1(-d) + d)) / np.sum(w))
    return np.sum(np.exp(q) * (np.exp(p - q) * (p - q) - np.expm1(p - q)))


def near_pair(entrance, dtype, width, target, rng):
    """Two arrays of the type whose forward KL lies within a factor 1.5 of the target.

    All entries differ if the type allows it, else only the least probable ones, and none by
    less than the spacing of the type.
    """
    z = rng.normal(size=width) * (1.5 if entrance == "logits" else 3.0)
    z = z * np.where(rng.uniform(size=width) < 0.25, 2.0**-8, 1.0)
    if entrance == "log_probs":
        z = z - z.max() - np.log(np.sum(np.exp(z - z.max())))
    p, noise = rounded(z, dtype), rng.normal(size=width)
    for count in (width, *range(width - 1, 0, -max(1, width // 64))):
        step = np.where(np.argsort(np.argsort(p)) < count, noise, 0.0)
        for scale in 2.0 ** np.arange(1, -30, -0.25):
            q = rounded(p + scale * step, dtype)
            faithful = np.abs(q - p - scale * step) < 0.5 * np.abs(scale * step)
            q = np.where(faithful, q, p)
            if abs(np.log(divergence_64(p, q, entrance) / target + 1e-30)) < np.log(1.5):
                return p, q
    raise AssertionError(f"no {dtype} pair at {target}")


def packed(x, dtype):
    """Base64 of little-endian numbers; bfloat16 travels as the upper half of float32."""
    if dtype == "bfloat16":
        raw = (np.asarray(x, "<f4").view("<u4") >> 16).astype("<u2")
    else:
        raw = np.asarray(x, np.dtype(dtype).newbyteorder("<"))
    return b64encode(raw.tobytes()).decode()


def unpacked(text, dtype):
    """The numbers of `packed`, as float64."""
    raw = b64decode(text)
    if dtype == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(np.float64)


def near_expectation(name, entrance, dtype, p, q):
    """[value, gradient by p, by q]; the gradients of wide rows as their norm and `probes` @ g."""
    value, *grads = f_exact.row(
        name, p.tolist(), q.tolist(), limit=limit(dtype), normalise=entrance == "logits"
    )[:3]
    kind = "float64" if dtype == "float64" else "float32"
    out = [number(value)]
    for g in (np.array([float(x) for x in g]) for g in grads):
        wide = [float(f"{x:.9g}") for x in (np.linalg.norm(g), *(probes(len(g)) @ g))]
        out.append(packed(g, kind) if len(g) <= 64 else wide)
    return out


def near(width, entrance, dtype, target, seed):
    """One row near the teacher: value and gradients of every smooth record."""
    p, q = near_pair(entrance, dtype, width, target, np.random.RandomState(seed))
    expect = {name: near_expectation(name, entrance, dtype, p, q) for name in SMOOTH}
    print(entrance, dtype, width, target, flush=True)
    head = {"entrance": entrance, "dtype": dtype, "width": width, "target": target}
    return head | {"p": packed(p, dtype), "q": packed(q, dtype), "expect": expect}


def probes(width):
    """[4, width] of +-1: what the gradients of wide rows are multiplied with."""
    return np.random.RandomState(width).randint(0, 2, (4, width)) * 2.0 - 1.0


def near_rows():
    logit_targets, prob_targets = (1e-2, 3e-4, 1e-6, 1.5e-8, 1.5e-9), (1e-2, 1e-6, 1.5e-9)
    plan = [(64, "logits", d, t) for d in DTYPES for t in logit_targets]
    plan += [(64, "log_probs", d, t) for d in DTYPES for t in prob_targets]
    plan += [(2048, "logits", d, t) for d in DTYPES[:2] for t in (1e-2, 1e-6, 1.5e-9)]
    return [near(*args, seed) for seed, args in enumerate(plan)]


def mismatches(table):
    """Entries that a recomputation does not confirm: one record of every row but the slow ones."""
    names, wrong = list(f_exact.FORMULAS), []
    for i, entry in enumerate(table["torture"]):
        name, where = names[i % len(names)], entry["where"]
        if entry["case"].startswith("1e4"):
            continue  # thousands of digits
        p, q = np.array(entry["p"], float), np.array(entry["q"], float)
        got = expectation(name, entry["entrance"], entry["dtypes"][0], p, q, where)
        if json.dumps(got) != json.dumps(entry["expect"][name]):
            wrong.append((entry["case"], entry["entrance"], name))
    for i, entry in enumerate(e for e in table["near"] if e["width"] <= 64):
        name, dtype = SMOOTH[i % len(SMOOTH)], entry["dtype"]
        p, q = (unpacked(entry[side], dtype) for side in "pq")
        if near_expectation(name, entry["entrance"], dtype, p, q) != entry["expect"][name]:
            wrong.append(("near", entry["target"], name))
    return wrong


def write():
    table = {"directions": [V_P, V_Q], "torture": torture(), "near": near_rows()}
    lines = {
        k: [json.dumps(r, separators=(",", ":")) for r in table[k]] for k in ("torture", "near")
    }
    body = ",\n".join(f'"{k}":[\n' + ",\n".join(v) + "\n]" for k, v in lines.items())
    TABLE.write_text(f'{{"directions":{json.dumps(table["directions"])},\n{body}}}\n')
    print(TABLE.stat().st_size)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        write()
    elif wrong := mismatches(json.loads(TABLE.read_text())):
        sys.exit(f"{TABLE.name} differs from its script: {wrong}")
