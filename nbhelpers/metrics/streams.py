"""What `capture` sees goes to the accumulators of the metrics that take it, a few images at a time."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nbhelpers.capture import PLACES, Attention, Stream, full_precision
from nbhelpers.metrics.attention import attention_pieces
from nbhelpers.metrics.base import Accumulator, remembering, require_finite

Pieces = Iterable[tuple[Tensor, ...]]  # what the metrics of a stream take, a few images at a time
NUMBERS = 2_000_000  # how large the patch tokens are that metrics get at a time, since they make copies


class Streams:
    """The callbacks of `capture` that feed an encoder's accumulators in the order of the forward pass.

    Attributes:
        attention: whether a metric takes attention.
        places: those of the places "block" and "+sa" of the residual stream that a metric takes.
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
        for stream, prefix in (("attention", record.prefix), ("full attention", 0)):
            for apart in (True, False):
                takers = [each for each in self.by_stream[stream] if each.metric.maps_apart == apart]
                pieces = attention_pieces(record, prefix, apart)
                self._feed(takers, stream, record.depth, pieces, len(record.query))
        outputs = _pieces(record.output[:, :, record.prefix :])
        self._feed(self.by_stream["output"], "output", record.depth, outputs, len(record.query))

    def on_stream(self, record: Stream) -> None:
        """Feed the metrics of the residual stream, and of its steps, with one place of a batch."""
        patches, depth = record.patches, record.depth
        given = {f"block to {record.place}": (self._before, patches)} if depth > 0 else {}
        if record.place == "block":
            given |= {"block": (patches,), "full block": (record.tokens,)}
            self._before = patches
        for stream, tensors in given.items():
            self._feed(self.by_stream[stream], stream, depth, _pieces(*tensors), len(patches))

    @staticmethod
    def _feed(takers: Sequence[Accumulator], stream: str, depth: int, pieces: Pieces, images: int) -> None:
        """Measure a batch for some metrics of a stream, by pieces that are checked once for all of them."""
        values = []
        for piece in pieces if takers else ():
            tensors = [full_precision(tensor.detach()) for tensor in piece]
            for tensor in tensors:
                require_finite(tensor, f"{stream} at depth {depth}")
            with remembering():
                values.append([taker.measure(*tensors) for taker in takers])
        for taker, parts in zip(takers, zip(*values, strict=True), strict=True):
            taker.update(depth, torch.cat(parts).view(images, -1))


def _pieces(*tensors: Tensor) -> Pieces:
    """Tensors of a batch, a few images at a time."""
    return zip(*(tensor.split(max(1, NUMBERS // tensor[0].numel())) for tensor in tensors), strict=True)
