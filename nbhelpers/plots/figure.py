"""How figures look and how they come to the page: style, panels, legend, alternative text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib_inline.backend_inline import set_matplotlib_formats

from nbhelpers.results import COMPUTED
from nbhelpers.studies import TITLES, label

# Colour (Okabe and Ito's, safe for colour-blind readers), marker and line of each objective, everywhere.
# Models of one objective that are drawn together, by `label`, share its hue and differ in marker and line.
STYLES: dict[str, dict] = {
    "CL": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "DINO": {"color": "#E69F00", "marker": "h", "linestyle": "--"},
    "MIM": {"color": "#0072B2", "marker": "s", "linestyle": "-"},
    "MAE": {"color": "#56B4E9", "marker": "P", "linestyle": "--"},
    "MAE's decoder": {"color": "#56B4E9", "marker": "P", "linestyle": ":"},
    "hybrid": {"color": "#009E73", "marker": "D", "linestyle": "-"},
    "hybrid 0.4": {"color": "#009E73", "marker": "d", "linestyle": "--"},
    "hybrid 0.5": {"color": "#009E73", "marker": "p", "linestyle": "--"},
    "hybrid 0.6": {"color": "#009E73", "marker": "<", "linestyle": "-."},
    "hybrid 0.8": {"color": "#009E73", "marker": ">", "linestyle": ":"},
    "supervised": {"color": "#CC79A7", "marker": "^", "linestyle": "-"},
    "random": {"color": "#777777", "marker": "x", "linestyle": ":"},
}

OTHER = {"color": "#222222", "marker": "v", "linestyle": "--"}

LABELS = {
    "attention_distance": "attention distance (px)",
    "nmi": "normalised mutual information",
    "attention_entropy": "attention entropy / log N",
    "head_cosine": "cosine between heads",
    "across_attention_cosine": "cosine across attention",
    "across_block_cosine": "cosine across block",
    "attention_token_cosine": "cosine between outputs",
    "token_cosine": "cosine between tokens",
    "query_cosine": "cosine between maps of queries",
    "common_update_share": "common share of the update",
    "token_effective_rank": "effective rank, tokens",
    "image_effective_rank": "effective rank, images",
    "token_spectrum": "Δ log eigenvalue, tokens",
    "image_spectrum": "Δ log eigenvalue, images",
    "silhouette_image": "silhouette, by image",
    "silhouette_label": "silhouette, by class",
    "delta_log_amplitude": "Δ log amplitude",
    "fourier_radial": "Δ log amplitude",
    "linear": "linear probe accuracy",
    "knn": "k-NN accuracy",
    "attentive": "attentive probe accuracy",
    "miou": "mean IoU",
    "fine_tuning": "fine-tuned accuracy",
    "drop": "drop of accuracy",
    "covered": "covered trials",
}


def style() -> None:
    """Make this the style of all figures that follow: vector graphics, white ground, no frame."""
    set_matplotlib_formats("svg")
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 2.9),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.titlesize": 10,
            "axes.labelsize": 9.5,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "lines.markersize": 4.5,
            "svg.fonttype": "none",  # words stay words: searchable, and in the reader's own font
            "svg.hashsalt": "nbhelpers",  # the same figure gives the same file
        }
    )


def show(figure: Figure | Axes | Sequence[Axes], alt: str) -> None:
    """Display a figure with a text for readers who cannot see it, and close it.

    Raises:
        ValueError: without a text.
    """
    live(figure, alt)


def live(
    figure: Figure | Axes | Sequence[Axes], alt: str, handle: DisplayHandle | None = None
) -> DisplayHandle | None:
    """As `show`, but given the handle that an earlier call returned, in the place of that call's figure.

    A page keeps the last figure alone. Outside of a notebook there is no handle, and nothing is replaced.
    """
    if not alt.strip():
        raise ValueError("a figure needs an alternative text that says what it shows")
    if not isinstance(figure, Figure):
        figure = np.ravel(figure)[0].figure
    metadata = {kind: {"alt": alt} for kind in ("image/svg+xml", "image/png")}
    if handle is None:
        handle = display(figure, metadata=metadata, display_id=True)
    else:
        handle.update(figure, metadata=metadata)
    plt.close(figure)
    return handle


def panels(titles: Sequence[str], height: float = 2.9, columns: int | None = None, **options) -> np.ndarray:
    """Axes under their titles, in one row or in rows of `columns`; `options` go to `plt.subplots`.

    `height` is that of a row, in inches; the axes come in a flat array, row by row.
    """
    columns = columns or len(titles)
    rows = -(-len(titles) // columns)
    width = 7.2 if columns < 3 else 9.6
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * height), squeeze=False, **options)
    for ax in axes.flat[len(titles) :]:
        figure.delaxes(ax)
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(title)
    return axes.ravel()[: len(titles)]


def legend_below(axes: Sequence[Axes]) -> Legend:
    """One legend under the whole figure, each name once: for more lines than fit beside those of a panel."""
    axes = np.ravel(axes)
    pairs = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes]
    handles = {name: handle for pair in pairs for handle, name in pair}
    place = {"loc": "outside lower center", "ncols": min(len(handles), 6)}
    return axes[0].figure.legend(handles.values(), handles.keys(), **place)


def note(ax: Axes, text: str) -> Axes:
    """An empty panel that says why nothing is drawn in it."""
    ax.axis("off")
    place = {"ha": "center", "va": "center", "transform": ax.transAxes, "fontsize": 8, "color": "#555555"}
    ax.text(0.5, 0.5, textwrap.fill(text, 40), **place)
    return ax


def look_of(model: str, objective: str) -> dict:
    """Colour, marker and line of a model: those of its label, of its objective, or of everything else.

    One of another width or length looks as the usual one, with a dashed line and hollow markers.
    """
    name, _, unusual = label(model, objective).partition(", ")
    look = STYLES.get(name, STYLES.get(objective, OTHER))
    return look | {"linestyle": "--", "mfc": "white"} if unusual else look


def title(frame: pd.DataFrame) -> str:
    r"""A panel's title: the study, and whether its numbers were computed now or come from a stored table.

    >>> title(pd.DataFrame({"study": ["cifar10"], "source": ["stored 2026-11-24"]}))
    'CIFAR-10 (photographs)\nstored 2026-11-24'
    """
    study, source = frame["study"].iloc[0], frame["source"].iloc[0]
    return f"{TITLES.get(study, study)}\n{'computed in this build' if source == COMPUTED else source}"
