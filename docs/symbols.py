"""What the API pages show: every public name of divjax, with its page and its place on it.

The names are those of tests/architecture/api.txt, which a test compares with the code; documented
values (types, records, constants) are read from the sources. A page docs/api/NAME.md says by
`<!-- symbols: MODULE ... -->` which modules it shows, and whatever is defined there appears.
"""

import ast
import importlib
import inspect
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parent
NAMES = DOCS.parent / "tests" / "architecture" / "api.txt"
MARKER = re.compile(r"<!-- symbols: ([\w. ]+) -->")


class Symbol(NamedTuple):
    """A public name.

    Attributes:
        name: as users write it, without `divjax.`: "divergences.kl".
        home: the module that defines it, likewise: "divergences.named".
        line: where in that module.
        thing: the function, class or value.
        doc: the docstring.
        aliases: other public names of the same thing.
    """

    name: str
    home: str
    line: int
    thing: Any
    doc: str
    aliases: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """'function', 'class' or 'data'."""
        if inspect.isfunction(inspect.unwrap(self.thing)):
            return "function"
        return "class" if inspect.isclass(self.thing) else "data"

    @property
    def first(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())


def _module(name: str) -> Any:
    return importlib.import_module(f"divjax.{name}")


def _callables() -> list[Symbol]:
    """Functions and classes; of several names of one thing the shortest is its name."""
    names: dict[int, list[str]] = {}
    things = {}
    for line in NAMES.read_text("utf-8").splitlines():
        name = line.split("(")[0]
        thing = vars(_module(name.rpartition(".")[0]))[name.rpartition(".")[2]]
        names.setdefault(id(thing), []).append(name)
        things[id(thing)] = thing
    found = []
    for key, thing in things.items():
        name, *aliases = sorted(names[key], key=lambda n: (n.count("."), n))
        plain = inspect.unwrap(thing)
        home = plain.__module__.removeprefix("divjax.")
        line = inspect.getsourcelines(plain)[1]
        doc = inspect.getdoc(thing) or ""
        found.append(Symbol(name, home, line, thing, doc, tuple(aliases)))
    return found


def _documented(home: str) -> dict[str, tuple[int, str]]:
    """Name -> line and text, of the values of a module that have a docstring under them."""
    body = ast.parse(inspect.getsource(_module(home))).body
    found = {}
    for node, below in pairwise(body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(below, ast.Expr):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(below.value, ast.Constant) and isinstance(target, ast.Name):
                found[target.id] = node.lineno, inspect.cleandoc(str(below.value.value))
    return found


def _values(known: list[Symbol]) -> list[Symbol]:
    """Documented values of the modules in which something public is defined, if exported."""
    rooms = sorted({s.name.rpartition(".")[0] for s in known}, key=lambda r: r.count("."))
    found = []
    for home in sorted({s.home for s in known}):
        for name, (line, doc) in _documented(home).items():
            thing = vars(_module(home))[name]
            for room in rooms:
                module = vars(_module(room))
                exported = module.get("__all__") or [n for n in module if n[0] != "_"]
                if name in exported and module[name] is thing and home.startswith(room):
                    found.append(Symbol(f"{room}.{name}", home, line, thing, doc))
                    break
    return found


@cache
def everything() -> tuple[Symbol, ...]:
    """All public symbols, ordered by module and line."""
    functions = _callables()
    known = {s.name for s in functions} | {a for s in functions for a in s.aliases}
    values = [s for s in _values(functions) if s.name not in known]
    return tuple(sorted([*functions, *values], key=lambda s: (s.home, s.line)))


@cache
def markers() -> dict[str, list[tuple[str, ...]]]:
    """Page -> the modules of each of its markers."""
    return {
        str(file.relative_to(DOCS).with_suffix("")): [
            tuple(m.split()) for m in MARKER.findall(file.read_text("utf-8"))
        ]
        for file in sorted((DOCS / "api").glob("*.md"))
    }


def owner(home: str) -> tuple[str, int] | None:
    """(page, number of the marker) that shows a module: the longest name that it begins with."""
    best, place = "", None
    for page, groups in markers().items():
        for i, modules in enumerate(groups):
            for module in modules:
                if f"{home}.".startswith(f"{module}.") and len(module) > len(best):
                    best, place = module, (page, i)
    return place


def shown(page: str, number: int) -> list[Symbol]:
    """What a marker is replaced by, in the order of its modules."""
    modules = markers()[page][number]

    def order(s: Symbol) -> tuple[int, str, int]:
        first = max((m for m in modules if f"{s.home}.".startswith(f"{m}.")), key=len)
        return modules.index(first), s.home, s.line

    return sorted((s for s in everything() if owner(s.home) == (page, number)), key=order)


@cache
def index() -> dict[str, str]:
    """What may stand for a symbol in running text -> its full name, where that is unambiguous."""
    found = {}
    for s in everything():
        for name in (s.name, *s.aliases):
            found[name] = found[f"divjax.{name}"] = s.name
    ends: dict[str, set[str]] = {}
    for name in list(found):
        parts = name.removeprefix("divjax.").split(".")
        for i in range(1, len(parts)):
            ends.setdefault(".".join(parts[i:]), set()).add(found[name])
    for end, names in ends.items():
        least = min(n.count(".") for n in names)
        nearest = [n for n in names if n.count(".") == least]
        if len(nearest) == 1:
            found.setdefault(end, nearest[0])
    return found


BARE = ("divergences", "estimators", "losses")  # elsewhere bare words mean other things too


def mentioned(text: str) -> str | None:
    """The public name that a piece of code in running text is: "kl", "train.make_step(...)"."""
    name = re.sub(r"\(.*\)$", "", text.strip(), flags=re.S)
    full = index().get(name)
    if full and ("." in name or "_" in name or full.split(".")[0] in BARE):
        return full
    return None
