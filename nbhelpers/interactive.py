"""Attention maps to be explored in a browser: one piece of HTML, computed beforehand, without a server.

Script and style are part of the HTML, so that it works on the site, in Jupyter and in a file on a disk alike.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

import numpy as np
from IPython.display import HTML
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from nbhelpers.measure import attention_maps
from nbhelpers.metrics import patch_distances
from nbhelpers.models import Encoder
from nbhelpers.studies import distinct_labels

LIMIT = 2_000_000  # bytes of maps in one page; a third more in base64

FALLBACK = (
    "Here the attention map of any query patch can be looked at, at every depth and in every head. It needs "
    "a browser with scripts enabled; the figures on this page show a selection."
)
MEANS_ONLY = "Means over heads only: with this many tokens, more would be too large for a page."


def explore(image: Tensor, encoders: Sequence[Encoder]) -> HTML:
    """Attention maps of the query patch that the reader picks, by click or by arrow keys, a panel per model.

    Depth and head (or the mean over heads) are chosen beside it. Each map is drawn on its own scale, from
    nothing to its maximum, with the attention distance of this one query and that of uniform attention.
    Single heads are left out where they exceed `LIMIT`, and the page says so.

    Args:
        image: uint8 `1 C H W`; every model sees all of it, without the crop of its preprocessing.
        encoders: one at least.
    """
    encoders = list(encoders)
    size = sum(e.depth * e.heads * (e.grid[0] * e.grid[1]) ** 2 for e in encoders)
    names = distinct_labels(encoder.name for encoder in encoders)
    all_heads = size <= LIMIT
    pairs = zip(names, encoders, strict=True)
    models = [{"label": name} | _maps(encoder, image, all_heads) for name, encoder in pairs]
    content = {"note": "" if all_heads else MEANS_ONLY, "models": models, "image": png(image.squeeze(0))}
    return application("attention-maps", FALLBACK, content, "interactive.css", "interactive.js")


def application(name: str, fallback: str, content: dict, *parts: str) -> HTML:
    """A piece of HTML that holds all it needs.

    Args:
        name: class of its element.
        fallback: what stands in it until the script has run.
        content: what the script reads as JSON; the colours of attention maps are added.
        parts: files in this package: a style, a script, and further texts for the script. `parts.css` and
            `parts.js` come before the first two.
    """
    read = [(files("nbhelpers") / part).read_text("utf-8") for part in ("parts.css", "parts.js", *parts)]
    shared_style, shared_script, style, script, *texts = read
    colours = np.round(colormaps["inferno"](np.arange(256))[:, :3] * 255)
    # Nothing in the data may end the script element.
    data = json.dumps(content | {"colours": base64_of(colours, "u1")}).replace("<", "\\u003c")
    more = "".join(f'<script type="text/plain">{text}</script>' for text in texts)
    return HTML(
        f'<style>{shared_style}{style}</style>\n<div class="nbhelpers {name}"><p>{fallback}</p>'
        f'<script type="application/json">{data}</script>{more}</div>\n'
        f"<script>(() => {{\n{shared_script}{script}}})();</script>"
    )


def _maps(encoder: Encoder, image: Tensor, single_heads: bool) -> dict:
    """The maps of one image (uint8 `1 C H W`) as the script reads them.

    `maps` are `L H N N` in steps of 1/255 of the maximum of each map, and `peaks` (`L H N`) these maxima;
    `distances` (`L H N`) and `uniform` (`N`) are attention distances of single queries, px.
    """
    whole = replace(encoder, crop=1.0, crop_mode="squash")  # else the maps would not lie where they are drawn
    attention = attention_maps(whole, image)[:, 0]
    if not single_heads:
        attention = attention.mean(1, keepdim=True)
    peaks = attention.amax(-1)
    apart = patch_distances(encoder.grid, encoder.patch_size).to(attention)
    return {
        "grid": encoder.grid,
        "depth": attention.shape[0],
        "heads": attention.shape[1],
        "maps": base64_of((attention / peaks[..., None] * 255).round(), "u1"),
        "peaks": base64_of(peaks, "<f4"),
        "distances": base64_of((attention * apart).sum(-1), "<f4"),
        "uniform": base64_of(apart.mean(-1), "<f4"),
    }


def base64_of(values: Tensor | np.ndarray, dtype: str) -> str:
    """The bytes of values of a NumPy type as text."""
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def png(image: Tensor) -> str:
    """An image (uint8 `C H W`) as an address that holds its content."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
