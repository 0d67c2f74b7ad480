"""Each row of the table of metrics averages its documented function over images."""

import pytest
import torch
from metric_battery import LAYOUT, assert_means, computed, forward_pass

from nbhelpers import metrics
from nbhelpers.capture import Attention
from nbhelpers.metrics import METRICS

GRID = LAYOUT.grid
FUNCTIONS = {
    "attention_distance": lambda maps: metrics.attention_distance(maps, GRID, LAYOUT.patch_size),
    "nmi": metrics.nmi,
    "attention_entropy": metrics.attention_entropy,
    "prefix_attention": lambda maps: metrics.prefix_attention(maps, LAYOUT.prefix),
    "query_cosine": metrics.mean_pairwise_cosine,
    "head_map_cosine": metrics.head_map_cosine,
    "centred_head_map_cosine": metrics.centred_head_map_cosine,
    "head_cosine": metrics.head_cosine,
    "attention_token_cosine": metrics.attention_token_cosine,
    "token_cosine": metrics.mean_pairwise_cosine,
    "class_patch_cosine": lambda tokens: metrics.class_patch_cosine(tokens, LAYOUT.prefix),
    "across_attention_cosine": metrics.mean_cosine,
    "across_block_cosine": metrics.mean_cosine,
    "common_update_share": metrics.common_update_share,
    "token_spectrum": lambda tokens: metrics.relative_spectrum(metrics.token_spectrum(tokens)),
    "token_effective_rank": lambda tokens: metrics.effective_rank(metrics.token_spectrum(tokens)),
    "delta_log_amplitude": lambda tokens: metrics.delta_log_amplitude(tokens, GRID)[:, -1:],
    "fourier_diagonal": lambda tokens: metrics.delta_log_amplitude(tokens, GRID),
    "fourier_radial": lambda tokens: metrics.radial_delta_log_amplitude(tokens, GRID),
    "token_norm": lambda tokens: metrics.token_norms(tokens).mean(1),
    "token_norm_peak": lambda tokens: metrics.norm_peak(metrics.token_norms(tokens)),
    "outlier_tokens": lambda tokens: metrics.outlier_share(metrics.token_norms(tokens)),
    "feature_variance": metrics.feature_variance,
}
CELLS = {
    "token_spectrum": [1, 2, 3, 4, 5, 6],
    "delta_log_amplitude": [2 / 3],
    "fourier_diagonal": metrics.half_diagonal_frequencies(GRID).tolist(),
    "fourier_radial": metrics.radial_frequencies(GRID).tolist(),
}


@pytest.fixture(scope="module")
def records():
    return forward_pass(images=3)


def shown(stream, records):
    """What a function gets of the records, tuples by depth: the streams by the words of `Metric`."""
    layers = {record.depth: record for record in records if isinstance(record, Attention)}
    tokens = {(r.place, r.depth): r.tokens for r in records if not isinstance(r, Attention)}
    patches = {key: each[:, LAYOUT.prefix :] for key, each in tokens.items()}

    def maps(prefix):
        found = {d: (r.query, r.key, prefix, r.bias, r.scale) for d, r in layers.items()}
        return {d: (metrics.patch_attention(*each),) for d, each in found.items()}

    return {
        "attention": maps(LAYOUT.prefix),
        "full attention": maps(0),
        "output": {d: (r.output[:, :, LAYOUT.prefix :],) for d, r in layers.items()},
        "block": {d: (patches["block", d],) for d in (0, *layers)},
        "full block": {d: (tokens["block", d],) for d in (0, *layers)},
        "block to +sa": {d: (patches["block", d - 1], patches["+sa", d]) for d in layers},
        "block to block": {d: (patches["block", d - 1], patches["block", d]) for d in layers},
    }[stream]


@pytest.mark.parametrize("name", sorted({*METRICS} - {"image_spectrum"}))  # which is no mean over images
def test_values_are_means_of_the_documented_function(name, records):
    metric, frame = METRICS[name], computed(name, [records])
    expected = {d: FUNCTIONS[name](*each) for d, each in shown(metric.stream, records).items()}
    assert_means(frame[frame["head"] >= 0] if metric.per_head else frame, expected)
    if metric.column != "head":
        assert frame[metric.column].tolist() == CELLS[name] * len(expected)


WITH_REFERENCE = """attention_distance nmi attention_entropy prefix_attention query_cosine
head_map_cosine centred_head_map_cosine head_cosine attention_token_cosine token_cosine common_update_share
token_norm_peak""".split()


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_references_are_values_of_uniform_attention_or_of_independent_wide_tokens(name):
    tokens = torch.randn(1, 2, 15, 4000, generator=torch.Generator().manual_seed(0))
    given = {
        "attention": (torch.full((1, 2, 15, 15), 1 / 15),),
        "full attention": (torch.full((1, 1, 17, 17), 1 / 17),),
        "output": (tokens,),
        "block": (tokens[0, :1],),
        "block to +sa": (tokens[:, 0], tokens[:, 0] + tokens[:, 1]),
    }[METRICS[name].stream]
    value = FUNCTIONS[name](*given).mean().item()
    assert METRICS[name].reference(LAYOUT) == pytest.approx(value, abs=0.03)
