"""The reader of GGUF against a writer and dequantisation by hand, and against corrupt files."""

import time
import tracemalloc

import numpy as np
import pytest
from corrupt import every, hostile, outcomes
from gguf_files import METADATA, build, dequantise, example, header, small, trusting

from divjax.models import gguf


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 64])
def test_everything_comes_back(tmp_path, version, alignment):
    metadata, tensors = example()
    metadata = metadata | {"general.alignment": (4, alignment)}
    path = tmp_path / "x.gguf"
    path.write_bytes(build(metadata, tensors, version, alignment))
    file = gguf.read(path)
    assert plain(file.metadata) == {name: x for name, (_, x) in metadata.items()}
    assert list(file.tensors) == list(tensors)
    for name, (kind, shape, data) in tensors.items():
        found = gguf.unpack(file.tensors[name])
        assert found.shape == shape
        expected = dequantise(kind, data).reshape(shape)
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=1e-6, atol=1e-6)


def plain(x):
    """Arrays as lists."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, np.ndarray):
        return x.tolist()
    return [plain(v) for v in x] if isinstance(x, list) else x


def test_types_of_numbers_are_kept():
    kinds = {n: type(x) for n, x in gguf.parse(build(METADATA, {})).metadata.items()}
    assert kinds["yes"] is bool
    assert kinds["u64"] is int
    assert kinds["f32"] is float


def test_tensors_are_views_that_cannot_be_written():
    data = build(*example())
    found = gguf.unpack(gguf.parse(data).tensors["t.F32"])
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"PK\3\4" + d[4:], "must begin with GGUF, got b'PK"),
        (lambda d: d[:4] + b"\0\0\0\3" + d[8:], "must be 2 or 3, little-endian, got 50331648"),
        (lambda d: d[:4] + b"\1\0\0\0" + d[8:], "version must be 2 or 3"),
        (lambda d: d[:16] + b"\xff" * 8 + d[24:], "metadata of 18446744073709551615 entries needs"),
        (lambda d: d[:8] + b"\xff" * 8 + d[16:], "table of 18446744073709551615 tensors needs"),
        (lambda d: d[:-40], "the header describes a file of"),
        (lambda d: d + bytes(32), "the header describes a file of"),
        (lambda d: d[:-200], "cut off"),
        (lambda d: d[:0], "must begin with GGUF, got b''"),
    ],
)  # fmt: skip
def test_messages_say_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=r"x\.gguf, byte") as error:
        gguf.parse(change(build(*small())), "x.gguf")
    assert message in str(error.value)


def with_tensor(kind="F32", shape=(2,), data=bytes(8), code=None, offset=None):
    raw = header({}, {"t": (kind, shape, data)})
    code = raw[-12:-8] if code is None else code.to_bytes(4, "little")
    offset = raw[-8:] if offset is None else offset.to_bytes(8, "little")
    raw = raw[:-12] + code + offset
    return raw + bytes(-len(raw) % 32) + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_tensor(code=12), "t must be of a type F32, F16, Q4_0, Q4_1, Q8_0, BF16, got type 12"),
        (with_tensor(offset=32), "t must begin at 0 of the data, got 32"),
        (with_tensor("Q8_0", (16, 2), bytes(34)), "multiples of 32"),
        (with_tensor(shape=(1, 1, 1, 1, 2)), "at most 4 axes, got 5"),
        (with_tensor(shape=(0, 2), data=b""), "must not be empty"),
        (build({"general.alignment": (4, 24)}, {}), "alignment must be a power of 2, got '24'"),
        (build({"general.alignment": (8, "x")}, {}), "alignment must be a power of 2"),
        (header({"a": ([8], [])}, {})[:-8] + b"\xff" * 8, "a of 18446744073709551615 elements"),
        (build({"a": ([[[[[5]]]]], [[[[[1]]]]])}, {}), "nested at most 4 deep"),
        (build({"a": (0, 1)}, {}).replace(b"a\0", b"a\x0d"), "a type 0..12, got type 13"),
        (build({"a": (7, True)}, {})[:37] + b"\2", "a must be 0 or 1, got 2"),
        (build({"a": (8, "bc")}, {}).replace(b"bc", b"\xff\xfe"), "a must be UTF-8"),
        (build({"a": (0, 1), "b": (0, 1)}, {}).replace(b"b", b"a"), "keys must differ"),
        (build({}, dict.fromkeys("cd", ("F32", (), bytes(4)))).replace(b"d", b"c"), "names of ten"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_what_the_format_forbids(data, message):
    with pytest.raises(ValueError, match="GGUF, byte") as error:
        gguf.parse(data)
    assert message in str(error.value)


def faithful(file, case):
    """What was read is what a reader without any check finds in the same bytes."""
    metadata, tensors = trusting(case)
    assert repr(plain(file.metadata)) == repr(metadata)
    assert list(file.tensors) == list(tensors)
    for name, (kind, shape, data) in tensors.items():
        found = gguf.unpack(file.tensors[name])
        assert found.shape == shape
        with np.errstate(over="ignore", invalid="ignore"):
            expected = dequantise(kind, data).astype(found.dtype)
        np.testing.assert_allclose(
            found.ravel(), expected, rtol=1e-5, atol=1e-5 * largest(expected)
        )


def largest(x):
    return np.abs(x[np.isfinite(x)]).max(initial=0.0)


def test_corrupt_files_are_refused_or_read_as_what_they_say():
    data = build(*small())
    end = len(header(*small()))
    cases = list(every(data, end, random=400))
    counts = outcomes(cases[:: len(cases) // 700], gguf.parse, faithful)
    assert sum(counts.values()) >= 700
    assert counts["read"] > 20  # flips in names, values and weights make other valid files


@pytest.mark.slow
def test_many_corrupt_files():
    total = {"refused": 0, "read": 0}
    files = [small(), example(), ({}, small()[1]), (METADATA, {})]
    for seed, parts in enumerate(files):
        data, end = build(*parts), len(header(*parts))
        counts = outcomes(every(data, end, random=5000, seed=seed), gguf.parse, faithful)
        total = {k: total[k] + counts[k] for k in total}
        print(len(data), counts)
    print(total)
    assert sum(total.values()) > 50_000


def test_a_file_cut_at_any_length_is_refused():
    """All but the padding at the very end belongs to the file."""
    data = build(*small())
    weights = len(data) - 8
    for n in range(weights):
        with pytest.raises(ValueError, match="byte"):
            gguf.parse(data[:n])
    for n in range(weights, len(data)):
        faithful(gguf.parse(data[:n]), data)


def test_hostile_counts_take_neither_memory_nor_time():
    """Counts up to 2^64 at every place of the header: no more memory than some times the file."""
    data = build(*small())
    began = time.perf_counter()
    tracemalloc.start()
    for case in hostile(data, len(header(*small()))):
        outcomes([case], gguf.parse, lambda *_: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert time.perf_counter() - began < 60
