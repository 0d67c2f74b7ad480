"""How an encoder attends and represents: a table of metrics, each a pure function on tensors."""

from __future__ import annotations

import difflib
import math
from functools import partial
from typing import NoReturn

from nbhelpers.metrics.attention import (
    attention_distance,
    attention_entropy,
    entropy,
    nmi,
    object_attention,
    patch_attention,
    patch_distances,
    prefix_attention,
)
from nbhelpers.metrics.base import Accumulator, Layout, Metric, patch_tokens
from nbhelpers.metrics.cka import CKA, linear_cka, unbiased_hsic
from nbhelpers.metrics.diversity import attention_token_cosine, head_cosine, mean_cosine, mean_pairwise_cosine
from nbhelpers.metrics.fourier import (
    delta_log_amplitude,
    feature_map_log_amplitude,
    half_diagonal_frequencies,
    log_amplitude,
    radial_delta_log_amplitude,
    radial_frequencies,
)
from nbhelpers.metrics.geometry import TokenPCA, common_update_share, token_pca
from nbhelpers.metrics.spectrum import (
    ImageSpectrum,
    effective_rank,
    image_means,
    relative_spectrum,
    token_spectrum,
)
from nbhelpers.metrics.tokens import feature_variance, norm_peak, outlier_share, token_norms

normalized_mutual_information = nmi


class Registry(dict[str, Metric]):
    """Metrics by name; an unknown name is answered with the nearest ones."""

    def __missing__(self, name: str) -> NoReturn:
        nearest = difflib.get_close_matches(name, self, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(self)}"
        raise KeyError(f"no metric is named {name!r}; {hint}")


def _tokens(layout: Layout) -> int:
    return math.prod(layout.grid)


def _uniform(layout: Layout) -> float:
    return float(patch_distances(layout.grid, layout.patch_size).mean())


SHARE, COSINE, BELOW_0, FROM_1 = (0.0, 1.0), (-1.0, 1.0), (-math.inf, 0.0), (1.0, math.inf)
_zero, _one = (lambda _: 0.0), (lambda _: 1.0)
_by_head = partial(Metric, stream="attention", range=SHARE, per_head=True)
_cosine = partial(Metric, range=COSINE, reference=_zero)
_spectrum = partial(Metric, stream="block", unit="Δ log", range=BELOW_0, column="rank")
_fourier = partial(
    Metric,
    stream="block",
    unit="Δ log",
    range=(-math.inf, math.inf),
    reference=_zero,
    options=("grid",),
    column="frequency",
)

_TABLE = (
    _by_head(
        "attention_distance",
        attention_distance,
        unit="px",
        range=(0.0, math.inf),
        reference=_uniform,
        options=("grid", "patch_size"),
    ),
    _by_head("nmi", nmi, reference=_zero),
    _by_head("attention_entropy", attention_entropy, reference=_one),
    _by_head(
        "prefix_attention",
        prefix_attention,
        stream="full attention",
        reference=lambda layout: layout.prefix / (layout.prefix + _tokens(layout)),
        options=("prefix",),
    ),
    _by_head("query_cosine", mean_pairwise_cosine, reference=_one),
    _cosine("head_cosine", head_cosine, "output"),
    _cosine("attention_token_cosine", attention_token_cosine, "output"),
    _cosine("token_cosine", mean_pairwise_cosine, "block"),
    _cosine("across_attention_cosine", mean_cosine, "block to +sa", reference=None),
    _cosine("across_block_cosine", mean_cosine, "block to block", reference=None),
    Metric(
        "common_update_share",
        common_update_share,
        "block to +sa",
        range=SHARE,
        reference=lambda layout: 1 / _tokens(layout),
    ),
    _spectrum(
        "token_spectrum",
        lambda tokens: relative_spectrum(token_spectrum(tokens))[:, : tokens.shape[1] - 1],
        cells=lambda layout: range(1, min(layout.width, _tokens(layout) - 1) + 1),
    ),
    Metric(
        "token_effective_rank", lambda tokens: effective_rank(token_spectrum(tokens)), "block", range=FROM_1
    ),
    _spectrum(
        "image_spectrum",
        image_means,
        cells=lambda layout: range(1, layout.width + 1),
        accumulator=ImageSpectrum,
    ),
    _fourier(  # at the point that the paper plots: the last below Nyquist, 6/7 of it on 14 x 14
        "delta_log_amplitude",
        lambda tokens, grid: delta_log_amplitude(tokens, grid)[:, -1:],
        cells=lambda layout: half_diagonal_frequencies(layout.grid).tolist()[-1:],
    ),
    _fourier(
        "fourier_diagonal",
        delta_log_amplitude,
        cells=lambda layout: half_diagonal_frequencies(layout.grid).tolist(),
    ),
    _fourier(
        "fourier_radial",
        radial_delta_log_amplitude,
        cells=lambda layout: radial_frequencies(layout.grid).tolist(),
    ),
    Metric("token_norm", lambda tokens: token_norms(tokens).mean(1), "block"),
    Metric("token_norm_peak", lambda tokens: norm_peak(token_norms(tokens)), "block", range=FROM_1),
    Metric("outlier_tokens", lambda tokens: outlier_share(token_norms(tokens)), "block", range=(0.0, 0.5)),
    Metric("feature_variance", feature_variance, "block"),
)
METRICS = Registry({metric.name: metric for metric in _TABLE})

__all__ = [
    "METRICS",
    "Accumulator",
    "Layout",
    "Metric",
    "patch_tokens",
    "patch_attention",
    "patch_distances",
    "attention_distance",
    "nmi",
    "normalized_mutual_information",
    "attention_entropy",
    "entropy",
    "prefix_attention",
    "object_attention",
    "mean_pairwise_cosine",
    "mean_cosine",
    "head_cosine",
    "attention_token_cosine",
    "token_spectrum",
    "effective_rank",
    "relative_spectrum",
    "image_means",
    "ImageSpectrum",
    "TokenPCA",
    "common_update_share",
    "token_pca",
    "log_amplitude",
    "delta_log_amplitude",
    "radial_delta_log_amplitude",
    "feature_map_log_amplitude",
    "half_diagonal_frequencies",
    "radial_frequencies",
    "CKA",
    "linear_cka",
    "unbiased_hsic",
    "token_norms",
    "norm_peak",
    "outlier_share",
    "feature_variance",
]
