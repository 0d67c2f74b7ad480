"""How self-attention moves the tokens of an image: in unison, or one by one."""

from typing import NamedTuple

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from nbhelpers.metrics.base import takes


class TokenPCA(NamedTuple):
    """Principal components of one image's tokens.

    Attributes:
        before: `N K` coordinates before the step.
        after: `N K` coordinates after it, on the same axes.
        explained: `K`, share of the variance of both sets together, descending.
    """

    before: Tensor
    after: Tensor
    explained: Tensor


@takes("B N D", "B N D")
def common_update_share(before: Tensor, after: Tensor) -> Tensor:
    r"""Share of the tokens' update that is common to all tokens of an image.

    .. math:: \frac{N \lVert \bar u \rVert^2}{\sum_n \lVert u_n \rVert^2}, \quad u_n = z'_n - z_n,
        \quad \bar u = \frac{1}{N} \sum_n u_n

    Args:
        before: patch tokens `B N D` before self-attention.
        after: `B N D` after it (with the residual).

    Returns:
        `B` in 0..1: 1 when all tokens move by the same vector, about 1/N when each moves on its own, 0 when
        the updates cancel (or there are none).

    Raises:
        ValueError: different shapes, or values that are not finite.

    Source: a number for the paper's picture of tokens before and after self-attention, on representations:
    contrastive learning moves all tokens of an image in unison, masked image modelling each one separately.

    Example: two tokens share a step to the right, and step up and down on their own.
        >>> before = torch.zeros(1, 2, 2)
        >>> after = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]])
        >>> common_update_share(before, after)
        tensor([0.5000])
    """
    update = after - before
    common = update.mean(1).square().sum(-1) * update.shape[1]
    whole = torch.linalg.vector_norm(update, dim=(1, 2)).square()
    return (common / whole.clamp(min=torch.finfo(whole.dtype).tiny)).clamp(max=1)


@takes("N D", "N D")
def token_pca(before: Tensor, after: Tensor, components: int = 3) -> TokenPCA:
    """Principal components of one image's tokens before and after a step, on axes fitted to both together.

    Of tokens `N D`, K components. The mean of both sets is the origin, so that a movement common to all
    tokens stays visible. Each axis points to the side of its largest loading.

    Returns:
        Coordinates `N K` before and after in units of the tokens, and the explained share of variance `K`
        (NaN where the tokens do not vary); float64, on the CPU.

    Raises:
        ValueError: different shapes, more components than dimensions, or values that are not finite.

    Source: the paper's view of tokens before and after self-attention, on representations.

    Example: all tokens move by 4 along one axis and do not differ otherwise.
        >>> moved = torch.tensor([[4.0, 0.0]]).expand(3, 2)
        >>> pca = token_pca(torch.zeros(3, 2), moved, components=1)
        >>> torch.cat([pca.before[0], pca.after[0], pca.explained]).round()
        tensor([-2.,  2.,  1.], dtype=torch.float64)
    """
    pca = PCA(components, svd_solver="full")
    coordinates = torch.from_numpy(pca.fit_transform(torch.cat([before, after]).double().cpu().numpy()))
    return TokenPCA(*coordinates.chunk(2), torch.from_numpy(pca.explained_variance_ratio_))
