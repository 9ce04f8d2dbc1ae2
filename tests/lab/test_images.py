"""Image files: the right arrays from whole files, a clear error from all others."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image

from divjax.lab import LabError, cifar10, fashion_mnist, noisy_splits

RNG = np.random.default_rng(0)
CLOTHES = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
CLASSES = np.array([3, 0, 9, 1, 2], np.uint8)
COLOURS = RNG.integers(0, 256, (5, 3), dtype=np.uint8)  # of five plain images


def idx(array):
    header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def clothes(tmp_path):
    for part, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(CLOTHES[rows]))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(CLASSES[rows]))
    return tmp_path


def jpeg(colour, size=(32, 32), mode="RGB"):
    stream = io.BytesIO()
    image = Image.new("RGB", size, tuple(int(x) for x in colour)).convert(mode)
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def pack(files, labels):
    offsets = np.cumsum([0, *(len(f) for f in files)])
    buffer = np.frombuffer(b"".join(files), np.uint8)
    return {"buffer": buffer, "offsets": offsets, "labels": np.asarray(labels, np.uint8)}


@pytest.fixture
def colours(tmp_path):
    for part, rows in (("train", slice(0, 3)), ("test", slice(3, 5))):
        packed = pack([jpeg(c) for c in COLOURS[rows]], CLASSES[rows])
        np.savez(tmp_path / f"cifar10_{part}_jpeg.npz", **packed)
    return tmp_path


def test_clothes(clothes, monkeypatch):
    monkeypatch.setenv("DIVJAX_DATA", str(clothes))
    data = fashion_mnist()
    np.testing.assert_array_equal(data.inputs, (CLOTHES / 255.0).astype("f").reshape(5, 784))
    np.testing.assert_array_equal(data.labels, CLASSES)
    assert (data.provenance.name, data.provenance.real) == ("fashion_mnist", True)
    parts = noisy_splits(data, 0, train=3, validation=1, noise=0.0)
    assert parts["train"][0].shape == (3, 784)
    other = CLOTHES.copy()
    other[4, 0, 0] ^= 1
    elsewhere = clothes / "elsewhere"
    elsewhere.mkdir()
    for file in clothes.glob("*.gz"):
        (elsewhere / file.name).write_bytes(file.read_bytes())
    (elsewhere / "t10k-images-idx3-ubyte.gz").write_bytes(idx(other[3:]))
    assert fashion_mnist(elsewhere).provenance.sha256 != data.provenance.sha256
    with pytest.raises(ValueError, match="read-only"):
        data.inputs[0, 0] = 1.0


def test_colours(colours, monkeypatch):
    monkeypatch.setenv("DIVJAX_DATA", str(colours))
    data = cifar10(count=5)
    assert data.inputs.shape == (5, 32, 32, 3)
    assert data.inputs.dtype == np.float32
    mean = 255 * data.inputs.mean((1, 2))
    np.testing.assert_allclose(mean, COLOURS, atol=2)  # JPEG rounds colours
    np.testing.assert_array_equal(data.labels, CLASSES)
    np.testing.assert_array_equal(cifar10(count=3).inputs, data.inputs[::2])
    with pytest.raises(LabError, match="6 images were asked for, there are 5"):
        cifar10(count=6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"no gzip at all", "no whole gzip file"),
        (idx(CLOTHES[:3])[:-900], "no whole gzip file"),
        (gzip.compress(gzip.decompress(idx(CLOTHES[:3]))[:-1]), "2351 bytes, but 3 entries"),
        (idx(CLOTHES[:3, :14]), "no IDX file of bytes"),
        (idx(CLASSES), "no IDX file of bytes"),
        (gzip.compress(b"\0\0"), "no IDX file of bytes"),
    ],
)
def test_a_foreign_or_cut_file_of_clothes(clothes, content, message):
    (clothes / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(LabError, match=f"train-images-idx3-ubyte.gz: .*{message}"):
        fashion_mnist(clothes)


def test_labels_that_do_not_fit(clothes):
    for labels, message in ((CLASSES[:2], "5 images, 4 labels"), (CLASSES[:3] + 10, "up to 19")):
        (clothes / "train-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        with pytest.raises(LabError, match=message):
            fashion_mnist(clothes)


GOOD = [jpeg(c) for c in COLOURS[:3]]


@pytest.mark.parametrize(
    ("files", "labels", "change", "message"),
    [
        ([jpeg((1, 2, 3), (31, 32)), *GOOD[1:]], CLASSES[:3], {}, r"\(31, 32\) RGB, not 32 x 32"),
        ([jpeg((1, 2, 3), mode="L"), *GOOD[1:]], CLASSES[:3], {}, "L, not 32 x 32 RGB"),
        ([b"GIF89a", *GOOD[1:]], CLASSES[:3], {}, "an image cannot be read"),
        ([GOOD[0][:-300], *GOOD[1:]], CLASSES[:3], {}, "an image cannot be read"),
        (GOOD, CLASSES[:2], {}, "do not fit"),
        (GOOD, CLASSES[:3], {"offsets": np.array([0, 900, 800, 5])}, "do not fit"),
        (GOOD, CLASSES[:3], {"offsets": np.array([0.0, 1, 2, 3])}, "do not fit"),
        (GOOD, CLASSES[:3], {"labels": np.array([None] * 3, object)}, "no whole npz file"),
    ],
)
def test_a_foreign_file_of_colours(colours, files, labels, change, message):
    np.savez(colours / "cifar10_train_jpeg.npz", **(pack(files, labels) | change))
    with pytest.raises(LabError, match=f"cifar10_train_jpeg.npz: .*{message}"):
        cifar10(colours, count=5)


@pytest.mark.parametrize("content", [b"", b"PK no zip", "cut"])
def test_a_cut_file_of_colours(colours, content):
    file = colours / "cifar10_train_jpeg.npz"
    file.write_bytes(file.read_bytes()[:-2000] if content == "cut" else content)
    with pytest.raises(LabError, match="no whole npz file of images"):
        cifar10(colours, count=5)


@pytest.mark.parametrize("load", [fashion_mnist, cifar10])
def test_where_to_get_what_is_missing(load, tmp_path, monkeypatch):
    monkeypatch.delenv("DIVJAX_DATA", raising=False)
    with pytest.raises(LabError, match=r"set DIVJAX_DATA .* source: https://github.com"):
        load()
    with pytest.raises(LabError, match=r"does not exist; get it from https://github.com"):
        load(tmp_path)
