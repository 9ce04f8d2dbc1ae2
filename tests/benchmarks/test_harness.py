"""The harness with tiny shapes: its rows, a missing peer, its files. Nothing is timed here."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from divjax.divergences import generators

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import cores, harness  # noqa: E402
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
    times = harness.interleaved(calls, rounds=3)
    assert seen == ["a", "b"] + ["a", "b"] * 3
    assert set(times.wall) == set(times.least) == set(times.cpu) == {"a", "b"}


def test_interleaved_rests_before_each_timing(monkeypatch):
    seen = []
    monkeypatch.setattr(harness.time, "sleep", seen.append)
    trips = [100.0, 400.0, 120.0, 140.0, 130.0]  # the second call waits for a better moment
    monkeypatch.setattr(harness, "handover_ns", iter(trips).__next__)
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = harness.interleaved(calls, rounds=2, settle=0.5)
    assert times.handover_ns == 125.0
    assert seen == ["a", "b", 0.5, "a", 0.5, 0.2, "b", 0.5, "a", 0.5, "b"]


def test_variables_that_change_times_are_stored(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("UNRELATED", "1")
    stored = harness.environment()["variables"]
    assert stored["OPENBLAS_CORETYPE"] == "Haswell"
    assert "UNRELATED" not in stored


def test_temporaries_of_rows_that_are_no_power_of_two():
    row = dense_kl.uneven(small=True)
    assert row.temp_bytes["ours"] > 0
    assert row.limits[0].what == "temporaries / optax"
    assert "temporaries, [2, 3, 300]" in harness.show([row])


def test_ratios_are_ours_over_the_peer_and_the_limit_is_no_peer():
    times = harness.Times(
        {"ours": 2.0, "b": 4.0, "limit": 1.0}, {"ours": 1.0, "b": 3.0}, {"ours": 5.0}, 7
    )
    row = harness.timed("row", "variant", times, absent={"c": "missing"})
    assert (row.ours_ms, row.limit_ms, row.rounds) == (2.0, 1.0, 7)
    assert row.peers == {"b": 4.0, "c": "missing"}
    assert row.ratios == {"b": 0.5}
    assert row.min_ms == {"ours": 1.0, "b": 3.0}


@pytest.mark.parametrize(("cpu", "noted"), [(8.0, False), (4.0, True)])
def test_a_run_that_did_not_get_the_cores_says_so(cpu, noted, monkeypatch):
    monkeypatch.setattr(harness.os, "cpu_count", lambda: 2)
    row = harness.Row("row", "v", 2.0, peers={"b": 4.0, "c": "missing"}, cpu_ms={"b": cpu})
    row.note = harness.doubts(row)
    assert ("1.0 of 2 cores" in row.note) == noted == ("note: " in harness.show([row]))


@pytest.mark.parametrize(("trip", "noted"), [(None, False), (170.0, False), (400.0, True)])
def test_a_run_on_cores_far_apart_says_so(trip, noted):
    row = harness.Row("row", "v", 2.0, peers={"b": 4.0}, cpu_ms={"b": 1e3}, handover_ns=trip)
    row.note = harness.doubts(row)
    assert ("share no cache: 400 ns" in row.note) == noted
    assert (f"back {trip:.0f} ns" in harness.show([row])) if trip else not row.note


def test_the_way_between_two_cores(monkeypatch):
    trip = cores.handover_ns()
    assert trip is None or 20 < trip < 1e7  # no light passes faster, no scheduler is slower
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 1)
    assert cores.handover_ns() is None


@pytest.mark.parametrize(("value", "status"), [(1.0, "pass"), (1.1, "fail"), (None, "open")])
def test_a_must_and_strict(value, status, monkeypatch, tmp_path, capsys):
    row = harness.Row("row", "variant", limits=[harness.Limit("ratio", value, 1.0)])
    assert row.limits[0].status == status
    monkeypatch.setattr(harness, "measure", lambda name: [row])
    for arguments, code in ([], 0), (["--strict"], int(status != "pass")):
        file = tmp_path / "rows.json"
        monkeypatch.setattr(
            sys, "argv", ["benchmarks", "dense_kl", "--json", str(file), *arguments]
        )
        assert command.main() == code
        assert json.loads(file.read_text())["rows"][0]["limits"][0]["status"] == status
        assert status in capsys.readouterr().out


def test_a_missing_peer_is_reported_and_its_must_is_open(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    row = dense_kl.speed(small=True)
    assert row.peers["torch.compile"] == harness.MISSING
    assert "torch.compile" not in row.ratios
    status = {(x.what, x.must): x.status for x in row.limits}
    assert status["time / best torch.compile", True] == "open"
    assert row.peers["optax"] > 0
    stored = json.loads(json.dumps(harness.as_json([row])))
    assert stored["rows"][0]["peers"]["torch.compile"] == "missing"
    assert stored["rows"][0]["limits"][0]["status"] in ("pass", "fail")
    assert stored["environment"]["versions"]["jax"]
    assert "torch.compile            missing" in harness.show([row])


def test_a_peer_that_fails_is_reported_with_the_reason():
    def broken():
        raise RuntimeError("no compiler")

    assert dense_kl.attempt("torch.compile", broken) == "failed: RuntimeError"
    with pytest.raises(RuntimeError, match="no compiler"):
        dense_kl.attempt("ours", broken)


def test_nothing_is_timed_when_a_peer_computes_something_else():
    z = tuple(map(jnp.asarray, dense_kl.logits((2, 30), 0.5)))
    other = partial(jax.value_and_grad(lambda s, t: dense_kl.ours(t, s)), *z)
    with pytest.raises(ValueError, match="optax: value and gradient are off"):
        dense_kl.agree({"optax": other}, z)


@pytest.mark.parametrize("what", ["records", "near"])
def test_the_other_parts_of_dense_kl(what, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    few = (generators.kl, generators.tv, generators.pearson)  # each costs a compilation
    monkeypatch.setattr(generators, "ALL", few)
    rows = getattr(dense_kl, what)(small=True)
    if what == "near":
        assert rows[0].error["ours"]["value"] < 1e-5 < rows[-1].error["optax"]["value"]
        assert rows[0].error["torch.compile"] == harness.MISSING
        assert {x.status for row in rows for x in row.limits} == {"pass"}
    else:
        assert [row.variant for row in rows] == ["record tv", "record pearson"]
        assert all(set(row.ratios) == {"kl"} and row.temp_bytes["ours"] > 0 for row in rows)


def test_step_overhead_compiles_once():
    rows = harness.measure("step_overhead", small=True)
    for row in rows:
        assert {x.what: x.status for x in row.limits}["compilations"] == "pass"
