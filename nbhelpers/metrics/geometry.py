"""How self-attention moves the tokens of an image: in unison, or one by one."""

import torch
from torch import Tensor

from nbhelpers.metrics.base import takes


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
