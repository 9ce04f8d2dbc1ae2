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
