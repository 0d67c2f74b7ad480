"""A metric is a pure function and a row of a table; one accumulator averages any of them over images."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchmetrics
from torch import Tensor

from nbhelpers.capture import full_precision
from nbhelpers.intervals import t_quantile
from nbhelpers.models import Encoder
from nbhelpers.names import nearest

SIZES = ("grid", "patch_size", "prefix")  # of an encoder, for functions with a parameter of that name
# What a metric can be called with.
STREAMS = ("attention", "full attention", "output", "block", "full block", "block to +sa", "block to block")


def takes(*shapes: str, rows_sum_to_one: bool = False, **least: int) -> Callable[[Callable], Callable]:
    """Decorator of a pure function: checks the tensors that are its first arguments.

    Half precision reaches the function as float32.

    Args:
        shapes: of each of the first arguments, such as "B N D"; equal letters are equal sizes, "..." in front
            stands for any axes.
        rows_sum_to_one: the last axis of the first argument holds probabilities.
        least: smallest size of a letter, where it is not 1.

    Raises (the function that is decorated):
        ValueError: other shapes, values that are not finite, or rows that do not sum to 1.

    >>> @takes("B N D", N=2)
    ... def spread(tokens):
    ...     return tokens.std(1)
    >>> spread(torch.ones(3, 1, 4))
    Traceback (most recent call last):
    ValueError: spread: expected tokens (B N D) with N at least 2, got (3, 1, 4)
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        names = list(signature.parameters)[: len(shapes)]

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            tensors = [bound.arguments[name] for name in names]
            if not _fit(tensors, shapes, least):
                expected = " and ".join(map("{} ({})".format, names, shapes))
                sizes = "".join(f" with {letter} at least {size}" for letter, size in least.items())
                found = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
                raise ValueError(f"{function.__name__}: expected {expected}{sizes}, got {found}")
            for name, tensor in zip(names, tensors, strict=True):
                require_finite(tensor, f"{function.__name__}: {name}")
                bound.arguments[name] = full_precision(tensor)
            if rows_sum_to_one:
                _require_probabilities(tensors[0], f"{function.__name__}: {names[0]}")
            return function(*bound.args, **bound.kwargs)

        _checked[checked] = function
        return checked

    return decorate


_checked: dict[Callable, Callable] = {}  # what `takes` decorated; an attribute would be copied by `wraps`


def unchecked(function: Callable) -> Callable:
    """The function behind `takes`, for tensors that are known to fit; any other function as it is."""
    return _checked.get(function, function)


