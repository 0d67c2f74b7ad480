import math
from types import SimpleNamespace

import pytest
import torch
from metric_battery import LAYOUT, TOKENS, assert_means, by_layer, computed, feed, forward_pass, patches

from nbhelpers.metrics import METRICS, mean_cosine, mean_pairwise_cosine, patch_attention


def cosine(first: list[float], second: list[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def pairwise(vectors: torch.Tensor) -> float:
    """Mean over pairs, by name."""
    rows = vectors.tolist()
    pairs = [cosine(rows[i], rows[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return sum(pairs) / len(pairs)


@pytest.fixture(scope="module")
def records():
    return forward_pass(images=3)


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


def test_heads_are_compared_token_by_token(records):
    def of_heads(record):
        images = record.output[:, :, LAYOUT.prefix :].transpose(1, 2)  # B N H D
        return torch.tensor([sum(map(pairwise, image)) / len(image) for image in images])

    assert_means(computed("head_cosine", [records]), by_layer(records, of_heads))


def test_maps_of_queries_are_compared_head_by_head(records):
    def of_queries(record):
        maps = patch_attention(record.query, record.key, record.prefix, record.bias, record.scale)
        return torch.tensor([[*map(pairwise, image)] for image in maps])

    frame = computed("query_cosine", [records])
    assert_means(frame[frame["head"] >= 0], by_layer(records, of_queries))


def test_attention_outputs_of_tokens_have_their_heads_side_by_side(records):
    def of_tokens(record):
        heads = record.output[:, :, LAYOUT.prefix :].unbind(1)
        return torch.tensor([*map(pairwise, torch.cat(heads, dim=-1))])

    assert_means(computed("attention_token_cosine", [records]), by_layer(records, of_tokens))


def test_tokens_of_the_residual_stream(records):
    expected = {d: torch.tensor([*map(pairwise, x)]) for d, x in patches(records, "block").items()}
    assert_means(computed("token_cosine", [records]), expected)


def test_the_class_token_is_compared_with_patches(records):
    expected = {}
    for record in records:
        if getattr(record, "place", None) == "block":
            first, *others = record.tokens.transpose(0, 1)[[0, *range(LAYOUT.prefix, TOKENS)]]
            pairs = [[cosine(*pair) for pair in zip(first.tolist(), o.tolist(), strict=True)] for o in others]
            expected[record.depth] = torch.tensor(pairs).mean(0)
    assert_means(computed("class_patch_cosine", [records]), expected)


def test_without_a_class_token_it_is_not_defined():
    metric = METRICS["class_patch_cosine"].of(SimpleNamespace(depth=2, prefix=0, has_class_token=False))
    metric.update(1, metric.measure(torch.randn(2, 15, 4)))
    assert metric.compute()["value"].isna().all()


def test_depths_are_compared_with_the_previous_block(records):
    block, middle = patches(records, "block"), patches(records, "+sa")
    depths = range(1, LAYOUT.depth + 1)
    expected = {depth: mean_cosine(block[depth - 1], middle[depth]) for depth in depths}
    assert_means(computed("across_attention_cosine", [records]), expected)
    expected = {depth: mean_cosine(block[depth - 1], block[depth]) for depth in depths}
    assert_means(computed("across_block_cosine", [records]), expected)


def test_a_pass_broken_off_halfway_leaves_no_trace(records):
    metric = METRICS["across_block_cosine"].of(LAYOUT)
    feed(metric, records[:1])
    feed(metric, records)
    assert metric.compute().equals(computed("across_block_cosine", [records]))
