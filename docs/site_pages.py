"""What only the site has: API entries in place of markers, and pages made of files elsewhere."""

import re
import shutil
import textwrap
from pathlib import Path

import docstrings
import symbols

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FOLDERS = ("reports", "project")  # written for each build, git-ignored
FENCE = "`" * 8


def _entry(s: symbols.Symbol) -> list[str]:
    """The directive that documents one symbol."""
    target = f"divjax.{s.name}"
    also = (
        [
            "",
            f"   Also as {', '.join(f'``{a}``' for a in s.aliases)}.",
        ]
        if s.aliases
        else []
    )
    if s.kind == "data":
        room, _, short = s.name.rpartition(".")
        body = textwrap.indent("\n".join(docstrings.to_rst(s.doc.split("\n"), room)), "   ")
        return [f".. py:data:: {short}", f"   :module: divjax.{room}", "", *body.split("\n")]
    if s.kind == "function":
        return [f".. autofunction:: {target}", *also, ""]
    fields = vars(s.thing).get("__annotations__", {})
    own = [
        n
        for n, x in vars(s.thing).items()
        if (n[0] != "_" or n == "__call__") and n not in fields and _documented(x)
    ]
    members = [f"   :members: {', '.join(own)}"] if own else []
    return [f".. autoclass:: {target}", *members, *also, ""]


def _documented(x: object) -> bool:
    """A method or property with a docstring, as opposed to a field."""
    return (isinstance(x, property) or callable(x)) and bool(x.__doc__)


def _summary(shown: list[symbols.Symbol]) -> list[str]:
    """A table of contents: name and first line."""
    out = [".. list-table::", "   :class: summary", "   :widths: auto", ""]
    for s in shown:
        room, _, short = s.name.rpartition(".")
        first = docstrings.inline(s.first, room)
        out += [f"   * - :py:obj:`{short} <divjax.{s.name}>`", f"     - {first}"]
    return [*out, ""]


def with_symbols(page: str, text: str) -> str:
    """A page of docs/api with its markers replaced by reStructuredText."""
    count = iter(range(100))

    def fill(_: re.Match) -> str:
        shown = symbols.shown(page, next(count))
        lines = [*_summary(shown), *(line for s in shown for line in _entry(s))]
        return "\n".join([f"{FENCE}{{eval-rst}}", *lines, FENCE])

    return symbols.MARKER.sub(fill, text) if page in symbols.markers() else text


MADE = {
    r"experiments/results/(\w+)/(\w+)/report\.md": r"reports/\1-\2.md",
    r"experiments/results/(\w+)/report\.md": r"reports/\1.md",
    r"experiments/(\w+)\.py": r"reports/\1.md#the-experiment-file",
    r"CONTRIBUTING\.md": "project/contributing.md",
    r"CHANGELOG\.md": "project/changelog.md",
}


def with_site_links(page: str, text: str) -> str:
    """Relative links to files outside docs/ lead to the pages that the site makes of them."""
    up = "../" * page.count("/")
    for theirs, ours in MADE.items():
        text = re.sub(rf"\]\({re.escape(up)}\.\./{theirs}", f"]({up}{ours}", text)
    return text


def notebooks() -> list[str]:
    """The notebooks, as pages."""
    return [f"notebooks/{f.stem}" for f in sorted((DOCS / "notebooks").glob("*.ipynb"))]


def with_notebooks(text: str) -> str:
    """The landing page with a card for each notebook, and their list for the navigation."""
    pages = notebooks()
    cards = "\n".join(f"- [](/{p}.ipynb)\n\n  A notebook, executed by the build." for p in pages)
    listed = "\n".join(pages)
    toctree = f"```{{toctree}}\n:hidden:\n:caption: Notebooks\n\n{listed}\n```"
    text = text.replace("<!-- notebook cards -->\n", f"{cards}\n" if pages else "")
    return text.replace("<!-- notebooks -->", toctree if pages else "")


def _report(docs: Path, name: str, results: Path) -> str:
    """The stored report in a folder, its figures copied to where its page looks for them."""
    if not (results / "report.md").exists():
        return ""
    shutil.copytree(results / "figures", docs / "reports" / name)
    return (results / "report.md").read_text("utf-8").replace("](figures/", f"]({name}/")


def write(docs: Path) -> None:
    """Reports of all experiments with their sources, CONTRIBUTING and CHANGELOG."""
    (docs / "project").mkdir()
    for name in ("CONTRIBUTING", "CHANGELOG"):
        shutil.copy(ROOT / f"{name}.md", docs / "project" / f"{name.lower()}.md")
    (docs / "reports").mkdir()
    names: list[str] = []
    for file in sorted((ROOT / "experiments").glob("[!_]*.py")):
        results = ROOT / "experiments" / "results" / file.stem
        report = _report(docs, file.stem, results) or f"# {file.stem}: no stored result\n"
        source = file.read_text("utf-8")
        code = f"## The experiment file\n\n{FENCE}python\n{source}{FENCE}\n"
        (docs / "reports" / f"{file.stem}.md").write_text(f"{report}\n{code}", "utf-8")
        names.append(file.stem)
        for folder in sorted(path.parent for path in results.glob("*/report.md")):
            name = f"{file.stem}-{folder.name}"  # another preset, beside the verdict
            (docs / "reports" / f"{name}.md").write_text(_report(docs, name, folder), "utf-8")
            names.append(name)
    listed = "\n".join(names)
    text = "The reports as `divjax report` wrote them, each with its experiment file."
    index = f"# Reports\n\n{text}\n\n```{{toctree}}\n{listed}\n```\n"
    (docs / "reports" / "index.md").write_text(index, "utf-8")
