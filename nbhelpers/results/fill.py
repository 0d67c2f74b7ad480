"""`python -m nbhelpers.results.fill`: compute what the book's tables need, several encoders at once.

A chapter looks at one encoder after the other, and small models keep few cores busy. What is computed here
lies in the cache folder when the chapters ask for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from joblib import Parallel, delayed
from tqdm import tqdm

from nbhelpers.images import MissingDataError
from nbhelpers.results import StaleTableError, table
from nbhelpers.results.tables import OWN, TABLES
from nbhelpers.studies import study

PROCESSES = 8  # at most, each of which holds a study's images


def jobs(studies: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Study, table and encoder of all rows that a build may have to compute, where a study's images are."""
    for chosen in map(study, studies):
        if not chosen.missing:
            for split in ("train", "val"):
                chosen.images(split)  # made once, before many processes ask for it
            for made in TABLES.values():
                if made.belongs_to(chosen) and not made.slow:
                    yield from ((chosen.name, made.name, model) for model in made.models(chosen))


def measure(study_name: str, name: str, model: str) -> None:
    """Ask a table for the rows of an encoder: those that are not stored stay in the cache folder."""
    with suppress(MissingDataError, StaleTableError):
        table(study_name, name, [model])


def main() -> int:
    """Fill the cache folder for the studies of the book whose images are here."""
    waiting = list(jobs(OWN))
    parallel = Parallel(min(os.cpu_count() or 1, PROCESSES), return_as="generator_unordered")
    done = parallel(delayed(measure)(*job) for job in waiting)
    for _ in tqdm(done, total=len(waiting), desc="tables", unit="encoder"):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
