"""The toy experiment in a folder of its own, and the command line as a function."""

import shutil
from pathlib import Path

import pytest

from divjax.lab.cli import main

TOY = Path(__file__).with_name("toy_experiment.py")


@pytest.fixture(scope="session")
def experiments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    shutil.copy(TOY, folder)
    return folder


@pytest.fixture
def divjax(experiments, tmp_path, monkeypatch, capfd):
    """divjax("run", "toy_experiment") -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(experiments))
    monkeypatch.setenv("TOY_SAVE_STEPS", "4")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return (code, *capfd.readouterr())

    return call
