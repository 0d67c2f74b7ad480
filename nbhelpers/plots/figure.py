"""How figures look and how they come to the page: style, panels, legend, numbers to download."""

import base64
import html
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib_inline.backend_inline import set_matplotlib_formats

from nbhelpers.files import DATA
from nbhelpers.results import COMPUTED
from nbhelpers.results.published import PUBLIC
from nbhelpers.studies import STYLES, TITLES, label, labels

MARKERS = "v*X8<>dpHDos^"  # of models that have none in STYLES

# What the axis of a metric is called, and what it covers at least: the bounds of bounded metrics, else a span
# in which rounding is not seen.
AXES = pd.read_csv(DATA / "axes.csv", index_col="metric")
OTHER_SEEDS, SINGLE_HEADS = REMARKS = ("other seeds", "single heads")  # what legends name beside encoders
SPARE = "spare"  # label of a cell of the figure without a panel


def metric_label(metric: str) -> str:
    """What the axis of a metric is called.

    >>> metric_label("nmi"), metric_label("one_of_yours")
    ('normalised mutual information', 'one of yours')
    """
    return AXES["label"].get(metric, metric.replace("_", " "))


def style() -> None:
    """Make this the style of all figures that follow: vector graphics, white ground, no frame."""
    set_matplotlib_formats("svg")
    plt.style.use(Path(__file__).with_name("book.mplstyle"))


