"""`divjax compare` on two runs: what differs, verdicts, paired differences, and what is missing."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from divjax.lab.compare import differing

A, B = "small:smoke", "small:smoke+steps=30+seeds=4"


ARMS = "plain", "decay", "flat"

EXPERIMENT = """
import zlib
from dataclasses import dataclass
import numpy as np
from divjax.lab import *
@dataclass(frozen=True)
class Config:
    lr: tuple[float, ...] = (1.0,)
    steps: int = 20
    seeds: int = 2
def cells(config):
    seeds = range(40, 40 + config.seeds)
    return [Cell(f"{a}-lr{r}", {"arm": a, "lr": r}, seeds) for a in ARMS for r in config.lr]
def run(config, cell, run):
    for step in (10, config.steps):
        for seed in cell.seeds:
            rng = np.random.default_rng((zlib.crc32(cell.name.encode()), step, seed))
            yield {"seed": seed, "step": step, "nll": rng.normal(), "error": rng.normal()}
    yield from run.rows({"bins": [[1.0, 2.0]] * len(cell.seeds)})
def analyse(config, rows):
    rows = [row for row in rows if row["lr"] == config.lr[0]]
    of = by_seed(final(rows, "error"), "error", by="arm")
    return Report([not_worse(f"{a} not worse", of[a], of["plain"], margin=0.1) for a in ARMS[1:]])
