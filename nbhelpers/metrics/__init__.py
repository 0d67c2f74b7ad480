"""How an encoder attends and represents: a table of metrics, each a pure function on tensors."""

import math
from functools import partial
from typing import NoReturn

from torch import Tensor

from nbhelpers.metrics.attention import (
    attention_distance,
    attention_entropy,
    nmi,
    patch_attention,
    patch_distances,
    prefix_attention,
)
from nbhelpers.metrics.base import Accumulator, Metric
from nbhelpers.metrics.cka import linear_cka, unbiased_hsic
from nbhelpers.metrics.diversity import (
    attention_token_cosine,
    centred_head_map_cosine,
    class_patch_cosine,
    head_cosine,
    head_map_cosine,
    mean_cosine,
    mean_pairwise_cosine,
)
from nbhelpers.metrics.fourier import (
    delta_log_amplitude,
    feature_map_log_amplitude,
    half_diagonal_frequencies,
    log_amplitude,
    radial_delta_log_amplitude,
    radial_frequencies,
)
from nbhelpers.metrics.geometry import common_update_share
from nbhelpers.metrics.objects import object_attention, object_prior, object_tokens, queries_by_kind
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


class Registry(dict[str, Metric]):
    """Metrics by name; an unknown name is answered with the nearest ones."""

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(f"no metric is named {name!r}; {nearest(name, self)}")


def _uniform_distance(encoder: Encoder) -> float:
    return float(patch_distances(encoder.grid, encoder.patch_size).mean())


def _uniform_prefix(encoder: Encoder) -> float:
    return encoder.prefix / (encoder.prefix + math.prod(encoder.grid))


def _token_ranks(encoder: Encoder) -> range:
    return range(1, min(encoder.width, math.prod(encoder.grid) - 1) + 1)


def _defined_ranks(tokens: Tensor) -> Tensor:
    """The ranks that the covariance of so many tokens can have."""
    return relative_spectrum(token_spectrum(tokens))[:, : tokens.shape[1] - 1]


def _papers_point(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The frequency that the paper plots by depth: the last below Nyquist, 6/7 of it on 14 x 14."""
    return delta_log_amplitude(tokens, grid)[:, -1:]


ANY, FROM_1, SHARE = (-math.inf, math.inf), (1.0, math.inf), (0.0, 1.0)
_zero, _one = (lambda e: 0.0), (lambda e: 1.0)
_by_head = partial(Metric, stream="attention", range=SHARE, per_head=True, maps_apart=True)
_cosine = partial(Metric, range=(-1.0, 1.0))
_between_heads = partial(_cosine, reference=_zero, defined=lambda e: e.heads > 1)
_block = partial(Metric, stream="block")
_spectrum = partial(_block, range=(-math.inf, 0.0), column="rank")
_fourier = partial(_block, range=ANY, column="frequency")
_diagonal = partial(_fourier, defined=lambda e: min(e.grid) > 2)

# A row per metric: its name, its function, and what `Metric` says of the rest. References are values of
# encoders e.
SHIPPED = (
    _by_head("attention_distance", attention_distance, range=(0.0, math.inf), reference=_uniform_distance),
    _by_head("nmi", nmi, reference=_zero),
    _by_head("attention_entropy", attention_entropy, reference=_one),
    _by_head("prefix_attention", prefix_attention, stream="full attention", reference=_uniform_prefix),
    _by_head("query_cosine", mean_pairwise_cosine, reference=_one),
    _between_heads("head_map_cosine", head_map_cosine, "attention", range=SHARE, reference=_one),
    _between_heads("centred_head_map_cosine", centred_head_map_cosine, "attention"),
    _between_heads("head_cosine", head_cosine, "output"),
    _cosine("attention_token_cosine", attention_token_cosine, "output", reference=_zero),
    _cosine("token_cosine", mean_pairwise_cosine, "block", reference=_zero),
    _cosine("class_patch_cosine", class_patch_cosine, "full block", defined=lambda e: e.has_class_token),
    _cosine("across_attention_cosine", mean_cosine, "block to +sa"),
    _cosine("across_block_cosine", mean_cosine, "block to block"),
    Metric(
        "common_update_share", common_update_share, "block to +sa", SHARE, lambda e: 1 / math.prod(e.grid)
    ),
    _spectrum("token_spectrum", _defined_ranks, cells=_token_ranks),
    _block("token_effective_rank", lambda tokens: effective_rank(token_spectrum(tokens)), range=FROM_1),
    _spectrum(
        "image_spectrum", image_means, cells=lambda e: range(1, e.width + 1), accumulator=ImageSpectrum
    ),
    _diagonal("delta_log_amplitude", _papers_point, cells=lambda e: half_diagonal_frequencies(e.grid)[-1:]),
    _diagonal("fourier_diagonal", delta_log_amplitude, cells=lambda e: half_diagonal_frequencies(e.grid)),
    _fourier("fourier_radial", radial_delta_log_amplitude, cells=lambda e: radial_frequencies(e.grid)),
    _block("token_norm", lambda tokens: token_norms(tokens).mean(1)),
    _block("token_norm_peak", lambda tokens: norm_peak(token_norms(tokens)), range=FROM_1, reference=_one),
    _block("outlier_tokens", lambda tokens: outlier_share(token_norms(tokens)), range=(0.0, 0.5)),
    _block("feature_variance", feature_variance),
)
METRICS = Registry({metric.name: metric for metric in SHIPPED})
