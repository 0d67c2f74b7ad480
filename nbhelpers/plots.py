"""The book's one figure style: a tidy frame in, `Axes` out."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor
from torchvision.utils import make_grid

from nbhelpers.analyse import attention_maps
from nbhelpers.capture import capture
from nbhelpers.metrics import common_update_share, patch_tokens, token_pca
from nbhelpers.models import Encoder
from nbhelpers.results import COMPUTED, published
from nbhelpers.study import TITLES, label

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


def gallery(images: Tensor, columns: int, ax: Axes | None = None, patch_size: int | None = None) -> Axes:
    """Images `B C H W` (uint8) in rows of `columns`, a margin between them; `patch_size` draws the grid."""
    ax = ax or plt.subplots(figsize=(7.2, 7.2))[1]
    height, width = images.shape[-2:]
    if patch_size:
        images = images.clone()
        images[:, :, ::patch_size] = images[:, :, ::patch_size] // 2
        images[..., ::patch_size] = images[..., ::patch_size] // 2
    sheet = make_grid(images, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0)
    ax.imshow(sheet.to(torch.uint8), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.cell = (height + 2, width + 2)
    return ax


def grid_labels(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> Axes:
    """Write names beside the rows and above the columns of a `gallery`."""
    height, width = ax.cell
    ax.set_xticks([2 + width * (i + 0.5) for i in range(len(columns))], columns, rotation=45, ha="left")
    ax.set_yticks([2 + height * (i + 0.5) for i in range(len(rows))], rows)
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    return ax


def _picture(ax: Axes, image: Tensor) -> None:
    ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def _map(ax: Axes, values: Tensor, query: tuple[int, int]) -> None:
    """One query's map `rows columns` on its own scale, the query patch outlined."""
    ax.imshow(values.numpy(), cmap="inferno", vmin=0, interpolation="nearest")
    ax.add_patch(Rectangle((query[1] - 0.5, query[0] - 0.5), 1, 1, fill=False, edgecolor="#56B4E9", lw=1.5))
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def _marked(ax: Axes, encoder: Encoder, image: Tensor, query: tuple[int, int]) -> None:
    """The image as the encoder is shown it, with the outline of a query patch."""
    _picture(ax, image)
    height, width = (s / g for s, g in zip(image.shape[-2:], encoder.grid, strict=True))
    corner = (query[1] * width - 0.5, query[0] * height - 0.5)
    ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#56B4E9", lw=1.8))


def query_maps(
    image: Tensor, encoders: Sequence[Encoder], queries: Sequence[tuple[int, int]], depths: Sequence[int]
) -> Figure:
    """Attention maps, averaged over heads, of query patches (row, column) of one image (uint8 `1 C H W`).

    A row per encoder and query, a column per depth; the image with the query outlined comes first.
    """
    rows = [(encoder, query) for encoder in encoders for query in queries]
    shape = (len(rows), 1 + len(depths))
    figure, axes = plt.subplots(*shape, figsize=(1.15 * shape[1], 1.2 * shape[0]), squeeze=False)
    maps = {encoder.name: attention_maps(encoder, image)[:, 0].mean(1) for encoder in encoders}
    for line, (encoder, query) in zip(axes, rows, strict=True):
        _marked(line[0], encoder, image[0], query)
        line[0].set_ylabel(label(encoder.name, encoder.objective))
        for ax, depth in zip(line[1:], depths, strict=True):
            row = maps[encoder.name][depth - 1, query[0] * encoder.grid[1] + query[1]]
            _map(ax, row.view(encoder.grid), query)
    for ax, depth in zip(axes[0, 1:], depths, strict=True):
        ax.set_title(f"depth {depth}")
    return figure


