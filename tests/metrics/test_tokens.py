import math
import statistics

import pytest
import torch

from nbhelpers.metrics import feature_variance, norm_peak, outlier_share, token_norms


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


def test_feature_variance_equals_the_loop():
    tokens = torch.randn(2, 3, 4, dtype=torch.float64)
    for image, value in zip(tokens.tolist(), feature_variance(tokens).tolist(), strict=True):
        channels = list(zip(*image, strict=True))
        assert value == pytest.approx(sum(statistics.pvariance(channel) for channel in channels) / 4)
