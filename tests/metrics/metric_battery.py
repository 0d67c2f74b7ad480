"""What every registered metric must hold, and the made-up forward passes that it is held to."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import torch
from torch import Tensor

from nbhelpers.capture import Attention, Stream
from nbhelpers.metrics import METRICS, Accumulator
from nbhelpers.metrics.streams import Streams

LAYOUT = SimpleNamespace(
    depth=2, heads=2, width=6, grid=(3, 5), prefix=2, has_class_token=True, patch_size=(4, 8)
)
TOKENS = LAYOUT.prefix + LAYOUT.grid[0] * LAYOUT.grid[1]
IMAGES = 6


def forward_pass(images: int = IMAGES, dtype: torch.dtype = torch.float64) -> list[Attention | Stream]:
    """Records of `images` made-up images in the order in which an encoder makes them."""
    make = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, *shape, dtype=torch.float64, generator=make)

    tokens = normal(TOKENS, LAYOUT.width) + normal(1, LAYOUT.width)
    tokens[:2, 7] *= 9  # a token of large norm in two of the images
    layout = {"prefix": LAYOUT.prefix, "grid": LAYOUT.grid}
    records: list[Attention | Stream] = [Stream(0, "block", tokens, **layout)]
    for depth in range(1, LAYOUT.depth + 1):
        query, key, value, output = (2 * normal(LAYOUT.heads, TOKENS, LAYOUT.width // 2) for _ in range(4))
        bias = normal(LAYOUT.heads, TOKENS, TOKENS)[:1] if depth == 2 else None
        records.append(
            Attention(depth, query, key, value, output, bias, 0.5, **layout, patch_size=LAYOUT.patch_size)
        )
        for place in ("+sa", "block"):
            tokens = tokens + 0.5 * normal(TOKENS, LAYOUT.width) + normal(1, LAYOUT.width)
            records.append(Stream(depth, place, tokens, **layout))
    return [_tensors(record, lambda tensor: tensor.to(dtype)) for record in records]


def _tensors(record, change):
    """The record with every tensor changed."""
    tensors = {name: value for name, value in vars(record).items() if isinstance(value, Tensor)}
    return replace(record, **{name: change(value) for name, value in tensors.items()})


def batch(records: Sequence[Attention | Stream], indices: Sequence[int]) -> list[Attention | Stream]:
    """The records of some of the images; a bias shared by all images stays as it is."""
    return [
        _tensors(record, lambda tensor: tensor if len(tensor) == 1 else tensor[list(indices)])
        for record in records
    ]


def feed(accumulator: Accumulator, records: Sequence[Attention | Stream]) -> Accumulator:
    """Show an accumulator the records that its metric takes, as a forward pass would."""
    streams = Streams([accumulator])
    for record in records:
        if isinstance(record, Attention):
            if streams.attention:
                streams.on_attention(record)
        elif record.place in streams.places:
            streams.on_stream(record)
    return accumulator


def computed(name: str, batches: Sequence[Sequence[Attention | Stream]]) -> pd.DataFrame:
    """The frame of a metric that saw these batches."""
    metric = METRICS[name].of(LAYOUT)
    for records in batches:
        feed(metric, records)
    return metric.compute()


def spoilt(records: Sequence[Attention | Stream], value: float) -> list[Attention | Stream]:
    """The records with one number of the last image's last token replaced."""

    def spoil(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[(-1,) * tensor.ndim] = value
        return tensor

    return [_tensors(record, spoil) for record in records]


def assert_same(frame: pd.DataFrame, expected: pd.DataFrame, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    """Two frames that hold the same numbers."""
    pd.testing.assert_frame_equal(frame, expected, check_exact=False, rtol=rtol, atol=atol)


def assert_means(frame: pd.DataFrame, values: dict[int, Tensor]) -> None:
    """The frame holds the mean over images of these values, `B` or `B cells`, by depth."""
    assert set(frame["depth"]) == set(values)
    for depth, expected in values.items():
        rows = torch.tensor(frame.loc[frame["depth"] == depth, "value"].to_numpy())
        torch.testing.assert_close(rows, expected.double().mean(0).reshape(-1))
