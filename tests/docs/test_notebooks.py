"""The notebooks are stored bare and run from top to bottom, without Jupyter."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
each_book = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
DEVICES = '"jax_num_cpu_devices", 8'

# A picture is drawn only when it is shown; the page must stay light.
EPILOGUE = """
import io
import matplotlib.pyplot as plt
assert len(plt.get_fignums()) <= 3
for number in plt.get_fignums():
    picture = io.BytesIO()
    plt.figure(number).savefig(picture, format="png", bbox_inches="tight")
    assert len(picture.getvalue()) < 60_000
"""


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path):
    """{cell id: source} in order."""
    cells = load(path)["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}


def test_all_notebooks_are_there():
    assert {path.stem for path in BOOKS} >= {"distillation", "large_vocabulary", "ten_ways"}


@each_book
def test_notebook_is_stored_without_outputs_and_line_by_line(path):
    book = load(path)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        assert isinstance(cell["source"], list)
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    # as Jupyter writes it: a change shows as the lines that changed
    text = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True)
    assert path.read_text(encoding="utf-8").rstrip("\n") == text


@each_book
def test_cells_compile_and_hold_no_absolute_path(path):
    for name, source in code_cells(path).items():
        for node in ast.walk(ast.parse(source, f"{path.stem}:{name}")):  # magics do not parse
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"(/|~|[A-Za-z]:\\)\S", node.value), (name, node.value)
    everything = "".join(line for cell in load(path)["cells"] for line in cell["source"])
    assert not re.search(r"(?<![\w.])/(home|root|work|usr|tmp|opt|mnt|Users)/", everything)


@each_book
def test_first_cell_says_what_to_install_and_the_second_asks_for_devices(path):
    first, second, *rest = code_cells(path).values()
    assert all(line.startswith("# pip install") for line in first.splitlines())
    assert second.index("import jax") < second.index(DEVICES) < second.index("jax.device_count()")
    assert not any(DEVICES in source for source in rest)


@each_book
@pytest.mark.parametrize("devices", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_notebook_runs_in_a_fresh_process(path, devices, request, tmp_path):
    """In the order of the cells, on CPU, with a warning as an error."""
    filters = ["import warnings"]
    for line in request.config.getini("filterwarnings"):
        action, _, category, module = (*line.split(":"), "", "", "")[:4]
        filters.append(
            f"warnings.filterwarnings({action!r}, category={category or 'Warning'}, "
            f"module={module!r})"
        )
    source = "\n\n".join([*filters, *code_cells(path).values(), EPILOGUE])
    script = tmp_path / f"{path.stem}.py"
    script.write_text(source.replace(DEVICES, f'"jax_num_cpu_devices", {devices}'))
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    assert f" on {devices} cpu devices" in done.stdout
