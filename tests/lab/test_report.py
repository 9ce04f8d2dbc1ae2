"""Figures, tables, data and what is imported when."""

import io
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from divjax.lab import LabError, conclude, digits, load, plots, stated, superior
from divjax.lab.progress import duration, watching
from divjax.lab.sheet import number, parts_table

ROWS = [
    {"cell": arm, "arm": arm, "seed": seed, "step": step, "loss": step * (seed + 1) + shift}
    for arm, shift in (("kl", 0.0), ("bd", 5.0))
    for seed in (0, 1, 2)
    for step in (10, 20)
]


def test_learning_curves_show_means_and_t_intervals():
    ax = plots.learning_curves(ROWS, "loss", label="the loss").axes[0]
    kl, bd = ax.lines
    np.testing.assert_array_equal(kl.get_xydata(), [[10, 20], [20, 40]])
    np.testing.assert_array_equal(bd.get_ydata(), [25, 45])
    half = 0.95 / np.sqrt(2 * 0.975 * 0.025) * 10 / np.sqrt(3)  # of 10, 20, 30
    band = ax.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose(band.ymin, min(20 - half, 40 - 2 * half), rtol=1e-9)
    assert ax.get_ylabel() == "the loss"


def test_curves_with_gaps_and_divergence():
    rows = [*ROWS, {"cell": "kl", "arm": "kl", "seed": 9, "step": 20, "loss": np.nan}]
    kl = plots.learning_curves(rows, "loss").axes[0].lines[0]
    np.testing.assert_array_equal(kl.get_ydata(), [20, 40])


def test_intervals_mark_zero_threshold_and_seeds():
    part = superior("x", {1: 3.0, 2: 5.0}, {1: 0.0, 2: 1.0}, margin=0.5)
    ax = plots.intervals([part, stated("y", 0.0, 0.0, 0.0, threshold=0.0)]).axes[0]
    drawn = [line.get_xdata() for line in ax.lines]
    np.testing.assert_array_equal(drawn[0], [0, 0])
    np.testing.assert_array_equal(drawn[1], [0.5, 0.5])
    np.testing.assert_array_equal(drawn[2], [3, 4])
    np.testing.assert_array_equal(drawn[3], [part.low, part.high])
    left, right = ax.get_xlim()
    assert left < part.low < part.high < right


def test_one_seed_can_be_drawn():
    part = superior("x", {1: 3.0}, {1: 0.0}, margin=0.0)
    assert plots.save(plots.intervals([part]), "png")[:4] == b"\x89PNG"
    assert parts_table([part]).lines[0][3] == "[−∞, ∞]"


def test_groups_and_reliability():
    ax = plots.by_arm(ROWS, "loss").axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["kl", "bd"]
    figure = plots.reliability({"a": [0.1, 0.9]}, {"a": [0.2, 0.8]}, {"a": [0, 10]})
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_xydata(), [[0.9, 0.8]])


def test_pictures_are_the_same_bytes_each_time():
    for kind in ("svg", "png"):
        one, two = (plots.save(plots.by_arm(ROWS, "loss"), kind) for _ in range(2))
        assert one == two


def test_numbers():
    assert [number(x) for x in (-0.000123456, 1e9, 0.0, float("-inf"))] == [
        "−0.0001235", "1e+09", "0", "−∞",
    ]  # fmt: skip
    assert [duration(s) for s in (0.04, 59.9, 200, 7500)] == [
        "0.0 s", "1 min 00 s", "3 min 20 s", "2 h 05 min",
    ]  # fmt: skip
    line = parts_table([stated("x", 0.5, 0.25, 0.75, threshold=0.1)]).lines[0]
    assert line == ("x", "reproduced", "+0.500", "[+0.250, +0.750]", "yes", "0.1")
    assert parts_table([stated("x", 0.1, -0.1, 0.3, threshold=-0.2)]).lines[0][4] == "no"


