"""Command line of the result tables: `python -m nbhelpers.results --study STUDY`."""

from __future__ import annotations

import argparse
import sys

from nbhelpers.results import TABLES, store
from nbhelpers.study import TITLES


def main(arguments: list[str] | None = None) -> int:
    """Refresh the stored tables of a study."""
    parser = argparse.ArgumentParser(prog="python -m nbhelpers.results", description=main.__doc__)
    parser.add_argument("--study", choices=sorted(TITLES), required=True)
    parser.add_argument("--table", choices=sorted(TABLES), action="append", help="default: all of them")
    options = parser.parse_args(arguments)
    for name in options.table or TABLES:
        print(store(options.study, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
