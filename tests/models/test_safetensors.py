"""The reader of safetensors against files made by hand, and against corrupt files."""

import json
import re
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from corrupt import HOSTILE, every, hostile, outcomes

from divjax.models import safetensors

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2, "BOOL": "?", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
}  # fmt: skip


def build(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def pack(arrays, metadata=None):
    """name -> (dtype, array)."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (kind, x) in arrays.items():
        raw = x.astype(DTYPES[kind]).tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": span}
        data += raw
    return build(header, data)


def example():
    shapes = [(3,), (2, 3), (), (0, 4), (1, 2, 2)]
    return {
        f"t.{kind}": (kind, np.arange(int(np.prod(shape))).reshape(shape) % 2)
        for i, kind in enumerate(DTYPES)
        for shape in [shapes[i % len(shapes)]]
    }


SMALL = pack({"a": ("F32", np.array([[1.5, -2.0]])), "b": ("I64", np.array([7]))}, {"k": "v"})


def test_everything_comes_back(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(example(), {"format": "np"}))
    file = safetensors.read(path)
    assert file.metadata == {"format": "np"}
    assert set(file.tensors) == set(example())
    for name, (kind, x) in example().items():
        found = file.tensors[name]
        assert found.dtype == np.dtype(DTYPES[kind])
        np.testing.assert_array_equal(found, x.astype(DTYPES[kind]))


def test_order_in_the_header_is_free_and_arrays_cannot_be_written():
    spans = {"late": [4, 8], "early": [0, 4]}
    header = {n: {"dtype": "U8", "shape": [4], "data_offsets": s} for n, s in spans.items()}
    tensors = safetensors.parse(build(header, b"abcdefgh")).tensors
    assert tensors["early"].tobytes() == b"abcd"
    assert tensors["late"].tobytes() == b"efgh"
    with pytest.raises(ValueError, match="read-only"):
        tensors["early"][0] = 1


def entry(dtype="U8", shape=(4,), span=(0, 4), **more):
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": span, **more}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "length of the header needs 8 bytes, got 0 bytes left"),
        (b"\xff" * 100, "the header must have at most"),
        (build(b"{}")[:9], "the header needs 2 bytes, got 1 bytes left"),
        (build(b"{]"), "the header must be JSON"),
        (build(b"[" * 100_000), "the header must be JSON"),
        (build(b'{"t":' * 50_000), "the header must be JSON"),
        (build(b"1" * 5000), "the header must be JSON"),
        (build(b"[]"), "must be a JSON object"),
        (build(b'{"a":{},"a":{}}'), "a name comes twice"),
        (build(b'{"a\xff":1}'), "the header must be UTF-8"),
        (build({"__metadata__": {"a": 1}}), "__metadata__ must map names to texts"),
        (build({"t": {}}), "t must have dtype, shape and data_offsets"),
        (build(entry(more=1), bytes(4)), "t must have dtype, shape and data_offsets"),
        (build(entry("Q4"), bytes(4)), "t must be of a type F64"),
        (build(entry(shape=[-4]), bytes(4)), "t must have a shape"),
        (build(entry(shape=[4.0]), bytes(4)), "t must have a shape"),
        (build(entry(shape=[True]), bytes(4)), "t must have a shape"),
        (build(entry(shape=[1] * 65), bytes(4)), "t must have a shape"),
        (build(entry(shape=[1 << 40, 1 << 40, 0], span=[0, 0])), "t must have a shape"),
        (build(entry(span=[0]), bytes(4)), "must be [begin, end]"),
        (build(entry(span=[4, 0]), bytes(4)), "t, U8 [4], must have 4 bytes, got offsets [4, 0]"),
        (build(entry(span=[0, 8]), bytes(8)), "must have 4 bytes"),
        (build(entry(span=[4, 8]), bytes(8)), "t must begin at 0 of the data, got 4"),
        (build(entry(), bytes(5)), "the header describes 4 bytes of data, got 5 bytes"),
        (build(entry(), bytes(3)), "the header describes 4 bytes of data, got 3 bytes"),
        (build(entry("BOOL"), b"\0\1\2\0"), "t must be 0 or 1, got 2"),
        (build(entry() | {"u": entry(span=[2, 6])["t"]}, bytes(6)), "u must begin at 4"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_what_the_format_forbids(data, message):
    with pytest.raises(ValueError, match=r"x\.safetensors, byte") as error:
        safetensors.parse(data, "x.safetensors")
    assert message in str(error.value)


def faithful(file, case):
    """Each array is the bytes that the header says, and together they are all bytes, once."""
    size = int.from_bytes(case[:8], "little")
    header, data = json.loads(case[8 : 8 + size]), case[8 + size :]
    assert file.metadata == header.pop("__metadata__", {})
    assert set(file.tensors) == set(header)
    used = np.zeros(len(data), int)
    for name, said in header.items():
        begin, end = said["data_offsets"]
        used[begin:end] += 1
        expected = np.frombuffer(data[begin:end], DTYPES[said["dtype"]]).reshape(said["shape"])
        found = file.tensors[name]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    assert (used == 1).all()


def respelled(data):
    """Every number of the header replaced by another, the length of the header kept true."""
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].decode()
    for found in re.finditer(r"-?\d+", text):
        for number in (
            -1,
            0,
            1,
            2,
            3,
            8,
            15,
            16,
            17,
            *HOSTILE,
            "1e3",
            "1.5",
            "true",
            "NaN",
            "9" * 5000,
        ):
            changed = f"{text[: found.start()]}{number}{text[found.end() :]}".encode()
            yield build(changed, data[8 + size :])


def corrupted(data, weights, random, seed=0):
    yield from every(data, len(data) - weights, random=random, seed=seed)
    yield from (case for case in respelled(data) if case != data)


def test_corrupt_files_are_refused_or_read_as_what_they_say():
    cases = list(corrupted(SMALL, 16, 400))
    counts = outcomes(cases[:: len(cases) // 700], safetensors.parse, faithful)
    assert sum(counts.values()) >= 700
    assert counts["read"] >= 3  # flips in names and weights make other valid files


@pytest.mark.slow
def test_many_corrupt_files():
    total = {"refused": 0, "read": 0}
    for seed, (data, weights) in enumerate([(SMALL, 16), (pack(example()), 0), (build({}), 0)]):
        cases = corrupted(data, weights, 5000, seed)
        counts = outcomes(cases, safetensors.parse, faithful)
        total = {k: total[k] + counts[k] for k in total}
        print(len(data), counts)
    print(total)
    assert sum(total.values()) > 50_000


def test_a_file_cut_at_any_length_is_refused():
    for n in range(len(SMALL)):
        with pytest.raises(ValueError, match="byte"):
            safetensors.parse(SMALL[:n])


def test_hostile_counts_take_no_memory():
    tracemalloc.start()
    for case in hostile(SMALL, len(SMALL) - 16):
        outcomes([case], safetensors.parse, lambda *_: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