def head_maps(image: Tensor, encoders: Sequence[Encoder], query: tuple[int, int], depth: int) -> Figure:
    """Maps of one query patch in every head of a block, a row per encoder; image uint8 `1 C H W`."""
    heads = max(encoder.heads for encoder in encoders)
    shape = (len(encoders), 1 + heads)
    figure, axes = plt.subplots(*shape, figsize=(1.15 * shape[1], 1.2 * shape[0]), squeeze=False)
    for line, encoder in zip(axes, encoders, strict=True):
        _marked(line[0], encoder, image[0], query)
        line[0].set_ylabel(label(encoder.name, encoder.objective))
        maps = attention_maps(encoder, image)[depth - 1, 0, :, query[0] * encoder.grid[1] + query[1]]
        for ax, values in zip(line[1:], maps, strict=False):
            _map(ax, values.view(encoder.grid), query)
    for head, ax in enumerate(axes[0, 1:]):
        ax.set_title(f"head {head}")
    return figure


def token_steps(image: Tensor, encoders: Sequence[Encoder], depths: Sequence[int]) -> Figure:
    """What self-attention does to the tokens of one image (uint8 `1 C H W`), in their first two components.

    A row per encoder, a column per depth: a line per token from where it was to a dot where it is
    afterwards. Below each panel, the share of the tokens' movement that is common to all of them.
    """
    shape = (len(encoders), len(depths))
    figure, axes = plt.subplots(*shape, figsize=(1.6 * shape[1], 1.75 * shape[0]), squeeze=False)
    for line, encoder in zip(axes, encoders, strict=True):
        places: list[Tensor] = []
        with capture(
            encoder, on_stream=lambda record, kept=places: kept.append(patch_tokens(record)[0].cpu())
        ):
            encoder.forward(image)
        for ax, depth in zip(line, depths, strict=True):
            before, after = places[2 * depth - 2 : 2 * depth]  # block d - 1, +sa d
            _steps(ax, before, after, look_of(encoder.name, encoder.objective)["color"])
        line[0].set_ylabel(label(encoder.name, encoder.objective))
    for ax, depth in zip(axes[0], depths, strict=True):
        ax.set_title(f"depth {depth}")
    return figure


def _steps(ax: Axes, before: Tensor, after: Tensor, color: str) -> None:
    """Tokens `N D` before and after a step, and the common share of it, on the components of both."""
    pca = token_pca(before, after, components=2)
    ax.add_collection(LineCollection(torch.stack([pca.before, pca.after], 1).numpy(), color=color, lw=0.5))
    ax.scatter(*pca.after.T.numpy(), s=5, color=color, lw=0)
    share = common_update_share(before[None], after[None]).item()
    ax.set(xticks=[], yticks=[], xlabel=f"{share:.2f}", aspect="equal", adjustable="datalim")


def look_of(model: str, objective: str) -> dict:
    """Colour, marker and line of a model: those of its label, of its objective, or of everything else."""
    return STYLES.get(label(model, objective), STYLES.get(objective, OTHER))


def title(frame: pd.DataFrame) -> str:
    r"""A panel's title: the study, and whether its numbers were computed now or come from a stored table.

    >>> title(pd.DataFrame({"study": ["cifar10"], "source": ["stored 2026-11-24"]}))
    'CIFAR-10 (photographs)\nstored 2026-11-24'
    """
    study, source = frame["study"].iloc[0], frame["source"].iloc[0]
    return f"{TITLES.get(study, study)}\n{'computed in this build' if source == COMPUTED else source}"


