"""What a person sees in a narrow terminal."""

import contextlib
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from divjax.lab.sheet import Table
from divjax.lab.terminal import show_checks, show_list, show_table, side_by_side


def test_a_wide_table_becomes_several_that_fit_and_keep_the_first_column():
    table = Table(["arm", "accuracy", "error", "score"], [["forward", "0.85 ± 0.06", "0.3", "1"]])
    assert side_by_side(table, 200) == [table]
    parts = side_by_side(table, 30)
    assert [list(p.columns) for p in parts] == [["arm", "accuracy"], ["arm", "error", "score"]]
    assert parts[1].lines == [["forward", "0.3", "1"]]
    assert all(p.columns[0] == "arm" for p in side_by_side(table, 1))


ROW = {
    "name": "toy_experiment",
    "paper": "0000.00000",
    "claim": "Weight decay lowers the calibration error of softmax regression.",
    "status": "inconclusive",
    "verify": "mismatch",
    "preset": "cpu",
    "figures": {"error lower": {"estimate": 0.5}},
    "problems": ["config.steps: 120 here, 60 stored"],
}


@pytest.mark.parametrize("width", [20, 40, 60, 80])
@pytest.mark.parametrize("show", [show_list, show_checks])
def test_every_width_shows_whole_words(show, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show([ROW])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    words = set(shown.split())
    assert {"toy_experiment", "inconclusive"} <= words
    if show is show_list:
        assert {*ROW["claim"].split(), ROW["paper"]} <= words
    else:
        assert {"mismatch", "config.steps:"} <= words


def test_a_table_that_fits_no_width_is_stacked(capsys):
    table = Table(["arm", "calibration error"], [["forward", "0.85 ± 0.06"], ["reverse", "1"]])
    show_table(Console(width=20), table, "Test")
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "Test", "forward", "  calibration error:", "  0.85 ± 0.06", "reverse",
        "  calibration error:", "  1", "",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [("list",), ("run", "toy_experiment", "--steps", "x")])
def test_no_color_means_none(experiments, tmp_path, words):
    """In a real terminal: bold and dim may stay, no colour is left."""
    seen = {}
    for value in ("", "1"):
        environment = {
            **os.environ, "DIVJAX_EXPERIMENTS": str(experiments), "TERM": "xterm-256color",
            "NO_COLOR": value, "COLUMNS": "80",
        }  # fmt: skip
        screen, side = pty.openpty()
        command = [sys.executable, "-m", "divjax", *words]
        with subprocess.Popen(command, stdout=side, stderr=side, env=environment, cwd=tmp_path):
            os.close(side)
            shown = b""
            with contextlib.suppress(OSError):  # the other side is closed
                while part := os.read(screen, 4096):
                    shown += part
        os.close(screen)
        codes = [int(c) for m in re.findall(rb"\x1b\[([\d;]*)m", shown) for c in m.split(b";") if c]
        seen[value] = [c for c in codes if 30 <= c <= 49 or 90 <= c <= 107]
    assert not seen["1"]
    assert seen[""] or words == ("list",)
