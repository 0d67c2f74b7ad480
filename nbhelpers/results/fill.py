"""`python -m nbhelpers.results.fill`: compute what the book's tables need, several encoders at once.

A chapter looks at one encoder after the other, and small models keep few cores busy. What is computed here
lies in the cache folder when the chapters ask for it.
"""

import os
from collections.abc import Iterable, Iterator

from joblib import Parallel, delayed

from nbhelpers.results import rows_of
from nbhelpers.results.tables import TABLES
from nbhelpers.studies import OWN, study

PROCESSES = 8  # at most, each of which holds a study's images


def jobs(studies: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Arguments of `rows_of` for all that a build may have to compute: an encoder's rows of a table each."""
    for chosen in map(study, studies):
        if not chosen.missing:
            for split in ("train", "val"):
                chosen.images(split)  # made once, before many processes ask for it
            for made in TABLES.values():
                if made.belongs_to(chosen) and not made.slow:
                    yield from ((chosen.name, made.name, [model]) for model in made.models(chosen))


def main() -> None:
    """Fill the cache folder for the studies of the book whose images are here."""
    parallel = Parallel(min(os.cpu_count() or 1, PROCESSES), verbose=5)  # joblib says how far it is
    parallel([delayed(rows_of)(*job) for job in jobs(OWN)])


if __name__ == "__main__":
    main()
