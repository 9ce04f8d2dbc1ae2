"""Presets on other data than the claim's: stored beside the verdict, checked, and never one."""

import dataclasses
import json

import pytest

from divjax.lab import Experiment, LabError, conclude, stated

TEXT = """
from dataclasses import dataclass
from divjax.lab import Cell, Experiment, Report, by_seed, superior

@dataclass(frozen=True)
class Config:
    gain: float = 1.0

def cells(config):
    return [Cell(arm, {"arm": arm}, range(3)) for arm in ("old", "new")]

def run(config, cell, run):
    gain = config.gain * (cell.settings["arm"] == "new")
    yield from run.rows({"score": [gain + 0.01 * s * gain for s in cell.seeds]})

def analyse(config, records):
    score = by_seed(records, "score", by="arm")
    return Report([superior("new higher", score["new"], score["old"], margin=0.5)])

EXPERIMENT = Experiment(
    name="host", paper="0000.00000", claim="On numbers, new is higher.", config=Config,
    presets={"smoke": {}, "demo": {}, "cpu": {}, "letters": {"gain": 0.1}, "signs": {"gain": 2.0}},
    cells=cells, run=run, analyse=analyse,
    beside={"letters": "The same on letters.", "signs": "The same on signs."})
"""


@pytest.fixture
def host(divjax, tmp_path, monkeypatch):
    """The folder of its results, with those of cpu and of one preset on other data."""
    (tmp_path / "host.py").write_text(TEXT)
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(tmp_path))
    for preset in ("letters", "cpu"):
        assert divjax("run", "host", "--preset", preset)[0] == 0
        assert divjax("report", "host", "--preset", preset, "--store")[0] == 0
    return tmp_path / "results" / "host"


def test_figures_on_other_data_are_no_verdict():
    parts = [stated("a", 1.0, 0.5, 1.5, threshold=0.0), stated("b", 0.0, -1.0, 1.0, threshold=0.0)]
    verdict = conclude(parts, preset="letters", beside=True)
    assert verdict.status == "beside the verdict"
    assert [part.status for part in verdict.parts] == ["reproduced", "inconclusive"]


def test_both_are_stored_apart_and_the_list_has_the_verdict_alone(divjax, host):
    cpu, other = (json.loads((p / "verdict.json").read_text()) for p in (host, host / "letters"))
    assert (cpu["status"], cpu["claim"]) == ("reproduced", "On numbers, new is higher.")
    assert (other["status"], other["claim"]) == ("beside the verdict", "The same on letters.")
    assert "another data set, 3 seeds" in other["reason"]
    assert [part["status"] for part in other["parts"]] == ["contradicted"]
    row = json.loads(divjax("list", "--json")[1])
    assert (row["preset"], row["status"]) == ("cpu", "reproduced")


def test_reports_say_what_they_are(divjax, host):
    cpu, other = ((p / "report.md").read_text() for p in (host, host / "letters"))
    assert "## The same on other images" in cpu
    # Differences 0.1, 0.101, 0.102: 0.101 -+ 4.3027 * 0.001 / sqrt(3).
    assert "| new higher | letters | +0.10100 | [+0.09852, +0.10348] | 0.5 |" in cpu
    assert other.startswith(
        "# host on letters: beside the verdict\n\nBeside the claim ([arXiv 0000.00000]"
    )
    assert "The same on letters." in other
    assert "On numbers" not in other
    assert "The same on other images" not in other
    page = (host.parents[1] / "runs/host/letters/report.html").read_text()
    assert '<div class="verdict beside the verdict"><strong>Beside the verdict</strong>' in page
    code, out, _ = divjax("report", "host", "--preset", "letters")
    assert code == 0
    assert "beside the verdict: figures on another data set" in out
    assert "The stored cpu run says: reproduced" in out


def test_verify_checks_both(divjax, host):
    code, out, _ = divjax("verify", "--all", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [(r["preset"], r["verify"]) for r in rows]) == (
        0,
        [("cpu", "match"), ("letters", "match")],
    )
    path = host / "letters" / "verdict.json"
    path.write_text(path.read_text().replace("beside the verdict", "reproduced"))
    assert divjax("verify", "host")[0] == 0
    for words in (("--all",), ("host", "--preset", "letters")):
        code, out, _ = divjax("verify", *words)
        assert (code, "host:letters" in out) == (1, True)
        assert "status: 'beside the verdict' here, 'reproduced' stored" in " ".join(out.split())
        assert "--preset letters --store" in " ".join(out.split())


def test_a_preset_that_is_not_stored_is_verified_where_it_ran(divjax, host):
    assert divjax("verify", "host", "--preset", "signs")[0] == 1  # nothing there
    assert divjax("run", "host", "--preset", "signs")[0] == 0
    assert divjax("verify", "host", "--preset", "signs")[0] == 0
    assert not (host / "signs").exists()


def test_an_overridden_run_on_other_data_is_not_stored(divjax, host):
    code, _, err = divjax("report", "host", "--preset", "letters", "--gain", "3", "--store")
    assert (code, "without overrides" in err) == (2, True)


@pytest.mark.parametrize("name", ["cpu", "nosuch"])
def test_only_presets_on_other_data_stand_beside(name):
    with pytest.raises(LabError, match="name presets of other data"):
        Experiment(
            "x", "1", "c", dataclasses.make_dataclass("Config", []),
            {"smoke": {}, "demo": {}, "cpu": {}}, list, list, list, beside={name: "x"})  # fmt: skip
