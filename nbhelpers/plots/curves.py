"""Curves and points of tidy frames, with the references that make them readable."""

from collections.abc import Sequence
from itertools import zip_longest

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.ticker import MaxNLocator

from nbhelpers.models import DECODER
from nbhelpers.plots.figure import AXES, OTHER_SEEDS, SINGLE_HEADS, STYLES, line_styles, metric_label
from nbhelpers.results.published import PUBLISHED
from nbhelpers.results.summary import one_value_each, rows_of_metric, whole_layers
from nbhelpers.studies import first_seeds, labels

GREY = "#555555"
DEPTHS = "crest"  # seaborn's colour map, light to dark
Reference = tuple[float, str] | None  # a horizontal line and its name


def by_depth(
    frame: pd.DataFrame,
    metric: str,
    ax: Axes | None = None,
    heads: bool = False,
    reference: Reference = None,
    column: str = "depth",
) -> Axes:
    """One line per model over depth, with the 95 % interval over images; other seeds of a model are thinner.

    Args:
        frame: rows as `analyse` and the probes give them.
        metric: which rows to draw.
        ax: where; default the current axes.
        heads: also a dot per head, for metrics that have heads.
        reference: a horizontal line and its name, such as chance or uniform attention.
        column: what is drawn over in place of depth.

    Raises:
        ValueError: the frame has no rows of the metric, or several at a depth of one model.
    """
    ax = ax or plt.gca()
    rows = rows_of_metric(frame, metric)
    whole = whole_layers(rows)
    one_value_each(whole, column)
    firsts, names = first_seeds(whole["model"].unique()), labels(whole["model"])
    looks = line_styles(zip(whole["model"], whole["objective"], strict=True))
    for model, line in whole.groupby("model", sort=False):
        line, look, first = line.sort_values(column), looks[model], model in firsts
        name = names[model] if first else None
        ax.plot(line[column], line["value"], label=name, lw=1.6 if first else 0.8, **look)
        ax.fill_between(line[column], line["low"], line["high"], color=look["color"], alpha=0.2, lw=0)
        if heads:
            dots = rows[(rows["model"] == model) & (rows["head"] >= 0)]
            ax.scatter(dots[column], dots["value"], s=9, color=look["color"], alpha=0.45, lw=0)
    if whole["model"].nunique() > len(firsts) and whole["model"].duplicated().any():  # lines, not points
        ax.plot([], [], color=GREY, lw=0.8, label=OTHER_SEEDS)
    if heads:
        ax.scatter([], [], s=9, color=GREY, alpha=0.45, lw=0, label=SINGLE_HEADS)
    if not (gaps := whole[whole["value"].isna()]).empty:
        where = sorted({f"{row.model} at {getattr(row, column):g}" for row in gaps.itertuples()})
        ax.text(0.02, 0.02, f"undefined: {', '.join(where)}", transform=ax.transAxes, fontsize=7, color=GREY)
    return _axes(ax, metric, reference, column)


def by_parameter(
    frame: pd.DataFrame, metric: str, name: str, ax: Axes | None = None, reference: Reference = None
) -> Axes:
    """As `by_depth`, over the column `parameter`; `name` says on the axis what it is.

    The frame holds rows of one label and one depth: of `robustness_by_depth`, of one change, or of
    `components_by_share`.
    """
    ax = by_depth(frame, metric, ax, reference=reference, column="parameter")
    ax.set_xlabel(name)
    return ax


