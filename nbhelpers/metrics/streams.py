"""What `capture` sees goes to the accumulators of the metrics that take it, a few images at a time."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nbhelpers.capture import PLACES, Attention, Stream, full_precision
from nbhelpers.metrics.attention import attention_pieces
from nbhelpers.metrics.base import Accumulator, remembering, require_finite

NUMBERS = 2_000_000  # of the patch tokens that metrics get at a time: the copies they make stay small


class Streams:
    """The callbacks of `capture` that feed an encoder's accumulators in the order of the forward pass.

    Attributes:
        attention: whether a metric takes attention.
        places: of the residual stream that metrics take.
    """

    def __init__(self, accumulators: Sequence[Accumulator]) -> None:
        self.by_stream: dict[str, list[Accumulator]] = defaultdict(list)
        for accumulator in accumulators:
            self.by_stream[accumulator.metric.stream].append(accumulator)
        asked = {word for stream in self.by_stream for word in stream.split()}
        self.attention = not asked.isdisjoint(("attention", "output"))
        self.places = tuple(place for place in PLACES if place in asked)
        self._before: Tensor | None = None  # patch tokens `B N D` after the last block

    def on_attention(self, record: Attention) -> None:
        """Feed the metrics of attention maps and outputs with one layer of a batch."""
        self._feed("attention", record.depth, attention_pieces(record, record.prefix), len(record.query))
        self._feed("full attention", record.depth, attention_pieces(record, 0), len(record.query))
        self._feed("output", record.depth, _pieces(record.output[:, :, record.prefix :]), len(record.query))

    def on_stream(self, record: Stream) -> None:
        """Feed the metrics of the residual stream, and of its steps, with one place of a batch."""
        patches, step = record.patches, f"block to {record.place}"
        if record.depth > 0:
            self._feed(step, record.depth, _pieces(self._before, patches), len(patches))
        if record.place == "block":
            self._feed("block", record.depth, _pieces(patches), len(patches))
            self._feed("full block", record.depth, _pieces(record.tokens), len(patches))
            self._before = patches

    def _feed(self, stream: str, depth: int, pieces: Iterable[tuple[Tensor, ...]], images: int) -> None:
        """Measure a batch for all metrics of a stream, by pieces that are checked once for all of them."""
        takers, values = self.by_stream[stream], []
        for piece in pieces if takers else ():
            tensors = [full_precision(tensor.detach()) for tensor in piece]
            for tensor in tensors:
                require_finite(tensor, f"{stream} at depth {depth}")
            with remembering():
                values.append([taker.measure(*tensors) for taker in takers])
        for taker, parts in zip(takers, zip(*values, strict=True), strict=True):
            taker.update(depth, torch.cat(parts).view(images, -1))


def _pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Tensors of a batch, a few images at a time."""
    return zip(*(tensor.split(max(1, NUMBERS // tensor[0].numel())) for tensor in tensors), strict=True)
