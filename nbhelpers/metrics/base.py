"""What every metric shares: sums per depth and cell, a tidy frame, and the words for bad input."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor
from torchmetrics import Metric

if TYPE_CHECKING:
    from nbhelpers.capture import Attention, Stream

Record = TypeVar("Record", bound="Attention | Stream")
PIECE = 2_000_000  # numbers of a few images' tokens: the copies that metrics make of them stay small


class Layout(Protocol):
    """Sizes of an encoder that metrics allocate their sums from."""

    depth: int
    heads: int
    width: int
    grid: tuple[int, int]


def require_finite(values: Tensor, name: str) -> Tensor:
    """Return `values` unless one of them is NaN or infinite: then say which metric met it."""
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{name}: {bad} of {values.numel()} values are NaN or infinite (shape {tuple(values.shape)}); "
            "look for overflow (half precision?) or broken weights in the encoder"
        )
    return values


def require_axes(tensor: Tensor, axes: str, name: str) -> Tensor:
    """Return `tensor` if it has the axes named in einops letters, else say which shape it has."""
    if tensor.ndim != len(axes.split()) or 0 in tensor.shape:
        raise ValueError(f"{name}: expected shape ({axes}) without empty axes, got {tuple(tensor.shape)}")
    return tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32, others as they are: sums over tokens need the digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def patch_tokens(stream: Stream) -> Tensor:
    """The patch tokens of a `capture.Stream`, `B N D` in float32 or better; prefix tokens dropped.

    Raises:
        ValueError: tokens that are not prefix + grid.
    """
    patches = stream.grid[0] * stream.grid[1]
    if stream.tokens.ndim != 3 or stream.tokens.shape[1] != stream.prefix + patches:
        raise ValueError(
            f"tokens (B N D) = {tuple(stream.tokens.shape)} do not fit {stream.prefix} prefix tokens and a "
            f"grid of {tuple(stream.grid)} = {patches}"
        )
    return at_least_float32(stream.tokens[:, stream.prefix :])


def in_pieces(function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """A function of each image's tokens `B N D`, called with as many images at a time as fit `PIECE`.

    >>> in_pieces(lambda tokens: tokens.sum((1, 2)), torch.ones(3, 2, 2))
    tensor([4., 4., 4.])
    """
    images = max(1, PIECE // tokens[0].numel())
    return torch.cat([function(part) for part in tokens.split(images)])


def shared(function: Callable[[Stream], Tensor]) -> Callable[[Stream], Tensor]:
    """Remember a function's last answer, so that metrics which ask about one record compute it once."""
    asked: weakref.ref | None = None
    answer = None

    @wraps(function)
    def once(record: Stream) -> Tensor:
        nonlocal asked, answer
        if asked is None or asked() is not record:
            answer = function(record)
            asked = weakref.ref(record)
        return answer

    return once


def unpad(record: Record, images: int) -> Record:
    """The record of the first `images` images: drops what pads the last batch to full size.

    Args:
        record: a `capture.Attention` or `capture.Stream` of a batch.
        images: how many images at the start of the batch are real (1..B).

    Raises:
        ValueError: `images` is not within the batch.
    """
    tensors = {name: value for name, value in vars(record).items() if isinstance(value, Tensor)}
    batch = len(next(iter(tensors.values())))
    if not 1 <= images <= batch:
        raise ValueError(f"unpad: {images} images asked of a batch of {batch}; give 1 to {batch}")
    # A bias shared by all images has a batch axis of 1 and slices to itself.
    return replace(record, **{name: value[:images] for name, value in tensors.items()})


