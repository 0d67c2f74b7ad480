import math
from types import SimpleNamespace

import pytest
import torch
from metric_battery import LAYOUT

from nbhelpers import metrics
from nbhelpers.metrics import METRICS, Metric, base

BRIGHTNESS = Metric("brightness", lambda tokens: tokens.mean((1, 2)), "block")


def brightness(*batches, depth=1):
    accumulator = BRIGHTNESS.of(SimpleNamespace(depth=depth))
    for values in batches:
        accumulator.update(1, torch.tensor(values, dtype=torch.float64))
    return accumulator.compute()


HALF = 3.182446305284263 * math.sqrt(38 / 3) / 2  # of 1, 2, 4 and 9; the t quantile is from a table


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (([1.0], [2.0, 4.0, 9.0]), (4, 4 - HALF, 4 + HALF, 4)),
        (([3.0],), (3, math.nan, math.nan, 1)),
        (([1.0, math.nan], [3.0]), (2, 2 - 12.7062, 2 + 12.7062, 2)),  # an undefined value is left out
        (([math.nan],), (math.nan, math.nan, math.nan, 0)),
    ],
)
def test_mean_and_interval_are_students(batches, expected):
    row = brightness(*batches)[["value", "low", "high", "images"]].iloc[0]
    assert tuple(row) == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_unseen_depths_are_left_out():
    assert brightness([3.0], depth=5)["depth"].tolist() == [1]


def test_mean_over_heads_has_its_own_interval():
    distance = METRICS["attention_distance"].of(LAYOUT)
    distance.update(1, torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]))
    frame = distance.compute().set_index("head")
    assert frame["value"].tolist() == [2, 2, 2] and frame.index.tolist() == [-1, 0, 1]
    assert frame.loc[-1, "low"] == frame.loc[-1, "high"] == 2  # the images' means over heads are all 2
    assert frame.loc[0, "low"] < 1 and frame.loc[0, "high"] > 3


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_what_cannot_be_counted_is_named():
    with pytest.raises(ValueError, match=r"attention_distance: .* \(4, 4\)"):
        METRICS["attention_distance"].of(LAYOUT).update(1, torch.ones(4, 3))
    with pytest.raises(ValueError, match="brightness: no image"):
        brightness()
    with pytest.raises(KeyError, match=r"attention_distanze.*nearest: attention_distance"):
        METRICS["attention_distanze"]


def test_remembered_functions_run_once_for_equal_arguments():
    calls = []

    @base.remembered
    def double(tensor, grid):
        calls.append(grid)
        return 2 * tensor

    one, other = torch.ones(2), torch.zeros(2)
    with base.remembering():
        for tensor, grid in ((one, (1, 2)), (one, (1, 2)), (other, (1, 2)), (other, (1, 2)), (one, (2, 1))):
            assert torch.equal(double(tensor, grid), 2 * tensor)
        assert calls == [(1, 2), (1, 2), (2, 1)]
        assert torch.equal(double(one, grid=(3, 3)), 2 * one) and calls.pop() == (3, 3)  # not remembered


def test_equal_letters_are_equal_sizes_and_half_precision_is_widened():
    @base.takes("B N", "... N D", N=2)
    def product(weights, tokens):
        return weights @ tokens

    half = torch.ones(1, 3, dtype=torch.float16)
    assert product(half, tokens=half.T).dtype == torch.float32
    wrong = [((1, 2), (1, 3)), ((1, 3), (2, 3)), ((3,), (3, 1)), ((1, 1), (1, 1)), ((0, 2), (2, 1))]
    for weights, tokens in wrong:
        with pytest.raises(ValueError, match=r"product: .*weights .*tokens"):
            product(torch.ones(weights), torch.ones(tokens))


MAPS, TOKENS, GRAMS = torch.full((1, 1, 4, 4), 0.25), torch.randn(5, 4, 6), torch.ones(2, 4, 4)
GOOD = {
    "patch_attention": (TOKENS[None], TOKENS[None]),
    "attention_distance": (MAPS, (2, 2), 16),
    "nmi": (MAPS,),
    "attention_entropy": (MAPS,),
    "prefix_attention": (MAPS, 1),
    "object_attention": (MAPS, torch.ones(1, 4)),
    "head_map_cosine": (MAPS.repeat(1, 2, 1, 1),),
    "centred_head_map_cosine": (MAPS.repeat(1, 2, 1, 1),),
    "head_cosine": (TOKENS[None],),
    "attention_token_cosine": (TOKENS[None],),
    "mean_cosine": (TOKENS, TOKENS),
    "class_patch_cosine": (TOKENS, 1),
    "common_update_share": (TOKENS, TOKENS),
    "token_spectrum": (TOKENS,),
    "log_amplitude": (TOKENS, (2, 2)),
    "feature_map_log_amplitude": (torch.ones(1, 2, 3, 3),),
    "token_norms": (TOKENS,),
    "outlier_share": (TOKENS[0],),
    "norm_peak": (TOKENS[0],),
    "feature_variance": (TOKENS,),
    "linear_cka": (TOKENS[0], TOKENS[1]),
    "unbiased_hsic": (GRAMS, GRAMS),
}


@pytest.mark.parametrize("name", GOOD)
def test_bad_input_is_named(name):
    """One axis less, tensors that do not fit one another, values that are not finite."""
    function, (first, *rest) = getattr(metrics, name), GOOD[name]
    function(first, *rest)
    bad = [(first[0], *rest), (first * math.nan, *rest)]
    if rest and isinstance(rest[0], torch.Tensor):
        bad.append((first, rest[0][..., :-1, :-1], *rest[1:]))
    for arguments in bad:
        with pytest.raises(ValueError, match=rf"{name}: "):
            function(*arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nmi", (MAPS * 0.9,), r"sum to 1 \(off by 0\.1"),
        ("nmi", (torch.tensor([[[[2.0, -1.0], [-1.0, 2.0]]]]),), r"negative .*-1"),
        ("patch_attention", (TOKENS[None], TOKENS[None], -2), r"prefix \(-2\)"),
        ("patch_attention", (TOKENS[None], TOKENS[None], 4), r"prefix \(4\)"),
        ("attention_distance", (MAPS, (2, 2), -16), "-16 x -16 px"),
        ("attention_entropy", (torch.ones(1, 1, 1, 1),), "N at least 2"),
        ("attention_distance", (MAPS, (2, 3), 16), r"grid of \(2, 3\)"),
        ("prefix_attention", (MAPS, 4), "4 prefix tokens"),
        ("class_patch_cosine", (TOKENS, 0), "0 of 4 tokens"),
        ("class_patch_cosine", (TOKENS, 4), "4 of 4 tokens"),
        ("mean_pairwise_cosine", (torch.ones(1, 4),), "M at least 2"),
        ("token_spectrum", (torch.ones(2, 1, 4),), "N at least 2"),
        ("delta_log_amplitude", (torch.ones(1, 15, 2), (4, 4)), r"grid of \(4, 4\)"),
        ("delta_log_amplitude", (torch.ones(1, 16, 2), (2, 8)), r"half diagonal .* \(2, 8\)"),
        ("linear_cka", (torch.ones(3, 2), torch.ones(3, 2)), "B at least 4"),
    ],
)
def test_bad_sizes_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(metrics, name)(*arguments)


def test_what_does_not_vary_has_no_value():
    assert metrics.norm_peak(torch.zeros(1, 3)).isnan()
    assert metrics.linear_cka(torch.ones(5, 2), torch.randn(5, 2)).isnan()
