import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from metric_battery import LAYOUT, feed, forward_pass
from torch.utils._python_dispatch import TorchDispatchMode

from nbhelpers.capture import Attention
from nbhelpers.metrics import (
    METRICS,
    attention_distance,
    attention_entropy,
    nmi,
    patch_attention,
    patch_distances,
)
from nbhelpers.metrics import attention as module


def oracle_map(record: Attention, image: int, head: int) -> list[list[float]]:
    """One map by the words of its definition: full softmax, prefix dropped, rows renormalised."""
    query, key = record.query[image, head].tolist(), record.key[image, head].tolist()
    rows = []
    for q in range(record.prefix, len(query)):
        scores = []
        for k in range(len(key)):
            score = record.scale * sum(a * b for a, b in zip(query[q], key[k], strict=True))
            scores.append(score + (0 if record.bias is None else record.bias[0, head, q, k].item()))
        whole = sum(math.exp(score) for score in scores)
        row = [math.exp(score) / whole for score in scores[record.prefix :]]
        rows.append([probability / sum(row) for probability in row])
    return rows


def oracle_distance(rows: list[list[float]]) -> float:
    (_, columns), (height, width) = LAYOUT.grid, LAYOUT.patch_size
    total = 0.0
    for q, row in enumerate(rows):
        for k, probability in enumerate(row):
            down = (q // columns - k // columns) * height
            across = (q % columns - k % columns) * width
            total += probability * math.sqrt(down**2 + across**2)
    return total / len(rows)


def oracle_nmi(rows: list[list[float]]) -> float:
    count = len(rows)
    marginal = [sum(row[k] for row in rows) / count for k in range(count)]
    information = 0.0
    for row in rows:
        for k, probability in enumerate(row):
            information += probability / count * math.log(probability / marginal[k])
    return information / math.sqrt(math.log(count) * -sum(p * math.log(p) for p in marginal))


def oracle_entropy(rows: list[list[float]]) -> float:
    return sum(-p * math.log(p) for row in rows for p in row) / len(rows) / math.log(len(rows))


@pytest.fixture(scope="module")
def records():
    return [record for record in forward_pass(images=3) if isinstance(record, Attention)]


@pytest.mark.parametrize(
    ("kernel", "oracle", "sizes"),
    [
        (attention_distance, oracle_distance, (LAYOUT.grid, LAYOUT.patch_size)),
        (nmi, oracle_nmi, ()),
        (attention_entropy, oracle_entropy, ()),
    ],
)
def test_values_equal_the_loop(kernel, oracle, sizes, records):
    for record in records:
        maps = patch_attention(record.query, record.key, record.prefix, record.bias, record.scale)
        rows = [[oracle_map(record, image, head) for head in range(LAYOUT.heads)] for image in range(3)]
        torch.testing.assert_close(maps.tolist(), rows)
        values = torch.tensor([[oracle(head) for head in image] for image in rows], dtype=torch.float64)
        torch.testing.assert_close(kernel(maps, *sizes), values, rtol=1e-9, atol=0)


def test_default_scale_and_masks_are_those_of_scaled_dot_product_attention(records):
    query, key = records[0].query, records[0].key
    allowed = torch.ones(3, 1, 1, key.shape[2], dtype=torch.bool)
    allowed[..., -4:] = False
    value = torch.eye(key.shape[2], dtype=key.dtype).expand(3, 2, -1, -1)
    for bias in (None, allowed):
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        torch.testing.assert_close(patch_attention(query, key, 0, bias), expected)


@pytest.mark.parametrize(
    ("grid", "patch_size", "distance"), [((14, 14), 16, 116.49), ((8, 8), 4, 16.55), ((37, 37), 14, 269.99)]
)
def test_uniform_attention_in_single_precision_keeps_six_digits(grid, patch_size, distance):
    tokens = grid[0] * grid[1]
    maps = torch.full((1, 2, tokens, tokens), 1 / tokens)
    found = attention_distance(maps, grid, patch_size)
    assert found.tolist() == [[pytest.approx(distance, abs=0.005)] * 2]
    assert found[0, 0].item() == pytest.approx(patch_distances(grid, patch_size).mean().item(), rel=1e-6)
    assert nmi(maps).abs().max() < 1e-5
    torch.testing.assert_close(attention_entropy(maps), torch.ones(1, 2))


def test_all_queries_on_one_key_have_collapsed():
    maps = torch.zeros(1, 1, 6, 6)
    maps[..., 2] = 1
    assert nmi(maps) == attention_entropy(maps) == 0


def test_distances_remembered_from_inference_serve_gradients_too():
    maps = torch.full((1, 1, 21, 21), 1 / 21, dtype=torch.float64)
    with torch.inference_mode():
        attention_distance(maps.clone(), (3, 7), 5)
    maps.requires_grad_()
    attention_distance(maps, (3, 7), 5).sum().backward()
    assert maps.grad.isfinite().all()


def record_of(scale: float = 1.0, bias=None, tokens: int = 20, dtype=torch.float32) -> Attention:
    query, key = torch.randn(2, 3, 3, tokens + 1, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return Attention(1, query, key, key, key, bias, scale, 1, (4, tokens // 4), (16, 16))


@pytest.mark.parametrize("chunk", [1, 800, 10**9])
@pytest.mark.parametrize("shape", [None, (21,), (3, 1, 1, 21), (21, 21), (1, 3, 21, 21)])
def test_pieces_of_any_size_are_the_maps_in_order(monkeypatch, chunk, shape):
    monkeypatch.setattr(module, "MAPS_CPU", chunk)
    record = record_of(bias=shape and torch.randn(shape))
    logits = record.query @ record.key.mT + (0 if shape is None else record.bias)
    for prefix, apart in product((0, 1), (True, False)):
        pieces = torch.cat([piece for (piece,) in module.attention_pieces(record, prefix, apart)])
        expected = logits[..., prefix:, prefix:].softmax(-1)
        expected = expected.flatten(0, 1)[:, None] if apart else expected  # P 1 N N or P H N N
        torch.testing.assert_close(pieces, expected)


@pytest.mark.parametrize("scale", [1e-8, 1e3])
def test_values_stay_in_range_at_the_extremes(scale):
    single, double = (record_of(scale=scale, dtype=dtype) for dtype in (torch.float32, torch.float64))
    maps, exact = (patch_attention(r.query, r.key, 1, None, r.scale) for r in (single, double))
    for kernel in (nmi, attention_entropy):
        value = kernel(maps)
        assert (value >= 0).all() and (value <= 1).all()
        torch.testing.assert_close(value.double(), kernel(exact), rtol=1e-3, atol=2e-3)


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that an operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if "attention" in metric.stream])
def test_memory_is_bounded_by_the_piece(monkeypatch, name):
    monkeypatch.setattr(module, "MAPS_CPU", 2 * 101**2)
    sizes = SimpleNamespace(depth=1, heads=3, prefix=1, grid=(4, 25), patch_size=(16, 16))
    with Largest() as largest:
        feed(METRICS[name].of(sizes), [record_of(tokens=100)])
    together = 2 if METRICS[name].maps_apart else sizes.heads  # the heads of an image come together
    assert largest.numel <= together * 101**2  # of 3 images x 3 heads x 101 x 101
