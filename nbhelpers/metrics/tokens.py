"""Patch tokens out of the ordinary (large norms, register-like), and how much the tokens vary."""

import torch
from torch import Tensor

from nbhelpers.metrics.base import remembered, takes


@remembered
@takes("B N D")
def token_norms(tokens: Tensor) -> Tensor:
    """Euclidean norm of each token `B N D`.

    Returns:
        `B N`, at least 0, in units of the residual stream.

    Raises:
        ValueError: not `B N D`, or values that are not finite.

    Source: Darcet et al. 2024, "Vision Transformers need registers".

    >>> token_norms(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]))
    tensor([[5., 0.]])
    """
    return torch.linalg.vector_norm(tokens, dim=-1)


@takes("B N")
def outlier_share(norms: Tensor, ratio: float = 3.0) -> Tensor:
    r"""Share of an image's tokens whose norm exceeds `ratio` times the median norm of that image.

    .. math:: \frac{1}{N} \left\lvert \left\{ n : \lVert z_n \rVert > \mathrm{ratio} \cdot
        \mathrm{median}_m \lVert z_m \rVert \right\} \right\rvert

    Args:
        norms: norms of the patch tokens, `B N`.
        ratio: how many times the median is out of the ordinary; 3 separates the two groups that DINOv2 has.

    Returns:
        `B` in 0..0.5.

    Raises:
        ValueError: not `B N`, or values that are not finite.

    Source: register-like tokens of Darcet et al. 2024 (there a fixed norm, here relative, so that encoders
    compare).

    Example: one of four tokens stands out.
        >>> outlier_share(torch.tensor([[1.0, 1.0, 1.0, 4.0]]))
        tensor([0.2500])
    """
    return (norms > ratio * norms.quantile(0.5, dim=1, keepdim=True)).to(norms.dtype).mean(1)


@takes("B N")
def norm_peak(norms: Tensor) -> Tensor:
    r"""Largest norm of an image's patch tokens `B N` against the median norm.

    .. math:: \frac{\max_n \lVert z_n \rVert}{\mathrm{median}_n \lVert z_n \rVert}

    Returns:
        `B`, at least 1; 1 where all norms are equal, NaN where the median is 0.

    Raises:
        ValueError: not `B N`, or values that are not finite.

    Source: as `outlier_share`.

    >>> norm_peak(torch.tensor([[1.0, 2.0, 3.0, 10.0]]))
    tensor([4.])
    """
    median = norms.quantile(0.5, dim=1)
    return torch.where(median > 0, norms.amax(1) / median, torch.nan)


@takes("B N D")
def feature_variance(tokens: Tensor) -> Tensor:
    r"""Variance of an image's tokens `B N D` around their mean, mean over channels.

    .. math:: \frac{1}{N D} \sum_{n, d} (z_{nd} - \bar z_d)^2

    Returns:
        `B`, at least 0, in squared units of the residual stream.

    Raises:
        ValueError: not `B N D`, or values that are not finite.

    Source: Park and Kim 2022, "How do Vision Transformers work?", feature map variance by depth.

    >>> feature_variance(torch.tensor([[[1.0, 5.0], [5.0, 5.0]]]))
    tensor([2.])
    """
    return tokens.var(1, correction=0).mean(-1)
