import math
from types import SimpleNamespace

import pytest
import torch
from metric_battery import LAYOUT, computed, feed, forward_pass
from torch.utils._python_dispatch import TorchDispatchMode

from nbhelpers.capture import Attention
from nbhelpers.metrics import (
    METRICS,
    attention_distance,
    attention_entropy,
    nmi,
    object_attention,
    patch_attention,
    patch_distances,
)
from nbhelpers.metrics import attention as module

KERNELS = {
    "attention_distance": lambda maps: attention_distance(maps, LAYOUT.grid, LAYOUT.patch_size),
    "nmi": nmi,
    "attention_entropy": attention_entropy,
}


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


ORACLES = {"attention_distance": oracle_distance, "nmi": oracle_nmi, "attention_entropy": oracle_entropy}


@pytest.fixture(scope="module")
def records():
    return [record for record in forward_pass(images=3) if isinstance(record, Attention)]


@pytest.mark.parametrize("name", ORACLES)
def test_kernel_equals_the_loop(name, records):
    for record in records:
        maps = patch_attention(record.query, record.key, record.prefix, record.bias, record.scale)
        values = KERNELS[name](maps)
        for image in range(3):
            for head in range(LAYOUT.heads):
                expected = ORACLES[name](oracle_map(record, image, head))
                assert math.isclose(values[image, head], expected, rel_tol=1e-9)


@pytest.mark.parametrize("name", ORACLES)
def test_accumulator_equals_the_loop(name, records):
    frame = computed(name, [forward_pass(images=3)]).set_index(["depth", "head"])["value"]
    for record in records:
        for head in range(LAYOUT.heads):
            expected = sum(ORACLES[name](oracle_map(record, image, head)) for image in range(3)) / 3
            assert math.isclose(frame[record.depth, head], expected, rel_tol=1e-9)


def test_softmax_over_patches_equals_dropping_and_renormalising(records):
    record = records[1]
    maps = patch_attention(record.query, record.key, record.prefix, record.bias, record.scale)
    torch.testing.assert_close(maps[2, 1].tolist(), oracle_map(record, 2, 1))


