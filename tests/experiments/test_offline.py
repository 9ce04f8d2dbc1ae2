"""The experiments of offline distillation: fair grids, stored verdicts, smoke runs on demand."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.lab.experiment import find
from divjax.recipes import bench, kd

ROOT = Path(__file__).parents[2]
NAMES = pytest.mark.parametrize("name", ["pld", "sinkd"])


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@NAMES
def test_every_arm_has_an_equal_grid_and_the_reported_seeds_are_not_the_pilots(name):
    experiment = find(name).experiment
    cells = experiment.cells(experiment.preset("cpu"))
    pilot = [c for c in cells if min(c.seeds) < 1000]
    reported = [c for c in cells if c not in pilot]
    assert [c.settings for c in pilot] == [c.settings for c in reported]
    assert set(Counter(c.settings["arm"] for c in reported).values()) == {3}
    assert all(len(c.seeds) >= 8 for c in cells)
    arms = {c.settings["arm"] for c in cells}
    for preset in ("smoke", "demo"):
        small = experiment.cells(experiment.preset(preset))
        assert {c.settings["arm"] for c in small} == arms
        assert all(max(c.seeds) < 1000 for c in small)


@NAMES
def test_every_arm_has_terms_of_the_right_size(name):
    """Terms are means per row: twice the batch, the same value."""
    experiment = find(name).experiment
    arms = sys.modules[experiment.run.__module__].ARMS
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, 16, 10)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, 16))
    for terms in arms.values():
        for _, term in terms.values():
            once = term(kd.Outputs(z[0], z[1], labels, None, None))
            twice = term(kd.Outputs(*jnp.tile(z, (1, 2, 1)), jnp.tile(labels, 2), None, None))
            assert once.weight == 16
            np.testing.assert_allclose(twice.value, once.value, rtol=0.02)


def test_a_masked_row_of_cross_entropy_has_no_gradient():
    z, labels = (
        jnp.array([[1.0, 0.0], [jnp.nan, jnp.nan], [-jnp.inf, -jnp.inf]]),
        jnp.array([0, 1, 1]),
    )
    mask = jnp.array([True, False, False])
    slope = jax.grad(lambda z: kd.cross_entropy(kd.Outputs(z, z, labels, mask, None)).value)(z)
    expected = jax.nn.softmax(z[0]) - jnp.array([1.0, 0.0])
    np.testing.assert_allclose(slope, [expected, [0.0, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_teachers_of_the_bench_are_trained_each_on_its_own_rows():
    params, apply = bench.networks(bench.mlp(4, 3), (0, 1))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 4)), jnp.float32)
    y = jnp.stack([jnp.zeros(8, int), jnp.ones(8, int)])
    rows = {"x": x, "y": y}
    fitted = bench.teachers(params, apply, lambda i: rows, (0, 1), steps=200, rate=0.1)
    for seed in (0, 1):
        own = {"layers": {0: {k: v[seed] for k, v in fitted["layers"][0].items()}}}
        assert (apply(own, x[seed])[0].argmax(-1) == seed).all()


@pytest.mark.slow
@NAMES
def test_smoke(name, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "divjax", "run", name, "--preset", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "verdict.json").read_text())["status"] == "inconclusive"
