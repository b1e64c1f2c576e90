"""python -m tests.fuzz CASE [--keep FILE] | --cases N [--first N]: one case again, or a campaign."""

import argparse
import sys
from pathlib import Path

from tests.fuzz import cases
from tests.fuzz.campaign import numbered, run


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Hostile inputs, from bytes to findings.")
    parser.add_argument("case", nargs="?", help="a case as a failure prints it")
    parser.add_argument("--keep", type=Path, help="write the case's bytes here")
    parser.add_argument("--cases", type=int, default=1000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    given = parser.parse_args()
    if given.case and given.keep:
        made = cases.make(given.case)
        given.keep.write_bytes(made if isinstance(made, bytes) else made[0])
    summary = run([given.case] if given.case else numbered(given.first, given.cases))
    summary.print()
    for failure in summary.failures:
        print(failure)
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
