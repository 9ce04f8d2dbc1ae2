"""Rows on disk: what a kill leaves behind, what damage looks like, what selection returns."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from divjax.lab import LabError, by_seed, choose, final, frame, keep, records, summary
from divjax.lab.select import plus_minus

ROWS = [
    {"cell": "a", "seed": 1, "x": 0.1},
    {"cell": "a", "seed": 2, "x": 0.2},
    {"cell": "a", "end": 2},
    {"cell": "b", "seed": 1, "x": 0.3},
]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "records.jsonl"
    for row in ROWS:
        records.append(file, row)
    return file


def test_rows_come_back(path):
    assert records.read(path) == ROWS
    assert records.rows(ROWS) == [ROWS[0], ROWS[1], ROWS[3]]
    assert records.read(path.with_name("none")) == []
    cells = records.by_cell(ROWS)
    assert [cells["a"].finished, cells["b"].finished] == [True, False]
    assert cells["b"].rows == [ROWS[3]]


def test_every_cut_keeps_the_whole_lines(path):
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        assert records.read(path) == ROWS[:whole]
        records.truncate(path, whole)
        assert path.read_bytes() == b"".join(content.splitlines(True)[:whole])


def test_a_row_is_synced_before_the_next_one_is_made(path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(path.read_bytes().count(b"\n")))
    records.append(path, ROWS[0])
    records.append(path, ROWS[0])
    assert synced == [5, 6]


def test_truncate_replaces_the_file_and_leaves_nothing_beside_it(path):
    before = path.stat().st_ino
    records.truncate(path, 4)
    assert path.stat().st_ino == before  # nothing to do, nothing written
    records.truncate(path, 1)
    assert path.stat().st_ino != before
    assert [file.name for file in path.parent.iterdir()] == ["records.jsonl"]
    assert records.read(path) == ROWS[:1]


@pytest.mark.parametrize("damage", [b"{half\n", b"[1]\n", b"\x00\x00\n", b'{"seed": 1}\n', b"\n"])
def test_damage_in_the_middle_is_an_error_that_loses_nothing(path, damage):
    lines = path.read_bytes().splitlines(True)
    content = b"".join([lines[0], damage, *lines[2:]])
    path.write_bytes(content)
    with pytest.raises(LabError, match=r"line 2 .* keep the 1 rows before it"):
        records.read(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 2, 3], "ended with 2 rows, got 1"),
        ([0, 1, 1, 2], "ended with 2 rows, got 3"),
        ([0, 1, 2, 1], "after its end"),
        ([0, 3, 1], "out of order"),
        ([0, 1, 2, 3, 0], "out of order"),
    ],
)
def test_lost_doubled_and_mixed_rows(order, message):
    with pytest.raises(LabError, match=message):
        records.by_cell([ROWS[i] for i in order])


def test_values_survive_the_file(tmp_path):
    file = tmp_path / "r.jsonl"
    values = {
        "third": 1 / 3,
        "small": 5e-324,
        "nan": math.nan,
        "up": math.inf,
        "down": -math.inf,
        "text": 'ä\n\u2028 "',
        "none": None,
        "flag": True,
        "list": [1, 2.5, math.inf],
    }
    records.append(file, {"cell": "a", **values})
    records.append(file, {"cell": "a", "end": 1})
    row, _ = records.read(file)
    assert math.isnan(row.pop("nan"))
    assert row == {"cell": "a", **{k: v for k, v in values.items() if k != "nan"}}
    for line in file.read_text("utf-8").split("\n")[:-1]:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_arrays_become_numbers_exactly():
    third = np.float32(1 / 3)
    assert records.plain(third) == float(third)
    assert records.plain(jnp.asarray(third)) == float(third)
    assert records.plain(jnp.asarray(0.1, jnp.bfloat16)) == 0.10009765625
    assert records.plain(np.arange(3)) == [0, 1, 2]
    assert records.plain(np.bool_(True)) is True
    with pytest.raises(TypeError, match="numbers, text and lists"):
        records.plain(object())


GRID = [
    {"cell": f"{arm}{lr}", "arm": arm, "lr": lr, "seed": seed, "step": step, "loss": loss + seed}
    for arm, lr, losses in [
        ("kl", 1, (9, 3)),
        ("kl", 2, (9, 2)),
        ("bd", 1, (0, 1)),
        ("bd", 2, (0, 4)),
    ]
    for seed in (0, 1)
    for step, loss in enumerate(losses)
]


def test_the_last_row_counts():
    last = final(GRID, "loss")
    assert {(row["cell"], row["seed"]): row["loss"] for row in last} == {
        ("kl1", 0): 3, ("kl1", 1): 4, ("kl2", 0): 2, ("kl2", 1): 3,
        ("bd1", 0): 1, ("bd1", 1): 2, ("bd2", 0): 4, ("bd2", 1): 5,
    }  # fmt: skip
    with pytest.raises(LabError, match="did you mean loss"):
        final(GRID, "los")


def test_choice_of_settings_by_validation():
    choice = choose(GRID, "loss", by="arm", over=["lr"], larger_is_better=False)
    assert choice == {"kl": {"lr": 2}, "bd": {"lr": 1}}
    assert choose(GRID, "loss", by="arm", over=["lr"]) == {"kl": {"lr": 1}, "bd": {"lr": 2}}
    kept = keep(GRID, choice, by="arm")
    assert {row["cell"] for row in kept} == {"kl2", "bd1"}
    assert by_seed(final(kept, "loss"), "loss", by="arm") == {
        "kl": {0: 2, 1: 3},
        "bd": {0: 1, 1: 2},
    }
    with pytest.raises(LabError, match="two rows"):
        by_seed(final(GRID, "loss"), "loss", by="arm")


def test_a_setting_may_be_nan():
    rows = [{"cell": "a", "arm": "kl", "seed": 1, "bound": float("nan"), "loss": 1.0}]
    choice = choose(rows, "loss", by="arm", over=["bound"])
    assert keep(rows, choice, by="arm") == rows
    assert keep(rows, {"kl": {"bound": 1.0}}, by="arm") == []


def test_no_arm_searches_harder_and_divergence_never_wins():
    with pytest.raises(LabError, match="grid of the same size"):
        choose(GRID[:-4], "loss", by="arm", over=["lr"])
    broken = [{**row, "loss": math.nan} if row["lr"] == 1 else row for row in GRID]
    choice = choose(broken, "loss", by="arm", over=["lr"], larger_is_better=False)
    assert choice == {"kl": {"lr": 2}, "bd": {"lr": 2}}
    with pytest.raises(LabError, match="NaN for every setting"):
        choose([{**row, "loss": math.nan} for row in GRID], "loss", by="arm", over=["lr"])


def test_tables():
    assert plus_minus([1.0, 1.0]) == "1.0000 ± 0.0000"
    assert plus_minus([0.5]) == "0.5"
    assert plus_minus([0.1, 0.1 + 2 * 0.0998 / 12.706205]) == "0.11 ± 0.10"
    assert plus_minus([math.nan, 1.0]) == "not finite"
    assert plus_minus([1000.0, 2000.0]) == "1500 ± 6353"
    assert len(frame(GRID)) == len(GRID)
    kept = [row for row in GRID if row["lr"] == 1]
    table = summary(kept, ["loss"], by="arm")
    assert table.to_dict("list") == {
        "arm": ["kl", "bd"],
        "seeds": [2, 2],
        "loss": ["3.5 ± 6.4", "1.5 ± 6.4"],
    }