class DepthwiseMetric(Metric):
    r"""Mean over images, per depth and cell, of a value that each image has; exact under any split.

    A cell is a head, a rank of a spectrum or a frequency. Kept are, in float64, the number of images, the sum
    and the sum of squares, which merge over batches and ranks by addition:

    .. math:: \bar x = \frac{1}{n} \sum_i x_i, \quad
        \bar x \pm t_{0.975,\,n-1} \sqrt{\frac{\sum_i x_i^2 - n \bar x^2}{n (n-1)}}

    `compute()` returns a tidy frame `metric depth head value low high images`, with `rank` or `frequency`
    after `head` for the metrics that have one. `head` is -1 where a value belongs to no single head. `low`
    and `high` bound the 95 % interval of the mean over images (Student's t; NaN for a single image).

    Subclasses set the class attributes and write `update(record)`, which calls `add`.

    Args:
        depth: number of blocks L of the encoder; depth 0 is the embedding.
        cells: labels of the cells of one depth.

    Example:
        >>> class Brightness(DepthwiseMetric):
        ...     name, unit, consumes, layout = "brightness", "", frozenset({"block"}), ("depth",)
        ...     def update(self, values):
        ...         self.add(1, values)
        >>> metric = Brightness(depth=1)
        >>> metric.update(torch.tensor([1.0, 2.0]))
        >>> metric.update(torch.tensor([3.0]))
        >>> metric.compute().round(2).drop(columns="metric").to_dict("records")
        [{'depth': 1, 'head': -1, 'value': 2.0, 'low': -0.48, 'high': 4.48, 'images': 3}]
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    consumes: ClassVar[frozenset[str]]  # of "attention", "block", "+sa"
    layout: ClassVar[tuple[str, ...]]  # the encoder's sizes that the constructor takes
    column: ClassVar[str] = "head"  # what the cells of one depth are
    full_state_update = False
    is_differentiable = False

    images: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, *, depth: int, cells: Sequence[float] = (-1,)) -> None:
        super().__init__()
        self.depth, self.cells = depth, tuple(cells)
        for state in ("images", "total", "squares"):
            zeros = torch.zeros(depth + 1, len(self.cells), dtype=torch.float64)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    @classmethod
    def of(cls, encoder: Layout) -> DepthwiseMetric:
        """The metric with sums as large as this encoder's depth, heads, width and grid ask for."""
        return cls(**{size: getattr(encoder, size) for size in cls.layout})

    def add(self, depth: int, values: Tensor) -> None:
        """Count one value per image and cell.

        Args:
            depth: 0..L.
            values: `B cells`, or `B` where a depth has one cell.

        Raises:
            ValueError: unknown depth, another number of cells, or a value that is not finite.
        """
        if not 0 <= depth <= self.depth:
            raise ValueError(f"{self.name}: depth {depth} is outside 0..{self.depth} of this encoder")
        values = values[:, None] if values.ndim == 1 else values
        if values.shape[1:] != (len(self.cells),):
            raise ValueError(
                f"{self.name}: expected {len(self.cells)} values of an image ({self.column}), "
                f"got shape (B cells) = {tuple(values.shape)}"
            )
        values = require_finite(values.detach(), self.name).to(self.total)
        self.images[depth] += len(values)
        self.total[depth] += values.sum(0)
        self.squares[depth] += values.square().sum(0)

    def compute(self) -> pd.DataFrame:
        """Tidy frame of means with their 95 % interval over images; depths never seen are left out.

        Raises:
            ValueError: no image was seen.
        """
        mean = self.total / self.images
        variance = (self.squares - self.images * mean.square()).clamp(min=0) / (self.images - 1)
        variance[self.images < 2] = torch.nan
        quantile = stdtrit((self.images - 1).clamp(min=1).cpu().numpy(), 0.975)
        half = torch.as_tensor(quantile).to(mean) * (variance / self.images).sqrt()
        return self.frame(mean, mean - half, mean + half, self.images)

    def frame(self, value: Tensor, low: Tensor, high: Tensor, images: Tensor) -> pd.DataFrame:
        """Tidy rows of the depths and cells (`L+1 cells`) that have images."""
        depths, cells = (axis.cpu().numpy() for axis in images.nonzero(as_tuple=True))
        if not len(depths):
            raise ValueError(f"{self.name}: no image was seen; call update() before compute()")
        seen = images > 0
        columns = {"metric": self.name, "depth": depths, "head": -1, self.column: np.array(self.cells)[cells]}
        columns |= {
            name: values[seen].cpu().numpy()
            for name, values in (("value", value), ("low", low), ("high", high))
        }
        return pd.DataFrame(columns | {"images": images[seen].long().cpu().numpy()})


class PerHeadMetric(DepthwiseMetric):
    """A metric with a value per head; `head` = -1 is the mean over heads, with its interval over images."""

    layout = ("depth", "heads")

    def __init__(self, *, depth: int, heads: int) -> None:
        super().__init__(depth=depth, cells=(-1, *range(heads)))

    def add(self, depth: int, values: Tensor) -> None:
        """Count one value per image and head (`B H`)."""
        super().add(depth, torch.cat([values.mean(1, keepdim=True), values], dim=1))


class SuccessiveMetric(DepthwiseMetric):
    """A value of an image between two successive places of the residual stream, at the depth of the later.

    Subclasses say which place comes `after` the output of the previous block, and `compare` the patch tokens.
    """

    consumes: ClassVar[frozenset[str]] = frozenset({"block", "+sa"})
    layout = ("depth",)
    after: ClassVar[str] = "+sa"

    def __init__(self, *, depth: int) -> None:
        super().__init__(depth=depth)
        self._before: Stream | None = None

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """One value per image (`B`) from its patch tokens before and after (`B N D`)."""
        raise NotImplementedError

    def update(self, stream: Stream) -> None:
        """Count the step that ends here, if one does; keep the output of a block until the next step."""
        if stream.place == self.after and stream.depth > 0:
            before, self._before = self._before, None
            here = (stream.depth - 1, stream.tokens.shape)
            if before is None or (before.depth, before.tokens.shape) != here:
                raise ValueError(
                    f"{self.name}: {stream.place!r} of depth {stream.depth} came without the output of depth "
                    f"{stream.depth - 1} for the same images; update in the order of the forward pass"
                )
            self.add(stream.depth, self.compare(patch_tokens(before), patch_tokens(stream)))
        if stream.place == "block" and stream.depth < self.depth:
            self._before = stream

    def reset(self) -> None:
        """Forget the sums, and a pass broken off halfway."""
        self._before = None
        super().reset()