def panels(
    titles: Sequence[str], height: float = 2.9, missing: Mapping[str, str] | None = None, **options
) -> np.ndarray:
    """Axes under their titles, one or two in a row.

    Of a study, the name is enough. `height` is that of a row, in inches; `missing` holds, by title, why a
    panel is empty; `options` go to `plt.subplots`. The axes come in a flat array, row by row. A cell that is
    left over has room for a legend, see `legend_below`.
    """
    columns = min(2, len(titles))
    rows = -(-len(titles) // columns)
    with plt.rc_context({"figure.constrained_layout.h_pad": 0.08}):  # a title is no part of the row above
        axes = plt.subplots(rows, columns, figsize=(7.2, rows * height), squeeze=False, **options)[1]
    # What panels share is named once, also by whoever sets a label later.
    for ax in axes[:, 1:].flat if options.get("sharey") else ():
        ax.yaxis.label.set_visible(False)
    for ax in axes[:-1].flat if options.get("sharex") else ():
        ax.xaxis.label.set_visible(False)
    if len(titles) < axes.size:
        axes[-1, 1].axis("off")
        axes[-1, 1].set_label(SPARE)
        axes[-2, 1].tick_params(labelbottom=True)
        axes[-2, 1].xaxis.label.set_visible(True)
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(TITLES.get(title, title))
        if missing and title in missing:
            note(ax, missing[title])
    return axes.ravel()[: len(titles)]


def legend_below(axes: Sequence[Axes]) -> Legend:
    """One legend of the whole figure, each name once: in a cell without a panel, else below the panels.

    Below them, the figure grows by the legend's height, and has as many rows of names as its width asks for.
    A width and a number of images that all encoders share are its title.
    """
    figure = np.ravel(axes)[0].figure
    pairs = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in np.ravel(axes)]
    handles = {name: handle for pair in pairs for handle, name in pair}
    handles = dict(sorted(handles.items(), key=lambda each: each[0] in REMARKS))  # remarks come last
    marked = {name for name, it in handles.items() if getattr(it, "get_marker", str)() not in ("", "None")}
    encoders = marked | {name for name in handles if ", " in name or name in STYLES}  # not references
    settings = {name.partition(", ")[2] for name in encoders}
    shared = settings.pop() if len(settings) == 1 and len(handles) > 1 else ""
    entries = handles.values(), [name.removesuffix(f", {shared}") for name in handles]
    options = {"title": f"encoders of {shared}", "title_fontsize": 8.5} if shared else {}
    if spare := [ax for ax in figure.axes if ax.get_label() == SPARE]:
        return spare[0].legend(*entries, loc="center", **options)
    for rows in range(1, len(handles) + 2):
        options["ncols"] = -(-len(handles) // rows)
        legend = figure.legend(*entries, loc="outside lower left", **options)
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or rows >= len(handles):
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
    return legend


def note(ax: Axes, text: str) -> Axes:
    """An empty panel that says why nothing is drawn in it."""
    ax.axis("off")
    place = {"ha": "center", "va": "center", "transform": ax.transAxes, "fontsize": 8, "color": "#555555"}
    ax.text(0.5, 0.5, textwrap.fill(text, 40), **place)
    return ax


def line_style(model: str, objective: str) -> dict:
    """Colour, marker and line of one model; of several in one figure, `line_styles` makes them distinct."""
    return line_styles([(model, objective)])[model]


def line_styles(models: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """Colour, marker and line of the models (name, objective) of a figure, however many there are.

    The book's own encoders and the paper's public checkpoints look as in every figure; of another width or
    length they are dashed, or stay dotted, with half filled markers (hollow ones are published), other ones
    for each further such setting. The first other model of an objective looks like ours of it if none such is
    there; all further ones have a colour and a marker of their own.

    >>> styles = line_styles([("cifar10.cl", "CL"), ("one.dino", "CL"), ("two.dino", "CL")])
    >>> len({style["color"] for style in styles.values()})
    3
    """
    models, styles, others = dict(models), {}, []
    called = labels(models)
    for model, objective in models.items():
        name, _, unusual = label(model).partition(", ")
        own = model.partition(".")[0] in TITLES
        look = STYLES.get(PUBLIC.get(model, name), STYLES.get(objective) if own else None)
        if look:
            if own and unusual:
                half = {"fillstyle": "bottom", "mfcalt": "white"}
                look = look | half | {"linestyle": ":" if look["linestyle"] == ":" else "--"}
            taken = [styles[other] for other in styles if called[other] != called[model]]
            looks = [look, *(look | {"marker": marker} for marker in MARKERS)]
            styles[model] = next((each for each in looks if each not in taken), look)
        else:
            others.append(model)
    for model in others:
        usual = STYLES.get(models[model])
        if usual and usual["color"] not in {look["color"] for look in styles.values()}:
            styles[model] = usual
    others = [model for model in others if model not in styles]
    palette = sns.husl_palette(len(others), h=0.8, s=0.7, l=0.45).as_hex()
    for model, color, marker in zip(others, palette, cycle(MARKERS), strict=False):
        styles[model] = {"color": color, "marker": marker, "linestyle": "--"}
    return styles


def download(numbers: pd.DataFrame | Iterable[pd.DataFrame], name: str) -> HTML | None:
    """A link to the numbers behind a figure as a CSV file, which lies in the page itself; None without any.

    >>> "data:text/csv;base64,YSxiCjEsMgo=" in download([pd.DataFrame({"a": [1], "b": [2]})], "nmi").data
    True
    """
    frames = [numbers] if isinstance(numbers, pd.DataFrame) else numbers
    frame = pd.concat([pd.DataFrame(), *frames])
    if frame.empty:
        return None
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    address = f"data:text/csv;base64,{base64.b64encode(text.encode()).decode()}"
    file = html.escape(f"{name.removesuffix('.csv')}.csv")
    return HTML(f'<a href="{address}" download="{file}">The numbers ({file})</a>')


def title(frame: pd.DataFrame) -> str:
    r"""A panel's title: the study, and whether its numbers were computed now or come from a stored table.

    >>> title(pd.DataFrame({"study": ["cifar10"], "source": ["stored 2026-11-24"]}))
    'CIFAR-10 (photographs)\nstored 2026-11-24'
    """
    study, sources = frame["study"].iloc[0], set(frame["source"])
    stored = sorted(sources - {COMPUTED})[-1:]  # the latest date
    told = [*stored, *(["computed in this build"] if COMPUTED in sources else [])]
    return f"{TITLES.get(study, study)}\n{', '.join(told)}"
