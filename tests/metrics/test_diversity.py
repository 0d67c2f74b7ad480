import math
from types import SimpleNamespace

import pytest
import torch
from metric_battery import LAYOUT, computed, feed, forward_pass

from nbhelpers.metrics import METRICS, mean_cosine, mean_pairwise_cosine


def cosine(first: list[float], second: list[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def pairwise(vectors: torch.Tensor) -> float:
    """Mean over pairs, by name."""
    rows = vectors.tolist()
    pairs = [cosine(rows[i], rows[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return sum(pairs) / len(pairs)


def test_pairwise_equals_the_loop():
    vectors = torch.randn(3, 5, 7, dtype=torch.float64) + 0.5
    expected = torch.tensor([pairwise(part) for part in vectors], dtype=torch.float64)
    torch.testing.assert_close(mean_pairwise_cosine(vectors), expected)


def test_zero_vector_is_orthogonal_to_all():
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])) == pytest.approx(1 / 3)


def test_mean_cosine_equals_the_loop():
    before, after = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for image, value in enumerate(mean_cosine(before, after).tolist()):
        tokens = zip(before[image].tolist(), after[image].tolist(), strict=True)
        assert value == pytest.approx(sum(cosine(old, new) for old, new in tokens) / 4)


def test_without_a_class_token_it_is_not_defined():
    metric = METRICS["class_patch_cosine"].of(SimpleNamespace(depth=2, prefix=0, has_class_token=False))
    metric.update(1, metric.measure(torch.randn(2, 15, 4)))
    assert metric.compute()["value"].isna().all()


def test_a_pass_broken_off_halfway_leaves_no_trace():
    records = forward_pass(images=3)
    metric = METRICS["across_block_cosine"].of(LAYOUT)
    feed(metric, records[:1])
    feed(metric, records)
    assert metric.compute().equals(computed("across_block_cosine", [records]))
