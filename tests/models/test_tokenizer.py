"""Byte-level BPE against the plain algorithm, and its pieces against the published expression."""

import time
import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from divjax.models import gguf
from divjax.models.tokenizer import byte_pairs, from_gguf, split_digits, split_words

POOL = "abcstvrelmd'  \n\t019.,_-()²Ⅷ٣三éß漢😀\u0301\u200b\xa0\u3000\x85\x1f"


def shown():
    """Byte -> character, as GPT-2's published table has it: from its two ends and its rest."""
    table = {b: chr(b) for b in range(256) if chr(b).isprintable() and b not in (32, 160, 173)}
    return table | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in table)}


def random_tables(seed, count=120):
    """All bytes, and merges of what there is already; some make the same token."""
    rng = np.random.default_rng(seed)
    tokens, merges = list(shown().values()), []
    weights = [shown()[b] for b in b" abcst'019\n"]
    while len(merges) < count:
        a, b = (weights[i] for i in rng.integers(0, len(weights), 2))
        if f"{a} {b}" not in merges:
            merges.append(f"{a} {b}")
            if a + b not in tokens:
                tokens.append(a + b)
                weights.append(a + b)
    return tokens, merges


def plain(piece, tokens, merges):
    """The definition: of all neighbours merge the pair that was learned first, the leftmost."""
    symbols = [shown()[b] for b in piece.encode()]
    ranks = {merge: i for i, merge in enumerate(merges)}
    while True:
        pairs = [ranks.get(" ".join(p), len(ranks)) for p in pairwise(symbols)]
        if not pairs or min(pairs) == len(ranks):
            return [tokens.index(s) for s in symbols]
        i = pairs.index(min(pairs))
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]


@pytest.mark.parametrize("seed", range(4))
def test_merges_are_those_of_the_definition_and_text_comes_back(seed):
    tokens, merges = random_tables(seed)
    tokenizer = byte_pairs(tokens, merges)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        text = "".join(rng.choice(list("abcst '019\n" * 3 + POOL), int(rng.integers(0, 40))))
        expected = [i for piece in split_words(text) for i in plain(piece, tokens, merges)]
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text


def test_pieces():
    """By hand, from 's|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?[^ SLN]+|S+(?! not S)|S+, S being space."""
    cases = {
        "We'll say it's 12²!": ["We", "'ll", " say", " it", "'s", " 12²", "!"],
        "a  b": ["a", " ", " b"],
        "a\n\nb  ": ["a", "\n", "\n", "b", "  "],
        "x_1 --\t?": ["x", "_", "1", " --", "\t", "?"],
        "'S 'tis": ["'", "S", " '", "tis"],
        "é漢 e\u0301": ["é漢", " e", "\u0301"],
        "\xa0a\x1fb": ["\xa0", "a", "\x1f", "b"],
    }
    for text, pieces in cases.items():
        assert split_words(text) == pieces
    assert split_digits("a 12²  3's") == ["a", " ", "1", "2", "²", "  ", "3", "'s"]


@pytest.mark.parametrize("split", [split_words, split_digits])
def test_pieces_together_are_the_text_and_know_every_character(split):
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(list(POOL), 30))
        assert "".join(split(text)) == text
    # Every letter joins letters, every number numbers, and nothing else does.
    for code in [*range(0x3100), *range(0x3100, 0x110000, 7)]:
        char, category = chr(code), unicodedata.category(chr(code))[0]
        assert (split_words("a" + char) == ["a" + char]) == (category == "L")
        assert (split_words("1" + char) == ["1" + char]) == (category == "N")


def test_markers_are_text_unless_they_are_asked_for():
    tokens = [*shown().values(), "<|end|>", "<|end|>!"]
    tokenizer = byte_pairs(tokens, [], special=[256, 257])
    assert tokenizer.special == {"<|end|>": 256, "<|end|>!": 257}
    text = "a<|end|>b<|end|>!"
    assert not {256, 257} & set(tokenizer.encode(text))
    a, b = tokenizer.encode("ab")
    assert tokenizer.encode(text, special=True) == [a, 256, b, 257]
    for special in (False, True):
        assert tokenizer.decode(tokenizer.encode(text, special=special)) == text
    assert byte_pairs(tokens[:256], []).encode("a", special=True) == [a]


def test_a_long_piece_takes_no_quadratic_time():
    tokens, merges = random_tables(0)
    tokenizer = (
        byte_pairs([*tokens, "aa"], [*merges, "a a"])
        if "a a" not in merges
        else byte_pairs(tokens, merges)
    )
    began = time.perf_counter()
    assert tokenizer.decode(tokenizer.encode("a" * 100_000)) == "a" * 100_000
    assert time.perf_counter() - began < 30  # the plain algorithm needs hours


def test_bytes_without_a_token_are_unknown_or_an_error():
    tokens = ["a", "<?>"]
    assert byte_pairs(tokens, [], unknown=1).encode("aé") == [0, 1, 1]
    with pytest.raises(ValueError, match="every byte needs a token, got none for one of 'é'"):
        byte_pairs(tokens, []).encode("é")


def test_half_a_character_decodes_to_the_replacement():
    tokenizer = byte_pairs(list(shown().values()), [])
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: byte_pairs(["a", "a"], []), "tokens must differ"),
        (lambda: byte_pairs(["a", "b"], ["a b"]), "merges must make tokens of tokens, got 'ab'"),
        (lambda: byte_pairs(["a", "b"], ["ab"]), "merges must be 'left right'"),
        (lambda: byte_pairs(["a"], [], special=[1]), "special must be ids below 1"),
        (lambda: byte_pairs(["a"], [], unknown=-1), "unknown must be ids below 1"),
        (lambda: byte_pairs(["a"], []).decode([1]), r"ids must be 0..0, got \[1\]"),
        (lambda: byte_pairs(["a"], []).decode([-1]), r"ids must be 0..0"),
        (lambda: from_gguf(gguf.File({}, {})), "ggml.model must be gpt2, got None"),
        (lambda: tables(pre="llama-bpe"), "ggml.pre must be gpt-2 or smollm, got 'llama-bpe'"),
        (lambda: tables(tokens=None), "ggml.tokens must be texts"),
        (lambda: tables(merges=[1]), "ggml.merges must be texts"),
        (lambda: tables(unknown_token_id=5), "unknown must be ids below 2"),
        (lambda: tables(unknown_token_id="a"), "unknown_token_id must be a number"),
        (lambda: tables(token_type=3), "token_type must be 2 numbers"),
        (lambda: tables(token_type=np.zeros(3, np.int32)), "token_type must be 2 numbers"),
    ],
)
def test_broken_tables_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def tables(**changed):
    found = {"model": "gpt2", "pre": "smollm", "tokens": ["1", "<e>"], "merges": [],
             "token_type": np.array([1, 3], np.int32)} | changed  # fmt: skip
    return from_gguf(gguf.File({f"tokenizer.ggml.{k}": x for k, x in found.items()}, {}))


def test_the_tokenizer_of_a_file():
    tokenizer = tables()
    assert tokenizer.special == {"<e>": 1}
    assert tokenizer.encode("11<e>", special=True) == [0, 0, 1]
