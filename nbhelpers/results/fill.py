"""`python -m nbhelpers.results.fill`: compute what the book's tables need, several encoders at once.

A chapter looks at one encoder after the other, and small models keep few cores busy. What is computed here
lies in the cache folder when the chapters ask for it.
"""

import os
import sys
from collections.abc import Iterable, Iterator

from joblib import Parallel, delayed
from tqdm import tqdm

from nbhelpers.results import rows_of
from nbhelpers.results.tables import OWN, TABLES
from nbhelpers.studies import study

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


def main() -> int:
    """Fill the cache folder for the studies of the book whose images are here."""
    waiting = list(jobs(OWN))
    parallel = Parallel(min(os.cpu_count() or 1, PROCESSES), return_as="generator_unordered")
    done = parallel(delayed(rows_of)(*job) for job in waiting)
    for _ in tqdm(done, total=len(waiting), desc="tables", unit="encoder"):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