def test_default_scale_is_that_of_scaled_dot_product_attention(records):
    query, key = records[0].query, records[0].key
    value = torch.eye(query.shape[2], dtype=query.dtype).expand(3, 2, -1, -1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(patch_attention(query, key, prefix=0), expected)


def test_boolean_bias_masks_keys(records):
    query, key = records[0].query, records[0].key
    allowed = torch.ones(3, 1, 1, key.shape[2], dtype=torch.bool)
    allowed[..., -4:] = False
    maps = patch_attention(query, key, 2, allowed)
    assert (maps[..., -4:] == 0).all()
    torch.testing.assert_close(maps[:, :, :-4, :-4], patch_attention(query[:, :, :-4], key[:, :, :-4], 2))


@pytest.mark.parametrize(("grid", "patch_size", "distance"), [((14, 14), 16, 116.49), ((8, 8), 4, 16.55)])
def test_uniform_attention(grid, patch_size, distance):
    tokens = grid[0] * grid[1]
    maps = torch.full((1, 2, tokens, tokens), 1 / tokens)
    assert attention_distance(maps, grid, patch_size).sub(distance).abs().max() < 0.005
    assert nmi(maps).abs().max() < 1e-5
    torch.testing.assert_close(attention_entropy(maps), torch.ones(1, 2))


def test_identity_and_permutation():
    identity = torch.eye(15).expand(1, 1, 15, 15)
    assert attention_distance(identity, (3, 5), 16) == 0
    assert attention_entropy(identity) == 0
    for maps in (identity, identity[..., torch.randperm(15)]):
        torch.testing.assert_close(nmi(maps), torch.ones(1, 1))


def test_all_queries_on_one_key_have_collapsed():
    maps = torch.zeros(1, 1, 6, 6)
    maps[..., 2] = 1
    assert nmi(maps) == 0
    assert attention_entropy(maps) == 0


def test_grid_is_rows_by_columns():
    rows = torch.zeros(15, 15)
    rows[:, 5] = 1  # all look at the first patch of the second row
    down = attention_distance(rows[None, None], (3, 5), (10, 0))
    assert math.isclose(down, 10 * (5 + 0 + 5) / 15, rel_tol=1e-6)


def record_of(scale: float = 1.0, bias=None, tokens: int = 20, dtype=torch.float32) -> Attention:
    query, key = torch.randn(2, 3, 3, tokens + 1, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return Attention(1, query, key, key, key, bias, scale, 1, (4, tokens // 4), (16, 16))


@pytest.mark.parametrize("chunk", [1, 800, 10**9])
@pytest.mark.parametrize(
    "bias", [None, torch.randn(3, 1, 1, 21), torch.randn(21, 21), torch.randn(1, 3, 21, 21)]
)
@pytest.mark.parametrize("prefix", [0, 1])
def test_pieces_of_any_size_are_the_maps_in_order(monkeypatch, chunk, bias, prefix):
    monkeypatch.setattr(module, "MAPS_CPU", chunk)
    record = record_of(bias=bias)
    logits = record.query @ record.key.mT + (0 if bias is None else bias)
    pieces = torch.cat([piece for (piece,) in module.attention_pieces(record, prefix)])
    expected = logits[..., prefix:, prefix:].softmax(-1)
    torch.testing.assert_close(pieces.view(expected.shape), expected)


def test_masked_keys_leave_the_entropy_finite():
    bias = torch.zeros(1, 1, 1, 21)
    bias[..., -5:] = -torch.inf
    record = record_of(bias=bias)
    maps = patch_attention(record.query, record.key, 1, bias, record.scale)
    torch.testing.assert_close(module.entropy(maps), torch.special.entr(maps).sum(-1))


@pytest.mark.parametrize("scale", [1e-8, 1e3])
def test_values_stay_in_range_at_the_extremes(scale):
    single, double = (record_of(scale=scale, dtype=dtype) for dtype in (torch.float32, torch.float64))
    maps, exact = (patch_attention(r.query, r.key, 1, None, r.scale) for r in (single, double))
    for kernel in (nmi, attention_entropy):
        value = kernel(maps)
        assert (value >= 0).all() and (value <= 1).all()
        torch.testing.assert_close(value.double(), kernel(exact), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("grid", [(14, 14), (37, 37), (64, 64)])
def test_distance_in_single_precision_keeps_six_digits(grid):
    tokens = grid[0] * grid[1]
    uniform = attention_distance(torch.full((1, 1, tokens, tokens), 1 / tokens), grid, 14).item()
    assert math.isclose(uniform, patch_distances(grid, 14).mean().item(), rel_tol=1e-6)
    if grid == (64, 64):
        assert uniform == pytest.approx(467.124, abs=5e-4)


def test_mass_on_an_object_by_loops():
    maps = torch.rand(2, 3, 4, 5, dtype=torch.float64).softmax(-1)
    on_object = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    mass = object_attention(maps, on_object)
    assert mass.shape == (2, 3, 4) and (mass[1] == 0).all()
    for head in range(3):
        for query in range(4):
            row = maps[0, head, query].tolist()
            assert math.isclose(mass[0, head, query], row[0] + row[2])
    with pytest.raises(ValueError, match=r"object_attention: expected .*\(B K\)"):
        object_attention(maps, on_object[:, :4])


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
    accumulator = METRICS[name].of(
        SimpleNamespace(depth=1, heads=3, prefix=1, grid=(4, 25), patch_size=(16, 16))
    )
    with Largest() as largest:
        feed(accumulator, [record_of(tokens=100)])
    assert largest.numel <= 2 * 101**2  # of 3 images x 3 heads x 101 x 101


def test_shapes_that_do_not_fit_are_restated():
    query = torch.zeros(2, 3, 5, 4)
    with pytest.raises(ValueError, match=r"got \(2, 3, 5, 4\) and \(2, 1, 5, 4\)"):
        patch_attention(query, query[:, :1])
    with pytest.raises(ValueError, match=r"5 tokens.*prefix \(5\)"):
        patch_attention(query, query, prefix=5)
    with pytest.raises(RuntimeError, match=r"\[2, 3, 5, 5\].*\[3, 4, 4\]"):
        patch_attention(query, query, bias=torch.zeros(3, 4, 4))
