"""GGUF files by hand: a writer that shares nothing with the reader, and dequantisation by loops."""

import struct

import numpy as np

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
BLOCKS = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20),
          "Q8_0": (8, 32, 34), "BF16": (30, 1, 2)}  # fmt: skip


def text(x):
    raw = x.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, x):
    """kind: a number of the specification, or [kind] for an array."""
    if isinstance(kind, list):
        (inner,) = kind
        code = 9 if isinstance(inner, list) else inner
        return struct.pack("<IQ", code, len(x)) + b"".join(value(inner, i) for i in x)
    return text(x) if kind == 8 else struct.pack("<" + SCALARS[kind], x)


def header(metadata, tensors, version=3, alignment=32):
    """metadata: name -> (kind, value); tensors: name -> (kind, shape, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for name, (kind, x) in metadata.items():
        out += text(name) + struct.pack("<I", 9 if isinstance(kind, list) else kind)
        out += value(kind, x)
    offset = 0
    for name, (kind, shape, data) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += struct.pack("<IQ", BLOCKS[kind][0], offset)
        offset += len(data) + -len(data) % alignment
    return out


def build(metadata, tensors, version=3, alignment=32):
    """The whole file."""
    out = header(metadata, tensors, version, alignment)
    out += bytes(-len(out) % alignment)
    for _, _, data in tensors.values():
        out += data + bytes(-len(data) % alignment)
    return out


def trusting(data):
    """Read with no check at all: metadata, and name -> (kind, shape, bytes)."""
    at = 0

    def number(form):
        nonlocal at
        (x,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return x

    def string():
        nonlocal at
        size = number("Q")
        at += size
        return data[at - size : at].decode()

    def item(kind):
        if kind != 9:
            return string() if kind == 8 else number(SCALARS[kind])
        inner, count = number("I"), number("Q")
        return [item(inner) for _ in range(count)]

    at = 8
    counts = number("Q"), number("Q")
    metadata = {}
    for _ in range(counts[1]):
        name = string()
        metadata[name] = item(number("I"))
    entries = []
    for _ in range(counts[0]):
        name, rank = string(), number("I")
        shape = tuple(number("Q") for _ in range(rank))[::-1]
        entries.append((name, shape, number("I"), number("Q")))
    alignment = metadata.get("general.alignment", 32)
    start = at + -at % alignment
    codes = {code: (kind, size, width) for kind, (code, size, width) in BLOCKS.items()}
    tensors = {}
    for name, shape, code, offset in entries:
        kind, size, width = codes[code]
        length = int(np.prod(shape, dtype=int)) // size * width
        raw = data[start + offset : start + offset + length]
        assert len(raw) == length
        tensors[name] = (kind, shape, raw)
    return metadata, tensors


def half(block, at=0):
    return struct.unpack("<e", block[at : at + 2])[0]


def nibbles(block):
    return [b & 15 for b in block[-16:]] + [b >> 4 for b in block[-16:]]


NUMBERS = {
    "F32": lambda block: struct.unpack("<f", block),
    "F16": lambda block: [half(block)],
    "BF16": lambda block: struct.unpack("<f", b"\0\0" + block),
    "Q8_0": lambda block: [half(block) * q for q in struct.unpack("<32b", block[2:])],
    "Q4_0": lambda block: [half(block) * (q - 8) for q in nibbles(block)],
    "Q4_1": lambda block: [half(block) * q + half(block, 2) for q in nibbles(block)],
}


def dequantise(kind, data):
    """Number by number."""
    _, size, width = BLOCKS[kind]
    blocks = [data[at : at + width] for at in range(0, len(data), width)]
    numbers = np.array([x for block in blocks for x in NUMBERS[kind](block)])
    assert len(numbers) == len(blocks) * size
    return numbers


def random_bytes(kind, elements, seed, size=1.0):
    """Of a tensor of numbers near `size`."""
    rng = np.random.default_rng(seed)
    _, block, width = BLOCKS[kind]
    if block == 1:
        x = (size * rng.normal(size=elements)).astype({"F16": "<f2"}.get(kind, "<f4"))
        return x.tobytes() if kind != "BF16" else (x.view("<u4") >> 16).astype("<u2").tobytes()
    raw = rng.integers(0, 256, (elements // block, width), np.uint8)
    scales = size * rng.normal(size=(len(raw), 2)) / [64 if kind == "Q8_0" else 8, 1]
    count = 2 if kind == "Q4_1" else 1
    raw[:, : 2 * count] = scales[:, :count].astype("<f2").view(np.uint8)
    return raw.tobytes()


METADATA = {
    "u8": (0, 200), "i8": (1, -5), "u16": (2, 60000), "i16": (3, -300), "u32": (4, 1 << 31),
    "i32": (5, -70000), "f32": (6, 0.25), "yes": (7, True), "name": (8, "naïve"),
    "words": ([8], ["a", "", "ccc"]), "numbers": ([5], [1, -2, 3]), "flags": ([7], [True, False]),
    "nested": ([[5]], [[1, 2], [], [3]]), "u64": (10, 1 << 63), "i64": (11, -(1 << 62)),
    "f64": (12, 1e-300), "none": ([6], []),
}  # fmt: skip
SHAPES = {
    "F32": (3,),
    "F16": (2, 5),
    "BF16": (2, 1, 3),
    "Q8_0": (2, 32),
    "Q4_0": (32,),
    "Q4_1": (1, 64),
}


def example():
    """(metadata, tensors) with every type."""
    tensors = {
        f"t.{kind}": (kind, shape, random_bytes(kind, int(np.prod(shape)), i))
        for i, (kind, shape) in enumerate(SHAPES.items())
    }
    return METADATA, tensors


def small():
    """(metadata, tensors) of a file of some 350 bytes, for mutation."""
    metadata = {"k": (4, 7), "w": ([8], ["a", "bc"]), "n": ([[5]], [[1], []]), "b": (7, True)}
    tensors = {
        "x": ("Q4_1", (1, 32), random_bytes("Q4_1", 32, 0)),
        "y": ("F32", (2, 3), random_bytes("F32", 6, 1)),
    }
    return metadata, tensors
