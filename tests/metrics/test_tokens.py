import statistics

import pytest
import torch

from nbhelpers.metrics import norm_peak, outlier_share


@pytest.mark.parametrize("count", [60, 61])
def test_outliers_stand_out_from_the_median(count):
    norms = torch.rand(4, count, dtype=torch.float64) ** 3
    for image, share, peak in zip(norms.tolist(), outlier_share(norms), norm_peak(norms), strict=True):
        median = statistics.median(image)
        assert share.item() == pytest.approx(sum(norm > 3 * median for norm in image) / count)
        assert peak.item() == pytest.approx(max(image) / median)
    assert (outlier_share(norms, ratio=100.0) == 0).all()
    assert (norm_peak(torch.ones(1, count)) == 1).all()