def by_depth(
    frame: pd.DataFrame,
    metric: str,
    ax: Axes | None = None,
    heads: bool = False,
    reference: tuple[float, str] | None = None,
) -> Axes:
    """One line per model over depth, with the 95 % interval over images; other seeds of a model are thinner.

    Args:
        frame: rows as `analyse` and the probes give them.
        metric: which rows to draw.
        ax: where; default the current axes.
        heads: also a dot per head, for metrics that have heads.
        reference: a horizontal line and its name, such as chance or uniform attention.

    Raises:
        ValueError: if the frame has no rows of the metric, naming those it has.
    """
    ax = _lines(frame, metric, "depth", ax, heads, reference)
    ax.set_xlabel("depth")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def behind_encoder(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the depths of decoders counted on from the depth of their encoders."""
    last = frame.groupby("model")["depth"].max()
    encoders = frame["model"].str.partition(":")
    offset = encoders[0].map(last).where(encoders[2] != "", 0)
    return frame.assign(depth=frame["depth"] + offset.astype(int))


def by_parameter(
    frame: pd.DataFrame,
    metric: str,
    name: str,
    ax: Axes | None = None,
    reference: tuple[float, str] | None = None,
) -> Axes:
    """As `by_depth`, over the column `parameter`; `name` says on the axis what it is.

    The frame holds rows of `robustness_by_depth` of one change, one label and one depth.
    """
    ax = _lines(frame, metric, "parameter", ax, False, reference)
    ax.set_xlabel(name)
    return ax


def _lines(
    frame: pd.DataFrame,
    metric: str,
    column: str,
    ax: Axes | None,
    heads: bool,
    reference: tuple[float, str] | None,
) -> Axes:
    """A line per model over a column of the frame."""
    ax = ax or plt.gca()
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise ValueError(
            f"the frame has no metric {metric!r}; it has {', '.join(sorted(set(frame['metric'])))}"
        )
    whole = rows[rows["head"] < 0] if "head" in rows else rows
    for (model, objective, seed), line in whole.groupby(
        ["model", "objective", "seed"], dropna=False, sort=False
    ):
        line = line.sort_values(column)
        look = look_of(model, objective)
        first = pd.isna(seed) or seed == 0 or objective == "random"
        name = label(model, objective) if first else None
        ax.plot(line[column], line["value"], label=name, lw=1.6 if first else 0.8, **look)
        ax.fill_between(line[column], line["low"], line["high"], color=look["color"], alpha=0.2, lw=0)
        if heads:
            dots = rows[(rows["model"] == model) & (rows["head"] >= 0)]
            ax.scatter(dots[column], dots["value"], s=9, color=look["color"], alpha=0.45, lw=0)
    if reference:
        _reference_line(ax, *reference)
    ax.set_ylabel(LABELS.get(metric, metric.replace("_", " ")))
    return ax


def trade_off(x: pd.DataFrame, y: pd.DataFrame, names: tuple[str, str], ax: Axes | None = None) -> Axes:
    """A point per model: its value in one frame against its value in another, with both 95 % intervals.

    Frames hold a row per model, with the columns `model objective value low high`; `names` are the axes'.
    Further seeds of a model have its look, and no name in the legend.

    Raises:
        ValueError: if no model is in both.
    """
    ax = ax or plt.gca()
    both = x.merge(y, on=["model", "objective"])
    if both.empty:
        raise ValueError(f"no model is in both frames: {list(x['model'])} and {list(y['model'])}")
    named = set()
    for row in both.itertuples():
        bars = [
            [[value - low], [high - value]]
            for value, low, high in (
                (row.value_x, row.low_x, row.high_x),
                (row.value_y, row.low_y, row.high_y),
            )
        ]
        look = look_of(row.model, row.objective) | {"linestyle": "none"}
        name = label(row.model, row.objective)
        once = None if name in named else name
        named.add(name)
        ax.errorbar(row.value_x, row.value_y, bars[1], bars[0], label=once, lw=1, **look)
    ax.set(xlabel=names[0], ylabel=names[1])
    return ax


def per_model(frames: Sequence[pd.DataFrame]) -> tuple[list[pd.DataFrame], list[str]]:
    """Rows and title of a panel for each model of some frames, without further seeds; in rows by frame.

    >>> columns = ["study", "model", "objective", "seed"]
    >>> runs = [("shapes", "shapes.cl", "CL", 0), ("shapes", "shapes.cl.s1", "CL", 1)]
    >>> per_model([pd.DataFrame(runs, columns=columns)])[1]
    ['shapes: CL']
    """
    firsts = [frame[frame["seed"].isna() | (frame["seed"] == 0)] for frame in frames]
    rows = [rows for frame in firsts for _, rows in frame.groupby("model", sort=False)]
    whose = [rows[["study", "model", "objective"]].iloc[0] for rows in rows]
    return rows, [f"{study}: {label(model, objective)}" for study, model, objective in whose]


def spectra(frame: pd.DataFrame, metric: str, ax: Axes | None = None) -> Axes:
    """A model's spectrum against rank or frequency, a line per depth coloured by depth.

    Raises:
        ValueError: if the frame holds more than one model: their lines would share colours.
    """
    ax = ax or plt.gca()
    if frame["model"].nunique() != 1:
        raise ValueError(f"one model per panel, got {', '.join(frame['model'].unique())}")
    rows = frame[frame["metric"] == metric]
    x = "frequency" if metric.startswith("fourier") else "rank"
    colours = plt.get_cmap("crest")
    for depth, line in rows.groupby("depth"):
        ax.plot(line[x], line["value"], lw=1, color=colours(depth / rows["depth"].max()))
    ax.set(xlabel={"rank": "rank", "frequency": "frequency / Nyquist"}[x], ylabel=LABELS[metric])
    return ax


def depth_bar(axes: Sequence[Axes], depths: int) -> None:
    """Beside the axes, the colours that `spectra` gives to the depths 0..`depths`."""
    colours = plt.cm.ScalarMappable(plt.Normalize(0, depths), "crest")
    np.ravel(axes)[0].figure.colorbar(colours, ax=axes, label="depth", aspect=40, pad=0.01)


def token_map(frame: pd.DataFrame, colour: str, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Points at the columns `x`, `y` of the frame, coloured by another column: a map of tokens by t-SNE."""
    ax = ax or plt.gca()
    palette = "colorblind" if frame[colour].nunique() <= 10 else "husl"
    points = {"s": 8, "linewidth": 0, "alpha": 0.8, "rasterized": True}
    sns.scatterplot(
        frame, x="x", y="y", hue=frame[colour].astype(str), palette=palette, legend=legend, ax=ax, **points
    )
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    ax.grid(False)
    return ax


def note(ax: Axes, text: str) -> Axes:
    """An empty panel that says why nothing is drawn in it."""
    ax.axis("off")
    place = {"ha": "center", "va": "center", "transform": ax.transAxes, "fontsize": 8, "color": "#555555"}
    ax.text(0.5, 0.5, textwrap.fill(text, 40), **place)
    return ax


def _reference_line(ax: Axes, value: float, name: str) -> None:
    """A dashed horizontal line with its name under the right end."""
    ax.axhline(value, color="#555555", lw=1, ls=(0, (4, 2)))
    place = {"xytext": (0, -2), "textcoords": "offset points", "ha": "right", "va": "top"}
    ax.annotate(name, (1, value), xycoords=("axes fraction", "data"), fontsize=8, color="#555555", **place)


def published_by_depth(
    metric: str,
    ax: Axes | None = None,
    models: Sequence[str] = ("MoCo v3", "SimMIM"),
    reference: tuple[float, str] | None = None,
    decoder: bool = False,
) -> Axes:
    """The published curves of ViT-B/16 for a metric, digitised; bars are the digitising error.

    With `decoder`, that of MAE follows its encoder on the axis of depth.

    Raises:
        ValueError: if nothing was published for the metric.
    """
    ax = ax or plt.gca()
    rows = published()
    rows = rows[(rows["metric"] == metric) & rows["depth"].notna()]
    encoders = rows[rows["part"] == "encoder"]
    if encoders.empty:
        raise ValueError(f"no published curve of {metric!r}")
    for model in models:
        line = encoders[encoders["model"] == model].sort_values("depth")
        objective = line["objective"].iloc[0]
        look = STYLES.get(model, STYLES[objective])
        name = f"{objective}: {model}"
        ax.errorbar(
            line["depth"], line["value"], line["error"], label=name, lw=1.2, capsize=1.5, mfc="white", **look
        )
    if decoder:
        behind = rows[rows["part"] == "decoder"].sort_values("depth")
        look = STYLES["MAE's decoder"] | {"label": "MAE's decoder"}
        ax.errorbar(
            behind["depth"], behind["value"], behind["error"], lw=1.2, capsize=1.5, mfc="white", **look
        )
    if reference:
        _reference_line(ax, *reference)
    ax.set(xlabel="depth", ylabel=LABELS.get(metric, metric), title="published: ViT-B/16, ImageNet")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax
