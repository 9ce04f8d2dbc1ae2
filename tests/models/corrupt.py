"""Corrupt files: a small valid one, mutated in every way that a disk, a network or a foe finds."""

import struct

import numpy as np

HOSTILE = (0, 1, 2, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 33, 1 << 62, 1 << 63, (1 << 64) - 1)


def truncated(data):
    """At every length."""
    return (data[:n] for n in range(len(data)))


def lengthened(data):
    return (data + bytes(n) for n in (1, 8, 31, 32, 33, 64, 1000))


def flipped(data, end):
    """Every bit of the first `end` bytes."""
    for at in range(end):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def hostile(data, end):
    """Every place of the first `end` bytes as a count: 32 and 64 bits, small to enormous."""
    for at in range(end - 8):
        for value in HOSTILE:
            yield data[:at] + struct.pack("<Q", value) + data[at + 8 :]
            if value < 1 << 32:
                yield data[:at] + struct.pack("<I", value) + data[at + 4 :]


def scrambled(data, count, seed):
    """Random bytes changed, cut out, put in, or doubled."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        a, b = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        noise = rng.bytes(int(rng.integers(1, 9)))
        changed = bytearray(data)
        for at in rng.integers(0, len(data), int(rng.integers(1, 9))):
            changed[at] = rng.integers(256)
        yield (
            bytes(changed),
            data[:a] + data[b:],
            data[:a] + noise + data[a:],
            data[:b] + data[a:],
        )[i % 4]


def every(data, end, *, random, seed=0):
    """All of the above, the original itself left out."""
    for cases in (truncated(data), lengthened(data), flipped(data, end), hostile(data, end),
                  scrambled(data, random, seed)):  # fmt: skip
        yield from (case for case in cases if case != data)


def outcomes(cases, parse, faithful):
    """How many were refused, and how many were read as what they now say (`faithful` asserts)."""
    count = {"refused": 0, "read": 0}
    for case in cases:
        try:
            file = parse(case)
        except ValueError:
            count["refused"] += 1
        else:
            faithful(file, case)
            count["read"] += 1
    return count
