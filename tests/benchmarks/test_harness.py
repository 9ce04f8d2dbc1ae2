"""The harness with tiny shapes: its rows, a missing peer, its files. Nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import harness  # noqa: E402
from benchmarks.rows import dense_kl  # noqa: E402


def test_every_row_is_listed_with_what_it_measures():
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--list"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert {"dense_kl", "step_overhead"} <= set(lines)
    assert all(len(what) > 20 for what in lines.values())


def test_interleaved_takes_turns_and_waits_for_each():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    wall, cpu = harness.interleaved(calls, rounds=3)
    assert seen == ["a", "b"] + ["a", "b"] * 3
    assert set(wall) == set(cpu) == {"a", "b"}


def test_a_missing_peer_is_reported_and_its_must_is_open(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    row = dense_kl.speed(small=True)
    assert row.peers["torch.compile"] == harness.MISSING
    assert "torch.compile" not in row.ratios
    status = {(x.what, x.must): x.status for x in row.limits}
    assert status["time / torch.compile", True] == "open"
    assert row.peers["optax"] > 0
    stored = json.loads(json.dumps(harness.as_json([row])))
    assert stored["rows"][0]["peers"]["torch.compile"] == "missing"
    assert stored["rows"][0]["limits"][0]["status"] in ("holds", "fails")
    assert stored["environment"]["versions"]["jax"]
    assert "torch.compile            missing" in harness.show([row])


@pytest.mark.parametrize("what", ["records", "near"])
def test_the_other_parts_of_dense_kl(what, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = getattr(dense_kl, what)(small=True)
    if what == "near":
        assert rows[0].error["ours"]["value"] < 1e-5 < rows[-1].error["optax"]["value"]
    else:
        assert {"record js", "record pearson"} <= {row.variant for row in rows}


def test_step_overhead_compiles_once():
    rows = harness.measure("step_overhead", small=True)
    for row in rows:
        assert {x.what: x.status for x in row.limits}["compilations"] == "holds"