@pytest.mark.parametrize(
    ("low", "high", "side"),
    [(0.25, 0.75, "above it"), (-0.75, -0.5, "below it"), (0.0, 0.2, "around it")],
)
def test_a_run_too_small_to_decide_says_what_it_sees(low, high, side):
    part = stated("x", (low + high) / 2, low, high, threshold=0.1)
    other = stated("y", 1.0, 0.5, 2.0, threshold=0.1)
    table = parts_table(conclude([part, other], preset="demo").parts)
    assert table.columns[5:] == ["must exceed", "in this run"]
    assert [line[1] for line in table.lines] == ["inconclusive"] * 2
    assert [line[5:] for line in table.lines] == [("0.1", side), ("0.1", "above it")]
    decided = parts_table(conclude([part, other], preset="cpu").parts)
    assert "in this run" not in decided.columns


def test_a_terminal_gets_a_bar_with_speed_and_time():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, highlight=False)
    with watching(console, total=4, done=1) as watcher:
        watcher.begin("bd2-lr0.003")
        for step in range(1, 41):
            watcher.step(step, 200)
            time.sleep(0.005)
        time.sleep(0.6)
        watcher.step(41, 200)
        time.sleep(0.3)
        watcher.end("bd2-lr0.003", 1.0, 41)
    shown = screen.getvalue()
    for part in ("cells", "bd2-lr0.003", "41/200", "1/4", "2/4", "steps/s", "ETA"):
        assert part in shown


@pytest.mark.parametrize("width", [60, 80])
def test_a_bar_breaks_no_line_and_keeps_both_ends_of_a_name(width):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, highlight=False)
    with watching(console, total=42, done=39) as watcher:
        watcher.begin("pilot-debiased0.1-rate0.003")
        for step in (1, 2, 3):
            watcher.step(step, 90_000)
            time.sleep(0.3)
    lines = [re.sub(r"\x1b\[[\d;?]*\w", "", x) for x in re.split(r"[\r\n]+", screen.getvalue())]
    shown = [line for line in lines if line.strip()]
    assert any("steps/s  ETA" in line for line in shown)
    assert all(line.startswith(("cells", "pilot-deb…-rate0.003 ")) for line in shown)


def test_digits_are_real_and_named_by_their_hash():
    data = digits()
    assert data.inputs.dtype == np.float32
    assert data.inputs.shape == (1797, 64)
    assert data.labels.shape == (1797,)
    assert set(data.labels) == set(range(10))
    assert data.provenance.real
    assert data.provenance.sha256 == (
        "cf7e26e57b05ca0df6c8c74907284c3304259880cb7ebc523919b068a1ba6454"
    )
    with pytest.raises(ValueError, match="read-only"):
        data.inputs[0, 0] = 1.0


def test_files_are_found_or_named(tmp_path, monkeypatch):
    source = "https://example.org/three.txt"

    def read(name, **options):
        return load(name, lambda path: path.read_text(), source=source, **options)

    monkeypatch.delenv("DIVJAX_DATA", raising=False)
    with pytest.raises(LabError, match=r"set DIVJAX_DATA .*source: https://example.org/three"):
        read("three.txt")
    monkeypatch.setenv("DIVJAX_DATA", str(tmp_path))
    with pytest.raises(LabError, match=r"does not exist; get it from https://example.org/three"):
        read("three.txt")
    (tmp_path / "three.txt").write_text("abc")
    for options in ({}, {"path": tmp_path}, {"path": tmp_path / "three.txt"}):
        text, provenance = read("three.txt", **options)
        assert text == "abc"
        assert provenance.sha256 == (
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        )
        assert provenance.source == source


def test_the_room_is_light_until_it_is_used():
    heavy = "tyro", "rich", "matplotlib", "pandas", "sklearn", "orbax", "flax", "optax"
    code = f"import sys, divjax.lab; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['tyro'] = None\n"
        "from divjax.lab.cli import main; raise SystemExit(main(['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'divjax[lab]'" in done.stderr
