"""What the documentation site shows is what the code has: names, docstrings, papers, benchmarks."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import pytest
from test_docs import ROOT, blocks

sys.path.insert(0, str(ROOT / "tests" / "architecture"))

import docstrings
import papers
import site_pages
import symbols
import timings
import weigh
from test_architecture import public

from divjax.divergences import generators
from divjax.lab import verdict

PAGES = {page: groups for page, groups in symbols.markers().items() if groups}


def shown(page):
    return [s for number in range(len(PAGES[page])) for s in symbols.shown(page, number)]


def test_every_public_name_is_on_one_page():
    places = {}
    for page in PAGES:
        for s in shown(page):
            for name in (s.name, *s.aliases):
                places.setdefault(name, []).append(page)
    twice = {name: pages for name, pages in places.items() if len(pages) > 1}
    missing = set(public()) - set(places)
    assert not twice
    assert not missing, "docs/api needs a page whose marker names their module"


def test_a_new_function_needs_no_edit():
    """Modules that no marker names fall to the page of their room."""
    assert symbols.owner("divergences.something_new")[0] == "api/divergences"
    assert symbols.owner("train.something_new")[0] == "api/train"
    assert symbols.owner("divergences.gaussian")[0] == "api/gaussian"
    assert symbols.owner("no_such_room") is None


def test_records_types_and_constants_are_shown():
    names = {s.name: s for s in symbols.everything() if s.kind == "data"}
    constants = [g.name for g in generators.ALL if vars(generators).get(g.name) is g]
    assert len(constants) >= 8
    assert {f"divergences.generators.{name}" for name in constants} <= set(names)
    assert {"losses.FromLogits", "divergences.generators.ALL"} <= set(names)
    assert names["divergences.generators.kl"].doc.startswith("KL(p || q)")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_lists_and_documents_its_names(page):
    text = site_pages.with_symbols(page, (ROOT / "docs" / f"{page}.md").read_text())
    assert "<!-- symbols" not in text
    for s in shown(page):
        short = s.name.rpartition(".")[2]
        assert f":py:obj:`{short} <divjax.{s.name}>`" in text
        kind = {"function": "autofunction", "class": "autoclass"}.get(s.kind)
        entry = f".. {kind}:: divjax.{s.name}\n" if kind else f".. py:data:: {short}\n"
        assert text.count(entry) == 1
    assert len(re.split(r"\n\n|<!--", text)[1].split()) > 20, "say when to use what of it"


def test_a_docstring_keeps_what_it_says():
    text = """KL(p || q) of `kl`, arXiv 1503.02531, shape [*E, K]; x_ * y.

        formula * x_

    Args:
        log_p: [*E, K] first; see `no_such_name`.
        where: bool [*E, K],
            as there.
        flag: a switch: on or off.

    Returns:
        [*E], >= 0.

    Raises:
        ValueError: never.

    Example:
        >>> 1 * 1
        1
    """
    lines = re.sub(r"^    ", "", text, flags=re.M).split("\n")
    out = "\n".join(docstrings.to_rst(lines, "divergences"))
    assert r"KL(p \|\| q) of :py:obj:`kl <divjax.divergences.kl>`" in out
    assert "`arXiv 1503.02531 <https://arxiv.org/abs/1503.02531>`__" in out
    assert r"shape ``[*E, K]``; x\_ \* y." in out
    assert "   :class: formula\n\n   formula * x_\n" in out
    assert "   * - ``log_p``\n     - ``[*E, K]``\n     - first; see ``no_such_name``.\n" in out
    assert "   * - ``where``\n     - ``bool [*E, K]``\n     - as there.\n" in out
    assert "   * - ``flag``\n     -\n     - a switch: on or off.\n" in out
    assert ".. rubric:: Returns\n" in out
    assert "   * - ``[*E]``\n     - >= 0.\n" in out
    assert "   >>> 1 * 1\n   1\n" in out


def test_every_docstring_of_the_code_can_be_shown():
    for s in symbols.everything():
        out = "\n".join(docstrings.to_rst(s.doc.split("\n"), s.name.rpartition(".")[0]))
        assert len(out) >= len(s.first), s.name
        for section in re.findall(r"^(\w+):$", s.doc, re.M):
            assert section in docstrings.SECTIONS, f"{s.name}: {section}"


def test_code_in_text_is_linked_where_it_is_unambiguous():
    assert symbols.mentioned("kl") == "divergences.kl"
    assert symbols.mentioned("js(weight=...)") == "divergences.js"
    assert symbols.mentioned("gaussian.kl(p, q)") == "divergences.gaussian.kl"
    assert symbols.mentioned("train.make_step") == "train.make_step"
    assert symbols.mentioned("frozen") is None  # a word of other meanings outside its room
    assert symbols.mentioned("f(p, q)") is None


def rows(text):
    """The cells of the lines of markdown tables, without their heads."""
    lines = re.findall(r"^\| (.*) \|$", text, re.M)
    heads = {i - 1 for i, line in enumerate(lines) if line.startswith("---")}
    kept = [line for i, line in enumerate(lines) if i not in heads and not line.startswith("---")]
    return [re.split(r" \| ", line) for line in kept]


CHOICES = rows((ROOT / "docs" / "choosing.md").read_text())


@pytest.fixture(scope="module")
def scope():
    (setup,) = blocks(ROOT / "docs" / "choosing.md")
    names = {}
    exec(setup, names)
    return names


@pytest.mark.parametrize("row", CHOICES, ids=lambda row: row[1][:60])
def test_every_choice_runs(row, scope):
    _, take, careful = row
    assert careful
    line = take.strip("`")
    leaves = jax.tree.leaves(jax.jit(lambda: eval(line, dict(scope)))())  # one compilation a line
    assert leaves
    assert all(jnp.isfinite(jnp.asarray(leaf)).all() for leaf in leaves)


def test_the_first_example_runs():
    (code,) = blocks(ROOT / "docs" / "index.md")
    names = {}
    exec(code, names)
    assert float(names["value"]) > 0
    assert jnp.isfinite(names["gradient"]).all()
    assert float(names["gradient"][2]) == 0.0


def test_papers_are_those_of_the_experiments_with_their_stored_figures():
    text = (ROOT / "docs" / "papers.md").read_text()
    files = sorted((ROOT / "experiments").glob("[!_]*.py"))
    assert re.findall(r"^## (\S+)$", text, re.M) == [file.stem for file in files]
    for file in files:
        section = text.split(f"## {file.stem}\n")[1].split("\n## ")[0]
        stored = ROOT / "experiments" / "results" / file.stem / "verdict.json"
        if not stored.exists():
            assert "nothing stored" in section
            continue
        held = json.loads(stored.read_text())
        assert f"**{held['status']}**: " in section
        assert held["claim"] in section
        assert held["paper"] in section
        for part in held["parts"]:
            low, high = (f"{part[k]:+.4f}" for k in ("low", "high"))
            line = (
                f"| {part['name']} | {part['status']} | {part['estimate']:+.4f} | [{low}, {high}]"
            )
            assert line in section
        for other in sorted(stored.parent.glob("*/verdict.json")):
            assert "figures beside the verdict" in section
            for part in json.loads(other.read_text())["parts"]:
                link = f"[{other.parent.name}](../experiments/results/{file.stem}/"
                line = f"| {part['name']} | {link}{other.parent.name}/report.md) | "
                assert f"{line}{part['estimate']:+.4f} | " in section


def test_the_names_that_an_experiment_uses(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "from divjax.divergences import generators as g, kl\nfrom divjax.lab import Cell\n"
        "from divjax.recipes import kd\nimport jax\nkd.offline(g.js(0.5), jax.grad)\n"
    )
    assert papers.uses(file) == [
        "divergences.generators.js",
        "divergences.kl",
        "recipes.kd.offline",
    ]


def test_citations_are_read_from_the_docstrings():
    found = {line[0]: line for line in papers.citations()}
    _, who, names = found[papers.link("1503.02531")]
    assert who == "Hinton, Vinyals and Dean"
    assert "`losses.temperature_kd`" in names
    cited = {x for s in symbols.everything() for x in re.findall(r"arXiv (\d{4}\.\d+)", s.doc)}
    assert set(found) == {papers.link(paper) for paper in cited}


def test_benchmarks_hide_nothing():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        section = text.split(f"## {file.stem}\n")[1].split("\n## ")[0]
        run = json.loads(file.read_text())
        lines = rows(section)
        failed = 0
        for row in run["rows"]:
            assert row["variant"] in section
            assert row["note"] in section
            for limit in row["limits"]:
                failed += limit["status"] != "pass"
                (line,) = [x for x in lines if x[:2] == [row["variant"], limit["what"]]]
                assert f"<= {limit['bound']:g}" in line[3 if limit["must"] else 4]
                assert (limit["status"] == "pass") == ("pass" in line[3 if limit["must"] else 4])
        assert section.count("**FAIL**") + section.count("**OPEN**") == failed


def test_a_failed_must_and_a_missing_peer_are_said():
    limit = {"what": "time", "value": 2.0, "bound": 1.0, "must": True, "status": "fail"}
    missing = {**limit, "value": None, "what": "other", "status": "open", "must": False}
    run = {"rows": [{"variant": "v", "limits": [limit, missing]}]}
    assert timings.limit_rows(run) == [
        ["v", "time", "2", "<= 1, **FAIL**", ""],
        ["v", "other", "not measured", "", "<= 1, **OPEN**"],
    ]
    assert timings.missed(run) == ["must time <= 1: v 2", "goal other <= 1: v not measured"]


def test_links_lead_outside_on_github_and_to_pages_on_the_site():
    text = "[a](../experiments/pld.py) [b](../experiments/results/pld/report.md) [c](x.md)"
    assert site_pages.with_site_links("papers", text) == (
        "[a](reports/pld.md#the-experiment-file) [b](reports/pld.md) [c](x.md)"
    )
    other = "[b](../experiments/results/pld/cifar10/report.md)"
    assert site_pages.with_site_links("papers", other) == "[b](reports/pld-cifar10.md)"
    inner = site_pages.with_site_links("api/lab", "[a](../../CONTRIBUTING.md#a-paper)")
    assert inner == "[a](../project/contributing.md#a-paper)"


def test_every_stored_report_is_a_page_with_its_figures(tmp_path):
    site_pages.write(tmp_path)
    listed = (tmp_path / "reports" / "index.md").read_text()
    for report in (ROOT / "experiments" / "results").rglob("report.md"):
        name = "-".join(report.parent.relative_to(ROOT / "experiments" / "results").parts)
        page = (tmp_path / "reports" / f"{name}.md").read_text()
        assert f"\n{name}\n" in listed
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
            assert (tmp_path / "reports" / picture).is_file()


SOURCES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")]


@pytest.mark.parametrize("file", sorted(SOURCES), ids=lambda f: f.stem)
def test_relative_links_have_a_file(file):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
        target = file.parent / link
        made = {f"{name}.md" for name in ("project/contributing", "project/changelog")}
        assert target.exists() or link in made, link


def test_a_site_that_loads_from_elsewhere_is_refused(tmp_path, capsys):
    (tmp_path / "s.css").write_text("a { background: url(data:image/png;base64,AA) } /* url(x) */")
    page = '<link rel="stylesheet" href="s.css"><a href="https://arxiv.org">x</a>'
    (tmp_path / "index.html").write_text(page)
    assert weigh.main(tmp_path) == 0
    size = len(page) + (tmp_path / "s.css").stat().st_size
    files, foreign = weigh.assets(tmp_path / "index.html")
    assert sum(f.stat().st_size for f in files) == size
    assert not foreign
    for bad in (
        '<script src="https://cdn.example/x.js"></script>',
        '<img srcset="//host.example/a.png 2x">',
        "<style>@import 'https://fonts.example/f.css';</style>",
        '<link rel="preload" href="http://host.example/f.woff2">',
    ):
        (tmp_path / "index.html").write_text(page + bad)
        assert weigh.main(tmp_path) == 1, bad
        assert "example" in capsys.readouterr().out


def test_a_link_within_the_site_that_leads_nowhere_is_refused(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "in/b.html").write_text('<h1 id="x.y z">b</h1><a href="../index.html#top">a</a>')
    good = '<a href="in/b.html#x.y%20z">b</a><a href="#">a</a><a href="a.svg#part">c</a>'
    (tmp_path / "index.html").write_text(good)
    assert weigh.main(tmp_path) == 0
    for bad in ("in/b.html#x", "#x.y", "in/c.html", "in", "a.png"):
        (tmp_path / "index.html").write_text(f'{good}<a href="{bad}">d</a>')
        assert weigh.main(tmp_path) == 1, bad
        assert f"leads nowhere: index.html: {bad}\n" in capsys.readouterr().out


def test_the_statuses_that_pages_print_are_those_of_the_lab():
    assert {line[2].strip("*") for line in papers.verdict_rows()} <= {
        *verdict.STATUSES,
        "nothing stored",
    }
