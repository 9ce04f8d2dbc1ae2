"""A teacher's top-k laws of a corpus on disk, so that training needs no teacher in memory.

A folder holds `about.json`, which says what the laws are of, and shards of equally many rows:
`000000.npz` with ids, log_probs and log_tail, and `000000.json` with its SHA-256, written after it.
A shard without its JSON is not there yet. Nothing is pickled.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from divjax.core import check
from divjax.core.files import write_atomic
from divjax.divergences import TopK

_FORMAT = 1
_TYPES = {"ids": np.int32, "log_probs": np.float32, "log_tail": np.float32}


class Store(NamedTuple):
    """An opened folder; see `read`.

    Attributes:
        about: format, rows, shape of a row's tokens, k, rows of a shard, corpus_sha256 and the
            caller's provenance.
        laws: indices [B] -> TopK of NumPy arrays [B, *T, K], ready for a batch.
    """

    about: Mapping[str, Any]
    laws: Callable[[Sequence[int] | np.ndarray], TopK]


def write(
    folder: str | os.PathLike[str],
    teacher: Callable[[np.ndarray], TopK],
    tokens: np.ndarray,
    *,
    shard: int,
    provenance: Mapping[str, str],
) -> None:
    """Writes the laws of every row of a corpus; called again, it goes on where it was.

    Args:
        folder: of its own; a store of another corpus or teacher is refused.
        teacher: int [b, *T] rows of tokens -> TopK [b, *T, K], for example a jitted
            `top_k(head(params, tokens), 64)`. Called for one shard at a time.
        tokens: int [N, *T], the corpus.
        shard: rows a file.
        provenance: whatever says which teacher it was: name, file, hash.

    Raises:
        ValueError: the folder holds another store, or the teacher gives other shapes.

    Example:
        >>> import jax.numpy as jnp, numpy as np, tempfile
        >>> from divjax.divergences import Logits, top_k
        >>> from divjax.train import teacher_store
        >>> teacher = lambda tokens: top_k(Logits(jnp.eye(9)[tokens]), 2)
        >>> tokens = np.arange(6).reshape(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     teacher_store.write(folder, teacher, tokens, shard=2, provenance={"teacher": "eye"})
        ...     teacher_store.read(folder).laws([2, 0]).ids[:, :, 0].tolist()
        [[4, 5], [0, 1]]
    """
    check.count("shard", shard, caller="teacher_store.write")
    tokens = np.asarray(tokens)
    check.require(
        np.issubdtype(tokens.dtype, np.integer) and tokens.ndim > 0 and len(tokens) > 0,
        "teacher_store.write",
        "tokens must be int [N, *T] with N > 0",
        tokens,
        "pass the ids of the corpus",
    )
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "format": _FORMAT,
        "rows": len(tokens),
        "row": list(tokens.shape[1:]),
        "shard": shard,
        "corpus_sha256": hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest(),
        "provenance": {str(k): str(v) for k, v in provenance.items()},
    }
    _same_or_new(place, about)
    for number in range(-(-len(tokens) // shard)):
        if _recorded(place, number) is None:
            rows = tokens[number * shard : (number + 1) * shard]
            _write_shard(place, number, teacher(rows), rows.shape)


def _same_or_new(place: Path, about: dict[str, Any]) -> None:
    file = place / "about.json"
    if file.exists():
        held = _read_json(file)
        other = [
            f"{k}: {held.get(k)!r} there, {v!r} here" for k, v in about.items() if held.get(k) != v
        ]
        check.require(
            not other, "teacher_store.write", f"{place} must be of the same run", "; ".join(other),
            "pass a folder of its own",
        )  # fmt: skip
        return
    foreign = sorted(p.name for p in place.iterdir() if not p.name.endswith(".new"))
    check.require(
        not foreign, "teacher_store.write", f"{place} must be empty or a store", foreign[:5],
        "pass a folder of its own",
    )  # fmt: skip
    write_atomic(file, json.dumps(about, indent=2).encode())


def _write_shard(place: Path, number: int, law: TopK, shape: tuple[int, ...]) -> None:
    arrays = {name: np.asarray(law._asdict()[name], kind) for name, kind in _TYPES.items()}
    fits = arrays["ids"].shape[:-1] == arrays["log_tail"].shape == shape
    check.require(
        fits and arrays["ids"].shape == arrays["log_probs"].shape,
        "teacher_store.write",
        f"teacher must give ids and log_probs {[*shape, 'K']} and log_tail {list(shape)}",
        {name: x.shape for name, x in arrays.items()},
        "return top_k(source, k) of a source with these rows",
    )
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes them for options
    content = buffer.getvalue()
    write_atomic(place / f"{number:06d}.npz", content)
    digest = {"sha256": hashlib.sha256(content).hexdigest(), "k": int(arrays["ids"].shape[-1])}
    write_atomic(place / f"{number:06d}.json", json.dumps(digest).encode())


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: must be a JSON object, {error}; restore it") from None
    check.require(
        isinstance(content, dict), str(file), "must be a JSON object", content, "restore it"
    )
    return dict(content)


def _recorded(place: Path, number: int) -> dict[str, Any] | None:
    """What was noted of a shard that is whole; None before that."""
    file = place / f"{number:06d}.json"
    return _read_json(file) if file.exists() and file.with_suffix(".npz").exists() else None


def read(folder: str | os.PathLike[str]) -> Store:
    """The laws that `write` wrote, by row.

    Args:
        folder: a complete store.

    Returns:
        Store; a shard is read and its hash compared when one of its rows is first asked for.

    Raises:
        ValueError: no store, shards that are missing, damaged or of another shape; the message
            says which file and what to do.

    Example:
        See `write`.
        >>> from divjax.train import teacher_store
        >>> try:
        ...     teacher_store.read("nowhere")
        ... except ValueError as error:
        ...     print(str(error)[:18])
        nowhere/about.json
    """
    place = Path(folder)
    about = _read_json(place / "about.json")
    check.require(
        about.get("format") == _FORMAT
        and all(isinstance(about.get(k), int) and about[k] > 0 for k in ("rows", "shard")),
        str(place),
        f"about.json must be of a store of format {_FORMAT}",
        about,
        "write it by teacher_store.write of this version",
    )
    rows, shard = about["rows"], about["shard"]
    notes = [_recorded(place, number) for number in range(-(-rows // shard))]
    missing = [number for number, note in enumerate(notes) if note is None]
    check.require(
        not missing, str(place), f"must hold {len(notes)} shards", f"without {missing[:5]}",
        "call teacher_store.write again: it goes on where it was",
    )  # fmt: skip
    shape = tuple(about["row"])

    @lru_cache(maxsize=8)
    def load(number: int) -> dict[str, np.ndarray]:
        size = min(shard, rows - number * shard)
        return _load(place / f"{number:06d}.npz", notes[number] or {}, (size, *shape))

    def laws(indices: Sequence[int] | np.ndarray) -> TopK:
        where = np.asarray(indices, np.int64)
        check.require(
            where.ndim == 1 and bool(((where >= 0) & (where < rows)).all()),
            "Store.laws", f"indices must be [B] in 0..{rows - 1}", indices,
            "take them modulo the rows",
        )  # fmt: skip
        parts = [(load(int(i) // shard), int(i) % shard) for i in where]
        return TopK(*(np.stack([part[name][i] for part, i in parts]) for name in _TYPES))  # type: ignore[arg-type]

    return Store(about, laws)


def _load(file: Path, note: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    content = file.read_bytes()
    check.require(
        hashlib.sha256(content).hexdigest() == note.get("sha256"),
        str(file), "must have the SHA-256 noted beside it", "another content",
        f"delete {file.stem}.json and call teacher_store.write again",
    )  # fmt: skip
    try:
        with np.load(io.BytesIO(content)) as held:
            arrays = {name: held[name] for name in _TYPES}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: must hold {list(_TYPES)}, {error}; restore it") from None
    k = note.get("k")
    wanted = {"ids": (*shape, k), "log_probs": (*shape, k), "log_tail": shape}
    found = {name: x.shape for name, x in arrays.items()}
    check.require(found == wanted, str(file), f"must hold arrays {wanted}", found, "restore it")
    return arrays
