"""Rows on disk: one JSON object a line, appended and synced, safe against a kill at any moment.

A row is {"cell": name, **settings, **what the experiment yielded}. A finished cell ends with
{"cell": name, "end": number of its rows}. The file holds no time and no path, so that an
interrupted and an uninterrupted run write the same bytes.
"""

import difflib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from divjax.core.files import write_atomic

Record = Mapping[str, Any]
Records = Sequence[Record]

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class LabError(ValueError):
    """Something the person at the keyboard can put right; printed without a traceback."""


class CellRows(NamedTuple):
    """The rows of one cell as they lie on disk."""

    rows: list[dict[str, Any]]
    finished: bool


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean a or b?', or the list of what is known when nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known) or 'none'}"


def plain(value: Any) -> Any:
    """The JSON form of scalars, arrays, mappings and sequences; NaN and +-inf become strings."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    array = np.asarray(value)  # NumPy and JAX arrays and scalars
    if array.dtype.kind not in "biufV":
        raise TypeError(f"a row holds numbers, text and lists of them, got {type(value).__name__}")
    if array.dtype.kind in "fV":  # V: bfloat16 and its kin
        array = array.astype(np.float64)
    return plain(array.tolist())


def revive(value: Any) -> Any:
    """Undoes what `plain` does to NaN and infinities."""
    if isinstance(value, str):
        return _SPECIAL.get(value, value)
    if isinstance(value, list):
        return [revive(item) for item in value]
    if isinstance(value, dict):
        return {key: revive(item) for key, item in value.items()}
    return value


def same(one: Any, other: Any) -> bool:
    """Equal in their JSON form, where NaN equals NaN."""
    return bool(plain(one) == plain(other))


def encode(row: Record) -> bytes:
    """One line of strict JSON."""
    return (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode()


def whole_lines(content: bytes) -> list[bytes]:
    """The lines that were written to their end; a half-written last one is left out."""
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def read(path: Path) -> list[dict[str, Any]]:
    """All entries of a records file, end marks included; [] when there is no file.

    A half-written last line is what a kill leaves: it is left out, and its row is computed again.

    Raises:
        LabError: a line before that is no entry; the message says which, and how to keep the rest.
    """
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(whole_lines(path.read_bytes()), 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if wrong := _wrong(entry):
            raise LabError(
                f"{path.name}: line {number} must {wrong}, got "
                f"{line[:60]!r}; restore the file, or keep the {number - 1} rows before it "
                f"(head -n {number - 1} {path} > kept && mv kept {path}) and run again: "
                "the rest is computed anew"
            )
        entries.append(revive(entry))
    return entries


def _wrong(entry: Any) -> str:
    """What an entry must be and is not; "" when it is one."""
    if not isinstance(entry, dict) or not isinstance(entry.get("cell"), str):
        return "be a JSON object with the name of a cell"
    if "end" in entry and (set(entry) != {"cell", "end"} or type(entry["end"]) is not int):
        return "end its cell with a count of rows and nothing else"
    if isinstance(entry.get("seed"), list | dict):
        return "have a number as seed"
    return ""


def by_cell(entries: Iterable[Mapping[str, Any]], *, where: str = "records") -> dict[str, CellRows]:
    """Cell name -> its rows and whether it is finished, in the order of the file.

    Raises:
        LabError: rows after the end of their cell, cells mixed, or an end that counts other rows.
    """
    cells: dict[str, CellRows] = {}
    current = None
    for number, entry in enumerate(entries, 1):
        name, line = entry["cell"], f"{where}: line {number}"
        if name != current and (
            name in cells or (current is not None and not cells[current].finished)
        ):
            raise LabError(f"{line}: rows of cell '{name}' are out of order; restore the file")
        current = name
        held = cells.setdefault(name, CellRows([], False))
        if held.finished:
            raise LabError(
                f"{line}: rows of cell '{name}' after its end (a duplicate?); restore the file"
            )
        if "end" not in entry:
            held.rows.append(dict(entry))
            continue
        if entry["end"] != len(held.rows):
            raise LabError(
                f"{line}: cell '{name}' ended with {entry['end']} rows, got {len(held.rows)}; "
                "a row was lost or added: restore the file"
            )
        cells[name] = held._replace(finished=True)
    return cells


def rows(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the end marks: what `analyse` gets."""
    return [dict(entry) for entry in entries if "end" not in entry]


def append(path: Path, row: Record) -> None:
    """One row at the end of the file, on the disk when this returns."""
    with path.open("ab", buffering=0) as file:
        file.write(encode(row))
        os.fsync(file.fileno())


def truncate(path: Path, lines: int) -> None:
    """Keeps the first `lines` whole lines, atomically; a half-written last line goes too."""
    content = path.read_bytes() if path.exists() else b""
    kept = b"".join(whole_lines(content)[:lines])
    if kept != content:
        write_atomic(path, kept)


def sha256(content: bytes) -> str:
    """The hash by which files and data are named."""
    return hashlib.sha256(content).hexdigest()
