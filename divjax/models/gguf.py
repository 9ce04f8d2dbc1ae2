"""GGUF files (llama.cpp's format for weights, with tokenizer and settings), read-only.

    magic "GGUF", version, two counts | metadata | name, shape, type, offset of each tensor | data

Versions 2 and 3, little-endian. A corrupt or hostile file is a ValueError: every count is compared
with the bytes that are there before anything is made of it, and the tensors must fill the data
section without a gap, in the order in which they are named, as llama.cpp writes and requires it.
"""

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from divjax.models._bytes import Cursor, flat, mapped

Value = Any  # bool, int, float, str, an array of numbers, or a list of strings or of lists

_DEPTH = 4  # of arrays within arrays
_RANK = 4  # of tensors, as in ggml
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip


class Packed(NamedTuple):
    """A tensor as it lies in the file; `unpack` makes numbers of it.

    Attributes:
        kind: "F32", "F16", "BF16", "Q8_0", "Q4_0" or "Q4_1".
        shape: outermost axis first, the reverse of the order in the file.
        data: uint8 [bytes], a read-only view of the file.
    """

    kind: str
    shape: tuple[int, ...]
    data: np.ndarray


class File(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        metadata: name -> bool, int, float, str, an array [N] of numbers (a view of the file), or
            a list of strings or of such arrays and lists.
        tensors: name -> `Packed`, in the order of the file.
    """

    metadata: Mapping[str, Value]
    tensors: Mapping[str, Packed]


def read(path: str | Path) -> File:
    """A GGUF file, mapped into memory: only the header is read before a tensor is used.

    Args:
        path: of the file, which must not shrink while its tensors are in use.

    Raises:
        ValueError: the file is no GGUF of version 2 or 3, cut off, corrupt, or holds a tensor of
            another type than `Packed` names.

    References:
        The specification of the format, ggml, docs/gguf.md.

    Example:
        >>> import tempfile
        >>> from divjax.models import gguf
        >>> with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
        ...     _ = f.write(b"GGUF" + bytes([3, *[0] * 19])), f.flush()
        ...     gguf.read(f.name)
        File(metadata={}, tensors={})
    """
    return parse(mapped(path), str(path))


def parse(buffer: bytes | np.ndarray, name: str = "GGUF") -> File:
    """As `read`, of bytes that are in memory.

    Args:
        buffer: bytes, or uint8 [bytes].
        name: what messages call the file.

    Raises:
        ValueError: as `read`.

    Example:
        >>> from divjax.models import gguf
        >>> gguf.parse(b"GGUF", "short.gguf")
        Traceback (most recent call last):
            ...
        ValueError: short.gguf, byte 4: version needs 4 bytes, got 0 bytes left; the file is cut \
off or corrupt; get it again
    """
    cursor = Cursor(flat(buffer), name)
    magic = cursor.take(min(4, cursor.left), "magic").tobytes()
    if magic != b"GGUF":
        raise cursor.refuse("the file must begin with GGUF", magic, "pass a .gguf file")
    version = _integer(cursor, _U32, "version")
    if version not in (2, 3):
        raise cursor.refuse(
            "version must be 2 or 3, little-endian", version, "convert it with a current llama.cpp"
        )
    counts = [_integer(cursor, _U64, what) for what in ("tensor count", "metadata count")]
    metadata: dict[str, Value] = {}
    cursor.need(13 * counts[1], f"metadata of {counts[1]} entries")
    for _ in range(counts[1]):
        key = _string(cursor, "a metadata key")
        if key in metadata:
            raise cursor.refuse("metadata keys must differ", repr(key))
        metadata[key] = _value(cursor, _integer(cursor, _U32, key), key, 0)
    return File(metadata, _tensors(cursor, counts[0], _alignment(cursor, metadata)))


def _integer(cursor: Cursor, form: struct.Struct, what: str) -> int:
    return int(cursor.number(form, what))


def _string(cursor: Cursor, what: str) -> str:
    return cursor.text(_integer(cursor, _U64, f"length of {what}"), what)


def _value(cursor: Cursor, kind: int, what: str, depth: int) -> Value:
    """One value of the metadata."""
    if kind == _STRING:
        return _string(cursor, what)
    if kind == _ARRAY:
        return _array(cursor, what, depth)
    return _numbers(cursor, kind, 1, what)[0].item()


def _array(cursor: Cursor, what: str, depth: int) -> Value:
    if depth == _DEPTH:
        raise cursor.refuse(f"{what} must be nested at most {_DEPTH} deep", "deeper")
    kind, count = _integer(cursor, _U32, what), _integer(cursor, _U64, f"length of {what}")
    if kind not in (_STRING, _ARRAY):
        return _numbers(cursor, kind, count, what)
    cursor.need((8 if kind == _STRING else 12) * count, f"{what} of {count} elements")
    return [_value(cursor, kind, what, depth + 1) for _ in range(count)]


def _numbers(cursor: Cursor, kind: int, count: int, what: str) -> np.ndarray:
    if kind not in _NUMBERS:
        raise cursor.refuse(f"{what} must be of a type 0..12", f"type {kind}")
    dtype = np.dtype(_NUMBERS[kind])
    raw = cursor.take(dtype.itemsize * count, f"{what} of {count} elements")
    if kind == _BOOL and raw.size and raw.max() > 1:
        raise cursor.refuse(f"{what} must be 0 or 1", int(raw.max()))
    return raw.view(dtype)


def _alignment(cursor: Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or value < 1 or value & (value - 1):
        raise cursor.refuse("general.alignment must be a power of 2", repr(value))
    return value


class _Entry(NamedTuple):
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int  # in the data section
    size: int


def _tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, Packed]:
    """The table of tensors, then their bytes."""
    cursor.need(24 * count, f"table of {count} tensors")
    entries = [_entry(cursor) for _ in range(count)]
    start = _aligned(cursor.at, alignment)
    end = 0
    for entry in entries:
        if entry.offset != end:
            raise cursor.refuse(f"{entry.name} must begin at {end} of the data", entry.offset)
        end = _aligned(end + entry.size, alignment)
    last = entries[-1].offset + entries[-1].size if entries else 0
    # The padding after the header and after the last tensor may be missing, as some writers do.
    least, most = (start + last if last else cursor.at), start + end
    if not least <= len(cursor.data) <= most:
        size = f"{least} bytes" if least == most else f"{least} to {most} bytes"
        raise cursor.refuse(f"the header describes a file of {size}", f"{len(cursor.data)} bytes")
    tensors = {
        e.name: Packed(e.kind, e.shape, cursor.data[start + e.offset :][: e.size]) for e in entries
    }
    if len(tensors) < count:
        raise cursor.refuse("names of tensors must differ", f"{count - len(tensors)} again")
    return tensors


def _entry(cursor: Cursor) -> _Entry:
    name = _string(cursor, "name of a tensor")
    rank = _integer(cursor, _U32, f"rank of {name}")
    if rank > _RANK:
        raise cursor.refuse(f"{name} must have at most {_RANK} axes", rank)
    shape = tuple(_integer(cursor, _U64, f"shape of {name}") for _ in range(rank))[::-1]
    if 0 in shape:
        raise cursor.refuse(f"axes of {name} must not be empty", shape)
    code = _integer(cursor, _U32, f"type of {name}")
    if code not in _KINDS:
        known = ", ".join(kind for kind, *_ in _KINDS.values())
        raise cursor.refuse(
            f"{name} must be of a type {known}", f"type {code}", "quantise the model to Q8_0"
        )
    kind, block, size, _ = _KINDS[code]
    if (shape[-1] if shape else 1) % block:
        raise cursor.refuse(f"rows of {name} must be multiples of {block} ({kind})", shape)
    offset = _integer(cursor, _U64, f"offset of {name}")
    return _Entry(name, kind, shape, offset, math.prod(shape) // block * size)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def unpack(packed: Packed) -> np.ndarray:
    """The numbers of a tensor.

    Rows are blocks of 32 weights with a scale d and, in Q4_1, a smallest value m, all float16:

        Q8_0: d q,  Q4_0: d (q - 8),  Q4_1: d q + m

    A byte of the 4-bit types holds element i in its low and i + 16 in its high half.

    Args:
        packed: a tensor of `File`.

    Returns:
        [*shape], float32 for Q8_0, Q4_0 and Q4_1, and a view of the file for F32, F16 and BF16.

    Example:
        >>> import numpy as np
        >>> from divjax.models import gguf
        >>> data = np.array([0.5], np.float16).tobytes() + bytes(range(32))
        >>> weights = gguf.unpack(gguf.Packed("Q8_0", (32,), np.frombuffer(data, np.uint8)))
        >>> weights[:4].tolist()
        [0.0, 0.5, 1.0, 1.5]
    """
    (convert,) = (convert for kind, _, _, convert in _KINDS.values() if kind == packed.kind)
    with np.errstate(invalid="ignore", over="ignore"):  # a scale that is not finite says so itself
        return convert(packed.data).reshape(packed.shape)


def _cast(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda raw: raw.view(dtype)


def _halves(blocks: np.ndarray) -> np.ndarray:
    """[N, 16] bytes to [N, 32] float32."""
    out = np.empty((len(blocks), 32), np.float32)
    out[:, :16], out[:, 16:] = blocks & 15, blocks >> 4
    return out


def _scale(blocks: np.ndarray, at: int) -> np.ndarray:
    """[N, 1] float32 of the float16 at that byte of each block."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    blocks = raw.reshape(-1, 34)
    out = blocks[:, 2:].view(np.int8).astype(np.float32)
    out *= _scale(blocks, 0)
    return out


def _q4_0(raw: np.ndarray) -> np.ndarray:
    blocks = raw.reshape(-1, 18)
    out = _halves(blocks[:, 2:])
    out -= 8.0
    out *= _scale(blocks, 0)
    return out


def _q4_1(raw: np.ndarray) -> np.ndarray:
    blocks = raw.reshape(-1, 20)
    out = _halves(blocks[:, 4:])
    out *= _scale(blocks, 0)
    out += _scale(blocks, 2)
    return out


# Number in the file -> name, elements and bytes of a block, bytes -> numbers.
_KINDS: dict[int, tuple[str, int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: ("F32", 1, 4, _cast("<f4")),
    1: ("F16", 1, 2, _cast("<f2")),
    2: ("Q4_0", 32, 18, _q4_0),
    3: ("Q4_1", 32, 20, _q4_1),
    8: ("Q8_0", 32, 34, _q8_0),
    30: ("BF16", 1, 2, _cast(jnp.bfloat16)),
}
