"""Do two sets of features span the same space: centred kernel alignment, within and between encoders."""

import torch
from torch import Tensor

from nbhelpers.metrics.base import takes


@takes("B D", "B E", B=4)
def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    r"""Linear centred kernel alignment of two sets of features of the same images, from unbiased HSIC.

    .. math:: \frac{\mathrm{HSIC}(K, L)}{\sqrt{\mathrm{HSIC}(K, K)\, \mathrm{HSIC}(L, L)}},
        \quad K = X X^\top, \quad L = Y Y^\top

    Args:
        first: X, `B D`, a row per image; at least 4 images.
        second: Y, `B E`.

    Returns:
        Scalar: 1 for features that agree up to rotation and one scale, about 0 for unrelated ones (slightly
        negative values are the price of being unbiased); NaN where a side does not vary over the images.

    Raises:
        ValueError: other shapes, fewer than 4 images, or values that are not finite.

    Source: Kornblith et al. 2019; unbiased HSIC of Song et al. 2012, as in Nguyen, Raghu and Kornblith 2021.

    Example: a rotated and scaled copy spans the same space.
        >>> rows = [[1, 0], [0, 2], [-3, 0], [0, -4], [5, 5]]
        >>> features = torch.tensor(rows, dtype=torch.float64)
        >>> linear_cka(features, 3 * features.flip(1)).round(decimals=6)
        tensor(1., dtype=torch.float64)
    """
    return alignments(gram(first)[None], gram(second)[None])[0, 0]


def alignments(first: Tensor, second: Tensor) -> Tensor:
    """Linear CKA `K L` of each pair of Gram matrices `K n n` and `L n n`, as `gram` makes them.

    Raises:
        ValueError: the errors of `unbiased_hsic`.

    >>> varied, constant = [[1.0], [0.0], [0.0], [0.0], [3.0]], [[7.0]] * 5
    >>> grams = gram(torch.tensor([varied, constant]))
    >>> alignments(grams[:1], grams).round(decimals=6)
    tensor([[1., nan]], dtype=torch.float64)
    """
    own, other = (unbiased_hsic(grams, grams).diagonal() for grams in (first, second))
    varies = (own > 0)[:, None] & (other > 0)
    scale = (own[:, None] * other).abs().sqrt()
    return torch.where(varies, unbiased_hsic(first, second) / scale, torch.nan)


@takes("K n n", "L n n", n=4)
def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    r"""Unbiased Hilbert-Schmidt independence criterion of two Gram matrices.

    .. math:: \frac{1}{n (n - 3)} \left( \operatorname{tr} \tilde K \tilde L + \frac{1^\top \tilde K 1 \;
        1^\top \tilde L 1}{(n - 1)(n - 2)} - \frac{2}{n - 2} 1^\top \tilde K \tilde L 1 \right)

    with a tilde for a matrix whose diagonal is set to 0.

    Args:
        first: Gram matrices `K n n` of K sets of features of the same n images, n at least 4.
        second: `L n n`.

    Returns:
        `K L`, one value per pair of sets.

    Raises:
        ValueError: other shapes, or n below 4.

    Source: Song et al. 2012, "Feature selection via dependence maximization", equation 5.

    Two pairs of equal images: the trace is 4, the sums of all entries are 4, and the last product is 4.

    Example: by hand, (4 + 16 / 6 - 4) / 4.
        >>> pair = torch.ones(2, 2)
        >>> blocks = torch.block_diag(pair, pair)[None]
        >>> unbiased_hsic(blocks, blocks)
        tensor([[0.6667]])
    """
    count = first.shape[-1]
    first, second = (gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2)) for gram in (first, second))
    rows_first, rows_second = first.sum(-1), second.sum(-1)
    trace = first.flatten(1) @ second.flatten(1).T
    sums = rows_first.sum(1)[:, None] * rows_second.sum(1)
    mixed = rows_first @ rows_second.T
    return (trace + sums / ((count - 1) * (count - 2)) - 2 / (count - 2) * mixed) / (count * (count - 3))


def gram(features: Tensor) -> Tensor:
    """Gram matrix `... B B` in float64 of features `... B D` around their mean, which HSIC does not see.

    >>> gram(torch.tensor([[1.0], [3.0]]))
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    features = features.double()
    centred = features - features.mean(-2, keepdim=True)
    return centred @ centred.mT
