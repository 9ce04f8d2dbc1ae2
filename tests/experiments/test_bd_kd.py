"""The experiment's pieces against what they claim, and its smoke preset end to end."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("bd_kd", ROOT / "experiments" / "bd_kd.py")
bd_kd = importlib.util.module_from_spec(spec)
sys.modules["bd_kd"] = bd_kd
spec.loader.exec_module(bd_kd)


def divjax(*words):
    # The experiments run on one device as a user's would: no fake devices from the tests.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-W", "error::UserWarning", "-m", "divjax", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)


def test_splits_are_disjoint_noisy_in_training_only_and_paired_by_seed():
    parts = bd_kd.splits(1000)
    assert [len(parts[n][1]) for n in ("train", "validation", "test")] == [400, 597, 800]
    images = np.concatenate([parts[n][0] for n in parts])
    clean = bd_kd.digits()
    assert sorted(map(bytes, images)) == sorted(map(bytes, clean.inputs))
    of = dict(zip(map(bytes, clean.inputs), clean.labels, strict=True))
    wrong = {n: np.mean([of[bytes(x)] != t for x, t in zip(*parts[n], strict=True)]) for n in parts}
    assert wrong["validation"] == wrong["test"] == 0
    assert 0.2 < wrong["train"] < 0.34  # 30 % redrawn, a tenth of which by the same label
    again = bd_kd.splits(1000)
    assert all((again[n][0] == parts[n][0]).all() for n in parts)
    assert not (bd_kd.splits(1001)["test"][0] == parts["test"][0]).all()


def test_every_arm_has_an_equal_grid_and_every_preset_the_same_arms():
    config = bd_kd.EXPERIMENT.preset("cpu")
    sizes = dict.fromkeys(bd_kd.ARMS, 0)
    for cell in bd_kd.cells(config):
        sizes[cell.settings["arm"]] += 1
        assert len(cell.seeds) >= 8
    assert set(sizes.values()) == {3}
    demo = bd_kd.cells(bd_kd.EXPERIMENT.preset("demo"))
    assert [c.settings["arm"] for c in demo] == list(bd_kd.ARMS)


@pytest.mark.parametrize("arm", bd_kd.ARMS)
def test_gradients_stay_with_their_network(arm):
    params, apply = bd_kd.networks(0)
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
        (arm, seed) for arm in bd_kd.ARMS for seed in (1000, 1001)
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
    # Half of it lost, as by a kill: the rerun writes the same bytes.
    (out / "records.jsonl").write_bytes(records[: len(records) // 2])
    again = divjax("run", "bd_kd", "--preset", "smoke", "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert (out / "records.jsonl").read_bytes() == records
