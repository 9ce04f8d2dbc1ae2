"""`python -m benchmarks --list`, `python -m benchmarks ROW... [--json FILE] [--strict]`."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import harness


def main() -> int:
    """Runs the rows named, all when none is."""
    known = harness.names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(known)}")
    parser.add_argument("--list", action="store_true", help="what there is to measure")
    parser.add_argument("--json", type=Path, help="store the rows here")
    parser.add_argument("--strict", action="store_true", help="fail unless every must holds")
    given = parser.parse_args()
    if given.list:
        for name, what in known.items():
            print(f"{name:16} {what}")
        return 0
    if unknown := set(given.rows) - set(known):
        parser.error(f"no row {sorted(unknown)}; known: {', '.join(known)}")
    rows = []
    for name in given.rows or known:
        new = harness.measure(name)
        print(harness.show(new), flush=True)
        rows += new
        if given.json:  # after each row: what was measured is not lost with a later one
            given.json.write_text(json.dumps(harness.as_json(rows), indent=1) + "\n")
    bad = [x for r in rows for x in r.limits if x.must and x.status != "pass"]
    return 1 if given.strict and bad else 0


if __name__ == "__main__":
    sys.exit(main())
