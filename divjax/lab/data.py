"""Real data with their hash; nothing is ever downloaded."""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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


def noisy_splits(
    data: Data, seed: int, *, train: int, validation: int, noise: float, test: int | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A seed's own train, validation and test split; only training labels are noisy.

    Args:
        data: N examples.
        seed: of the split and of the noise.
        train: examples of the first split.
        validation: of the second.
        noise: share of the training labels that is replaced by a uniform draw.
        test: of the third; all the others when None.

    Raises:
        LabError: there are fewer examples.

    Returns:
        {"train": (inputs, labels), "validation": ..., "test": ...}.

    Example:
        >>> parts = noisy_splits(digits(), 0, train=400, validation=597, noise=0.3)
        >>> {name: len(labels) for name, (_, labels) in parts.items()}
        {'train': 400, 'validation': 597, 'test': 800}
    """
    total = len(data.labels) if test is None else train + validation + test
    if total > len(data.labels):
        raise LabError(f"splits of {total} examples, there are {len(data.labels)}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.labels))[:total]
    x, y = data.inputs[order], data.labels[order].copy()
    noisy = rng.uniform(size=train) < noise
    y[:train] = np.where(noisy, rng.integers(0, data.labels.max() + 1, train), y[:train])
    ends = train, train + validation
    parts = (slice(0, ends[0]), slice(*ends), slice(ends[1], None))
    return {n: (x[s], y[s]) for n, s in zip(("train", "validation", "test"), parts, strict=True)}


def stacked_splits(
    data: Data,
    seeds: Sequence[int],
    *,
    train: int,
    validation: int,
    noise: float,
    test: int | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`noisy_splits` of every seed, with a leading axis [S].

    Example:
        >>> parts = stacked_splits(digits(), (0, 1), train=400, validation=597, noise=0.3)
        >>> parts["train"][0].shape
        (2, 400, 64)
    """
    each = [
        noisy_splits(data, seed, train=train, validation=validation, noise=noise, test=test)
        for seed in seeds
    ]
    return {
        name: (np.stack([e[name][0] for e in each]), np.stack([e[name][1] for e in each]))
        for name in each[0]
    }


def minibatches(
    arrays: Mapping[str, Any], seeds: Sequence[int], *, size: int
) -> Callable[[int], dict[str, Any]]:
    """Random rows for each seed, as a pure function of the step.

    Args:
        arrays: name -> [S, N, ...], one slice per seed.
        seeds: S of them.
        size: B, rows per step, drawn without replacement.

    Returns:
        step -> {name: [S, B, ...]}.

    Example:
        >>> rows = minibatches({"x": np.arange(6).reshape(2, 3)}, (0, 1), size=2)
        >>> rows(0)["x"].shape, bool((rows(5)["x"] == rows(5)["x"]).all())
        ((2, 2), True)
    """

    def batches(step: int) -> dict[str, Any]:
        count = next(iter(arrays.values())).shape[1]
        rows = np.stack(
            [np.random.default_rng((seed, step)).permutation(count)[:size] for seed in seeds]
        )
        seed = np.arange(len(seeds))[:, None]
        return {name: x[seed, rows] for name, x in arrays.items()}

    return batches


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
