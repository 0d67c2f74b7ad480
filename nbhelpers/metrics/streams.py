"""Hands what `capture` sees to the accumulators of the metrics that take it, a few images at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from nbhelpers.capture import Attention, Stream
from nbhelpers.metrics.attention import attention_pieces
from nbhelpers.metrics.base import Accumulator, at_least_float32, remembering, require_finite

NUMBERS = 2_000_000  # of the patch tokens that metrics get at a time: the copies they make stay small


class Streams:
    """The callbacks of `capture` that feed accumulators in the order of the forward pass.

    Args:
        accumulators: of one encoder.

    Attributes:
        attention: whether a metric takes attention.
        places: of the residual stream that metrics take.
    """

    def __init__(self, accumulators: Sequence[Accumulator]) -> None:
        self.by_stream: dict[str, list[Accumulator]] = defaultdict(list)
        for accumulator in accumulators:
            self.by_stream[accumulator.metric.stream].append(accumulator)
        self.attention = not {"attention", "full attention", "output"}.isdisjoint(self.by_stream)
        steps = "block to +sa" in self.by_stream
        residual = steps or not {"block", "block to block"}.isdisjoint(self.by_stream)
        self.places = ("block", "+sa") if steps else ("block",) if residual else ()
        self._before: Stream | None = None

    def on_attention(self, record: Attention) -> None:
        """Feed the metrics of attention maps and outputs with one layer of a batch."""
        for stream, prefix in (("attention", record.prefix), ("full attention", 0)):
            if takers := self.by_stream[stream]:
                values = [
                    self._values(takers, f"attention maps at depth {record.depth}", piece)
                    for piece in attention_pieces(record, prefix)
                ]
                for taker, pieces in zip(takers, zip(*values, strict=True), strict=True):
                    taker.update(record.depth, torch.cat(pieces).view(record.query.shape[:2]))
        self._feed("output", record.depth, record.output[:, :, record.prefix :])

    def on_stream(self, record: Stream) -> None:
        """Feed the metrics of the residual stream, and of its steps, with one place of a batch."""
        before, step = self._before, f"block to {record.place}"
        if before is not None and record.depth > 0 and step in self.by_stream:
            self._feed(step, record.depth, before.patches, record.patches)
        if record.place == "block":
            self._feed("block", record.depth, record.patches)
            self._before = record

    def _feed(self, stream: str, depth: int, *tensors: Tensor) -> None:
        """Measure tensors of a batch, a few images at a time, for all metrics of a stream."""
        takers = self.by_stream[stream]
        size = max(1, NUMBERS // tensors[0][0].numel())
        for part in zip(*(tensor.split(size) for tensor in tensors), strict=True) if takers else ():
            values = self._values(takers, f"tokens ({stream}) at depth {depth}", *part)
            for taker, value in zip(takers, values, strict=True):
                taker.update(depth, value)

    def _values(self, takers: Sequence[Accumulator], name: str, *tensors: Tensor) -> list[Tensor]:
        """What each metric makes of tensors that are checked once for all."""
        tensors = tuple(at_least_float32(tensor.detach()) for tensor in tensors)
        for tensor in tensors:
            require_finite(tensor, name)
        with remembering():
            return [taker.measure(*tensors) for taker in takers]
