import pytest
import torch
from sklearn.decomposition import PCA

from nbhelpers.metrics import common_update_share, token_pca


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


def test_pca_is_that_of_both_sets_together_and_its_axes_do_not_flip():
    before, after = torch.randn(2, 20, 6, dtype=torch.float64) * torch.arange(1, 7)
    reference = PCA(3).fit(torch.cat([before, after]).numpy())
    result, order = token_pca(before, after), torch.randperm(20)
    torch.testing.assert_close(result.explained, torch.tensor(reference.explained_variance_ratio_))
    for tokens, coordinates in ((before, result.before), (after, result.after)):
        expected = torch.tensor(reference.transform(tokens.numpy()))
        torch.testing.assert_close(coordinates.abs(), expected.abs())
    torch.testing.assert_close(token_pca(before[order], after[order]).before, result.before[order])


def test_pca_of_wide_tokens_is_exact_too():
    before, after = torch.randn(2, 20, 600, dtype=torch.float64)
    both = torch.cat([before, after])
    variances = torch.linalg.svdvals(both - both.mean(0)).square()
    torch.testing.assert_close(token_pca(before, after).explained, variances[:3] / variances.sum())
