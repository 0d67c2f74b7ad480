"""Command line of the result tables: `python -m nbhelpers.results --study STUDY`."""

import argparse
import sys

import torch

from nbhelpers.images import MissingDataError
from nbhelpers.results import TABLES, NoTableError, outdated, store
from nbhelpers.studies import TITLES, study


def main(arguments: list[str] | None = None) -> int:
    """Refresh the stored tables of a study; of `shapes`, those that a build does not compute.

    A table that cannot be made here is left out, and the reason printed.
    """
    parser = argparse.ArgumentParser(prog="python -m nbhelpers.results", description=main.__doc__)
    parser.add_argument("--study", choices=sorted(TITLES), required=True)
    parser.add_argument("--table", choices=sorted(TABLES), action="append", help="default: all of them")
    parser.add_argument("--fresh", action="store_true", help="compute all rows, not what is missing alone")
    options = parser.parse_args(arguments)
    chosen = study(options.study)
    if missing := chosen.missing:
        print(missing, file=sys.stderr)
        return 1
    made = [table.name for table in TABLES.values() if table.slow or table.kept or options.study != "shapes"]
    for name in options.table or made:
        hours = TABLES[name].hours and TABLES[name].belongs_to(chosen)
        if hours and not options.table and not torch.cuda.is_available():
            print(f"left out {name}: it takes hours without a GPU; --table {name} makes it nevertheless")
            continue
        try:
            print(store(options.study, name, fresh=options.fresh))
            if old := outdated(options.study, name):
                print(f"{name}: made by older code (--fresh: anew): {', '.join(old)}", file=sys.stderr)
        except (MissingDataError, NoTableError) as reason:
            print(f"left out {name}: {reason}")
        except KeyboardInterrupt as stopped:
            print(str(stopped) or f"stopped in {name}; what is done is kept", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
