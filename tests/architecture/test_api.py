"""The public names and their signatures, as they were last agreed: a change has to be on purpose.

`python tests/architecture/test_api.py` writes the list anew.
"""

import difflib
import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_architecture import is_data, public

STORED = Path(__file__).with_name("api.txt")


def line(name, x):
    """'core.masked_mean(values, mask=None)': names, kinds and defaults; types are mypy's."""
    if is_data(x) and hasattr(x, "_fields"):
        return f"{name}({', '.join(x._fields)})"
    if isinstance(x, type) and is_data(x):
        return name
    plain = inspect.signature(x)
    bare = [p.replace(annotation=p.empty) for p in plain.parameters.values()]
    text = str(plain.replace(parameters=bare, return_annotation=plain.empty))
    return name + re.sub(r"<function (\S+?)(\.<locals>\.\w+)? at 0x\w+>", r"\1", text)


def current():
    return sorted(line(name, x) for name, x in public().items())


def test_the_public_interface_is_the_agreed_one():
    stored, now = STORED.read_text("utf-8").splitlines(), current()
    change = list(difflib.unified_diff(stored, now, lineterm="", n=0))
    assert not change, "\n".join([*change, "if that is meant: CHANGELOG.md, then this script"])


if __name__ == "__main__":
    STORED.write_text("\n".join(current()) + "\n", "utf-8")
