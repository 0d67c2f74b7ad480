"""The figure of the README: attention collapse, from the stored table and the published curve.

`make picture` draws it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from nbhelpers import plots
from nbhelpers.files import DATA, atomic_path
from nbhelpers.results import stored
from nbhelpers.studies import study

PATH = DATA.parent / "book" / "_static" / "collapse.svg"


def draw(path: Path) -> None:
    """NMI of query and key against depth: our CL and MIM on CIFAR-10 beside the paper's models."""
    plots.style()
    frame = stored("cifar10", "metrics")
    frame = frame[frame["model"].isin(study("cifar10").models)]
    # In a README a picture has no fonts: letters are drawn as paths. No date: the same table, the same file.
    with plt.rc_context({"svg.fonttype": "path"}), atomic_path(path) as temporary:
        ours, published = plots.beside_published([frame], "nmi", heads=True)
        published.set_ylabel("")
        ours.figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(ours.figure)


def main() -> int:
    """Draw it where the README looks for it."""
    draw(PATH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
