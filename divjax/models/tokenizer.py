"""Byte-level BPE: text to tokens and back, with the vocabulary and merges that a model brings.

Text is cut into pieces by a regular expression; the UTF-8 bytes of a piece, each written as one
printable character, are merged in the order in which the merges were learned.
"""

import heapq
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, cast

import numpy as np

from divjax.core import check
from divjax.models.gguf import File

Split = Callable[[str], Sequence[str]]


class Encode(Protocol):
    """`encode(text, *, special=False) -> ids`."""

    def __call__(self, text: str, *, special: bool = False) -> list[int]:
        """Markers such as <|im_end|> in a text are plain text unless special."""
        ...


class Tokenizer(NamedTuple):
    """Two functions and the markers.

    Attributes:
        encode: (text, *, special=False) -> ids; with special=True markers in the text are markers,
            which is nothing for the text of a user.
        decode: ids -> text; decode(encode(text)) is the text.
        special: marker -> id.
    """

    encode: Encode
    decode: Callable[[Sequence[int]], str]
    special: Mapping[str, int]


_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space


@lru_cache
def _category(letter: str) -> str:
    """Of a category (L, N) the inside of a character class; `re` has none."""
    inside = [unicodedata.category(chr(i))[0] == letter for i in range(0x110000)]
    ends = [i for i in range(1, 0x110000) if inside[i] != inside[i - 1]]
    pairs = zip(ends[::2], ends[1::2], strict=True)
    return "".join(f"\\U{a:08x}-\\U{b - 1:08x}" for a, b in pairs)


@lru_cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    letter, number = _category("L"), _category("N")
    words = (
        f"'(?:[stmd]|re|ve|ll)| ?[{letter}]+| ?[{number}]+| ?[^{_SPACE}{letter}{number}]+"
        f"|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
    )
    return re.compile(words), re.compile(f"([{number}])")


def split_words(text: str) -> list[str]:
    """GPT-2's pieces: words, numbers and signs, each with one space before it, and white space.

    Example:
        >>> from divjax.models.tokenizer import split_words
        >>> split_words("It's 1984,  you know")
        ['It', "'s", ' 1984', ',', ' ', ' you', ' know']
    """
    return _patterns()[0].findall(text)


def split_digits(text: str) -> list[str]:
    """As `split_words`, with every digit a piece of its own (SmolLM, StarCoder).

    Example:
        >>> from divjax.models.tokenizer import split_digits
        >>> split_digits("in 1984,")
        ['in', ' ', '1', '9', '8', '4', ',']
    """
    words, number = _patterns()
    return [piece for part in number.split(text) for piece in words.findall(part)]


SPLITS: dict[str, Split] = {"gpt-2": split_words, "smollm": split_digits}  # by tokenizer.ggml.pre


@lru_cache
def _alphabet() -> tuple[str, ...]:
    """Byte -> the printable character that stands for it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    stands = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return tuple(stands[b] for b in range(256))


def byte_pairs(
    tokens: Sequence[str],
    merges: Sequence[str],
    *,
    special: Sequence[int] = (),
    unknown: int | None = None,
    split: Split = split_words,
) -> Tokenizer:
    """A tokenizer from its tables.

    Args:
        tokens: V texts in the alphabet of printable bytes, markers as they are.
        merges: pairs "left right", the first learned first.
        special: ids of the markers.
        unknown: id of bytes that have no token; an error where None.
        split: text -> pieces that together are the text.

    Returns:
        A `Tokenizer`; time grows as n log n with the length of a piece.

    Raises:
        ValueError: tokens repeat, a merge makes no token or is no pair, or an id is out of range.

    References:
        Sennrich et al., arXiv 1508.07909; Radford et al., 2019, section 2.2.

    Example:
        >>> from divjax.models.tokenizer import byte_pairs
        >>> tokens = byte_pairs(["a", "b", "ab", "<end>"], ["a b"], special=[3])
        >>> tokens.encode("abba<end>"[:4]), tokens.encode("ab<end>", special=True)
        ([2, 1, 0], [2, 3])
        >>> tokens.decode([2, 1, 0])
        'abba'
    """
    ids, ranks = _tables(tokens, merges, {"special": special, "unknown": unknown})
    markers = {tokens[i]: i for i in special}
    shown = "|".join(map(re.escape, sorted(markers, key=len, reverse=True)))
    marker = re.compile(f"({shown})" if shown else "(?!)")

    @lru_cache(maxsize=1 << 16)
    def piece(text: str) -> tuple[int, ...]:
        symbols = _merged([_alphabet()[b] for b in text.encode("utf-8")], ranks)
        return tuple(_known(ids, symbol, unknown, text) for symbol in symbols)

    def encode(text: str, *, special: bool = False) -> list[int]:
        parts = marker.split(text) if special and shown else [text]
        out: list[int] = []
        for part in parts:
            if special and part in markers:
                out.append(markers[part])
            else:
                out += [i for word in split(part) for i in piece(word)]
        return out

    raw = {character: byte for byte, character in enumerate(_alphabet())}
    literal = {i: tokens[i].encode("utf-8") for i in special}

    def decode(found: Sequence[int]) -> str:
        found = [int(i) for i in found]
        wrong = [i for i in found if not 0 <= i < len(tokens)]
        expected = f"ids must be 0..{len(tokens) - 1}"
        check.require(not wrong, "decode", expected, wrong, "leave padding out")
        parts = (literal.get(i) or bytes(raw[c] for c in tokens[i]) for i in found)
        return b"".join(parts).decode("utf-8", errors="replace")

    return Tokenizer(encode, decode, markers)


def _tables(
    tokens: Sequence[str], merges: Sequence[str], named: Mapping[str, Sequence[int] | int | None]
) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Ids of tokens and ranks of merges, checked."""
    ids = {token: i for i, token in enumerate(tokens)}
    once = len(ids) == len(tokens)
    check.require(once, "byte_pairs", "tokens must differ", len(ids), "pass each once")
    ranks = {pair: rank for rank, pair in enumerate(map(_pair, merges))}
    stray = next((a + b for a, b in ranks if not {a, b, a + b} <= ids.keys()), None)
    made = "merges must make tokens of tokens"
    check.require(stray is None, "byte_pairs", made, stray, "check the tables")
    for name, found in named.items():
        each = [found] if isinstance(found, int) else found or ()
        wrong = [i for i in each if not 0 <= i < len(tokens)]
        expected = f"{name} must be ids below {len(tokens)}"
        check.require(not wrong, "byte_pairs", expected, wrong, "check the tables")
    return ids, ranks


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    ok = bool(left and space and right)
    check.require(ok, "byte_pairs", "merges must be 'left right'", repr(merge), "check the tables")
    return left, right


