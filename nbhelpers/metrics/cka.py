"""Do two sets of features span the same space: centred kernel alignment, within and between encoders."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

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
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -4.0], [5.0, 5.0]]).double()
        >>> linear_cka(features, 3 * features.flip(1)).round(decimals=6)
        tensor(1., dtype=torch.float64)
    """
    grams = [_gram(first)[None], _gram(second)[None]]
    cross, own_first, own_second = (unbiased_hsic(*pair) for pair in (grams, [grams[0]] * 2, [grams[1]] * 2))
    return _alignment(cross, own_first[0], own_second[0])[0, 0]


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

    Example: two pairs of equal images. Both sums of all entries are 4, both traces 4, so (4 + 16/6 - 4) / 4.
        >>> blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))[None]
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


class CKA(Metric):
    """Linear CKA between all pairs of two lists of features, over any number of images in batches.

    The means of unbiased HSIC over batches, weighted by their images, converge to the value over all
    images. The estimate depends (slightly) on which images meet in a batch; ranks merge by addition.

    Args:
        first: number of sets of features on one side, such as the depths of an encoder.
        second: number on the other side.

    Example: two sets of features against their own copies, negated.
        >>> line = torch.arange(5.0)[:, None]
        >>> cka = CKA(first=2, second=2)
        >>> cka.update([line, line**2], [-line, -(line**2)])
        >>> cka.compute().query("first == second")["value"].round(6).tolist()
        [1.0, 1.0]
    """

    name, unit = "cka", ""
    full_state_update = False
    is_differentiable = False

    images: Tensor
    cross: Tensor
    own_first: Tensor
    own_second: Tensor

    def __init__(self, *, first: int, second: int) -> None:
        super().__init__()
        shapes = {"images": (), "cross": (first, second), "own_first": (first,), "own_second": (second,)}
        for state, shape in shapes.items():
            self.add_state(state, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Count a batch.

        Args:
            first: sets of features `B D` of the batch's images; D may differ between sets.
            second: sets `B E` of the same images.

        Raises:
            ValueError: another number of sets, other shapes, fewer than 4 images, or values that are not
                finite.
        """
        if (len(first), len(second)) != tuple(self.cross.shape):
            raise ValueError(
                f"{self.name}: made for {tuple(self.cross.shape)} sets of features, "
                f"got {(len(first), len(second))}"
            )
        counts = {len(features) for features in (*first, *second)}
        if len(counts) > 1:
            raise ValueError(f"{self.name}: sets of {' and '.join(map(str, sorted(counts)))} images")
        ones, others = (torch.stack([_gram(features) for features in side]) for side in (first, second))
        count = len(first[0])
        self.images += count
        self.cross += count * unbiased_hsic(ones, others)
        self.own_first += count * unbiased_hsic(ones, ones).diagonal()
        self.own_second += count * unbiased_hsic(others, others).diagonal()

    def compute(self) -> pd.DataFrame:
        """Tidy frame `metric first second value images`, a row for each pair of sets.

        Raises:
            ValueError: no image was seen.
        """
        if self.images == 0:
            raise ValueError(f"{self.name}: no image was seen; call update() before compute()")
        value = _alignment(self.cross, self.own_first, self.own_second).cpu().numpy()
        rows = pd.DataFrame(value).rename_axis(index="first", columns="second")
        rows = rows.stack().reset_index(name="value")
        rows.insert(0, "metric", self.name)
        return rows.assign(images=int(self.images))


def _gram(features: Tensor) -> Tensor:
    """Gram matrix `B B` in float64 of features `B D` around their mean, which HSIC does not see."""
    centred = features.detach().double()
    centred = centred - centred.mean(0)
    return centred @ centred.T


def _alignment(cross: Tensor, own_first: Tensor, own_second: Tensor) -> Tensor:
    """Normalised HSIC `K L`; NaN where a side does not vary."""
    product = own_first[:, None] * own_second
    varies = (own_first > 0)[:, None] & (own_second > 0)
    return torch.where(varies, cross / product.abs().sqrt(), torch.nan)