def behind_encoder(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the depths of decoders counted on from the depth of their encoders."""
    last = frame.groupby("model")["depth"].max()
    encoders = frame["model"].str.removesuffix(DECODER)
    offset = encoders.map(last).where(encoders != frame["model"], 0)
    return frame.assign(depth=frame["depth"] + offset.astype(int))


def _axes(ax: Axes, metric: str, reference: Reference = None, column: str = "depth") -> Axes:
    """Name both axes, let that of values cover its span, and draw the reference, named in the legend."""
    if reference:
        ax.axhline(reference[0], color=GREY, lw=1, ls=(0, (4, 2)), label=reference[1], zorder=1)
    ax.set(xlabel=column, ylabel=metric_label(metric))
    if column == "depth":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    spans = AXES[["low", "high"]].dropna()
    if metric in spans.index:
        seen = [axes.dataLim.intervaly for axes in ax.get_shared_y_axes().get_siblings(ax)]
        ends = np.concatenate([spans.loc[metric], *seen])
        low, high = ends[np.isfinite(ends)].min(), ends[np.isfinite(ends)].max()
        ax.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    return ax


def published_by_depth(
    published: pd.DataFrame,
    metric: str,
    ax: Axes | None = None,
    models: Sequence[str] = ("MoCo v3", "SimMIM"),
    decoder: bool = False,
) -> Axes:
    """The published curves of ViT-B/16 for a metric, digitised; bars are the digitising error.

    Args:
        published: rows of `nbhelpers.results.published`.
        metric: which rows to draw.
        ax: where; default the current axes.
        models: whose curves.
        decoder: whether that of MAE follows its encoder on the axis of depth.

    Raises:
        ValueError: if nothing was published for the metric.
    """
    ax = ax or plt.gca()
    rows = published[(published["metric"] == metric) & published["depth"].notna()]
    encoders = rows[rows["part"] == "encoder"]
    if encoders.empty:
        raise ValueError(f"there is no published curve of {metric!r}")
    curves = {}
    for model in models:
        line = encoders[encoders["model"] == model]
        curves[f"{line['objective'].iloc[0]}: {model}"] = line, STYLES[PUBLISHED[model]]
    if decoder:
        curves["MAE's decoder"] = rows[rows["part"] == "decoder"], STYLES["MAE's decoder"]
    for name, (line, look) in curves.items():
        line = line.sort_values("depth")
        bars = {"lw": 1.2, "capsize": 1.5, "mfc": "white", "label": name}
        ax.errorbar(line["depth"], line["value"], line["error"], **bars, **look)
    ax.set_title("published: ViT-B/16, ImageNet")
    return _axes(ax, metric)


def per_model(frames: Sequence[pd.DataFrame]) -> tuple[list[pd.DataFrame], list[str]]:
    """Rows and title of a panel for each study and model, without further seeds; the frames take turns.

    Of two studies with the same models, two panels in a row are then of one kind of model.

    >>> columns = ["study", "model", "objective", "seed"]
    >>> runs = [("shapes", "shapes.cl", "CL", 0), ("shapes", "shapes.cl.s1", "CL", 1)]
    >>> runs += [("shapes", "shapes.mim", "MIM", 0), ("cifar10", "cifar10.cl", "CL", 0)]
    >>> frame = pd.DataFrame(runs, columns=columns)
    >>> per_model([frame[:3], frame[3:]])[1]
    ['shapes: CL', 'cifar10: CL', 'shapes: MIM']
    """
    shown = [frame[frame["model"].isin(first_seeds(frame["model"].unique()))] for frame in frames]
    each = [[rows for _, rows in frame.groupby(["study", "model"], sort=False)] for frame in shown]
    rows = [rows for turn in zip_longest(*each) for rows in turn if rows is not None]
    whose = [rows[["study", "model"]].iloc[0] for rows in rows]
    names = {model: name for frame in shown for model, name in labels(frame["model"]).items()}
    return rows, [f"{study}: {names[model]}" for study, model in whose]


def spectra(frame: pd.DataFrame, metric: str, ax: Axes | None = None, depths: int | None = None) -> Axes:
    """A model's spectrum against rank or frequency, a line per depth coloured by depth.

    The colours are those of `depth_bar`, which models of different depths share where both get its `depths`;
    default the last depth of the rows.

    Raises:
        ValueError: no such metric in the frame, or one that is no spectrum; several models, whose lines would
            share colours; or several values of a depth at one rank or frequency.
    """
    ax = ax or plt.gca()
    if frame["model"].nunique() != 1:
        raise ValueError(f"one model per panel, got {', '.join(frame['model'].unique())}")
    rows = rows_of_metric(frame, metric)
    x = next((name for name in ("rank", "frequency") if name in rows and rows[name].notna().all()), None)
    if x is None:
        raise ValueError(f"{metric!r} is no spectrum: it has neither rank nor frequency")
    colours, depths = sns.color_palette(DEPTHS, as_cmap=True), depths or rows["depth"].max()
    for depth, line in rows.groupby("depth"):
        one_value_each(line, x)
        ax.plot(line[x], line["value"], lw=1, color=colours(depth / depths))
    ax.set(xlabel={"rank": "rank", "frequency": "frequency / Nyquist"}[x], ylabel=metric_label(metric))
    return ax


def depth_bar(axes: Sequence[Axes], depths: int) -> Colorbar:
    """Beside the axes, the colours that `spectra` gives to the depths 0..`depths`."""
    colours = plt.cm.ScalarMappable(plt.Normalize(0, depths), sns.color_palette(DEPTHS, as_cmap=True))
    place = {"label": "depth", "aspect": 40, "pad": 0.01, "ticks": MaxNLocator(6, integer=True)}
    return np.ravel(axes)[0].figure.colorbar(colours, ax=axes, **place)
