"""Reading bytes that nobody vouches for: no count is believed before the bytes are there."""

import struct
from pathlib import Path

import numpy as np

from divjax.core import check

CORRUPT = "the file is cut off or corrupt; get it again"


def mapped(path: str | Path) -> np.ndarray:
    """uint8 [bytes] of a file, read-only and mapped: nothing is read before it is used."""
    path = Path(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
    # An empty file cannot be mapped; whoever parses it says what is missing.
    return np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)


def flat(buffer: bytes | np.ndarray) -> np.ndarray:
    """uint8 [bytes], read-only, of bytes or of what `mapped` returns."""
    data = np.frombuffer(buffer, np.uint8)
    data.setflags(write=False)
    return data


class Cursor:
    """A place in a buffer that moves forward; it never goes beyond the end.

    Attributes:
        data: uint8 [bytes].
        at: the place.
        name: of the file, for messages.
    """

    def __init__(self, data: np.ndarray, name: str) -> None:
        self.data, self.at, self.name = data, 0, name

    def refuse(self, expected: str, got: object, remedy: str = CORRUPT) -> ValueError:
        """The error that names the file and the place in it."""
        place = f"{self.name}, byte {self.at}"
        return ValueError(f"{place}: {expected}, got {check.describe(got)}; {remedy}")

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return len(self.data) - self.at

    def need(self, size: int, what: str) -> None:
        """That many bytes are left."""
        if size > self.left:
            raise self.refuse(f"{what} needs {size} bytes", f"{self.left} bytes left")

    def take(self, size: int, what: str) -> np.ndarray:
        """The next bytes, a view."""
        self.need(size, what)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: struct.Struct, what: str) -> int | float:
        """The next number."""
        value: int | float = form.unpack(self.take(form.size, what).tobytes())[0]
        return value

    def text(self, size: int, what: str) -> str:
        """The next bytes as UTF-8."""
        raw = self.take(size, what).tobytes()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"{what} must be UTF-8", raw[:20]) from None
