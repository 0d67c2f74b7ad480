import pandas as pd
import pytest
import torch
from metric_battery import assert_same, features

from nbhelpers.metrics import CKA, linear_cka, unbiased_hsic


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
    (first, *_), (second, *_) = features(range(9))
    grams = [x @ x.T for x in (first, second)]
    value = unbiased_hsic(grams[0][None], grams[1][None]).item()
    assert value == pytest.approx(hsic_by_loops(first, second))
    assert linear_cka(first, second).item() == pytest.approx(cka_by_loops(first, second))


def test_rotation_scale_and_offset_change_nothing():
    (first, *_), (second, *_) = features(range(20))
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    expected = linear_cka(first, second)
    torch.testing.assert_close(linear_cka(3 * first @ rotation + 100, second), expected)
    assert linear_cka(first, first @ rotation).item() == pytest.approx(1)


def test_unrelated_features_are_unbiased_around_zero():
    make = torch.Generator().manual_seed(0)
    values = [linear_cka(*torch.randn(2, 12, 40, generator=make)).item() for _ in range(100)]
    assert abs(sum(values) / 100) < 0.05  # the biased estimate would be near 0.8 here


def test_one_batch_is_the_whole():
    first, second = features(range(10))
    cka = CKA(first=3, second=3)
    cka.update(first, second)
    frame = cka.compute().set_index(["first", "second"])["value"]
    for i in range(3):
        for j in range(3):
            assert frame[i, j] == pytest.approx(linear_cka(first[i], second[j]).item())


def test_batches_average_hsic_by_their_images():
    batches = [features([1] * 6), features([2] * 9)]
    cka = CKA(first=3, second=3)
    for batch in batches:
        cka.update(*batch)

    def mean(i, j, a, b):
        return sum(len(x[a][i]) * hsic_by_loops(x[a][i], x[b][j]) for x in batches)

    row = cka.compute().query("first == 0 and second == 2").iloc[0]
    assert row["value"] == pytest.approx(mean(0, 2, 0, 1) / (mean(0, 0, 0, 0) * mean(2, 2, 1, 1)) ** 0.5)
    assert row["images"] == 15 and row["metric"] == "cka"


def test_batches_come_close_to_all_images_together():
    first, second = features(range(400))
    cka = CKA(first=3, second=3)
    for part in zip(*(x.split(20) for x in (*first, *second)), strict=True):
        cka.update(part[:3], part[3:])
    value = cka.compute().query("first == 1 and second == 1")["value"].item()
    assert value == pytest.approx(linear_cka(first[1], second[1]).item(), abs=0.05)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_equal_one(ranks, rank):
    cka = CKA(first=3, second=3)
    for seed in (0, 1):
        cka.update(*features(8 * [seed]))
    assert_same(pd.read_pickle(ranks / f"cka.{rank}.pkl"), cka.compute())


def test_bad_input_is_named():
    few = torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"linear_cka: .*B at least 4"):
        linear_cka(few, few)
    with pytest.raises(ValueError, match=r"linear_cka: .*\(5, 2\) and \(6, 2\)"):
        linear_cka(torch.randn(5, 2), torch.randn(6, 2))
    with pytest.raises(ValueError, match=r"linear_cka: expected first \(B D\).* got \(5, 2, 1\)"):
        linear_cka(torch.randn(5, 2, 1), torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"linear_cka: .*NaN"):
        linear_cka(torch.full((5, 2), torch.nan), torch.randn(5, 2))
    assert linear_cka(torch.ones(5, 2), torch.randn(5, 2)).isnan()
    with pytest.raises(ValueError, match=r"unbiased_hsic: .*got \(1, 4, 5\) and \(1, 4, 4\)"):
        unbiased_hsic(torch.ones(1, 4, 5), torch.ones(1, 4, 4))
    cka = CKA(first=2, second=1)
    with pytest.raises(ValueError, match=r"cka: made for \(2, 1\) sets of features, got \(1, 1\)"):
        cka.update([few], [few])
    cka = CKA(first=2, second=1)
    with pytest.warns(UserWarning, match="before the"), pytest.raises(ValueError, match="cka: no image"):
        cka.compute()
