"""The figure of the README: attention collapse, from the stored table and the published curve.

`make picture` draws it.
"""

from pathlib import Path

import matplotlib.pyplot as plt

from nbhelpers import plots
from nbhelpers.files import atomic_path
from nbhelpers.results import published, stored
from nbhelpers.studies import study

PATH = Path(__file__).with_name("collapse.svg")


def draw(path: Path) -> None:
    """NMI of query and key against depth: our CL and MIM on CIFAR-10 beside the paper's models."""
    plots.style()
    frame = stored("cifar10", "metrics")
    frame = frame[frame["model"].isin(study("cifar10").models)]
    # In a README a picture has no fonts: letters are drawn as paths. No date: the same table, the same file.
    with plt.rc_context({"svg.fonttype": "path"}), atomic_path(path) as temporary:
        axes = plots.panels([plots.title(frame), "published"], sharey=True)
        plots.by_depth(frame, "nmi", axes[0], heads=True)
        plots.published_by_depth(published(), "nmi", axes[1])
        plots.legend_below(axes)
        axes[0].figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(axes[0].figure)


if __name__ == "__main__":
    draw(PATH)