def _known(ids: Mapping[str, int], symbol: str, unknown: int | None, text: str) -> int:
    found = ids.get(symbol, unknown)
    if found is None:
        raise ValueError(f"encode: every byte needs a token, got none for one of {text!r}")
    return found


def _merged(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """The pair of the lowest rank is merged, the first of equals, until there is none."""
    after = [*range(1, len(symbols)), -1]  # the symbol that follows, -1 at the end
    before = list(range(-1, len(symbols) - 1))
    heap: list[tuple[int, int, str, str]] = []

    def offer(i: int, j: int) -> None:
        if i >= 0 and j >= 0 and (symbols[i], symbols[j]) in ranks:
            pair = symbols[i], symbols[j]
            heapq.heappush(heap, (ranks[pair], i, *pair))

    for i in range(len(symbols) - 1):
        offer(i, i + 1)
    while heap:
        _, i, left, right = heapq.heappop(heap)
        j = after[i]
        if j < 0 or symbols[i] != left or symbols[j] != right:
            continue  # one of the two was merged with another in the meantime
        symbols[i], symbols[j] = left + right, ""
        after[i] = after[j]
        if after[j] >= 0:
            before[after[j]] = i
        offer(before[i], i)
        offer(i, after[i])
    return (symbol for symbol in symbols if symbol)


_CONTROL, _USER = 3, 4  # tokenizer.ggml.token_type of markers


def from_gguf(file: File) -> Tokenizer:
    """The tokenizer that a GGUF file brings.

    Args:
        file: of `gguf.read`, with a byte-level BPE ("gpt2") whose pieces are known: gpt-2, smollm.

    Raises:
        ValueError: the file has another tokenizer, or broken tables.

    Example:
        >>> from divjax.models import gguf, tokenizer
        >>> tables = {"model": "gpt2", "pre": "smollm", "tokens": ["1", "2"], "merges": []}
        >>> file = gguf.File({f"tokenizer.ggml.{k}": v for k, v in tables.items()}, {})
        >>> tokenizer.from_gguf(file).encode("212")
        [1, 0, 1]
    """
    found = {key.removeprefix("tokenizer.ggml."): x for key, x in file.metadata.items()}
    model, pre = found.get("model"), str(found.get("pre"))
    where = "tokenizer.from_gguf"
    other = "use the tokenizer of the model's own library"
    check.require(model == "gpt2", where, "tokenizer.ggml.model must be gpt2", model, other)
    expected = f"tokenizer.ggml.pre must be {' or '.join(SPLITS)}"
    check.require(pre in SPLITS, where, expected, pre, "pass a split to byte_pairs")
    tables = [found.get("tokens"), found.get("merges")]
    for name, table in zip(("tokens", "merges"), tables, strict=True):
        texts = type(table) is list and all(type(x) is str for x in table)
        check.require(texts, where, f"tokenizer.ggml.{name} must be texts", table, "check the file")
    tokens, merges = cast(list[list[str]], tables)
    kinds = np.asarray(found.get("token_type", []))
    check.require(
        kinds.size == 0 or kinds.shape == (len(tokens),),
        where,
        f"tokenizer.ggml.token_type must be {len(tokens)} numbers",
        kinds,
        "check the file",
    )
    special = np.flatnonzero((kinds == _CONTROL) | (kinds == _USER)).tolist()
    unknown = found.get("unknown_token_id")
    whole = unknown is None or type(unknown) is int
    expected = "tokenizer.ggml.unknown_token_id must be a number"
    check.require(whole, where, expected, unknown, "check the file")
    return byte_pairs(tokens, merges, special=special, unknown=unknown, split=SPLITS[pre])
