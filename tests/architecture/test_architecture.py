"""Who may import whom, how long things are, what a docstring must say; all read from the source."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "divjax"

# Room -> rooms it may import besides itself. A room gets its line when it is made.
EDGES = {
    "core": set(),
    "divergences": {"core"},
    "estimators": {"core", "divergences"},
    "losses": {"core", "divergences", "estimators"},
    "optim": {"core", "divergences", "estimators"},
    "measure": {"core", "divergences", "estimators"},
    "models": {"core"},
    "train": {"core", "divergences", "optim", "models"},
    "recipes": {
        "core",
        "divergences",
        "estimators",
        "losses",
        "optim",
        "measure",
        "models",
        "train",
        "lab",
    },
    "lab": {"core", "train"},
    "adapters": {"core", "divergences", "models"},
}

# Module, or room -> libraries that all or some of its modules may import; the standard library is
# free. A library that is missing here (flax, orbax, ...) is imported nowhere else.
NUMERIC = {"jax", "numpy"}
LIBRARIES = {
    "core": NUMERIC,
    "divergences": NUMERIC,
    "divergences._sinkhorn": NUMERIC | {"ott"},
    "estimators": NUMERIC,
    "losses": NUMERIC,
    "measure": NUMERIC,
    "optim": NUMERIC | {"optax"},
    "models": NUMERIC | {"flax", "distrax"},
    "train": NUMERIC | {"optax"},
    "train.checkpoint": NUMERIC | {"orbax"},
    "recipes": NUMERIC | {"optax", "flax"},
    "lab": NUMERIC | {"scipy", "tyro", "rich", "matplotlib", "pandas", "sklearn", "PIL"},
    "adapters": NUMERIC | {"flax", "distrax", "haiku", "equinox"},
}

# Exceptions, each with its reason. Path -> reason, or (path, name) -> reason.
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[tuple[str, str], str] = {}
KEYWORDS = {
    ("optim", "signals"): "the protocol of optax's stateful schedules: all metrics are offered",
    ("optim", "_"): "the same protocol: signals that a controller does not need",
    ("divergences", "named"): "a decorator: whatever the decorated factory takes",
    ("lab", "columns"): "the columns of a row are data",
}
PROBING = {
    ("core/check.py", "hasattr"): "says what came in place of an array",
    ("lab/cli.py", "getattr"): "the fields of a config, by dataclasses.fields",
}
NO_EXAMPLE = {
    "lab.Run": "made by the runner; used in the example at the head of divjax.lab",
    "lab.load": "reads a file of the user",
}
NO_SHAPE = {
    "ema": "trees of any shape",
    "swap_when": "trees of any shape",
    **dict.fromkeys(("frozen", "periodic", "soup"), "trees of any shape"),
}
NO_REFERENCE = {
    "with_gradient": "an identity of automatic differentiation",
    "estimate": "the mean",
    "standard_error": "the mean's textbook error",
    "reverse": "swaps the arguments",
    "scale": "multiplies by a number",
    "linear_tails": "a tangent",
}
COLLECTIVES = {"core/reduce.py", "train/gradients.py"}  # the second outside what is differentiated
JITS = {"train/parallel.py"}

# Besides what rooms export: modules whose public functions users call by the module's name.
CALLED = (
    "divergences.gaussian", "divergences.generators", "divergences.ranking",
    "divergences.transport", "train.parallel", "train.checkpoint", "core.chunk",
    "recipes.bench", "recipes.kd",
)  # fmt: skip


@cache
def sources():
    """'core/check.py' -> its tree."""
    files = sorted(LIBRARY.rglob("*.py"))
    return {str(f.relative_to(LIBRARY)): ast.parse(f.read_text("utf-8")) for f in files}


def module_of(path):
    """'core/check.py' -> 'core.check'; 'core/__init__.py' -> 'core'; '__init__.py' -> ''."""
    return path.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".")


def imports(tree):
    """Every absolute module name that is imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def names(tree):
    """Every name and attribute that is used: `jit` of jax.jit, `print`, `psum`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def users(*wanted):
    """The modules in which one of the names is used."""
    return {path for path, tree in sources().items() if {*wanted} & set(names(tree))}


def nothing(lines):
    assert not lines, "\n".join(lines)


def test_every_room_has_its_line():
    rooms = {path.split("/")[0].removesuffix(".py") for path in sources()}
    assert rooms - {"__init__", "__main__"} <= set(EDGES) == {m.split(".")[0] for m in LIBRARIES}


def test_rooms_import_only_what_they_may():
    wrong = []
    for path, tree in sources().items():
        room = path.split("/")[0].removesuffix(".py")
        if room == "__main__":
            continue  # the command line
        for name in imports(tree):
            head, *rest = name.split(".")
            if head == "divjax" and rest and rest[0] in EDGES:
                if rest[0] not in EDGES.get(room, set()) | {room}:
                    wrong.append(f"{path}: {room} must not import {rest[0]}")
            elif head != "divjax" and head not in sys.stdlib_module_names:
                module = module_of(path)
                if head not in LIBRARIES.get(module, LIBRARIES.get(room, set())):
                    wrong.append(f"{path}: must not import {head}")
    nothing(sorted(set(wrong)))


def test_the_documentation_shows_these_edges():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    shown = {}
    for left, right in re.findall(r"(\w[\w, ]*?) -> ([\w, ]*?\w)(?=  |\n)", text):
        for room in left.split(", "):
            shown[room] = set(right.split(", "))
    assert shown.pop("experiments") == {"anything"}
    assert shown == {room: allowed for room, allowed in EDGES.items() if room != "core"}


def test_modules_and_functions_are_short():
    wrong = []
    for path, tree in sources().items():
        lines = len((LIBRARY / path).read_text("utf-8").splitlines())
        if lines > 400 and path not in LONG_MODULES:
            wrong.append(f"{path}: {lines} lines, at most 400")
        for f in functions(tree):
            body = f.body[1:] if ast.get_docstring(f) is not None else f.body
            length = f.end_lineno - body[0].lineno + 1 if body else 0
            if length > 45 and (path, f.name) not in LONG_FUNCTIONS:
                wrong.append(f"{path}: {f.name} has {length} lines, at most 45")
    nothing(wrong)


def public():
    """Qualified name -> function or class: what rooms and the modules of CALLED export."""
    found = {}
    for name in (*EDGES, *CALLED):
        if not {f"{name}.py", f"{name}/__init__.py"} & set(sources()) and "." not in name:
            continue  # a room that is not made yet
        module = importlib.import_module(f"divjax.{name}")
        own = [n for n, x in vars(module).items() if home(x) == module.__name__]
        exported = vars(module).get("__all__", [n for n in own if not n.startswith("_")])
        found |= {f"{name}.{n}": vars(module)[n] for n in exported}
    return {n: x for n, x in found.items() if home(x).startswith("divjax.")}


def home(x):
    """Where a function or class is defined; "" for values, modules and aliases of types."""
    plain = inspect.unwrap(x) if callable(x) else x
    return plain.__module__ if inspect.isfunction(plain) or inspect.isclass(plain) else ""


def is_data(x):
    """A record of fields, an error or a protocol: documented by its fields or methods."""
    return isinstance(x, type) and (
        dataclasses.is_dataclass(x)
        or issubclass(x, (tuple, Exception))
        or getattr(x, "_is_protocol", False)
    )


def test_every_public_symbol_is_documented_with_an_example():
    wrong = []
    for name, x in public().items():
        text = inspect.getdoc(x) or ""
        if not text:
            wrong.append(f"{name}: no docstring")
        elif not is_data(x) and ("Example:" not in text or ">>> " not in text):
            wrong += [] if name in NO_EXAMPLE else [f"{name}: no Example"]
    nothing(wrong)


def test_docstrings_of_the_maths_tell_shapes_and_sources():
    shape = re.compile(r"\[(\*[A-Z]\b|[A-Z]\b|\]|\.\.\.|bins)")
    wrong = []
    for name, x in public().items():
        room = name.split(".")[0]
        if isinstance(x, type) or room not in ("divergences", "estimators", "losses", "optim"):
            continue
        text = inspect.getdoc(x) or ""
        last, record = name.split(".")[-1], name.startswith("divergences.generators.")
        if not shape.search(text) and not record and last not in NO_SHAPE:
            wrong.append(f"{name}: no shape such as [*E, K]")
        sourced = "References:" in text or "arXiv" in text
        if room != "optim" and not sourced and last not in NO_REFERENCE:
            wrong.append(f"{name}: no References")
    nothing(wrong)


def test_keywords_are_not_passed_through():
    wrong = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.arguments) or node.kwarg is None:
                continue
            if (path.split("/")[0], node.kwarg.arg) not in KEYWORDS:
                wrong.append(f"{path}:{node.kwarg.lineno}: **{node.kwarg.arg}")
    nothing(wrong)


def test_objects_are_not_probed():
    for probe in ("hasattr", "getattr", "setattr", "delattr"):
        allowed = {path for path, name in PROBING if name == probe}
        assert users(probe) == allowed, probe


def test_nothing_is_executed_or_unpickled():
    assert users("eval", "exec", "allow_pickle") == set()
    for path, tree in sources().items():
        assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & set(imports(tree)), path
        keywords = {k.arg for node in ast.walk(tree) if isinstance(node, ast.Call)
                    for k in node.keywords}  # fmt: skip
        assert "allow_pickle" not in keywords, path


def test_only_the_lab_prints():
    assert {path for path in users("print") if not path.startswith("lab/")} == set()


def test_nothing_is_imported_by_a_computed_name():
    """The edges above are read from import statements, so there must be no other way in."""
    assert users("import_module", "__import__") == set()
    assert users("spec_from_file_location") == {"lab/experiment.py"}  # experiments are files


def test_nothing_is_seeded_or_global():
    # The splits of an experiment are functions of the seed that is handed in.
    assert users("PRNGKey", "default_rng", "RandomState") == {"lab/data.py"}
    for path, tree in sources().items():
        calls = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert not any(call.endswith("random.key") for call in calls), path
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), path


def test_collectives_have_their_place():
    bare = ("psum", "pmean", "pmax", "pmin", "all_gather", "psum_scatter", "ppermute", "all_to_all")
    assert users(*bare) == COLLECTIVES


def test_one_module_compiles_and_says_so():
    assert users("jit", "pmap", "shard_map") == JITS
    assert "only place that jits" in ast.get_docstring(sources()["train/parallel.py"])


LIGHT = """
import json, sys
import jax, jax.numpy, numpy
seen, added = set(), {}
def note(name):
    new = {m.partition(".")[0] for m in sys.modules} - seen
    added[name] = sorted(new - sys.stdlib_module_names)
    seen.update(new)
note("jax")
import divjax
note("divjax")
import divjax.core, divjax.divergences, divjax.estimators, divjax.losses, divjax.measure
note("maths")
import divjax.optim, divjax.train
note("train")
import divjax.models, divjax.recipes, divjax.adapters
note("recipes")
print(json.dumps(added))
"""


@pytest.fixture(scope="module")
def imported():
    command = [sys.executable, "-c", LIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_import_divjax_brings_nothing_but_itself(imported):
    assert imported["divjax"] == ["divjax"]


def test_the_maths_brings_only_jax(imported):
    assert imported["maths"] == []


def test_training_brings_neither_flax_nor_orbax(imported):
    assert not {"flax", "orbax", "ott", "distrax", "matplotlib", "pandas"} & {*imported["train"]}


def test_what_a_library_user_imports_needs_no_extra(imported):
    extra = {"tyro", "matplotlib", "pandas", "sklearn", "PIL"}
    assert not extra & {*imported["recipes"]}
