"""The experiment's pieces against what they claim, and its smoke preset end to end."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.lab import REPORTED, digits

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("bd_kd", ROOT / "experiments" / "bd_kd.py")
bd_kd = importlib.util.module_from_spec(spec)
sys.modules["bd_kd"] = bd_kd
spec.loader.exec_module(bd_kd)


def start(*words):
    # The experiments run on one device as a user's would: no fake devices from the tests.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-W", "error::UserWarning", "-m", "divjax", *words]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=env, cwd=ROOT, **quiet)


def divjax(*words):
    process = start(*words)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_splits_are_disjoint_noisy_in_training_only_and_paired_by_seed():
    def splits(seed):
        stacked = bd_kd.splits(bd_kd.IMAGES["digits"], [seed])
        return {name: (x[0], y[0]) for name, (x, y) in stacked.items()}

    parts = splits(1000)
    assert [len(parts[n][1]) for n in ("train", "validation", "test")] == [400, 597, 800]
    images = np.concatenate([parts[n][0] for n in parts])
    clean = digits()
    assert sorted(map(bytes, images)) == sorted(map(bytes, clean.inputs))
    of = dict(zip(map(bytes, clean.inputs), clean.labels, strict=True))
    wrong = {n: np.mean([of[bytes(x)] != t for x, t in zip(*parts[n], strict=True)]) for n in parts}
    assert wrong["validation"] == wrong["test"] == 0
    assert 0.2 < wrong["train"] < 0.34  # 30 % redrawn, a tenth of which by the same label
    again = splits(1000)
    assert all((again[n][0] == parts[n][0]).all() for n in parts)
    assert not (splits(1001)["test"][0] == parts["test"][0]).all()


def test_every_arm_has_an_equal_grid_and_every_preset_the_same_arms():
    config = bd_kd.EXPERIMENT.preset("cpu")
    cells = bd_kd.cells(config)
    pilot = [c for c in cells if bd_kd.is_pilot(config, c.seeds[0])]
    reported = [c for c in cells if c not in pilot]
    assert [c.settings for c in pilot] == [c.settings for c in reported]
    assert set(Counter(c.settings["arm"] for c in reported).values()) == {3}
    assert all(len(c.seeds) >= 8 for c in cells)
    assert not {s for c in pilot for s in c.seeds} & {s for c in reported for s in c.seeds}
    for preset in ("smoke", "demo"):  # never look at a reported seed
        few = bd_kd.cells(bd_kd.EXPERIMENT.preset(preset))
        assert [c.settings["arm"] for c in few] == list(bd_kd.ARMS)
        assert max(s for c in few for s in c.seeds) < REPORTED


def test_settings_are_chosen_by_the_pilot_whatever_the_reported_seeds_say():
    config = bd_kd.Config(seeds=3)
    rows = []
    for cell in bd_kd.cells(config):
        settings, pilot = cell.settings, bd_kd.is_pilot(config, cell.seeds[0])
        # The pilot prefers the last setting, the reported seeds the first by far.
        size = settings["rate"] * settings["weight"]
        for seed in cell.seeds:
            row = {"cell": cell.name, **settings, "seed": seed}
            nll = -size if pilot else 100 * size
            rows.append(row | {"validation_nll": nll, "validation_teacher_accuracy": 0.5})
            if not pilot:
                names = ("accuracy", "teacher_accuracy", "ece", "teacher_ece", "nll", "brier")
                scores = {f"test_{n}": size + seed for n in names}
                bins = {f"test_bins_{n}": [1.0] for n in ("confidence", "correct", "examples")}
                rows.append(row | scores | bins)
    report = bd_kd.EXPERIMENT.analyse(config, rows)
    table = report.tables["Student on the test split, chosen settings"].set_index("arm")
    assert table.loc["ce", "rate"] == max(bd_kd.RATES)
    assert set(table.drop(index="ce")["weight"]) == {max(bd_kd.WEIGHTS)}


def test_facts_of_the_stored_run_are_told_of_no_other():
    rows = [
        json.loads(line)
        for line in (ROOT / "experiments/results/bd_kd/records.jsonl").read_text().splitlines()
    ]
    rows = [row for row in rows if "end" not in row]

    def notes(rows):
        return " ".join(bd_kd.analyse(bd_kd.Config(), rows).notes)

    assert "after its figures had been seen" in notes(rows)
    assert "22 % of the nines" in notes(rows)
    other = [
        {**row, "test_accuracy": 0.5} if (row["cell"], row["seed"]) == OUTLIER else row
        for row in rows
    ]
    assert other != rows
    assert "after its figures had been seen" in notes(other)
    assert "Written afterwards" not in notes(other)


OUTLIER = "bd2-rate0.003-weight0.5", 1008


@pytest.mark.parametrize("arm", bd_kd.ARMS)
def test_gradients_stay_with_their_network(arm):
    stacked, apply = bd_kd.networks(bd_kd.IMAGES["digits"], [0])
    params = jax.tree.map(lambda x: x[0], stacked)
    batch = {"x": jnp.ones((4, 64)) * jnp.arange(4.0)[:, None], "y": jnp.arange(4)}
    objective = bd_kd.make_objective(apply, bd_kd.ARMS[arm], 1.0)
    terms = objective(params, batch, None).terms
    assert set(terms) == {"student", "teacher"} | (
        set() if arm == "ce" else {"student_kd", "teacher_kd"}
    )
    for name in terms:
        grads = jax.grad(lambda p, n=name: objective(p, batch, None).terms[n][1].total)(params)
        owner = name.removesuffix("_kd")
        for network, tree in grads.items():
            size = sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(tree))
            assert (size > 0) == (network == owner)


def test_smoke_records_report_and_verdict(tmp_path):
    out = tmp_path / "run"
    first = divjax("run", "bd_kd", "--preset", "smoke", "--out", str(out))
    assert first.returncode == 0, first.stderr
    assert "inconclusive" in first.stdout
    records = (out / "records.jsonl").read_bytes()
    rows = [json.loads(line) for line in records.splitlines()]
    tests = [r for r in rows if "test_ece" in r]
    assert {(r["arm"], r["seed"]) for r in tests} == {
        (arm, seed) for arm in bd_kd.ARMS for seed in (0, 1)
    }
    for row in tests:
        gap = np.abs(np.subtract(row["test_bins_confidence"], row["test_bins_correct"])).sum()
        np.testing.assert_allclose(row["test_ece"], gap / 800, rtol=1e-5)
        assert sum(row["test_bins_examples"]) == 800
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["status"] == "inconclusive"
    html = (out / "report.html").read_text()
    assert "Reliability of the student" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    times = (out / "timings.jsonl").read_bytes()  # a line for each cell that was computed
    assert len(times.splitlines()) == len(bd_kd.ARMS)
    again = divjax("run", "bd_kd", "--preset", "smoke", "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert (out / "timings.jsonl").read_bytes() == times
    assert (out / "records.jsonl").read_bytes() == records
    killed_and_resumed(tmp_path / "killed", records)


def killed_and_resumed(out, records):
    """kill -9 once rows of the third cell are on the disk; the rerun ends with the same bytes."""
    words = ("run", "bd_kd", "--preset", "smoke", "--out", str(out))
    process = start(*words)
    try:
        deadline = time.monotonic() + 120
        while rows_of_cell(out / "records.jsonl", 3) == 0:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    held = (out / "records.jsonl").read_bytes()
    assert 0 < len(held) < len(records)
    before = len((out / "timings.jsonl").read_text().splitlines())
    again = divjax(*words)
    assert again.returncode == 0, again.stderr
    assert (out / "records.jsonl").read_bytes() == records
    # Finished cells were skipped: each has been computed once.
    cells = [json.loads(line)["cell"] for line in (out / "timings.jsonl").read_text().splitlines()]
    assert before >= 2
    assert len(cells) == len(set(cells)) == len(bd_kd.ARMS)


def rows_of_cell(path, number):
    """Whole lines so far of the cell with this number, its end not counted."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = [json.loads(line) for line in lines]
    names = list(dict.fromkeys(row["cell"] for row in rows))
    return sum(row["cell"] == names[number - 1] for row in rows) if len(names) >= number else 0
