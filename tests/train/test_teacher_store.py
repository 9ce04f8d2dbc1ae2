"""A teacher's laws on disk: the same numbers as the teacher's, whatever happened in between."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from divjax.divergences import Logits, TopK, top_k
from divjax.train import teacher_store

TOKENS = np.random.default_rng(0).integers(0, 9, (11, 4))
TABLE = np.random.default_rng(1).normal(size=(9, 9)).astype(np.float32)
ABOUT = {"teacher": "a table", "sha256": "of it"}


def teacher(tokens):
    return top_k(Logits(jnp.asarray(TABLE)[tokens]), 3)


def write(folder, teacher=teacher, tokens=TOKENS, **changes):
    teacher_store.write(folder, teacher, tokens, **{"shard": 4, "provenance": ABOUT, **changes})


def test_laws_are_those_of_the_teacher(tmp_path):
    write(tmp_path)
    store = teacher_store.read(tmp_path)
    rows = [10, 0, 5, 5]
    for ours, theirs in zip(store.laws(rows), teacher(TOKENS[rows]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert store.about["provenance"] == ABOUT
    assert store.about["rows"] == 11


def test_an_interrupted_writer_goes_on_and_the_files_are_the_same(tmp_path):
    """It dies in its second shard; the second call asks the teacher for what is missing only."""
    write(tmp_path / "whole")
    calls = []

    def dies(tokens):
        calls.append(tokens.tolist())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return teacher(tokens)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", dies)
    (tmp_path / "cut" / "000001.npz.tmp").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"must hold 3 shards, got without \[1, 2\].*goes on"):
        teacher_store.read(tmp_path / "cut")
    write(tmp_path / "cut", dies)
    assert [c[0] for c in calls[2:]] == TOKENS[[4, 8]].tolist()
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes()


def test_flipped_bytes_are_found_before_they_are_used(tmp_path):
    write(tmp_path)
    file = tmp_path / "000001.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    store = teacher_store.read(tmp_path)
    store.laws([0])
    with pytest.raises(ValueError, match=r"000001.npz.*SHA-256.*delete 000001.json"):
        store.laws([0, 4])
    (tmp_path / "000001.json").unlink()
    write(tmp_path)
    assert isinstance(teacher_store.read(tmp_path).laws([4]), TopK)


def test_a_store_of_another_run_is_not_gone_on_with(tmp_path):
    write(tmp_path)
    for changes, said in (
        ({"tokens": TOKENS[::-1]}, "corpus_sha256"),
        ({"provenance": {"teacher": "another"}}, "provenance"),
        ({"shard": 5}, "shard: 4 there, 5 here"),
    ):
        with pytest.raises(ValueError, match=said):
            write(tmp_path, **changes)
    (tmp_path / "about.json").unlink()
    with pytest.raises(ValueError, match="must be empty or a store"):
        write(tmp_path)


def test_bad_input_and_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"tokens must be int \[N, \*T\]"):
        write(tmp_path, tokens=TOKENS * 1.0)
    with pytest.raises(ValueError, match=r"teacher must give ids and log_probs \[4, 4, 'K'\]"):
        write(tmp_path / "a", lambda tokens: teacher(tokens[:, :2]))
    write(tmp_path / "b")
    with pytest.raises(ValueError, match=r"indices must be \[B\] in 0..10"):
        teacher_store.read(tmp_path / "b").laws([11])
    (tmp_path / "b" / "about.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="a store of format 1"):
        teacher_store.read(tmp_path / "b")
    (tmp_path / "b" / "about.json").write_text("[")
    with pytest.raises(ValueError, match="must be a JSON object"):
        teacher_store.read(tmp_path / "b")
