"""Real data with their hash; nothing is ever downloaded."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from divjax.lab.experiment import Provenance
from divjax.lab.records import LabError

T = TypeVar("T")


class Data(NamedTuple):
    """A labelled data set.

    Attributes:
        inputs: [N, ...] float32.
        labels: [N] int32.
        provenance: where it comes from.
    """

    inputs: np.ndarray
    labels: np.ndarray
    provenance: Provenance


@functools.lru_cache
def digits() -> Data:
    """1797 real 8x8 images of handwritten digits, embedded in scikit-learn.

    Returns:
        Data with inputs [1797, 64] in [0, 1] and labels [1797] in 0..9; the arrays are read-only.

    Raises:
        LabError: scikit-learn is not installed.

    Example:
        >>> data = digits()
        >>> data.inputs.shape, float(data.inputs.max()), data.provenance.real
        ((1797, 64), 1.0, True)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise LabError("digits: scikit-learn is missing; pip install 'divjax[lab]'") from None
    inputs, labels = load_digits(return_X_y=True)
    inputs = (inputs / 16.0).astype(np.float32)
    labels = labels.astype(np.int32)
    inputs.setflags(write=False)
    labels.setflags(write=False)
    source = "scikit-learn, load_digits (UCI optdigits, test part)"
    digest = hashlib.sha256(inputs.tobytes() + labels.tobytes()).hexdigest()
    return Data(inputs, labels, Provenance("digits", source, digest, True, "BSD-3, CC BY 4.0"))


def load(
    name: str,
    read: Callable[[Path], T],
    *,
    source: str,
    path: Path | None = None,
    licence: str = "",
    real: bool = True,
) -> tuple[T, Provenance]:
    """A data file that lies beside the project, with its provenance.

    Args:
        name: the file's name in $DIVJAX_DATA.
        read: path -> content.
        source: the public address from which anyone can get the file.
        path: the file itself, or its folder; $DIVJAX_DATA when None.
        licence: under which it may be used.
        real: measured in the world, not generated.

    Raises:
        LabError: there is no such file; the message says where it can be had.
    """
    if path is None and "DIVJAX_DATA" in os.environ:
        path = Path(os.environ["DIVJAX_DATA"])
    if path is None:
        raise LabError(
            f"{name}: pass path=, or set DIVJAX_DATA to the folder that holds it; source: {source}"
        )
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise LabError(f"{name}: {file} does not exist; get it from {source}")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return read(file), Provenance(name, source, digest, real, licence)
