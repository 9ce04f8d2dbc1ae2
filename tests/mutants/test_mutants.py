"""Each fault of the list is noticed by its test, and only because of the fault."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import ALL

ROOT = Path(__file__).parents[2]
UNUSED = shutil.ignore_patterns(".*", "runs", "__pycache__", "results", "benchmarks")

# pytest in a process of its own, then the file that the mutated module came from.
PROGRAM = """
import importlib, sys, pytest
code = pytest.main(sys.argv[2:])
print("MODULE", importlib.import_module(sys.argv[1]).__file__)
sys.exit(int(code))
"""


def test_there_are_many_and_their_names_differ():
    assert len({mutant.name for mutant in ALL}) == len(ALL) >= 30
    assert {m.file.split("/")[0] for m in ALL} >= {"core", "divergences", "estimators", "train"}


@pytest.mark.parametrize("mutant", ALL, ids=lambda m: m.name)
def test_the_fault_has_its_place(mutant):
    """The old text occurs once, the new one is a program, and the test file exists."""
    text = (ROOT / "divjax" / mutant.file).read_text("utf-8")
    assert text.count(mutant.old) == 1
    new = text.replace(mutant.old, mutant.new)
    assert ast.dump(ast.parse(new)) != ast.dump(ast.parse(text))
    assert (ROOT / "tests" / mutant.target.split()[0].split("::")[0]).is_file()


def run(folder, file, target):
    """Exit code of pytest for a target in a copy of the repository, with what it printed."""
    module = "divjax." + file.removesuffix(".py").replace("/", ".")
    path, *selection = target.split(maxsplit=2)
    command = [sys.executable, "-c", PROGRAM, module, "-x", "-q", f"tests/{path}", *selection]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    output = done.stdout + done.stderr
    assert f"MODULE {folder / 'divjax' / file}" in output, output
    return done.returncode, output


def copy(folder):
    """The repository without history, results and runs."""
    return Path(shutil.copytree(ROOT, folder / "copy", ignore=UNUSED))


def unmutated():
    """(target, a module): of each test file, all that its targets select in one run."""
    found = {}
    for mutant in ALL:
        path, _, expression = mutant.target.partition(" -k ")
        found.setdefault(path, (mutant.file, []))[1].append(expression)
    for path, (file, parts) in found.items():
        yield f"{path} -k {' or '.join(f'({e})' for e in parts)}" if all(parts) else path, file


@pytest.mark.slow
@pytest.mark.parametrize(("target", "file"), list(unmutated()))
def test_without_a_fault_the_tests_pass(target, file, tmp_path):
    code, output = run(copy(tmp_path), file, target)
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ALL, ids=lambda m: m.name)
def test_the_fault_is_noticed(mutant, tmp_path):
    folder = copy(tmp_path)
    file = folder / "divjax" / mutant.file
    file.write_text(file.read_text("utf-8").replace(mutant.old, mutant.new), "utf-8")
    code, output = run(folder, mutant.file, mutant.target)
    assert code == 1, f"exit code {code}\n{output}"  # 1 is a failed test, not an error of pytest
