"""Pictures: images, attention maps of a query, tokens in the plane."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.utils import make_grid

from nbhelpers.metrics import common_update_share

Place = tuple[float, float]  # shares of an image's height and width, from its upper left corner
HEADS_A_ROW = 6
RIM = withStroke(linewidth=3.2, foreground="black")  # a pale frame is seen on any image


def gallery(images: Tensor, columns: int, ax: Axes | None = None, patch_size: int | None = None) -> Axes:
    """Images `B C H W` (uint8) in rows of `columns`, a margin between them; `patch_size` draws the grid."""
    ax = ax or plt.subplots(figsize=(7.2, 7.2))[1]
    scale = 4 if patch_size else 1  # of the copy on which thin lines are drawn
    if patch_size:
        images = images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        images[:, :, :: scale * patch_size] //= 2
        images[..., :: scale * patch_size] //= 2
    sheet = make_grid(images, nrow=columns, padding=2 * scale, pad_value=255).permute(1, 2, 0)
    ax.imshow(sheet.to(torch.uint8), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)  # whoever names rows by ticks gets no lines through the pictures
    ax.spines[:].set_visible(False)
    return ax


def _cell(ax: Axes, image: Tensor, grid: torch.Size, query: Place, values: Tensor | None = None) -> int:
    """Draw an image `C H W` and outline the patch at a place; returns the number of its token.

    Values of a map, rows and columns of the grid, are drawn in place of the image, on their own scale: laid
    over it, its light and dark parts would pass for attention.

    Raises:
        ValueError: the place is outside the image.
    """
    if not all(0 <= share <= 1 for share in query):
        raise ValueError(f"a query must be a place in the image, two shares in 0..1, not {query}")
    (height, width), (rows, columns) = image.shape[-2:], grid
    row, column = (min(int(share * n), n - 1) for share, n in zip(query, grid, strict=True))
    place = {"extent": (0, width, height, 0), "interpolation": "nearest"}
    if values is None:
        ax.imshow(image.permute(1, 2, 0).numpy(), **place)
    else:
        ax.imshow(values.numpy(), cmap="inferno", vmin=0, **place)
    corner, size = (column * width / columns, row * height / rows), (width / columns, height / rows)
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#56B4E9", lw=1.6, path_effects=[RIM]))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return row * columns + column


def query_maps(
    maps: Mapping[str, tuple[Tensor, Tensor]], queries: Sequence[Place], depths: Sequence[float]
) -> Figure:
    """Attention maps, averaged over heads, of queries on one image, beside it; a row per model and query.

    A model's name stands beside its middle row, its depths above its first one if they are not those above.

    Args:
        maps: by what the model is called, the image as it sees it, uint8 `1 C H W`, and the attention of each
            patch to the rows R and columns C of patches, `L H N R C`.
        queries: places in the image, as shares of its height and width from the upper left corner.
        depths: shares of each model's depth, a column each; 1 is its last block.
    """
    shape = (len(maps) * len(queries), 1 + len(depths))
    figure, axes = plt.subplots(*shape, figsize=(1.44 * shape[1], 1.44 * shape[0] + 0.3), squeeze=False)
    named: list[int] = []
    for part, (name, (image, attention)) in zip(np.split(axes, len(maps)), maps.items(), strict=True):
        grid, blocks = attention.shape[-2:], _blocks(depths, len(attention))
        part[len(queries) // 2, 0].set_ylabel(name)
        for line, query in zip(part, queries, strict=True):
            token = _cell(line[0], image[0], grid, query)
            for ax, depth in zip(line[1:], blocks, strict=True):
                _cell(ax, image[0], grid, query, attention[depth - 1, :, token].mean(0))
        for ax, depth in zip(part[0, 1:], blocks if blocks != named else (), strict=False):
            ax.set_title(f"depth {depth}")
        named = blocks
    return figure


def _blocks(depths: Sequence[float], blocks: int) -> list[int]:
    """The depths that are nearest to shares of a model's depth.

    >>> _blocks([0, 0.25, 1], 12)
    [1, 3, 12]
    """
    return [max(1, round(share * blocks)) for share in depths]


def head_maps(maps: Mapping[str, tuple[Tensor, Tensor]], query: Place, depth: float) -> Figure:
    """Maps of one query in every head of a block, after the image; arguments as of `query_maps`."""
    columns = min(HEADS_A_ROW, 1 + max(attention.shape[1] for _, attention in maps.values()))
    rows = [-(-(1 + attention.shape[1]) // columns) for _, attention in maps.values()]
    figure, axes = plt.subplots(sum(rows), columns, figsize=(7.2, 1.6 * sum(rows)), squeeze=False)
    parts = np.split(axes, np.cumsum(rows)[:-1])
    for (name, (image, attention)), part in zip(maps.items(), parts, strict=True):
        grid, (block,) = attention.shape[-2:], _blocks([depth], len(attention))
        plain, *cells = part.flat
        token = _cell(plain, image[0], grid, query)
        plain.set_title(f"{name}, depth {block}", fontsize=8)
        for head, (ax, each) in enumerate(zip(cells, attention[block - 1], strict=False)):
            _cell(ax, image[0], grid, query, each[token])
            ax.set_title(f"head {head}", fontsize=8)
        for ax in cells[attention.shape[1] :]:
            ax.axis("off")
    return figure


def token_steps(
    steps: Mapping[str, Sequence[tuple[Tensor, Tensor]]], depths: Sequence[float], colours: Mapping[str, str]
) -> Figure:
    """What self-attention does to the tokens of one image, along the common step; a row per model.

    To the right is the mean of the tokens' updates, upwards the first principal component of what is left of
    both sets of tokens without that direction. A line per token leads from where it was to a dot where it is
    afterwards. Below each panel stands the share of the tokens' movement that is common to all of them.

    Args:
        steps: tokens `N D` before and after the self-attention of each block, by what the model is called.
        depths: shares of each model's depth, a column each.
        colours: of each model.
    """
    shape = (len(steps), len(depths))
    figure, axes = plt.subplots(*shape, figsize=(7.2, 1.9 * shape[0]), squeeze=False)
    named: list[int] = []
    for line, (name, blocks) in zip(axes, steps.items(), strict=True):
        shown = _blocks(depths, len(blocks))
        for ax, depth in zip(line, shown, strict=True):
            before, after = blocks[depth - 1]
            start, end = _along_common_step(before.double(), after.double())
            moves = torch.stack([start, end], 1).numpy()
            ax.add_collection(LineCollection(moves, color=colours[name], lw=0.5))
            ax.scatter(*end.T.numpy(), s=5, color=colours[name], lw=0)
            share = common_update_share(before[None], after[None]).item()
            ax.set(xticks=[], yticks=[], xlabel=f"common: {share:.2f}", aspect="equal", adjustable="datalim")
            if shown != named:
                ax.set_title(f"depth {depth}")
        line[0].set_ylabel(name)
        named = shown
    return figure


def _along_common_step(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates `N 2` of tokens `N D`: along their mean update, and where they vary most beside it.

    >>> before = torch.tensor([[0.0, 2.0], [0.0, -2.0]])
    >>> [each[:, 0].tolist() for each in _along_common_step(before, before + torch.tensor([3.0, 0.0]))]
    [[-1.5, -1.5], [1.5, 1.5]]
    """
    step = normalize((after - before).mean(0), dim=0)
    both = torch.cat([before, after])
    centre = both.mean(0)
    rest = both - centre
    rest = rest - (rest @ step)[:, None] * step
    plane = torch.stack([step, torch.linalg.svd(rest, full_matrices=False).Vh[0]], 1)  # D 2
    return (before - centre) @ plane, (after - centre) @ plane


def token_map(frame: pd.DataFrame, colour: str, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Points at the columns `x`, `y` of the frame, coloured by another column: a map of tokens by t-SNE."""
    ax = ax or plt.gca()
    points = {"s": 8, "linewidth": 0, "alpha": 0.8, "rasterized": True, "legend": legend}
    points["palette"] = "colorblind" if frame[colour].nunique() <= 10 else "husl"
    sns.scatterplot(frame, x="x", y="y", hue=frame[colour].astype(str), ax=ax, **points)
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    return ax
