"""Pictures: images, attention maps of a query, tokens in the plane."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.utils import make_grid

from nbhelpers.capture import capture
from nbhelpers.measure import attention_maps
from nbhelpers.metrics import common_update_share, patch_tokens, token_pca
from nbhelpers.models import Encoder
from nbhelpers.plots.figure import look_of
from nbhelpers.studies import label


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