ARMS = "plain", "decay", "flat"
EXPERIMENT = Experiment(name="small", paper="1", claim="c", config=Config, cells=cells, run=run,
    presets={"smoke": {}, "demo": {}, "cpu": {}}, analyse=analyse)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs/: two of one experiment with other steps and seeds, one of another."""
    from divjax.lab.cli import main

    folder = tmp_path_factory.mktemp("runs")
    (folder / "experiments").mkdir()
    (folder / "experiments/small.py").write_text(EXPERIMENT)
    other = EXPERIMENT.replace('"small"', '"other"').replace('ARMS = "plain"', 'ARMS = "plein"')
    other = other.replace("steps", "rounds").replace('"plain"', '"plein"').replace("not w", "no w")
    (folder / "experiments/other.py").write_text(other)
    smoke = "--preset", "smoke"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIVJAX_EXPERIMENTS", str(folder / "experiments"))
        patch.chdir(folder)
        assert main(["run", "small", *smoke]) == 0
        assert main(["run", "small", *smoke, "--steps", "30", "--seeds", "4"]) == 0
        assert main(["run", "other", *smoke]) == 0
    return folder


@pytest.fixture
def place(divjax, runs, tmp_path, monkeypatch):
    """A copy that a test may damage; the working folder."""
    shutil.copytree(runs, tmp_path / "copy")
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(tmp_path / "copy/experiments"))
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy/runs/small"


def compared(divjax, a, b):
    code, out, err = divjax("compare", a, b, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def last(folder, arm, metric):
    """{seed: value}, read without the library."""
    rows = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    return {r["seed"]: r[metric] for r in rows if r.get("arm") == arm and metric in r}


def test_settings_that_differ(divjax, place):
    found = compared(divjax, A, B)
    said = {d["what"]: (d["a"], d["b"]) for d in found["differences"]}
    assert {k: v for k, v in said.items() if not k.startswith("git")} == {
        "config.steps": (20, 30),
        "config.seeds": (2, 4),
        "seeds": ("40 to 41", "40 to 43"),
    }
    assert found["same_experiment"]
    assert compared(divjax, A, A)["differences"] == []


def test_means_and_paired_differences_against_scipy(divjax, place):
    found = compared(divjax, A, B)
    lines = {(line["group"], line["metric"]): line for line in found["metrics"]}
    assert {group for group, _ in lines} == {"plain", "decay", "flat"}
    metrics = {metric for _, metric in lines}
    assert metrics == {"nll", "error"}  # lists are left out
    for (arm, metric), line in lines.items():
        one = last(place / "smoke", arm, metric)
        two = last(place / "smoke+steps=30+seeds=4", arm, metric)
        for values, shown in ((one, line["a"]), (two, line["b"])):
            assert shown["seeds"] == len(values)
            np.testing.assert_allclose(shown["mean"], np.mean(list(values.values())))
        assert line["paired"]["seeds"] == 2
        test = stats.ttest_rel([two[s] for s in one], list(one.values()))
        low, high = test.confidence_interval(0.95)
        np.testing.assert_allclose(line["paired"]["low"], low, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(line["paired"]["high"], high, rtol=1e-6, atol=1e-12)


def test_verdicts_stand_side_by_side(divjax, place):
    found = compared(divjax, A, B)
    for i, key in enumerate(("a", "b")):
        verdict = json.loads((place / Path((A, B)[i].split(":")[1]) / "verdict.json").read_text())
        assert (found[key]["status"], found[key]["reason"]) == (
            verdict["status"],
            verdict["reason"],
        )
        for part, stored in zip(found["parts"], verdict["parts"], strict=True):
            assert part["name"] == stored["name"]
            assert part[key] == {k: stored[k] for k in part[key]}
    part = found["parts"][0]["a"]
    assert list(part) == ["estimate", "low", "high", "threshold", "status"]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_what_a_person_sees(divjax, place, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = divjax("compare", A, B)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    said = " ".join(out.split())
    for needed in (
        "A: small, preset smoke", "B: small, preset smoke with steps=30, seeds=4",
        "What differs", "config.steps", "Verdicts", "decay not worse",
        "the preset 'smoke' is too small to decide", "error", "plain", "B − A",
    ):  # fmt: skip
        assert needed in said
    assert "further" not in said.lower()


def test_equal_runs_say_so(divjax, place):
    shutil.copytree(place / "smoke", place / "again")
    code, out, _ = divjax("compare", A, "runs/small/again")
    said = " ".join(out.split())
    assert code == 0
    assert "Config, versions, device, git revision and data are the same." in said
    assert "Equal in both runs, seed by seed: nll, error." in said
    assert "B − A" not in said


def test_cells_are_matched_by_name_where_an_arm_has_several(divjax, place):
    grid = ("--lr", "1.0", "0.5", "--out", "grid")
    assert divjax("run", "small", "--preset", "smoke", *grid)[0] == 0
    found = compared(divjax, A, "grid")
    assert {line["group"] for line in found["metrics"]} == {f"{a}-lr1.0" for a in ARMS}
    assert all(line["equal"] for line in found["metrics"])
    alone = {d["what"]: d for d in found["differences"]}["cells of one run alone"]
    assert (alone["a"], alone["b"]) == ([], [f"{arm}-lr0.5" for arm in ARMS])
    other = ("--lr", "0.5", "--out", "half")  # one cell an arm again: the arms are matched
    assert divjax("run", "small", "--preset", "smoke", *other)[0] == 0
    assert {line["group"] for line in compared(divjax, A, "half")["metrics"]} == set(ARMS)


def rewrite(folder, change):
    path = folder / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in map(change, rows) if row))


def test_seeds_that_are_not_shared_are_not_paired(divjax, place):
    rewrite(place / "smoke", lambda r: r if "end" in r else {**r, "seed": r["seed"] + 100})
    found = compared(divjax, A, B)
    assert all(line["paired"] is None for line in found["metrics"])
    out = " ".join(divjax("compare", A, B)[1].split())
    assert "have no seed in common (A: 140 to 141; B: 40 to 43), so nothing can be paired" in out
    assert "B − A is the difference of the means, without an interval" in out
    assert not re.search(r"B − A +seeds", out)


def test_seeds_that_some_cells_share(divjax, place):
    def move(row):
        return {**row, "seed": row["seed"] + 100} if row.get("arm") == "flat" else row

    rewrite(place / "smoke", move)
    out = " ".join(divjax("compare", A, B)[1].split())
    assert "with 0 of those it is the difference of the means" in out
    assert "no seed in common" not in out
    assert re.search(r"B − A +seeds", out)


def test_values_that_are_not_finite(divjax, place):
    rewrite(place / "smoke", lambda r: {**r, "nll": "NaN"} if r.get("step") == 20 else r)
    lines = {(x["group"], x["metric"]): x for x in compared(divjax, A, B)["metrics"]}
    assert lines["plain", "nll"]["a"] == {"mean": "NaN", "low": "NaN", "high": "NaN", "seeds": 2}
    assert lines["plain", "nll"]["paired"]["mean"] == "NaN"
    assert math.isfinite(lines["plain", "error"]["paired"]["mean"])
    assert "not finite" in divjax("compare", A, B)[1]
    shutil.copytree(place / "smoke", place / "again")
    assert all(line["equal"] for line in compared(divjax, A, f"{place}/again")["metrics"])


def test_a_run_that_is_not_finished(divjax, place):
    lines = (place / "smoke/records.jsonl").read_text().splitlines(True)
    (place / "smoke/records.jsonl").write_text("".join(lines[:8]))
    (place / "smoke/verdict.json").unlink()
    (place / "smoke/environment.json").unlink()
    code, out, _ = divjax("compare", A, B)
    assert code == 0
    assert "not finished: 2 of 3 cells" in out
    assert "A: no verdict yet" in out
    assert {line["group"] for line in compared(divjax, A, B)["metrics"]} == {"plain"}
    (place / "smoke/records.jsonl").unlink()
    assert "No finished cell with a metric is common to both runs." in divjax("compare", A, B)[1]


def test_two_experiments(divjax, place):
    code, out, _ = divjax("compare", A, "other:smoke")
    said = " ".join(out.split())
    assert code == 0
    assert "These are runs of two experiments; only what both have is compared." in said
    found = compared(divjax, A, "other:smoke")
    assert not found["same_experiment"]
    assert found["parts"] == []
    assert {line["group"] for line in found["metrics"]} == {"decay", "flat"}
    assert not {"claim", "config.steps", "config.rounds"} & {
        d["what"] for d in found["differences"]
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "compare takes two runs, got 0: divjax compare RUN RUN"),
        ((A,), "compare takes two runs, got 1"),
        ((A, B, A), "compare takes two runs, got 3"),
        ((A, B, "--jsn"), "did you mean json"),
        ((A, "smal"), "smal is no experiment; did you mean small?"),
        ((A, "smal:cpu"), "smal is no experiment; did you mean small"),
        ((A, "small"), "no results are stored; take a run, small:PRESET"),
        ((A, "small:cpu"), "divjax run small --preset cpu makes it"),
        ((A, "small:"), "no folder"),
        ((A, "small:cpu"), "runs here: small:smoke, small:smoke+s"),
        ((A, "runs"), "runs is no run folder: it has no config.json"),
        ((A, "runs/nothing"), "runs/nothing is no folder"),
    ],
)
def test_wrong_command_lines(divjax, place, arguments, message):
    code, out, err = divjax("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("name", ["config.json", "verdict.json", "environment.json"])
def test_a_damaged_file_is_named(divjax, place, name):
    (place / "smoke" / name).write_text('{"name": 3}')
    code, _, err = divjax("compare", A, B)
    assert code == 2
    assert f"smoke/{name}: it lacks" in err
    assert "restore it" in err


def test_trees():
    assert differing({"a": 1}, {"a": 1}) == []
    assert differing({"a": {"b": [1]}, "c": 0}, {"a": {"b": [2]}}) == [
        ("a.b", [1], [2]), ("c", 0, "nothing"),
    ]  # fmt: skip
