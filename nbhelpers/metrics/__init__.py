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
from nbhelpers.metrics.base import DepthwiseMetric, PerHeadMetric, SuccessiveMetric, patch_tokens, unpad
from nbhelpers.metrics.cka import CKA, linear_cka, unbiased_hsic
from nbhelpers.metrics.diversity import (
    AcrossAttentionCosine,
    AcrossBlockCosine,
    AttentionTokenCosine,
    HeadCosine,
    QueryCosine,
    TokenCosine,
    mean_cosine,
    mean_pairwise_cosine,
)
from nbhelpers.metrics.fourier import (
    DeltaLogAmplitude,
    FourierDiagonal,
    FourierRadial,
    delta_log_amplitude,
    half_diagonal_frequencies,
    radial_delta_log_amplitude,
    radial_frequencies,
)
from nbhelpers.metrics.geometry import CommonUpdateShare, TokenPCA, common_update_share, token_pca
from nbhelpers.metrics.spectrum import (
    ImageSpectrum,
    TokenEffectiveRank,
    TokenSpectrum,
    effective_rank,
    token_spectrum,
)
from nbhelpers.metrics.tokens import (
    OutlierTokens,
    PrefixAttention,
    TokenNorm,
    TokenNormPeak,
    norm_peak,
    outlier_share,
    prefix_attention,
    token_norms,
)


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


METRICS = Registry(
    AttentionDistance,
    NormalizedMutualInformation,
    AttentionEntropy,
    PrefixAttention,
    QueryCosine,
    HeadCosine,
    AttentionTokenCosine,
    TokenCosine,
    AcrossAttentionCosine,
    AcrossBlockCosine,
    CommonUpdateShare,
    TokenSpectrum,
    TokenEffectiveRank,
    ImageSpectrum,
    DeltaLogAmplitude,
    FourierDiagonal,
    FourierRadial,
    TokenNorm,
    TokenNormPeak,
    OutlierTokens,
)

__all__ = [
    "METRICS",
    "DepthwiseMetric",
    "PerHeadMetric",
    "SuccessiveMetric",
    "patch_tokens",
    "unpad",
    "AttentionMaps",
    "AttentionDistance",
    "NormalizedMutualInformation",
    "AttentionEntropy",
    "patch_attention",
    "patch_distances",
    "attention_distance",
    "normalized_mutual_information",
    "attention_entropy",
    "QueryCosine",
    "HeadCosine",
    "AttentionTokenCosine",
    "TokenCosine",
    "AcrossAttentionCosine",
    "AcrossBlockCosine",
    "mean_pairwise_cosine",
    "mean_cosine",
    "TokenSpectrum",
    "TokenEffectiveRank",
    "ImageSpectrum",
    "token_spectrum",
    "effective_rank",
    "CommonUpdateShare",
    "TokenPCA",
    "common_update_share",
    "token_pca",
    "DeltaLogAmplitude",
    "FourierDiagonal",
    "FourierRadial",
    "delta_log_amplitude",
    "half_diagonal_frequencies",
    "radial_delta_log_amplitude",
    "radial_frequencies",
    "CKA",
    "linear_cka",
    "unbiased_hsic",
    "TokenNorm",
    "TokenNormPeak",
    "OutlierTokens",
    "PrefixAttention",
    "token_norms",
    "norm_peak",
    "outlier_share",
    "prefix_attention",
]
