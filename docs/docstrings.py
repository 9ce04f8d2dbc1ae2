"""Docstrings as the site shows them: plain text and Google sections in, reStructuredText out.

The docstrings are written for readers of code, so they hold no markup: `*`, `|` and `_` mean
themselves, an indented paragraph is a formula, and a name in backticks becomes a link where it
is public.
"""

import re
import textwrap

import symbols

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "References", "Example")
TITLES = {"Args": "Arguments", "Attributes": "Fields"}
SHAPE = r"\[(?:\*?[A-Za-z]+\b|\.\.\.)[^\]]*\]|\[\]"
LEADING = re.compile(
    rf"((?:(?:bool|int32|int) )?(?:{SHAPE})(?: or (?:{SHAPE}))?)(?![\w(])[,;:.]?\s*(.*)", re.S
)
ARXIV = re.compile(r"arXiv[ :](\d{4}\.\d{4,5})")


def _escape(text: str) -> str:
    text = re.sub(r"([\\*|`])", r"\\\1", text)
    text = re.sub(r"(?m)^(\s*\(?\w+)([.)])(?=\s|$)", r"\1\\\2", text)  # no lists: "D." is a gain
    text = re.sub(r"(?m)^(\s*)([-+])(?=\s)", r"\1\\\2", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def _code(text: str) -> str:
    """A literal; RST has no way to write one that begins or ends in a backslash or a space."""
    return f"``{' '.join(text.split())}``"


def _linked(text: str, room: str) -> str:
    """What stands in backticks: a link to a public name, in the same room first, or code."""
    plain = " ".join(text.split())
    name = re.sub(r"\(.*\)$", "", plain)
    near = (f"{place}.{name}" for place in (room, room.partition(".")[0]))
    known = symbols.index()
    target = next((known[n] for n in near if n in known), None) or symbols.mentioned(plain)
    return f":py:obj:`{_escape(plain)} <divjax.{target}>`" if target else _code(plain)


def inline(text: str, room: str = "") -> str:
    """Running text: escaped, with code, shapes and arXiv ids marked up."""
    pattern = re.compile(
        rf"`(?P<tick>[^`]+)`|(?<![\w`])(?P<shape>{SHAPE})(?![\w`])|{ARXIV.pattern}", re.S
    )
    out, end = [], 0
    for m in pattern.finditer(text):
        out.append(_escape(text[end : m.start()]))
        if m["tick"]:
            out.append(_linked(m["tick"], room))
        elif m["shape"]:
            out.append(_code(m["shape"]))
        else:
            out.append(f"`arXiv {m[3]} <https://arxiv.org/abs/{m[3]}>`__")
        if out[-2] and not re.search(r"[\s(\[{<\"'/:-]$", out[-2]):
            out[-1] = "\\ " + out[-1]
        end = m.end()
        if end < len(text) and not re.match(r"[\s.,:;!?)\]}>\"'/-]", text[end]):
            out[-1] += "\\ "
    return "".join(out) + _escape(text[end:])


def _paragraphs(lines: list[str], room: str) -> list[str]:
    """Prose; a paragraph that is indented is a formula and stays as it is."""
    out = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        if block.startswith("    "):
            out += [".. code-block:: text", "   :class: formula", ""]
            out += textwrap.indent(textwrap.dedent(block), "   ").split("\n")
        else:
            out += inline(block, room).split("\n")
        out.append("")
    return out


def _items(lines: list[str]) -> list[tuple[str, str]]:
    """(name, text) of the entries of Args, Attributes and Raises."""
    items: list[tuple[str, str]] = []
    for line in textwrap.dedent("\n".join(lines)).strip("\n").split("\n"):
        head = re.match(r"([\w*., ]+?): ?(.*)", line)
        if head and not line.startswith(" "):
            items.append((head[1], head[2]))
        else:
            name, text = items[-1]
            items[-1] = name, f"{text}\n{line.strip()}"
    return items


def _cells(text: str) -> tuple[str, str]:
    """The shape that a text begins with, and the rest."""
    found = LEADING.fullmatch(text.strip())
    return (found[1], found[2]) if found else ("", text.strip())


def _table(title: str, rows: list[list[str]]) -> list[str]:
    """A table without a head; empty columns are left out."""
    keep = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
    out = [
        f".. rubric:: {title}",
        "",
        ".. list-table::",
        "   :class: fields",
        "   :widths: auto",
        "",
    ]
    for row in rows:
        for i in keep:
            mark = "   * - " if i == keep[0] else "     - "
            out.append((mark + row[i].replace("\n", "\n" + " " * 7)).rstrip())
    return [*"\n".join(out).split("\n"), ""]


def _section(name: str, lines: list[str], room: str) -> list[str]:
    text = textwrap.dedent("\n".join(lines)).strip("\n")
    title = TITLES.get(name, name)
    if name == "Example":
        body = textwrap.indent(text, "   ").split("\n")
        return [".. rubric:: Example", "", ".. code-block:: pycon", "", *body, ""]
    if name == "References":
        return [".. rubric:: References", "", *inline(text, room).split("\n"), ""]
    if name == "Returns":
        parts = [_cells(text)]
        return _table(title, [[_code(s) if s else "", inline(rest, room)] for s, rest in parts])
    if name == "Raises":
        return _table(title, [[_code(n), inline(t, room)] for n, t in _items(lines)])
    rows = []
    for item, described in _items(lines):
        shape, rest = _cells(described)
        rows.append([_code(item), _code(shape) if shape else "", inline(rest, room)])
    return _table(title, rows)


def to_rst(lines: list[str], room: str = "") -> list[str]:
    """A docstring as reStructuredText.

    Args:
        lines: the docstring, without indentation.
        room: where names in backticks are looked up first.
    """
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        if line.endswith(":") and line[:-1] in SECTIONS:
            parts.append((line[:-1], []))
        elif line and not line.startswith(" ") and parts[-1][0]:
            parts.append(("", [line]))  # the section is over
        else:
            parts[-1][1].append(line)
    out: list[str] = []
    for name, body in parts:
        if any(line.strip() for line in body):
            out += _section(name, body, room) if name else _paragraphs(body, room)
    return out