# Answers of `remembered` functions, of each thread its own; None outside of `remembering`.
_answers: ContextVar[dict[tuple, tuple[Tensor, Tensor]] | None] = ContextVar("answers", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Within it, `remembered` functions compute what several metrics ask of the same tensor once.

    The tensors must not change meanwhile.
    """
    outside = _answers.set({})
    try:
        yield
    finally:
        _answers.reset(outside)


def remembered(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator of a pure function that several metrics share; outside of `remembering` it does nothing.

    Calls that name arguments are not remembered.

    >>> square = remembered(lambda x: x * x)
    >>> tokens = torch.ones(2)
    >>> with remembering():
    ...     square(tokens) is square(tokens)
    True
    >>> square(tokens) is square(tokens)
    False
    """

    @wraps(function)
    def once(*args: Any, **kwargs: Any) -> Tensor:
        answers = _answers.get()
        if answers is None or kwargs:
            return function(*args, **kwargs)
        key = (function, id(args[0]), *args[1:])
        if key not in answers:
            answers[key] = (args[0], function(*args))  # the tensor is held, or another could get its id
        return answers[key][1]

    return once


def _fit(tensors: Sequence[Tensor], shapes: Sequence[str], least: dict[str, int]) -> bool:
    """Whether tensors have these shapes, equal letters equal sizes, and no axis is empty."""
    sizes: dict[str, int] = {}
    for tensor, shape in zip(tensors, shapes, strict=True):
        letters = shape.removeprefix("... ").split()
        if tensor.ndim < len(letters) or (tensor.ndim > len(letters) and "..." not in shape):
            return False
        for letter, size in zip(letters, tensor.shape[-len(letters) :], strict=True):
            if sizes.setdefault(letter, size) != size or size < least.get(letter, 1):
                return False
    return all(tensor.numel() for tensor in tensors)


def require_finite(values: Tensor, name: str) -> None:
    """Raise if a value is NaN or infinite; the sum is looked at first because it takes no memory.

    >>> require_finite(torch.tensor([1.0, torch.nan]), "tokens")
    Traceback (most recent call last):
    ValueError: tokens: 1 of 2 values are NaN or infinite; look for overflow ...
    """
    if not values.sum().isfinite() and (bad := int((~values.isfinite()).sum())):
        look = "look for overflow (half precision?) or broken weights in the encoder"
        raise ValueError(f"{name}: {bad} of {values.numel()} values are NaN or infinite; {look}")


def _require_probabilities(values: Tensor, name: str) -> None:
    """Raise unless the last axis sums to 1 and none is negative, within the rounding of its type."""
    tolerance = 2e-2 if values.dtype in (torch.float16, torch.bfloat16) else 1e-4
    deviation = (full_precision(values).sum(-1) - 1).abs().amax()
    least = values.amin()
    if not (deviation <= tolerance and least >= -tolerance):
        what = f"rows that do not sum to 1 (off by {deviation:.2g}) or negative entries (least {least:.2g})"
        way = "patch_attention() gives maps renormalised over the patch tokens"
        raise ValueError(f"{name} of shape {tuple(values.shape)} has {what}; {way}")


def require_grid(tokens: int, grid: tuple[int, int], name: str) -> None:
    """Raise unless the patch tokens fill the grid.

    >>> require_grid(6, (2, 3), "attention_distance")
    """
    if tokens != grid[0] * grid[1]:
        size = f"{tuple(grid)} = {grid[0] * grid[1]}"
        raise ValueError(f"{name}: {tokens} tokens do not fit a grid of {size}; drop the prefix tokens")


class Accumulator(torchmetrics.Metric):
    r"""Mean over images, per depth and cell, of a metric's values; exact under any split of the images.

    Kept are, in float64, the number of images, the sum and the sum of squares, which add up over batches and
    ranks:

    .. math:: \bar x = \frac{1}{n} \sum_i x_i, \quad
        \bar x \pm t_{0.975,\,n-1} \sqrt{\frac{\sum_i x_i^2 - n \bar x^2}{n (n-1)}}

    An image whose value is undefined (NaN) is left out of that mean and not counted in its `images`.

    Args:
        metric: the row that says what is measured.
        encoder: what it is measured on, or anything with its sizes.

    Example:
        >>> from types import SimpleNamespace
        >>> brightness = Metric("brightness", lambda z: z.mean((1, 2)), "block")
        >>> accumulator = brightness.of(SimpleNamespace(depth=1))
        >>> accumulator.update(1, brightness.function(torch.tensor([[[1.0]], [[2.0]]])))
        >>> accumulator.update(1, torch.tensor([3.0]))
        >>> accumulator.compute().round(2).drop(columns="metric").to_dict("records")
        [{'depth': 1, 'head': -1, 'value': 2.0, 'low': -0.48, 'high': 4.48, 'images': 3}]
    """

    sums: Tensor  # images, those of them with a value, sum, sum of squares; per depth and cell

    def __init__(self, metric: "Metric", encoder: Encoder) -> None:
        super().__init__()
        self.metric = metric
        self.defined = metric.defined(encoder)
        if not self.defined:
            cells = [-1 if metric.column == "head" else math.nan]
        else:
            cells = [-1, *range(encoder.heads)] if metric.per_head else metric.cells(encoder)
        self.cells = np.asarray(cells)
        taken = inspect.signature(metric.function).parameters.keys() & SIZES
        self.sizes = {size: getattr(encoder, size) for size in taken}
        sums = torch.zeros(4, encoder.depth + 1, len(self.cells), dtype=torch.float64)
        self.add_state("sums", sums, dist_reduce_fx="sum")

    def measure(self, *tensors: Tensor) -> Tensor:
        """The metric's values of a few images, unchecked: its function, with the encoder's sizes it takes."""
        if not self.defined:
            return torch.full((len(tensors[0]), 1), math.nan)
        values = unchecked(self.metric.function)(*tensors, **self.sizes)
        if not isinstance(values, Tensor) or values.shape[:1] != tensors[0].shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            wanted = f"must give a value per image, B, B H or B C; got {got}"
            raise ValueError(f"{self.metric.name}: its function {wanted}")
        return values

    def update(self, depth: int, values: Tensor) -> None:
        """Count a value per image: `B`, `B H` or `B cells` at a depth 0..L.

        Raises:
            ValueError: another number of cells.
        """
        values = values[:, None] if values.ndim == 1 else values
        if self.metric.per_head:
            values = torch.cat([values.mean(1, keepdim=True), values], dim=1)
        if values.shape[1:] != (len(self.cells),):
            raise ValueError(
                f"{self.metric.name}: expected {len(self.cells)} values of an image ({self.metric.column}), "
                f"got shape (B cells) = {tuple(values.shape)}; of values per head, per_head=True"
            )
        values = values.detach().to(self.sums)
        defined = ~values.isnan()
        values = values.where(defined, 0)
        counts = torch.ones_like(values).sum(0), defined.sum(0)
        self.sums[:, depth] += torch.stack([*counts, values.sum(0), values.square().sum(0)])

    def compute(self) -> pd.DataFrame:
        """Tidy frame `metric depth head value low high images`, with `rank` or `frequency` after `head`.

        `head` is -1 where a value belongs to no single head. `low` and `high` bound the 95 % interval of the
        mean over images (Student's t; NaN for a single image). Depths never seen are left out.

        Raises:
            ValueError: no image was seen.
        """
        seen, images, total, squares = self.sums
        mean = total / images
        variance = (squares - images * mean.square()).clamp(min=0) / (images - 1)
        variance[images < 2] = torch.nan
        quantile = torch.as_tensor(t_quantile(images.clamp(min=2).cpu().numpy())).to(mean)
        half = quantile * (variance / images).sqrt()
        return self._frame(mean, mean - half, mean + half, images, seen > 0)

    def _frame(self, value: Tensor, low: Tensor, high: Tensor, images: Tensor, rows: Tensor) -> pd.DataFrame:
        """Tidy rows of the depths and cells (`L+1 cells`) that `rows` chooses."""
        if not rows.any():
            raise ValueError(f"{self.metric.name}: no image was seen; call update() before compute()")
        depths, cells = (axis.cpu().numpy() for axis in rows.nonzero(as_tuple=True))
        columns = {"metric": self.metric.name, "depth": depths, "head": -1}
        columns |= {self.metric.column: self.cells[cells]}
        numbers = {"value": value, "low": low, "high": high, "images": images.long()}
        return pd.DataFrame(columns | {name: tensor[rows].cpu().numpy() for name, tensor in numbers.items()})


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics: a pure function, and what it is fed with while an encoder runs.

    Args:
        name: what frames call it.
        function: gives a value per image (`B`), per image and head (`B H`), or per image and cell (`B C`).
            Parameters named `grid`, `patch_size` or `prefix` get that size of the encoder.
        stream: what the function is called with, one of those below; "" for a metric that is fed by hand.
        range: smallest and largest value possible.
        reference: the value of an encoder that does nothing (uniform attention, independent tokens, white
            noise), where there is one.
        per_head: the cells are heads; their mean is a row of its own, head -1.
        maps_apart: of attention, the function takes each map by itself, so that it may get them one at a
            time, `B 1 N N`, which takes less memory.
        column: what the cells of one depth are called in frames.
        cells: labels of the cells, where they are not heads.
        defined: whether an encoder of its size has the quantity at all; where not, it is NaN.
        accumulator: class that collects the values.

    The streams, of patch tokens (prefix tokens dropped) where nothing else is said:

    - "attention": probabilities `B H N N`.
    - "full attention": probabilities `B H N N` over all tokens, prefix included.
    - "output": attention outputs `B H N D`, before the output projection.
    - "block": residual stream `B N D` at depth 0..L.
    - "full block": the same, prefix tokens included.
    - "block to +sa": residual stream before and after the self-attention of a block, `B N D` each.
    - "block to block": residual stream before and after a block, `B N D` each.
    """

    name: str
    function: Callable[..., Tensor]
    stream: str
    range: tuple[float, float] = (0.0, math.inf)
    reference: Callable[[Encoder], float] | None = None
    per_head: bool = False
    maps_apart: bool = False
    column: str = "head"
    cells: Callable[[Encoder], Sequence[float] | Tensor] = lambda encoder: [-1]
    defined: Callable[[Encoder], bool] = lambda encoder: True
    accumulator: type[Accumulator] = Accumulator

    def __post_init__(self) -> None:
        if self.stream and self.stream not in STREAMS:
            known = nearest(self.stream, STREAMS)
            raise ValueError(f"{self.name}: no stream is called {self.stream!r}; {known}")

    def of(self, encoder: Encoder) -> Accumulator:
        """An empty accumulator of the encoder's size."""
        return self.accumulator(self, encoder)
