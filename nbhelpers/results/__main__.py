"""Command line of the result tables: `python -m nbhelpers.results --study STUDY`."""

from __future__ import annotations

import argparse
import sys

from nbhelpers.results import TABLES, store
from nbhelpers.study import TITLES, study


def main(arguments: list[str] | None = None) -> int:
    """Refresh the stored tables of a study; of `shapes`, those too slow to be computed in every build."""
    parser = argparse.ArgumentParser(prog="python -m nbhelpers.results", description=main.__doc__)
    parser.add_argument("--study", choices=sorted(TITLES), required=True)
    parser.add_argument("--table", choices=sorted(TABLES), action="append", help="default: all of them")
    options = parser.parse_args(arguments)
    chosen = study(options.study)
    made = [t for t in TABLES.values() if t.belongs_to(chosen) and (t.slow or options.study != "shapes")]
    for name in options.table or [table.name for table in made]:
        print(store(options.study, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
