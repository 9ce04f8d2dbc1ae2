"""safetensors files, read-only.

    length of the header, 8 bytes | header, JSON: name -> dtype, shape, data_offsets | data

The rules of the reference implementation: names differ, and the tensors fill the data without gap
or overlap. A corrupt or hostile file is a ValueError.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from divjax.models._bytes import Cursor, flat, mapped

_HEADER = 1 << 25  # bytes; a model of 10^5 tensors has half of it
_RANK = 32
_LENGTH = struct.Struct("<Q")
_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16,
        "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2, "BOOL": "?",
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
    }.items()
}  # fmt: skip


class File(NamedTuple):
    """What a safetensors file holds.

    Attributes:
        metadata: free text by name.
        tensors: name -> array, a read-only view of the file.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, np.ndarray]


def read(path: str | Path) -> File:
    """A safetensors file, mapped into memory: only the header is read before a tensor is used.

    Args:
        path: of the file, which must not shrink while its tensors are in use.

    Raises:
        ValueError: the file is no safetensors file, cut off, corrupt, or its header is larger
            than 32 MiB.

    References:
        The specification of the format, huggingface/safetensors, README.

    Example:
        >>> import tempfile
        >>> from divjax.models import safetensors
        >>> with tempfile.NamedTemporaryFile() as f:
        ...     head = b'{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
        ...     _ = f.write(len(head).to_bytes(8, "little") + head + b"ab"), f.flush()
        ...     safetensors.read(f.name).tensors["x"].tolist()
        [97, 98]
    """
    return parse(mapped(path), str(path))


def parse(buffer: bytes | np.ndarray, name: str = "safetensors") -> File:
    """As `read`, of bytes that are in memory.

    Args:
        buffer: bytes, or uint8 [bytes].
        name: what messages call the file.

    Raises:
        ValueError: as `read`.

    Example:
        >>> from divjax.models import safetensors
        >>> safetensors.parse(bytes([2, *[0] * 7]) + b"{}")
        File(metadata={}, tensors={})
    """
    cursor = Cursor(flat(buffer), name)
    size = int(cursor.number(_LENGTH, "length of the header"))
    if size > _HEADER:
        raise cursor.refuse(f"the header must have at most {_HEADER} bytes", f"{size} bytes")
    header = _header(cursor, cursor.text(size, "the header"))
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(x) is not str for x in metadata.values()):
        raise cursor.refuse("__metadata__ must map names to texts", metadata)
    spans = {key: _span(cursor, key, entry) for key, entry in header.items()}
    end = 0
    for key, (begin, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != end:
            raise cursor.refuse(f"{key} must begin at {end} of the data", begin)
        end = stop
    if end != cursor.left:
        raise cursor.refuse(f"the header describes {end} bytes of data", f"{cursor.left} bytes")
    tensors = {key: _tensor(cursor, key, header[key], span) for key, span in spans.items()}
    return File(metadata, tensors)


def _header(cursor: Cursor, text: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise cursor.refuse("the header must be JSON", str(error)) from None
    if type(header) is not dict:
        raise cursor.refuse("the header must be a JSON object", header)
    return header


def _whole(x: Any) -> bool:
    """A list of numbers that a file can have; True and 1.0 are none."""
    return type(x) is list and all(type(i) is int and 0 <= i < 1 << 62 for i in x)


def _span(cursor: Cursor, key: str, entry: Any) -> tuple[int, int]:
    """(begin, end) in the data, of the size that dtype and shape give."""
    fields = {"dtype", "shape", "data_offsets"}
    if type(entry) is not dict or set(entry) != fields:
        raise cursor.refuse(f"{key} must have dtype, shape and data_offsets", entry)
    kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(kind) is not str or kind not in _DTYPES:
        raise cursor.refuse(f"{key} must be of a type {', '.join(_DTYPES)}", kind, "convert it")
    if not _whole(shape) or len(shape) > _RANK or math.prod(max(d, 1) for d in shape) >= 1 << 59:
        raise cursor.refuse(f"{key} must have a shape of at most {_RANK} axes", shape)
    if not _whole(span) or len(span) != 2:
        raise cursor.refuse(f"data_offsets of {key} must be [begin, end]", span)
    size = math.prod(shape) * _DTYPES[kind].itemsize
    if span[1] - span[0] != size:
        raise cursor.refuse(f"{key}, {kind} {shape}, must have {size} bytes", f"offsets {span}")
    return span[0], span[1]


def _tensor(cursor: Cursor, key: str, entry: Any, span: tuple[int, int]) -> np.ndarray:
    raw = cursor.data[cursor.at :][slice(*span)]
    if entry["dtype"] == "BOOL" and raw.size and raw.max() > 1:
        raise cursor.refuse(f"{key} must be 0 or 1", int(raw.max()))
    return raw.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
