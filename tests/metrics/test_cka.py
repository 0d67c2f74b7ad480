import pytest
import torch

from nbhelpers.metrics import linear_cka, unbiased_hsic


def features(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of related features `B D` of as many images."""
    make = torch.Generator().manual_seed(images)
    first = torch.randn(images, 5, dtype=torch.float64, generator=make)
    mix = torch.randn(5, 4, dtype=torch.float64, generator=make)
    return first, first @ mix + 0.3 * first[:, :4] ** 2


def hsic_by_loops(first: torch.Tensor, second: torch.Tensor) -> float:
    """Unbiased HSIC of two sets of features (B D), sums written out over images."""
    count = len(first)
    k = [[0.0 if i == j else float(first[i] @ first[j]) for j in range(count)] for i in range(count)]
    m = [[0.0 if i == j else float(second[i] @ second[j]) for j in range(count)] for i in range(count)]
    span = range(count)
    trace = sum(k[i][j] * m[j][i] for i in span for j in span)
    sums = sum(map(sum, k)) * sum(map(sum, m)) / ((count - 1) * (count - 2))
    mixed = sum(k[i][j] * m[j][q] for i in span for j in span for q in span) * 2 / (count - 2)
    return (trace + sums - mixed) / (count * (count - 3))


def cka_by_loops(first: torch.Tensor, second: torch.Tensor) -> float:
    own = hsic_by_loops(first, first) * hsic_by_loops(second, second)
    return hsic_by_loops(first, second) / own**0.5


def test_hsic_and_cka_equal_the_loop():
    first, second = features(9)
    grams = [x @ x.T for x in (first, second)]
    value = unbiased_hsic(grams[0][None], grams[1][None]).item()
    assert value == pytest.approx(hsic_by_loops(first, second))
    assert linear_cka(first, second).item() == pytest.approx(cka_by_loops(first, second))


def test_rotation_scale_and_offset_change_nothing():
    first, second = features(20)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    expected = linear_cka(first, second)
    torch.testing.assert_close(linear_cka(3 * first @ rotation + 100, second), expected)
    assert linear_cka(first, first @ rotation).item() == pytest.approx(1)


def test_unrelated_features_are_unbiased_around_zero():
    make = torch.Generator().manual_seed(0)
    values = [linear_cka(*torch.randn(2, 12, 40, generator=make)).item() for _ in range(100)]
    assert abs(sum(values) / 100) < 0.05  # the biased estimate would be near 0.8 here
