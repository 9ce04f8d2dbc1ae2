"""`divjax run` on the toy: what it writes, what it skips, how it refuses and how it goes on."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent

import pytest

from divjax.lab import LabError
from divjax.lab.cli import COMMANDS
from divjax.lab.folder import default_folder, differences

SMOKE = Path("runs/toy_experiment/smoke")
RUN = "run", "toy_experiment", "--preset", "smoke"


@pytest.fixture(scope="module")
def reference(experiments, tmp_path_factory):
    """The run folder of an uninterrupted smoke run, made in a process of its own."""
    folder = tmp_path_factory.mktemp("reference")
    done = start(experiments, folder)
    output, errors = done.communicate()
    assert done.returncode == 0, errors
    return folder / SMOKE, output


def start(experiments, folder, *arguments):
    environment = {**os.environ, "DIVJAX_EXPERIMENTS": str(experiments), "TOY_SAVE_STEPS": "4"}
    # A test run in the background of a shell ignores ctrl-C, and so would its children.
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('divjax', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, *RUN, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def rows_of(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_records_have_their_schema(reference):
    rows = rows_of(reference[0])
    ends = [row for row in rows if "end" in row]
    assert ends == [{"cell": f"{arm}-lr1.0", "end": 10} for arm in ("plain", "decay", "flat")]
    trained = [row for row in rows if "step" in row]
    assert [(row["seed"], row["step"]) for row in trained[:8]] == [
        (seed, step) for step in (5, 10, 15, 20) for seed in (40, 41)
    ]
    columns = ["cell", "arm", "lr", "seed", "step", "accuracy", "nll", "ce"]
    assert all(list(row) == columns for row in trained)
    assert "second" not in (reference[0] / "records.jsonl").read_text()


def test_verdict_and_config_have_their_schema(reference):
    verdict = json.loads((reference[0] / "verdict.json").read_text())
    assert list(verdict) == [
        "name", "paper", "claim", "preset", "status", "reason", "parts", "records_sha256",
    ]  # fmt: skip
    assert verdict["status"] == "inconclusive"
    for part in verdict["parts"]:
        assert part["status"] == "inconclusive"
        assert part["low"] <= part["estimate"] <= part["high"]
        assert list(part["differences"]) == ["40", "41"]
    config = json.loads((reference[0] / "config.json").read_text())
    assert config["config"]["steps"] == 20
    assert config["overrides"] == {}
    assert [cell["seeds"] for cell in config["cells"]] == [[40, 41]] * 3
    assert config["data"][0]["real"] is True
    assert len(config["data"][0]["sha256"]) == 64
    environment = json.loads((reference[0] / "environment.json").read_text())
    assert environment["device"]["count"] == 8
    assert environment["packages"]["jax"]


def test_report_needs_nothing_beside_it(reference):
    page = (reference[0] / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    for outside in ("<script", "<link", 'src="http', "url(", "@import"):
        assert outside not in page
    text = (reference[0] / "report.md").read_text()
    for needed in (
        "Weight decay lowers", "0000.00000", "**inconclusive**", "too small to decide",
        "No verdict of the cpu preset is stored yet", "must exceed", "excludes 0", "real",
        "sha256", "scikit-learn", "jax 0.", "| steps | 20 |", "figures/0.png",
    ):  # fmt: skip
        assert needed in text
    pictures = sorted((reference[0] / "figures").iterdir())
    assert [picture.read_bytes()[:4] for picture in pictures] == [b"\x89PNG"] * 4
    assert not (reference[0] / "cells").exists() or not list((reference[0] / "cells").iterdir())


def test_output_to_a_file_is_plain_and_short(reference):
    output = reference[1]
    assert "\x1b" not in output
    lines = output.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 90
    assert sum(line.startswith("cell ") for line in lines) == 3
    assert "inconclusive: the preset 'smoke' is too small to decide." in lines


@pytest.mark.parametrize("width", [60, 80])
def test_a_finished_run_fits_the_terminal(divjax, reference, tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shutil.copytree(reference[0], tmp_path / SMOKE)
    out = divjax(*RUN)[1]
    assert max(map(len, out.splitlines())) <= width
    words = out.split()
    assert {"calibration", "inconclusive", "test_accuracy", "report:"} <= set(words)
    assert "the interval holds 0" in " ".join(words)


def test_a_finished_run_is_not_run_again(divjax, reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / SMOKE)
    before = {f: (tmp_path / SMOKE / f).read_bytes() for f in ("records.jsonl", "timings.jsonl")}
    code, out, err = divjax(*RUN)
    assert (code, err) == (0, "")
    assert "cell 1" not in out
    said = " ".join(out.split())
    assert f"{SMOKE} is finished already: nothing is run, its report is written again" in said
    assert "move that folder away, or give another with --out" in said
    assert before == {f: (tmp_path / SMOKE / f).read_bytes() for f in before}


@pytest.mark.parametrize("share", [0.36, 0.9])
def test_a_file_cut_anywhere_is_completed(divjax, reference, tmp_path, share):
    shutil.copytree(reference[0], tmp_path / SMOKE)
    path = tmp_path / SMOKE / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    code, _, err = divjax(*RUN)
    assert (code, err) == (0, "")
    assert path.read_bytes() == whole


def test_damage_is_an_error_and_nothing_is_touched(divjax, reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / SMOKE)
    path = tmp_path / SMOKE / "records.jsonl"
    lines = path.read_bytes().splitlines(True)
    damaged = b"".join([*lines[:3], b"garbage\n", *lines[4:]])
    path.write_bytes(damaged)
    code, _, err = divjax(*RUN)
    assert code == 2
    assert "line 4 must be a JSON object" in err
    assert path.read_bytes() == damaged
    path.write_bytes(b"".join(lines[5:]))
    code, _, err = divjax(*RUN)
    assert code == 2
    assert "ended with 10 rows, got 5" in err


def kills(experiments, folder, expected, count, seed):
    """Kills `count` processes at random sizes of the records, then lets one finish."""
    rng = random.Random(seed)
    path = folder / SMOKE / "records.jsonl"
    for _ in range(count):
        process = start(experiments, folder, "--pause", "0.01", "--out", str(folder / SMOKE))
        target = (path.stat().st_size if path.exists() else 0) + rng.randint(1, len(expected) // 3)
        while process.poll() is None and not (path.exists() and path.stat().st_size >= target):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(experiments, folder, "--pause", "0.01", "--out", str(folder / SMOKE))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return path.read_bytes()


def test_kill_9_leaves_the_records_of_an_uninterrupted_run(experiments, reference, tmp_path):
    whole = (reference[0] / "records.jsonl").read_bytes()
    assert kills(experiments, tmp_path, whole, 2, seed=0) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_kills(experiments, reference, tmp_path, seed):
    whole = (reference[0] / "records.jsonl").read_bytes()
    assert kills(experiments, tmp_path, whole, 6, seed) == whole


def test_ctrl_c_is_a_sentence(experiments, reference, tmp_path):
    whole = (reference[0] / "records.jsonl").read_bytes()
    process = start(experiments, tmp_path, "--pause", "0.02", "--out", str(tmp_path / SMOKE))
    path = tmp_path / SMOKE / "records.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size > 500):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    size = path.stat().st_size
    assert whole[:size] == path.read_bytes()
    assert 500 < size < len(whole)


def test_another_config_is_refused(divjax, reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / "here")
    code, _, err = divjax(*RUN, "--out", "here", "--steps", "25")
    assert code == 2
    assert "here belongs to another run" in err
    assert "config.steps: 25 here, 20 stored" in err
    assert "--out" in err
    assert (tmp_path / "here/records.jsonl").read_bytes() == (
        reference[0] / "records.jsonl"
    ).read_bytes()


def test_fresh_overwrites_nothing(divjax, reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / SMOKE)
    code, _, err = divjax(*RUN, "--fresh")
    assert code == 2
    assert "--fresh overwrites nothing; move or delete it, or give another folder" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    code, _, err = divjax(*RUN, "--out", "mine")
    assert code == 2
    assert "no run folder" in err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_refused_folder_is_left_as_it_was(divjax, reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / "here")
    (tmp_path / "here/lock").unlink()
    before = sorted(p.name for p in (tmp_path / "here").iterdir())
    for options in (("--steps", "25"), ("--fresh",)):
        assert divjax(*RUN, "--out", "here", *options)[0] == 2
        assert sorted(p.name for p in (tmp_path / "here").iterdir()) == before


@pytest.mark.parametrize("out", ["file", "file/deeper"])
def test_a_file_is_no_run_folder(divjax, tmp_path, out):
    (tmp_path / "file").write_text("x")
    code, _, err = divjax(*RUN, "--out", out)
    assert code == 2
    assert f"{out} cannot be a run folder" in err
    assert "give another with --out" in err
    assert divjax("report", *RUN[1:], "--out", out)[0] == 2
    assert divjax("verify", *RUN[1:], "--out", out)[0] == 1
    assert (tmp_path / "file").read_text() == "x"


def test_fresh_in_an_empty_place_runs(divjax):
    code, _, err = divjax(*RUN, "--fresh", "--steps", "1")
    assert (code, err) == (0, "")
    assert rows_of(SMOKE.with_name("smoke+steps=1"))[0]["step"] == 1


def test_one_process_at_a_time(divjax, tmp_path):
    (tmp_path / "here").mkdir()
    with (tmp_path / "here/lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        code, _, err = divjax(*RUN, "--out", "here")
    assert code == 2
    assert "another process is running" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "toy_experiment", "--stepz", "3"), "did you mean steps"),
        (("run", "toy_experiment", "--noise.scael", "3"), "did you mean noise.scale"),
        (("run", "toy_experimant"), "did you mean toy_experiment?"),
        (("run", "toy_experiment", "--preset", "cpus"), "did you mean cpu?"),
        (("run", "toy_experiment", "--preset", "smoke", "--preset=cpu"), "given twice: smoke, cpu"),
        (("show", "toy_experiment:cpus"), "did you mean cpu?"),
        (("show", "toy_experimant:cpu"), "did you mean toy_experiment?"),
        (("verify", "toy_experiment:"), "no preset ''; known: smoke, demo, cpu"),
        (("verify", "toy_experiment:smoke", "--preset", "cpu"), "given twice: smoke, cpu"),
        (("report", "toy_experiment:demo+steps=3"), "give the preset demo, and what departs"),
        (("verify", "."), ". is a folder; verify takes the name of an experiment"),
        (("run",), "needs the name of an experiment: divjax run NAME"),
        (("run", "--preset", "smoke"), "needs the name of an experiment"),
        (("run", "--preset", "smoke", "toy_experimant"), "did you mean toy_experiment?"),
        (("run", "--out", "toy_experiment"), "needs the name of an experiment"),
        (("runs",), "did you mean run?"),
        (("verify", "--al"), "needs the name"),
        (("verify", "--all", "--jsn"), "did you mean json"),
        (("verify", "--all", "toy_experiment"), "--all or a name, got both: toy_experiment"),
        (("run", "toy_experiment", "--steps", "0"), "--steps must be at least 1, got 0"),
        (("report", "toy_experiment"), "config.json is missing; run the experiment first"),
    ],
)
def test_wrong_command_lines(divjax, arguments, message):
    code, out, err = divjax(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_version(divjax):
    assert divjax("--version") == (0, f"divjax {version('divjax')}\n", "")


@pytest.mark.parametrize("arguments", [("help",), ("--help",), ("-h",), ("help", "me")])
def test_help(divjax, arguments):
    code, out, err = divjax(*arguments)
    assert (code, err) == (0, "")
    assert "divjax run NAME --preset cpu" in out
    assert "divjax run NAME --help" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_of_that_command(divjax, command):
    code, out, err = divjax(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"divjax {command}: ")
    assert out == divjax("help", command)[1] == divjax(command, "-h", "--json")[1]
    assert max(map(len, out.splitlines())) <= 80


def test_help_of_no_command_is_an_error(divjax):
    assert divjax("runs", "--help")[0] == 2


def test_the_module_of_the_command_runs_too():
    command = [sys.executable, "-m", "divjax.lab.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"divjax {version('divjax')}\n", "")


def test_a_reader_that_has_seen_enough():
    command = f"{sys.executable} -m divjax help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_name_and_preset_in_one_word(divjax, reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / SMOKE)
    shown = divjax("show", "toy_experiment:smoke")[1]
    assert "Cells of the preset smoke" in shown
    assert shown == divjax("show", "--preset", "smoke", "toy_experiment")[1]
    assert divjax("verify", "toy_experiment:smoke")[0] == 0
    (tmp_path / SMOKE / "report.md").unlink()
    assert divjax("report", "toy_experiment:smoke")[0] == 0
    assert (tmp_path / SMOKE / "report.md").exists()
    code, out, _ = divjax("run", "toy_experiment:smoke")
    assert code == 0
    assert "finished already" in out


def test_the_name_may_stand_anywhere(divjax):
    for words in (
        ("--preset", "smoke", "--steps", "1", "toy_experiment"),
        ("--preset=smoke", "toy_experiment", "--steps", "1", "--fresh", "--out", "toy_experiment"),
    ):
        code, _, err = divjax("run", *words)
        assert (code, err) == (0, "")
    assert rows_of(SMOKE.with_name("smoke+steps=1")) == rows_of(Path("toy_experiment"))
    assert "--noise.scale FLOAT" in divjax("run", "--help", "toy_experiment")[1]


def test_help_of_an_experiment_shows_its_config(divjax):
    code, out, _ = divjax(*RUN, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for part in ("--preset {smoke,demo,cpu}", "--noise.scale FLOAT", "default: 20", "--fresh"):
        assert part in out


def test_wrong_type(divjax):
    code, out, err = divjax(*RUN, "--steps", "many")
    assert code == 2
    assert "steps" in out + err
    assert "many" in out + err
    assert not Path("runs").exists()


def test_typed_overrides(divjax):
    code, _, err = divjax(
        *RUN, "--steps", "2", "--lr", "3e-4", "0.5", "--noise.scale", "0.5", "--out", "o"
    )
    assert (code, err) == (0, "")
    config = json.loads(Path("o/config.json").read_text())
    assert config["overrides"] == {"lr": [3e-4, 0.5], "steps": 2, "noise": {"scale": 0.5}}
    assert {row["lr"] for row in rows_of(Path("o")) if "lr" in row} == {3e-4, 0.5}
    text = Path("o/report.md").read_text()
    assert "| steps | 2 | yes |" in text
    assert "Preset `smoke with lr=[0.0003, 0.5], steps=2, noise={'scale': 0.5}`" in text


def test_what_is_not_finite_stops_the_run(divjax):
    code, _, err = divjax(*RUN, "--blow-up", "--out", "o")
    assert code == 1
    assert "cell plain-lr1.0, step 15: info.terms.ce, metrics.ce not finite, seeds 40, 41" in err
    assert "finite up to step 10" in err
    assert [row["step"] for row in rows_of(Path("o"))] == [5, 5, 10, 10]


HOST = dedent(
    """
    from dataclasses import dataclass
    from divjax.lab import *
    @dataclass(frozen=True)
    class Config:
        n: int = 4
    def run(config, cell, run):
        for i in range(config.n):
            yield {"seed": 1, "i": i, "x": %s}
    EXPERIMENT = Experiment(
        name="host", paper="1", claim="c",
        config=Config, presets={"smoke": {}, "demo": {}, "cpu": {}},
        cells=lambda config: [Cell("a", seeds=[1])], run=run,
        analyse=lambda config, rows: Report([stated("x", 1.0, 0.5, 2.0, threshold=0.0)]),
    )
    """
)


def test_rows_without_training_are_replayed_and_compared(divjax, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(tmp_path))
    (tmp_path / "host.py").write_text(HOST % "i * i")
    assert divjax("run", "host", "--out", "o")[0] == 0
    path = tmp_path / "o/records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(True)[:3]) + b'{"cell": "a", "se')
    assert divjax("run", "host", "--out", "o")[0] == 0
    assert path.read_bytes() == whole
    path.write_bytes(b"".join(whole.splitlines(True)[:3]))
    (tmp_path / "host.py").write_text(HOST % "i + 7")
    code, out, err = divjax("run", "host", "--out", "o")
    assert code == 2
    assert "experiment_sha256" in out  # the note: begun with another file
    assert "row 1 comes out different from the one on disk" in err
    assert path.read_bytes() == b"".join(whole.splitlines(True)[:3])
    (tmp_path / "host.py").write_text((HOST % "i * i").replace('"seed": 1, ', ""))
    path.unlink()
    assert "every row needs one of its seeds" in divjax("run", "host", "--out", "o")[2]


def test_a_config_may_hold_nan(divjax, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(tmp_path))
    text = (HOST % "i").replace("n: int = 4", "n: int = 4\n    bound: float = float('nan')")
    text = text.replace('Cell("a", seeds=[1])', 'Cell("a", {"bound": config.bound}, [1])')
    (tmp_path / "host.py").write_text(text)
    command = "run", "host", "--preset", "cpu"
    for words in (command, command, (*command, "--bound", "nan")):  # the same run, three times
        code, _, err = divjax(*words)
        assert (code, err) == (0, "")
    path = tmp_path / "runs/host/cpu/records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(True)[:2]))
    assert divjax(*command)[0] == 0
    assert path.read_bytes() == whole
    assert divjax("report", *command[1:], "--store")[0] == 0
    assert divjax("verify", "host")[0] == 0
    code, _, err = divjax(*command, "--bound", "1", "--out", "runs/host/cpu")
    assert code == 2
    assert "config.bound: 1.0 here, 'NaN' stored" in err


def test_folders_are_named_by_what_is_overridden(experiments, monkeypatch):
    from divjax.lab.experiment import find

    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(experiments))
    toy = find("toy_experiment").experiment
    cpu = toy.preset("cpu")
    assert default_folder(toy, "cpu", cpu) == Path("runs/toy_experiment/cpu")
    assert default_folder(toy, "cpu", toy.config(steps=7)).name == "cpu+steps=7"
    assert default_folder(toy, "cpu", toy.config(lr=(1.0,))).name.startswith("cpu+")


def test_differences_are_told_apart():
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["a[1].b: 2 here, 3 stored"]
    assert differences({"a": 1}, {"b": 1}) == [
        "a: 1 here, 'nothing' stored",
        "b: 'nothing' here, 1 stored",
    ]
    assert differences([1], [1, 2], "x") == ["x: 1 here, 2 stored"]
    assert differences({"a": 1}, {"a": 1}) == []


def test_experiments_that_cannot_work():
    from divjax.lab import Cell

    with pytest.raises(LabError, match="name must match"):
        Cell("../up")
    with pytest.raises(LabError, match="must not be called"):
        Cell("a", {"seed": 1})
