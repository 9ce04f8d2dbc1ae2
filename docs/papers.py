"""The page of papers, from the experiment files, their stored results and the docstrings."""

import ast
import re
from pathlib import Path

import symbols

from divjax.lab import experiment, sheet, verify

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
CITED = re.compile(r"(?:([^;()]*?),? )?arXiv (\d{4}\.\d{4,5})")
MACHINERY = ("lab",)  # every experiment uses it


def link(paper: str) -> str:
    """An arXiv id as a link."""
    return f"[arXiv {paper}](https://arxiv.org/abs/{paper})"


def experiments() -> list[experiment.Found]:
    """Every experiment of this checkout, by name."""
    files = sorted(EXPERIMENTS.glob("[!_]*.py"))
    return [experiment.Found(experiment.load_file(file), file) for file in files]


def uses(file: Path) -> list[str]:
    """The public names that a file imports from divjax, or reaches through a module of it."""
    known, modules, found = symbols.index(), {}, set()
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("divjax"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}".removeprefix("divjax.")
                modules[alias.asname or alias.name] = full
                found.add(full)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{modules.get(node.value.id, '')}.{node.attr}")
    names = {known[name] for name in found if name in known}
    return sorted(name for name in names if name.split(".")[0] not in MACHINERY)


def verdict_rows() -> list[list[str]]:
    """Experiment, paper, verdict and the reason for it."""
    rows = []
    for found in experiments():
        e, (status, stored) = found.experiment, verify.stored_verdict(found)
        rows.append(
            [
                f"[{e.name}](#{anchor(e.name)})",
                link(e.paper),
                f"**{status}**",
                _reason(stored),
            ]
        )
    return rows


def _reason(stored) -> str:
    """Why; the word `contradicted` stands before it already."""
    reason = stored["reason"] if stored else "the claim is committed before its run"
    return reason.removeprefix("contradicted: ")


def anchor(name: str) -> str:
    """The anchor of a heading, on GitHub and here."""
    return name.lower().replace(" ", "-")


def sections(table) -> str:
    """One section for each experiment: claim, files, public names, verdict with its figures."""
    out = []
    for found in experiments():
        e, (status, stored) = found.experiment, verify.stored_verdict(found)
        files = [f"[{e.name}.py](../experiments/{e.name}.py)"]
        if stored:
            files.append(f"[report](../experiments/results/{e.name}/report.md)")
        out += [f"## {e.name}", "", f"{link(e.paper)}; {', '.join(files)}", ""]
        out += [f"> {e.claim}", ""]
        out += [f"**{status}**: {_reason(stored)}.", ""]
        if stored:
            rows = [[p["name"], p["status"], *figures(p)] for p in stored["parts"]]
            header = ["part of the claim", "status", "difference", "95 % interval", "must exceed"]
            out += [table(header, rows), ""]
        if rows := beside(found):
            header = ["part of the claim", "report", "difference", "95 % interval", "must exceed"]
            out += [f"{sheet.OTHERS}: figures beside the verdict.", "", table(header, rows), ""]
        names = ", ".join(f"`{name}`" for name in uses(found.file))
        out += [f"It uses {names}." if names else "It uses `divjax.lab` alone.", ""]
    return "\n".join(out).rstrip()


def beside(found) -> list[list[str]]:
    """The parts of the claim in every stored preset on other data, with a link to its report."""
    at = f"../experiments/results/{found.experiment.name}"
    return [
        [part["name"], f"[{preset}]({at}/{preset}/report.md)", *figures(part)]
        for preset, part in sheet.parts_beside(found)
    ]


def figures(part) -> list[str]:
    """Estimate, interval and threshold of a stored part; they were oriented for the claim."""
    estimate, low, high = (f"{part[k]:+.4f}" for k in ("estimate", "low", "high"))
    return [estimate, f"[{low}, {high}]", f"{part['threshold']:g}"]


def citations() -> list[list[str]]:
    """arXiv id, how the docstrings call it, and the public names that cite it."""
    found: dict[str, tuple[str, list[str]]] = {}
    for s in symbols.everything():
        references = s.doc.partition("References:")[2].partition("\n\n")[0]
        for who, paper in CITED.findall(" ".join(references.split()) or s.doc):
            who = who.split(". ")[-1].strip() if references else ""
            known, names = found.get(paper, ("", []))
            found[paper] = known or who, names if s.name in names else [*names, s.name]
    return [
        [link(paper), who, ", ".join(f"`{name}`" for name in sorted(names))]
        for paper, (who, names) in sorted(found.items())
    ]


def parts(table) -> dict:
    """Name of a generated part -> function that makes it."""
    return {
        "verdicts": lambda: table(["experiment", "paper", "verdict", "why"], verdict_rows()),
        "experiments": lambda: sections(table),
        "citations": lambda: table(["paper", "authors", "public names"], citations()),
    }
