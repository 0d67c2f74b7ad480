"""Every figure of the book for encoders and images of the reader's: tables, figures and one HTML page."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from nbhelpers import plots
from nbhelpers.files import atomic_path
from nbhelpers.images import ImageSource
from nbhelpers.measure import analyse
from nbhelpers.metrics import METRICS, patch_distances
from nbhelpers.models import Encoder
from nbhelpers.results import COMPUTED

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}
figure{{margin:2rem 0}} img{{max-width:100%}} table{{border-collapse:collapse}}
td,th{{padding:.2rem .8rem;text-align:left}}
</style>
<h1>{title}</h1>
<p>{images} images of {source}. Lines are means over heads and images with the 95 % interval over images;
depth 0 is the embedding. The numbers behind the figures are in <a href="metrics.csv">metrics.csv</a>.</p>
{table}
{figures}
</html>
"""


@dataclass(frozen=True)
class Drawing:
    """One figure of the report: the metric it draws, its caption, and how."""

    metric: str
    caption: str
    draw: Callable[[pd.DataFrame, str, Axes], Axes]


def _curve(frame: pd.DataFrame, metric: str, ax: Axes, heads: bool = False) -> Axes:
    ax = plots.by_depth(frame, metric, ax, heads=heads)
    ax.legend()
    return ax


_heads = partial(_curve, heads=True)
DRAWINGS = (
    Drawing("attention_distance", "How far attention reaches, in pixels.", _heads),
    Drawing("nmi", "Mutual information of query and key: 0 where all queries have the same map.", _heads),
    Drawing("attention_entropy", "Entropy of attention: 1 where it is uniform.", _heads),
    Drawing("query_cosine", "How alike the maps of different queries are.", _heads),
    Drawing("head_cosine", "How alike the outputs of different heads are.", _curve),
    Drawing("token_cosine", "How alike the tokens of an image are.", _curve),
    Drawing("across_block_cosine", "How little a block turns the tokens.", _curve),
    Drawing("common_update_share", "Share of the attention update common to all tokens of an image.", _curve),
    Drawing("token_effective_rank", "Effective rank of the tokens of an image.", _curve),
    Drawing("delta_log_amplitude", "High against low frequencies of the token map.", _curve),
    Drawing("token_norm", "Norm of the patch tokens.", _curve),
    Drawing("prefix_attention", "Attention that patch tokens pay to the prefix tokens.", _curve),
)


def report(
    encoders: Sequence[Encoder], images: ImageSource, folder: str | Path, batch_size: int = 64
) -> Path:
    """Analyse encoders on images and write `metrics.csv`, a figure per metric and `index.html` to a folder.

    Args:
        encoders: one or several, drawn in the same figures.
        images: all of them are used.
        folder: made if needed.
        batch_size: images per forward pass.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frames = [analyse(encoder, images, list(METRICS), batch_size) for encoder in encoders]
    frame = pd.concat(frames, ignore_index=True).assign(source=COMPUTED)
    with atomic_path(folder / "metrics.csv") as temporary:
        frame.to_csv(temporary, index=False)
    plots.style()
    figures = [_figure(frame, drawing, folder) for drawing in DRAWINGS]
    page = PAGE.format(
        title=html.escape(" and ".join(encoder.name for encoder in encoders)),
        images=f"{len(images):,}",
        source=html.escape(images.name),
        table=layout(encoders).to_html(index=False, border=0),
        figures="\n".join(figures),
    )
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "index.html"


def _figure(frame: pd.DataFrame, drawing: Drawing, folder: Path) -> str:
    """Draw one metric into the folder; the HTML that shows it."""
    figure, ax = plt.subplots(figsize=(6.4, 3.2))
    drawing.draw(frame, drawing.metric, ax)
    with atomic_path(folder / f"{drawing.metric}.svg") as temporary:
        figure.savefig(temporary)
    plt.close(figure)
    alt = html.escape(f"{drawing.caption} A line per model against depth.")
    caption = f"<figcaption>{html.escape(drawing.caption)}</figcaption>"
    return f'<figure><img src="{drawing.metric}.svg" alt="{alt}">{caption}</figure>'


def layout(encoders: Sequence[Encoder]) -> pd.DataFrame:
    """What was read off each encoder: the reader's check that it is the model they meant."""
    rows = [
        {
            "model": encoder.name,
            "objective": encoder.objective,
            "blocks": encoder.depth,
            "width": encoder.width,
            "heads": encoder.heads,
            "prefix tokens": encoder.prefix,
            "patch grid": f"{encoder.grid[0]} x {encoder.grid[1]}",
            "uniform distance (px)": round(
                float(patch_distances(encoder.grid, encoder.patch_size).mean()), 2
            ),
        }
        for encoder in encoders
    ]
    return pd.DataFrame(rows)
