import pytest
import torch

from nbhelpers.metrics import common_update_share


def share(before: torch.Tensor, after: torch.Tensor) -> float:
    """Common share of one image's update, by the words of its definition."""
    updates = [
        [b - a for a, b in zip(*pair, strict=True)]
        for pair in zip(before.tolist(), after.tolist(), strict=True)
    ]
    mean = [sum(column) / len(updates) for column in zip(*updates, strict=True)]
    whole = sum(x * x for update in updates for x in update)
    return len(updates) * sum(x * x for x in mean) / whole


def test_share_equals_the_loop():
    before, after = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.tensor([share(*pair) for pair in zip(before, after, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(common_update_share(before, after), expected)


def test_unison_cancellation_and_chance():
    tokens = torch.randn(1, 100, 64, dtype=torch.float64)
    assert common_update_share(tokens, tokens + torch.randn(64)).item() == pytest.approx(1)
    step = torch.randn(1, 50, 64)
    assert common_update_share(tokens, tokens + torch.cat([step, -step], 1)).item() < 1e-12
    assert common_update_share(tokens, tokens).item() == 0
    alone = common_update_share(tokens, tokens + torch.randn(1, 100, 64))
    assert alone.item() == pytest.approx(1 / 100, rel=0.5)
