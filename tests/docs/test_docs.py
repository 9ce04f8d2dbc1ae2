"""The documentation is true: generated parts are up to date, every example runs."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import divjax
from divjax.divergences import f_divergence_from_logits
from divjax.lab.cli import main

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

MODULES = [
    m.name
    for m in pkgutil.walk_packages(divjax.__path__, "divjax.")
    if not m.name.endswith("__main__")
]


def blocks(path):
    """The python blocks of a markdown file, by their order."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.S)


@pytest.mark.parametrize("file", generate.PARTS)
def test_generated_parts_are_up_to_date(file):
    text = (ROOT / "docs" / file).read_text()
    assert generate.render(text, generate.PARTS[file]) == text, "run python docs/generate.py"


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


def test_a_custom_divergence_takes_six_lines_and_is_right():
    (code,) = blocks(ROOT / "docs" / "divergences.md")
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 6
    scope = {}
    exec(code, scope)
    z = np.random.default_rng(0).normal(size=(2, 5, 9))
    p, q = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    t = p / q
    expected = np.sum(q * (np.exp(1 - t) + t - 2), -1)
    got = f_divergence_from_logits(*jnp.asarray(z, jnp.float32), scope["exponential"])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_placement_table_says_what_the_text_says():
    exact = generate.placement_laws()[3]
    table = {
        (name, where): generate.identify(gradient, exact)
        for name, where, gradient in generate.placement_rows()
    }
    assert table["k1", "loss"] == "nothing: it is 0"
    assert table["k2", "loss"] == table["k1", "reward"] == "KL(p, q)"
    assert table["k3 x ratio", "loss"] == table["with_gradient(k3, k2)", "loss"] == "KL(p, q)"
    assert table["k3", "loss"] == "KL(q, p)"
    assert table["k3", "reward"] == "KL(p, q) - KL(q, p)"
    assert table["score_under_p(js)", "loss"] == table["under_p(js) x ratio", "loss"] == "JS(p, q)"


def user_lines(code):
    return [line for line in code.splitlines() if line.strip()]


def digits_like(rows=16):
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.normal(size=(rows, 64)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 10, rows)),
        "mask": jnp.asarray(rng.uniform(size=rows) > 0.3),
    }
    return batch, jnp.asarray(rng.normal(size=(64, 10)) / 8, jnp.float32)


def test_the_readme_step_runs_in_15_lines_and_equally_on_eight_devices_with_two_more():
    one, eight = blocks(ROOT / "README.md")
    assert len(user_lines(one)) <= 15
    assert len(user_lines(eight)) == 2
    batch, teacher_w = digits_like()
    scope = {"batch": batch, "teacher_w": teacher_w}
    exec(one, scope)
    lines = one.replace("update = parallel.compile(step)\n", eight)
    assert lines != one
    many = {"batch": batch, "teacher_w": teacher_w}
    exec(lines, many)
    np.testing.assert_allclose(many["info"].value, scope["info"].value, rtol=1e-6)
    w, v = scope["state"].params["w"], many["state"].params["w"]
    np.testing.assert_allclose(v, w, atol=2e-6)
    # log-softmax of a zero student: the cross-entropy is log 10
    np.testing.assert_allclose(scope["info"].terms["ce"], np.log(10), rtol=1e-5)


def test_a_custom_loss_takes_eight_lines_and_is_right():
    code, padding = blocks(ROOT / "docs" / "distillation.md")
    assert len(user_lines(code)) <= 8
    scope = {}
    exec(code + padding, scope)
    z = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
    mask = np.array([[True, True, False], [True, False, False]])
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in z)
    expected = 4 * np.sum(p * np.log(p / (0.1 * p + 0.9 * q)), -1)
    got = scope["skewed_kd"](*jnp.asarray(z[::-1], jnp.float32), jnp.asarray(mask))
    np.testing.assert_allclose(got.value, expected[mask].mean(), rtol=1e-5)
    padded = scope["pad_vocabulary"](jnp.zeros((2, 3)), 5)
    assert padded.shape == (2, 5)
    assert (padded[:, 3:] == -jnp.inf).all()


def test_the_transport_guide_runs():
    (code,) = blocks(ROOT / "docs" / "transport.md")
    scope = {}
    exec(code, scope)
    assert scope["gradient"].shape == (3, 1)
    assert jnp.isfinite(scope["gradient"]).all()


@pytest.mark.parametrize("row", generate.migration.ROWS, ids=lambda r: r.theirs[:40])
def test_both_columns_of_the_migration_table_agree(row):
    pytest.importorskip(row.peer, exc_type=ImportError)
    scope = {}
    setup = generate.migration.PEERS[row.peer].setup
    exec(generate.migration.IMPORTS + generate.migration.INPUTS + setup, scope)
    theirs, ours = (np.asarray(eval(text, scope)) for text in (row.theirs, row.ours))
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6 * np.abs(theirs).max())


def test_most_of_the_migration_table_is_executed_here():
    """Torch belongs to the extra `bench`; the other libraries to the library or its tests."""
    installed = {r.peer for r in generate.migration.ROWS if importlib.util.find_spec(r.peer)}
    assert installed >= {"optax", "distrax", "ott", "ot"}


def test_the_examples_of_contributing_run(tmp_path, monkeypatch):
    record, loss, paper = blocks(ROOT / "CONTRIBUTING.md")
    scope = {}
    exec(record + loss, scope)
    z = np.random.default_rng(0).normal(size=(2, 4, 5))
    p, q = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    got = f_divergence_from_logits(*jnp.asarray(z, jnp.float32), scope["half_pearson"])
    np.testing.assert_allclose(got, ((p - q) ** 2 / q).sum(-1) / 2, rtol=1e-5)
    mask = jnp.array([True, False, True, True])
    got = scope["hellinger_kd"](*jnp.asarray(z[::-1], jnp.float32), mask=mask)
    expected = (1 - np.sqrt(p * q).sum(-1))[np.asarray(mask)].mean()
    np.testing.assert_allclose(got.value, expected, rtol=1e-4)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "smallest.py").write_text(paper)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "smallest", "--preset", "cpu"]) == 0
    verdict = (tmp_path / "runs" / "smallest" / "cpu" / "verdict.json").read_text()
    assert '"status": "reproduced"' in verdict


ADAPTED = blocks(ROOT / "docs" / "api" / "adapters.md")


@pytest.mark.parametrize("code", ADAPTED[1:], ids=["linen", "haiku", "equinox", "function"])
def test_models_of_all_libraries_go_into_one_step(code):
    for library in re.findall(r"^import (\w+)", code, re.M):
        pytest.importorskip(library)
    scope = {}
    exec(ADAPTED[0], scope)
    exec(code, scope)
    state, info = scope["state"], scope["info"]
    assert float(info.terms["kd"]) > 0
    assert int(state.step) == 1
    if "trained" in scope:
        batch, key = scope["batch"], scope["key"]
        assert scope["trained"](batch["x"][0], key=key).shape == (10,)
