import math
import statistics

import pytest
import torch
from metric_battery import LAYOUT, assert_means, by_layer, computed, forward_pass, patches

from nbhelpers.metrics import feature_variance, norm_peak, outlier_share, prefix_attention, token_norms


def test_norms_equal_the_loop():
    tokens = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = [[math.sqrt(sum(x * x for x in token)) for token in image] for image in tokens.tolist()]
    torch.testing.assert_close(token_norms(tokens), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("count", [6, 7])
def test_outliers_stand_out_from_the_median(count):
    norms = torch.rand(4, count, dtype=torch.float64) + 0.1
    norms[:, 1] *= 9
    for image, share, peak in zip(norms.tolist(), outlier_share(norms), norm_peak(norms), strict=True):
        median = statistics.median(image)
        assert share.item() == pytest.approx(sum(norm > 3 * median for norm in image) / count)
        assert peak.item() == pytest.approx(max(image) / median)
    assert (outlier_share(norms, ratio=100.0) == 0).all()
    assert (norm_peak(torch.ones(1, count)) == 1).all()


def test_accumulators_average_images():
    records = forward_pass(images=3)
    norms = {depth: token_norms(tokens) for depth, tokens in patches(records, "block").items()}
    mean = {"token_norm": lambda x: x.mean(1), "token_norm_peak": norm_peak, "outlier_tokens": outlier_share}
    for name, of in mean.items():
        assert_means(computed(name, [records]), {depth: of(x) for depth, x in norms.items()})


def test_feature_variance_equals_the_loop():
    tokens = torch.randn(2, 3, 4, dtype=torch.float64)
    for image, value in zip(tokens.tolist(), feature_variance(tokens).tolist(), strict=True):
        channels = list(zip(*image, strict=True))
        assert value == pytest.approx(sum(statistics.pvariance(channel) for channel in channels) / 4)


def test_outliers_are_found_among_patches_alone():
    records = forward_pass(images=2)
    tokens = records[0].tokens
    tokens /= tokens.norm(dim=-1, keepdim=True)
    tokens[:, 0] *= 9  # the class token is no outlier
    assert computed("outlier_tokens", [records]).query("depth == 0")["value"].item() == 0
    tokens[:, 5] *= 9
    assert computed("outlier_tokens", [records]).query("depth == 0")["value"].item() == pytest.approx(1 / 15)


def test_prefix_attention_is_what_patch_attention_leaves_out():
    records = forward_pass(images=3)

    def of_patches(record):
        logits = record.query @ record.key.mT * record.scale
        attention = (logits if record.bias is None else logits + record.bias).softmax(-1)
        found = prefix_attention(attention, LAYOUT.prefix)
        by_hand = sum(attention[1, 0, q, k].item() for q in range(2, 17) for k in range(2)) / 15
        assert found[1, 0].item() == pytest.approx(by_hand)
        assert (prefix_attention(attention, 0) == 0).all()
        return found

    assert_means(computed("prefix_attention", [records]).query("head >= 0"), by_layer(records, of_patches))
