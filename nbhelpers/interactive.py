"""Attention maps to be explored in a browser: one piece of HTML, computed beforehand, without a server.

Script and style are part of the HTML, so that it works on the site, in Jupyter and in a file on a disk alike.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from IPython.display import HTML
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from nbhelpers.measure import attention_maps
from nbhelpers.metrics import patch_distances
from nbhelpers.models import Encoder
from nbhelpers.studies import label

LIMIT = 2_000_000  # bytes of maps in one page; a third more in base64

FALLBACK = (
    "Here the attention map of any query patch can be looked at, at every depth and in every head. It needs "
    "a browser with scripts enabled; the figures on this page show a selection."
)


class Scene(NamedTuple):
    """An image and the encoders whose maps of it are set beside each other."""

    title: str
    image: Tensor  # uint8 1 C H W
    encoders: Sequence[Encoder]


def explore(scenes: Sequence[Scene]) -> HTML:
    """Attention maps of the query patch that the reader picks, by click or by arrow keys, a panel per model.

    Depth, head (or the mean over heads) and image are chosen beside it. Each map is drawn on its own scale,
    from nothing to its maximum, with the attention distance of this one query and that of uniform attention.

    What exceeds `LIMIT` is left out, and the page says so: first single heads, then the last images.

    Args:
        scenes: what can be chosen from; the first is shown first.

    Raises:
        ValueError: no scene, a scene without encoders, or an image that is not uint8 `1 C H W`.
    """
    _check(scenes)
    single_heads = sum(_size(scene, single_heads=True) for scene in scenes) <= LIMIT
    kept = list(scenes)
    while len(kept) > 1 and sum(_size(scene, single_heads) for scene in kept) > LIMIT:
        kept.pop()
    content = {
        "note": _note(single_heads, len(kept), len(scenes)),
        "colours": _base64(np.round(colormaps["inferno"](np.arange(256))[:, :3] * 255), "u1"),
        "scenes": [
            {
                "title": scene.title,
                "image": _png(scene.image[0]),
                "models": [_maps(encoder, scene.image, single_heads) for encoder in scene.encoders],
            }
            for scene in kept
        ],
    }
    data = json.dumps(content).replace("<", "\\u003c")  # nothing in it may end the script element
    style, script = (
        (files("nbhelpers") / f"interactive.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    return HTML(
        f'<style>{style}</style>\n<div class="attention-maps"><p>{FALLBACK}</p>'
        f'<script type="application/json">{data}</script></div>\n<script>{script}</script>'
    )


def _check(scenes: Sequence[Scene]) -> None:
    if not scenes:
        raise ValueError("explore needs at least one scene")
    for scene in scenes:
        if scene.image.dtype != torch.uint8 or scene.image.ndim != 4 or len(scene.image) != 1:
            raise ValueError(
                f"{scene.title}: expected one image, uint8 (1 C H W), got {scene.image.dtype} "
                f"{tuple(scene.image.shape)}"
            )
        if not scene.encoders:
            raise ValueError(f"{scene.title}: no encoder to look through")


def _size(scene: Scene, single_heads: bool) -> int:
    """Bytes that the maps of a scene take."""
    return sum(
        e.depth * (e.heads if single_heads else 1) * (e.grid[0] * e.grid[1]) ** 2 for e in scene.encoders
    )


def _note(single_heads: bool, kept: int, scenes: int) -> str:
    """What was left out, for the reader; empty where nothing was."""
    if single_heads:
        return ""
    images = f" of {kept} of the {scenes} images" if kept < scenes else ""
    return f"Means over heads{images} only: with this many tokens, more would be too large for a page."


def _maps(encoder: Encoder, image: Tensor, single_heads: bool) -> dict:
    """The maps of one image (uint8 `1 C H W`) as the script reads them.

    `maps` are `L H N N` in steps of 1/255 of the maximum of each map, and `peaks` (`L H N`) these maxima;
    `distances` (`L H N`) and `uniform` (`N`) are attention distances of single queries, px.
    """
    attention = attention_maps(encoder, image)[:, 0]
    if not single_heads:
        attention = attention.mean(1, keepdim=True)
    peaks = attention.amax(-1)
    apart = patch_distances(encoder.grid, encoder.patch_size).to(attention)
    return {
        "label": label(encoder.name, encoder.objective),
        "grid": encoder.grid,
        "depth": attention.shape[0],
        "heads": attention.shape[1],
        "maps": _base64((attention / peaks[..., None] * 255).round(), "u1"),
        "peaks": _base64(peaks, "<f4"),
        "distances": _base64((attention * apart).sum(-1), "<f4"),
        "uniform": _base64(apart.mean(-1), "<f4"),
    }


def _base64(values: Tensor | np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def _png(image: Tensor) -> str:
    """An image (uint8 `C H W`) as an address that holds its content."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
