"""How an encoder attends and represents: pure functions on tensors, and accumulators over images."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from nbhelpers.metrics.attention import (
    AttentionDistance,
    AttentionEntropy,
    AttentionMaps,
    NormalizedMutualInformation,
    attention_distance,
    attention_entropy,
    normalized_mutual_information,
    patch_attention,
    patch_distances,
)
from nbhelpers.metrics.base import DepthwiseMetric, PerHeadMetric, unpad


class Registry(Mapping[str, type[DepthwiseMetric]]):
    """Metrics by name; an unknown name is answered with the nearest ones."""

    def __init__(self, *metrics: type[DepthwiseMetric]) -> None:
        self._metrics = {metric.name: metric for metric in metrics}

    def __getitem__(self, name: str) -> type[DepthwiseMetric]:
        if name not in self._metrics:
            nearest = difflib.get_close_matches(name, self._metrics, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(self)}"
            raise KeyError(f"no metric is named {name!r}; {hint}")
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)


METRICS = Registry(AttentionDistance, NormalizedMutualInformation, AttentionEntropy)

__all__ = [
    "METRICS",
    "AttentionDistance",
    "AttentionEntropy",
    "AttentionMaps",
    "DepthwiseMetric",
    "NormalizedMutualInformation",
    "PerHeadMetric",
    "attention_distance",
    "attention_entropy",
    "normalized_mutual_information",
    "patch_attention",
    "patch_distances",
    "unpad",
]
