"""`divjax verify` on stored results, whole and with every kind of damage."""

import json
import shutil

import pytest

from divjax.lab.records import sha256


@pytest.fixture(scope="module")
def stored(experiments, tmp_path_factory):
    """A folder of experiments with the stored cpu results of the toy."""
    from divjax.lab.cli import main

    folder = tmp_path_factory.mktemp("stored")
    shutil.copy(experiments / "toy_experiment.py", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIVJAX_EXPERIMENTS", str(folder))
        patch.chdir(tmp_path_factory.mktemp("run"))
        assert main(["run", "toy_experiment", "--preset", "cpu"]) == 0
        assert main(["report", "toy_experiment", "--preset", "cpu", "--store"]) == 0
    return folder


@pytest.fixture
def results(divjax, stored, tmp_path, monkeypatch):
    """A copy that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(stored, folder)
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(folder))
    return folder / "results" / "toy_experiment"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def forge(results, lines):
    """Changes the records, and the hash in the verdict with them."""
    content = b"".join(lines)
    (results / "records.jsonl").write_bytes(content)
    edit(results / "verdict.json", lambda v: v.update(records_sha256=sha256(content)))


def lines_of(results):
    return (results / "records.jsonl").read_bytes().splitlines(True)


def test_stored_results_match(divjax, results):
    files = {path.name for path in results.iterdir()}
    assert files == {
        "records.jsonl", "verdict.json", "config.json", "environment.json", "report.md", "figures",
    }  # fmt: skip
    code, out, err = divjax("verify", "toy_experiment")
    assert (code, err) == (0, "")
    assert "match" in out
    code, out, _ = divjax("verify", "--all", "--json")
    row = json.loads(out)
    assert (code, row["verify"], row["problems"]) == (0, "match", [])
    assert {"name", "paper", "claim", "preset", "status", "figures"} < set(row)
    assert row["preset"] == "cpu"
    code, out, _ = divjax("list", "--json")
    assert json.loads(out) == {k: v for k, v in row.items() if k not in ("verify", "problems")}


def mismatch(divjax, expected):
    code, out, err = divjax("verify", "--all", "--json")
    row = json.loads(out)
    assert (code, row["verify"], err) == (1, "mismatch", "")
    assert any(expected in problem for problem in row["problems"]), row["problems"]
    code, out, _ = divjax("verify", "toy_experiment")
    assert code == 1
    assert "mismatch" in out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v.update(status="reproduced"), "status: '"),
        (lambda v: v.update(claim="Water is wet."), "claim: '"),
        (lambda v: v["parts"][0].update(low=0.5), "parts[0].low"),
        (lambda v: v["parts"][1].update(threshold=-1.0), "parts[1].threshold: -0.01 here"),
        (lambda v: v["parts"].pop(), "parts: 2 here, 1 stored"),
        (lambda v: v["parts"][0]["differences"].pop("40"), "differences.40"),
    ],
)
def test_an_edited_verdict(divjax, results, change, expected):
    edit(results / "verdict.json", change)
    mismatch(divjax, expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["config"].update(steps=60), "config.steps: 120 here, 60 stored"),
        (lambda c: c.update(preset="demo"), "preset: 'cpu' here"),
        (lambda c: c.update(paper="1"), "paper: '0000.00000' here"),
        (lambda c: c["cells"][0]["seeds"].pop(), "cells[0].seeds: 6 here, 5 stored"),
        (lambda c: c["data"][0].update(sha256="0" * 64), "data[0].sha256"),
        (lambda c: c["data"][0].update(real=False), "data[0].real: True here"),
    ],
)
def test_an_edited_config(divjax, results, change, expected):
    edit(results / "config.json", change)
    mismatch(divjax, expected)


def test_an_edited_experiment(divjax, results):
    file = results.parent.parent / "toy_experiment.py"
    text = file.read_text()
    file.write_text(text.replace("margin=0.01", "margin=0.1"))
    mismatch(divjax, "parts[1].threshold: -0.1 here, -0.01 stored")
    file.write_text(text.replace("Weight decay lowers", "Weight decay never raises"))
    mismatch(divjax, "claim: 'Weight decay never raises")
    file.write_text(text.replace("range(40, 40 +", "range(41, 41 +"))
    mismatch(divjax, "lacks seeds [46]")


def test_an_edited_row(divjax, results):
    lines = lines_of(results)
    row = json.loads(lines[0])
    lines[0] = json.dumps({**row, "accuracy": 0.99}).encode() + b"\n"
    (results / "records.jsonl").write_bytes(b"".join(lines))
    mismatch(divjax, "records_sha256")  # no figure of the verdict moved, its records did
    lines = [
        json.dumps({**json.loads(line), "test_ece": 0.0}).encode() + b"\n"
        if b"test_ece" in line and b'"decay"' in line
        else line
        for line in lines
    ]
    forge(results, lines)
    mismatch(divjax, "parts[0].estimate")


def test_lost_and_doubled_rows(divjax, results):
    whole = lines_of(results)
    ends = [i for i, line in enumerate(whole) if b'"end"' in line]
    forge(results, whole[: ends[-2] + 1])
    mismatch(divjax, "cell flat-lr1.0 is missing or not finished")
    forge(results, whole[:-1])
    mismatch(divjax, "cell flat-lr1.0 is missing or not finished")
    forge(results, [whole[0], *whole])
    mismatch(divjax, "ended with 42 rows, got 43")

    def recount(lines, change):
        end = json.loads(whole[ends[0]])
        return [
            json.dumps({**end, "end": end["end"] + change}).encode() + b"\n"
            if line == whole[ends[0]]
            else line
            for line in lines
        ]

    forge(results, recount([whole[0], *whole], 1))
    mismatch(divjax, "cell plain-lr0.3 has duplicate rows")
    without = [x for i, x in enumerate(whole) if i > ends[0] or b'"seed": 42' not in x]
    forge(results, recount(without, len(without) - len(whole)))
    mismatch(divjax, "cell plain-lr0.3 lacks seeds [42]")
    forge(results, [*whole[:-1], whole[-1][:-1]])
    mismatch(divjax, "not finished")


def test_missing_files(divjax, results):
    (results / "config.json").unlink()
    mismatch(divjax, "config.json is missing")
    (results / "verdict.json").write_text("no json")
    mismatch(divjax, "verdict.json is not JSON")
    shutil.rmtree(results)
    code, out, _ = divjax("verify", "--all", "--json")
    row = json.loads(out)
    assert (code, row["verify"], row["status"]) == (0, "nothing stored", "nothing stored")
    assert divjax("verify", "toy_experiment")[0] == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"parts": [{}]}, "verdict.json: it lacks name, paper"),
        ([], "verdict.json must hold a JSON object"),
        ("NaN", "verdict.json must hold a JSON object"),
        ({"parts": 3}, "parts must be a list, got 3"),
        ({"parts": [3]}, "parts[0] must be an object, got 3"),
        ({"parts": [{}]}, "parts[0] lacks name, estimate"),
        (
            {"status": "splendid"},
            "status must be reproduced, contradicted, inconclusive or beside the verdict",
        ),
        ({"claim": None}, "claim must be text, got None"),
        ({"estimate": "0.5"}, "parts[0].estimate must be a number, got '0.5'"),
        ({"low": True}, "parts[0].low must be a number, got True"),
        ({"high": 10**400}, "parts[0].high must be a number"),
        ({"differences": [1, 2]}, "parts[0].differences must be an object, got"),
        ({"differences": {"40": "x"}}, "parts[0].differences.40 must be a number, got 'x'"),
    ],
)
def test_a_verdict_of_another_shape(divjax, results, content, expected):
    path = results / "verdict.json"
    if "it lacks" in expected or "JSON object" in expected:
        path.write_text(json.dumps(content))
    else:
        whole = json.loads(path.read_text())
        part = set(content) <= set(whole["parts"][0]) - {"status"}
        (whole["parts"][0] if part else whole).update(content)
        path.write_text(json.dumps(whole))
    mismatch(divjax, expected)
    code, out, err = divjax("list", "--json")
    assert (code, json.loads(out)["status"], err) == (0, "unreadable", "")
    code, out, err = divjax("show", "toy_experiment")
    assert (code, err) == (0, "")
    assert "cpu verdict: unreadable" in out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(cells=3), "config.json: cells must be a list, got 3"),
        (lambda c: c.update(data=3), "config.json: data must be a list, got 3"),
        (lambda c: c.pop("config"), "config.json: it lacks config"),
        (lambda c: c["cells"][0].update(seeds=["x"]), "cells[0].seeds[0] must be a number"),
    ],
)
def test_a_config_of_another_shape(divjax, results, change, expected):
    edit(results / "config.json", change)
    mismatch(divjax, expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"cell": ["a"], "end": 0}', "line 2 must be a JSON object with the name of a cell"),
        (b'{"cell": "plain-lr0.3", "end": "42"}', "line 2 must end its cell with a count"),
        (b'{"cell": "plain-lr0.3", "end": 1, "x": 1}', "line 2 must end its cell with a count"),
        (b'{"cell": "plain-lr0.3", "end": 1}', "records.jsonl: line 3: rows of cell 'plain-lr0.3'"),
        (b'{"cell": "plain-lr0.3", "seed": [1]}', "line 2 must have a number as seed"),
        (b'{"cell": "plain-lr0.3", "arm": "plain"}', "line 2: seed None is not one of cell plain"),
        (None, "line 2: not the settings of cell plain-lr0.3"),
    ],
)
def test_a_line_that_is_no_row_of_its_cell(divjax, results, line, expected):
    lines = lines_of(results)
    row = json.loads(lines[1])
    del row["arm"]
    forge(results, [lines[0], (line or json.dumps(row).encode()) + b"\n", *lines[2:]])
    mismatch(divjax, expected)


def test_what_analyse_cannot_read(divjax, results):
    """Rows of the right cells and seeds, without what the experiment looks for."""
    lines = [line.replace(b'"test_ece": 0.', b'"test_ecf": 0.', 1) for line in lines_of(results)]
    forge(results, lines)
    mismatch(divjax, "no row has the metric 'test_ece'")
    lines = lines_of(results)
    last = max(i for i, line in enumerate(lines) if b"test_ecf" in line and b'"decay"' in line)
    lines = [x if i == last else x.replace(b"test_ecf", b"test_ece") for i, x in enumerate(lines)]
    forge(results, lines)
    mismatch(divjax, "toy_experiment.py, line ")


def test_a_mismatch_says_what_to_do_in_lines_that_fit(divjax, results):
    edit(results / "verdict.json", lambda v: v.update(claim="water is wet " * 30))
    code, out, _ = divjax("verify", "toy_experiment")
    assert code == 1
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    assert "What to do: restore the stored files (git), or, where the experiment was" in said
    assert "divjax report toy_experiment --preset cpu --store" in said
    assert said.count("water is wet") < 20  # a long value is cut


def test_verify_all_shows_what_has_no_results(divjax, results, tmp_path, monkeypatch):
    shutil.rmtree(results)
    code, out, _ = divjax("verify", "--all")
    assert code == 0
    assert "nothing stored" in out
    assert "no results to verify: toy_experiment" in " ".join(out.split())
    (results.parent / "toy_experiment").mkdir()
    (results / "report.md").write_text("left over")
    mismatch(divjax, "verdict.json is missing")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(tmp_path / "empty"))
    code, out, err = divjax("verify", "--all", "--json")
    assert (code, out) == (2, "")
    assert "no experiments in" in err


def test_small_and_overridden_runs_are_not_stored(divjax, stored, monkeypatch):
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(stored))
    for options in (("--preset", "smoke"), ("--preset", "cpu", "--steps", "1")):
        code, _, err = divjax("report", "toy_experiment", *options, "--store")
        assert code == 2
        assert "neither smoke nor demo, without overrides" in err


def test_the_stored_verdict_is_beside_a_small_one(divjax, stored, monkeypatch, tmp_path):
    monkeypatch.setenv("DIVJAX_EXPERIMENTS", str(stored))
    verdict = json.loads((stored / "results/toy_experiment/verdict.json").read_text())
    code, out, _ = divjax("run", "toy_experiment", "--preset", "smoke", "--out", "o")
    assert code == 0
    said = f"The stored cpu run says: {verdict['status']} ({verdict['reason']})."
    assert said in " ".join(out.split())
    assert said in (tmp_path / "o/report.md").read_text()
    assert "The stored cpu run says:" in (tmp_path / "o/report.html").read_text()
    code, out, _ = divjax("show", "toy_experiment")
    assert code == 0
    assert f"cpu verdict: {verdict['status']}" in out
    assert "real data: digits" in out
    code, out, _ = divjax("list")
    assert verdict["status"] in out
    assert max(map(len, out.splitlines())) <= 80
