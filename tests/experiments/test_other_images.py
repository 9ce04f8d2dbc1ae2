"""The experiments on other images: the settings of the digits, figures beside the verdict."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from divjax.lab import Data, LabError, Provenance, Run, choose, digits, noisy_splits, parted
from divjax.lab.cli import main
from divjax.lab.experiment import find
from divjax.lab.folder import stored_presets
from divjax.lab.records import read, rows
from divjax.lab.verify import MATCH, verify
from divjax.models import split
from divjax.recipes import bench

ROOT = Path(__file__).parents[2]
BY_NLL = {"over": ("rate", "weight"), "larger_is_better": False}
CHOICE = {  # how each experiment chooses: see its `analyse`
    "pld": ("validation_accuracy", {"over": ("rate",)}),
    "sinkd": ("validation_accuracy", {"over": ("rate",)}),
    "bd_kd": ("validation_nll", BY_NLL),
}
SHAPES = {"fashion_mnist": (784,), "cifar10": (16, 16, 3)}
SMALL = {"fashion_mnist": bench.mlp(784, 4, 10), "cifar10": bench.cnn(3, 4)}
NAMES = pytest.mark.parametrize("name", CHOICE)
PRESETS = pytest.mark.parametrize("preset", SHAPES)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def noise(monkeypatch):
    """Noise in place of the images, few of them and small networks: no data file is needed."""
    for name, shape in SHAPES.items():
        rng = np.random.default_rng(0)
        x, y = rng.uniform(size=(60, *shape)).astype(np.float32), np.arange(60) % 10
        data = Data(x, y.astype(np.int32), Provenance(name, "noise", "0", False))
        sizes = {"train": 30, "validation": 10, "test": 20, "teacher_steps": 2}
        sizes |= {"student": SMALL[name], "teacher": SMALL[name]}
        few = bench.IMAGES[name]._replace(load=lambda data=data: data, **sizes)
        monkeypatch.setitem(bench.IMAGES, name, few)


@NAMES
def test_settings_without_a_grid_are_those_that_the_digits_chose(name):
    found = find(name)
    metric, how = CHOICE[name]
    pilot, _ = parted(found.experiment.preset("cpu"), rows(read(found.results / "records.jsonl")))
    best = choose(pilot, metric, by="arm", **how)
    for preset in ("smoke", "demo", *SHAPES):
        cells = found.experiment.cells(found.experiment.preset(preset))
        assert {c.settings["arm"] for c in cells} == set(best)
        for cell in cells:
            assert cell.settings == {"arm": cell.settings["arm"], **best[cell.settings["arm"]]}


@NAMES
@PRESETS
def test_three_seeds_side_by_side_or_each_in_a_cell_of_its_own(name, preset):
    experiment = find(name).experiment
    config = experiment.preset(preset)
    cells = experiment.cells(config)
    assert len({c.name for c in cells}) == len(cells)
    arms = {c.settings["arm"] for c in cells}
    seeds = {arm: sorted(s for c in cells if c.settings["arm"] == arm for s in c.seeds)
             for arm in arms}  # fmt: skip
    assert all(held == [0, 1, 2] for held in seeds.values())
    assert {len(c.seeds) for c in cells} == {1 if preset == "cifar10" else 3}
    assert "digits" not in experiment.sentence(preset).partition(":")[0]
    assert experiment.sentence("cpu") == experiment.claim


@pytest.mark.parametrize(("name", "preset"), [("pld", "cifar10"), ("bd_kd", "fashion_mnist")])
def test_a_cell_runs(name, preset, noise, tmp_path):
    experiment = find(name).experiment
    config = experiment.config(**{**experiment.presets[preset], "steps": 2, "evaluations": 1})
    cell = experiment.cells(config)[-1]
    run = Run(
        cell,
        folder=tmp_path,
        open_checkpoints=lambda path: SimpleNamespace(save=lambda *_: None, close=lambda: None),
        drop_rest=lambda: None,
        progress=lambda step, steps: None,
    )
    made = list(experiment.run(config, cell, run))
    assert [row["seed"] for row in made] == 2 * list(cell.seeds)
    for seed in cell.seeds:
        validated, tested = (row for row in made if row["seed"] == seed)
        assert 0 <= validated["validation_accuracy"] <= 1
        assert (20 * tested["test_accuracy"]) % 1 == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@NAMES
@PRESETS
def test_a_whole_run_on_noise(name, preset, noise, tmp_path):
    words = "--steps", "2", "--evaluations", "1", "--out", str(tmp_path)
    assert main(["run", name, "--preset", preset, *words]) == 0
    assert json.loads((tmp_path / "verdict.json").read_text())["status"] == "beside the verdict"


@NAMES
def test_every_stored_result_follows_from_its_records(name):
    found = find(name)
    stored = ["cpu", *stored_presets(found)]
    assert set(stored) == {"cpu", *SHAPES}
    for preset in stored:
        check = verify(found, preset, found.experiment.preset(preset), found.stored(preset))
        assert (check.result, check.problems) == (MATCH, []), preset


@NAMES
def test_stored_reports_tell_what_is_true_of_their_images(name):
    found = find(name)
    cpu = (found.results / "report.md").read_text()
    assert found.experiment.claim in cpu
    assert "chosen by" in cpu
    for preset in SHAPES:
        text = (found.stored(preset) / "report.md").read_text()
        verdict = json.loads((found.stored(preset) / "verdict.json").read_text())
        assert text.startswith(f"# {name} on {preset}: beside the verdict\n")
        for foreign in ("Written afterwards", "1797", "noisy digits", "chosen by", "figures had"):
            assert foreign not in text
        assert "each arm has the one that the cpu preset chose on digits" in text
        assert f"The stored cpu run says: {status(found)} (" in text
        for part in verdict["parts"]:  # and the cpu report was written after it
            line = rf"\| {re.escape(part['name'])} \| {preset} \| ([^|]+) \|"
            shown = float(re.search(line, cpu)[1].replace("−", "-"))
            assert shown == pytest.approx(part["estimate"], abs=6e-4)


def status(found):
    return json.loads((found.results / "verdict.json").read_text())["status"]


@pytest.mark.parametrize("name", SHAPES)
def test_both_networks_take_the_images_and_the_student_is_the_smaller(name):
    images = bench.IMAGES[name]
    sizes = []
    for build in (images.student, images.teacher):
        params, apply = split(nnx.eval_shape(lambda build=build: build(nnx.Rngs(0))))
        seen = jax.ShapeDtypeStruct((2, *SHAPES[name]), jnp.float32)
        assert jax.eval_shape(apply, params, seen)[0].shape == (2, 10)
        sizes.append(sum(x.size for x in jax.tree.leaves(params)))
    assert 3 * sizes[0] < sizes[1]


def test_halved_images_are_means_of_four_pixels():
    x = np.random.default_rng(0).uniform(size=(2, 4, 6, 3)).astype(np.float32)
    half = bench.halved(Data(x, np.zeros(2), None)).inputs
    assert half.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(half[1, 1, 2], x[1, 2:4, 4:6].reshape(4, 3).mean(0), rtol=1e-6)


def test_a_test_split_of_a_given_size_leaves_the_others_as_they_were():
    sizes = {"train": 40, "validation": 20, "noise": 0.3}
    whole, few = (noisy_splits(digits(), 3, **sizes, test=test) for test in (None, 50))
    for part in ("train", "validation"):
        np.testing.assert_array_equal(few[part][0], whole[part][0])
        np.testing.assert_array_equal(few[part][1], whole[part][1])
    np.testing.assert_array_equal(few["test"][0], whole["test"][0][:50])
    with pytest.raises(LabError, match="splits of 1798 examples, there are 1797"):
        noisy_splits(digits(), 3, **sizes, test=1738)


def test_scores_in_parts_are_those_of_the_whole(monkeypatch):
    params, apply = bench.networks(bench.mlp(4, 3), (0,))
    one = {"layers": {0: {k: v[0] for k, v in params["layers"][0].items()}}}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 4)), jnp.float32)
    monkeypatch.setattr(bench, "ROWS", 4)
    np.testing.assert_allclose(bench._logits(apply, one, x), apply(one, x)[0], rtol=1e-6)
