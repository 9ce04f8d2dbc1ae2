"""The page of benchmarks, from benchmarks/results/*.json; nothing that failed is left out."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Row = Mapping[str, Any]


def stored() -> dict[str, Mapping[str, Any]]:
    """Name of a benchmark -> its stored run."""
    files = sorted((BENCHMARKS / "results").glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def limits(run: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(variant, limit) of every figure that must or should hold."""
    return [(row["variant"], limit) for row in run["rows"] for limit in row["limits"]]


def about(name: str) -> str:
    """What a benchmark measures: the docstring of its file."""
    file = BENCHMARKS / "rows" / f"{name}.py"
    tree = ast.parse(file.read_text("utf-8")) if file.exists() else ast.parse("")
    return (
        (ast.get_docstring(tree) or "")
        .replace("\n\n", "\0")
        .replace("\n", " ")
        .replace("\0", "\n\n")
    )


def number(x: Any) -> str:
    """Three digits, or what stands in place of a number."""
    return f"{x:.3g}" if isinstance(x, float) else str(x)


def ratio(x: float | None) -> str:
    """Two decimals, three digits below 0.1."""
    return "" if x is None else f"{x:.2f}" if x >= 0.1 else f"{x:.3g}"


def milliseconds(x: Any) -> str:
    """A time, or why there is none."""
    if isinstance(x, str):
        return x
    return f"{x:.1f}" if x >= 100 else f"{x:.3g}"


def public(name: str) -> str:
    """How one of ours is called where the reader is not us."""
    return "divjax" + name.removeprefix("ours") if name.split(",")[0] == "ours" else name


def _several(row: Row, table) -> str:
    """A row with many peers: one line for each."""
    lines = []
    for name, ms in {"divjax": row["ours_ms"], **row["peers"]}.items():
        key = "ours" if name == "divjax" else name
        temp = row["temp_bytes"].get(key)
        lines.append(
            [
                public(name),
                milliseconds(ms),
                ratio(row["ratios"].get(name)),
                "" if temp is None else f"{temp / 2**20:.0f}",
            ]
        )
    if row["limit_ms"] is not None:
        lines.append(["this machine's limit", milliseconds(row["limit_ms"]), "", ""])
    return table(["implementation", "ms", "divjax / peer", "temporaries, MiB"], lines)


def _pairs(rows: list[Row], table) -> str:
    """Rows with the same single peer: one line for each."""
    (peer,) = rows[0]["peers"]
    lines = [
        [
            row["variant"],
            milliseconds(row["ours_ms"]),
            milliseconds(row["peers"][peer]),
            ratio(row["ratios"].get(peer)),
        ]
        for row in rows
    ]
    return table(["what", "divjax, ms", f"{peer}, ms", f"divjax / {peer}"], lines)


def _errors(row: Row, table) -> str:
    """Accuracy: one line for each implementation."""
    keys = list(dict.fromkeys(k for e in row["error"].values() if isinstance(e, dict) for k in e))
    lines = []
    for name, error in row["error"].items():
        cells = [number(error[k]) for k in keys] if isinstance(error, dict) else [error]
        lines.append([public(name), *cells, *[""] * (len(keys) - len(cells))])
    return table(["implementation", *keys], lines)


def _memory(row: Row, table) -> str:
    lines = [[public(name), f"{size / 2**20:.0f}"] for name, size in row["temp_bytes"].items()]
    return table(["implementation", "temporaries, MiB"], lines)


def _tables(rows: list[Row], table) -> list[str]:
    """Every row, those with one common peer together."""
    out: list[str] = []
    pairs: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["ours_ms"] is not None and len(row["peers"]) == 1:
            pairs.setdefault(tuple(row["peers"]), []).append(row)
    for row in rows:
        together = pairs.get(tuple(row["peers"]), []) if row["ours_ms"] is not None else []
        if together:
            if row is together[0]:
                out.append(_pairs(together, table))
            continue
        parts = []
        if row["ours_ms"] is not None:
            parts.append(_several(row, table))
        elif row["temp_bytes"]:
            parts.append(_memory(row, table))
        if row["error"]:
            parts.append(_errors(row, table))
        out.append("\n\n".join([f"**{row['variant']}**", *parts]))
    return out


def _environment(run: Mapping[str, Any]) -> str:
    e = run["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
    given = ", ".join(f"{k}={v}" for k, v in e["variables"].items())
    rounds = sorted({row["rounds"] for row in run["rows"] if row["rounds"]})
    text = (
        f"Stored run: {e['processor']}, {e['cores']} cores, device {e['device']}; Python "
        f"{e['python']}, {versions}; load {e['load'][0]:.1f} at the end"
    )
    text += (
        f"; medians of {' or '.join(map(str, rounds))} rounds, taken in turn." if rounds else "."
    )
    return text + (f" Environment: {given}." if given else "")


def status(limit: Mapping[str, Any]) -> str:
    """'<= 2.5, pass', or the failure in capitals and bold."""
    word = limit["status"] if limit["status"] == "pass" else f"**{limit['status'].upper()}**"
    return f"<= {limit['bound']:g}, {word}"


def limit_rows(run: Mapping[str, Any]) -> list[list[str]]:
    """One line for each figure that is bounded: its value, the must and the goal."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for variant, x in limits(run):
        line = found.setdefault((variant, x["what"]), {"must": "", "goal": ""})
        line["value"] = "not measured" if x["value"] is None else number(x["value"])
        line["must" if x["must"] else "goal"] = status(x)
    return [[*key, x["value"], x["must"], x["goal"]] for key, x in found.items()]


def sections(table) -> str:
    """One section for each stored run."""
    out = []
    for name, run in stored().items():
        out += [f"## {name}", about(name), _environment(run), *_tables(run["rows"], table)]
        out += [f"Note on {r['variant']}: {r['note']}." for r in run["rows"] if r["note"]]
        if rows := limit_rows(run):
            out += ["**What must hold, and the goals**"]
            out += [table(["row", "figure", "measured", "must", "goal"], rows)]
    return "\n\n".join(out)


def missed(run: Mapping[str, Any]) -> list[str]:
    """Every limit that does not hold, those with one bound together."""
    found: dict[str, list[str]] = {}
    for variant, x in limits(run):
        if x["status"] != "pass":
            kind = "must" if x["must"] else "goal"
            value = "not measured" if x["value"] is None else number(x["value"])
            found.setdefault(f"{kind} {x['what']} <= {x['bound']:g}", []).append(
                f"{variant} {value}"
            )
    return [f"{limit}: {'; '.join(places)}" for limit, places in found.items()]


def summary(table) -> str:
    """How many limits hold, and every one that does not."""
    rows, lines = [], []
    for name, run in stored().items():
        line = [f"[{name}](#{name})"]
        for must in (True, False):
            kind = [x["status"] == "pass" for _, x in limits(run) if x["must"] == must]
            line.append(f"{sum(kind)} of {len(kind)}" if kind else "-")
        rows.append(line)
        lines += [f"- {name}, {text}" for text in missed(run)]
    held = table(["benchmark", "musts that hold", "goals that hold"], rows)
    return "\n\n".join([held, "Missed:" if lines else "Nothing is missed.", "\n".join(lines)])


def parts(table) -> dict:
    """Name of a generated part -> function that makes it."""
    return {"summary": lambda: summary(table), "runs": lambda: sections(table)}
