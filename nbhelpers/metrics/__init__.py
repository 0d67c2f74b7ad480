"""How an encoder attends and represents: a table of metrics, each a pure function on tensors."""

from __future__ import annotations

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
from nbhelpers.metrics.base import Accumulator, Metric
from nbhelpers.metrics.cka import linear_cka, unbiased_hsic
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
from nbhelpers.models import Encoder
from nbhelpers.names import nearest

normalized_mutual_information = nmi


class Registry(dict[str, Metric]):
    """Metrics by name; an unknown name is answered with the nearest ones."""

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(f"no metric is named {name!r}; {nearest(name, self)}")


def _uniform_distance(encoder: Encoder) -> float:
    return float(patch_distances(encoder.grid, encoder.patch_size).mean())


def _patches(encoder: Encoder) -> int:
    return math.prod(encoder.grid)


FROM_1 = (1.0, math.inf)
_zero, _one = (lambda encoder: 0.0), (lambda encoder: 1.0)
_by_head = partial(Metric, stream="attention", range=(0.0, 1.0), per_head=True)
_cosine = partial(Metric, range=(-1.0, 1.0), reference=_zero)
_block = partial(Metric, stream="block")
_spectrum = partial(_block, range=(-math.inf, 0.0), column="rank")
_fourier = partial(_block, range=(-math.inf, math.inf), reference=_zero, column="frequency")

_TABLE = (
    _by_head("attention_distance", attention_distance, range=(0.0, math.inf), reference=_uniform_distance),
    _by_head("nmi", nmi, reference=_zero),
    _by_head("attention_entropy", attention_entropy, reference=_one),
    _by_head(
        "prefix_attention",
        prefix_attention,
        stream="full attention",
        reference=lambda encoder: encoder.prefix / (encoder.prefix + _patches(encoder)),
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
        range=(0.0, 1.0),
        reference=lambda encoder: 1 / _patches(encoder),
    ),
    _spectrum(
        "token_spectrum",
        lambda tokens: relative_spectrum(token_spectrum(tokens))[:, : tokens.shape[1] - 1],
        cells=lambda encoder: range(1, min(encoder.width, _patches(encoder) - 1) + 1),
    ),
    _block("token_effective_rank", lambda tokens: effective_rank(token_spectrum(tokens)), range=FROM_1),
    _spectrum(
        "image_spectrum",
        image_means,
        cells=lambda encoder: range(1, encoder.width + 1),
        accumulator=ImageSpectrum,
    ),
    _fourier(  # at the point that the paper plots: the last below Nyquist, 6/7 of it on 14 x 14
        "delta_log_amplitude",
        lambda tokens, grid: delta_log_amplitude(tokens, grid)[:, -1:],
        cells=lambda encoder: half_diagonal_frequencies(encoder.grid).tolist()[-1:],
    ),
    _fourier(
        "fourier_diagonal",
        delta_log_amplitude,
        cells=lambda encoder: half_diagonal_frequencies(encoder.grid).tolist(),
    ),
    _fourier(
        "fourier_radial",
        radial_delta_log_amplitude,
        cells=lambda encoder: radial_frequencies(encoder.grid).tolist(),
    ),
    _block("token_norm", lambda tokens: token_norms(tokens).mean(1)),
    _block("token_norm_peak", lambda tokens: norm_peak(token_norms(tokens)), range=FROM_1, reference=_one),
    _block("outlier_tokens", lambda tokens: outlier_share(token_norms(tokens)), range=(0.0, 0.5)),
    _block("feature_variance", feature_variance),
)
METRICS = Registry({metric.name: metric for metric in _TABLE})
