"""How many directions a representation uses: spectra of the covariance of tokens and of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from nbhelpers.metrics.base import (
    DepthwiseMetric,
    in_pieces,
    patch_tokens,
    require_axes,
    require_finite,
    shared,
)

if TYPE_CHECKING:
    from nbhelpers.capture import Stream


def token_spectrum(tokens: Tensor) -> Tensor:
    r"""Log eigenvalues of the covariance of an image's tokens, descending.

    .. math:: \log \lambda_r, \quad \lambda = \operatorname{eig}\left(
        \frac{1}{N - 1} \sum_n (z_n - \bar z)(z_n - \bar z)^\top \right)

    Computed through the Gram matrix `N N` where that is smaller than the covariance `D D`, in float64
    either way.

    Args:
        tokens: patch tokens `B N D`, N at least 2.

    Returns:
        `B D`, natural log, float64. The covariance of N tokens has N - 1 eigenvalues: ranks beyond are NaN.
        Eigenvalues below the machine precision of the largest read as that (36 below it): there is nothing
        but rounding.

    Raises:
        ValueError: not `B N D`, a single token, tokens that are all equal, or values that are not finite.

    Source: paper section 4, as the author defines it (official repository, issue 2): log of the singular
    values of the covariance, so eigenvalues, the squares of the tokens' own singular values.

    Example: three tokens on a line have one direction of variance 1; two ranks are what 3 tokens can have.
        >>> line = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
        >>> token_spectrum(line).abs().round(decimals=2)
        tensor([[ 0.0000, 36.0400,     nan]], dtype=torch.float64)
    """
    require_axes(tokens, "B N D", "token_spectrum")
    if tokens.shape[1] < 2:
        raise ValueError(f"token_spectrum: a covariance needs 2 tokens, got (B N D) = {tuple(tokens.shape)}")
    require_finite(tokens, "token_spectrum")
    return _log_spectrum(tokens)


def effective_rank(spectrum: Tensor) -> Tensor:
    r"""Number of directions that a spectrum amounts to: exponential of its entropy.

    .. math:: \exp\left( -\sum_r p_r \log p_r \right), \quad p_r = \frac{\lambda_r}{\sum_{r'} \lambda_{r'}}

    Args:
        spectrum: log eigenvalues `... R`, absolute or relative to the largest; NaN ranks are left out.

    Returns:
        `...` in 1..R: 1 when all variance lies in one direction, R when all directions have the same.

    Raises:
        ValueError: no rank at all, or infinite values.

    Source: Roy and Vetterli 2007, "The effective rank", here of the covariance.

    Example: two directions of equal variance, one without.
        >>> effective_rank(torch.tensor([0.0, 0.0, -36.0, torch.nan]))
        tensor(2.)
    """
    if spectrum.ndim < 1 or not (~spectrum.isnan()).any(-1).all():
        raise ValueError(
            f"effective_rank: a spectrum of shape {tuple(spectrum.shape)} (... R) has no rank but NaN"
        )
    return require_finite(_rank(spectrum), "effective_rank")


def _rank(spectrum: Tensor) -> Tensor:
    """Effective rank of log eigenvalues (... R), unchecked; NaN where all ranks are."""
    present = spectrum.masked_fill(spectrum.isnan(), -torch.inf)
    return torch.special.entr(present.softmax(-1)).sum(-1).exp()


def _log_spectrum(tokens: Tensor) -> Tensor:
    """Log eigenvalues (B D) of the covariance of tokens (B N D); all NaN where a token is not finite."""
    tokens = tokens.double()
    centred = tokens - tokens.mean(1, keepdim=True)
    count, width = centred.shape[1:]
    product = centred @ centred.mT if count <= width else centred.mT @ centred
    if not product.isfinite().all():  # the solver would fail without saying why
        return product.new_full((len(product), width), torch.nan)
    return _log_eigenvalues(product / (count - 1), ranks=min(count - 1, width), width=width)


def _log_eigenvalues(covariance: Tensor, ranks: int, width: int) -> Tensor:
    """Log of the `ranks` largest eigenvalues of matrices (B M M), padded with NaN to `B width`."""
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(-1)[:, :ranks]
    largest = eigenvalues[:, :1]
    if (largest <= 0).any():
        raise ValueError(
            f"{int((largest <= 0).sum())} of {len(largest)} covariances are zero: vectors that are all equal "
            "have no spectrum"
        )
    logs = eigenvalues.clamp(min=torch.finfo(eigenvalues.dtype).eps * largest).log()
    return torch.nn.functional.pad(logs, (0, width - ranks), value=torch.nan)


@shared
def _stream_spectrum(stream: Stream) -> Tensor:
    """Token spectrum (B D) of a record, once for all metrics here."""
    return in_pieces(_log_spectrum, patch_tokens(stream))


class TokenSpectrum(DepthwiseMetric):
    """`token_spectrum` relative to the largest eigenvalue, at each block's output; rank from 1."""

    name, unit, consumes, layout = "token_spectrum", "Δ log", frozenset({"block"}), ("depth", "width", "grid")
    column = "rank"

    def __init__(self, *, depth: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__(depth=depth, cells=range(1, min(width, grid[0] * grid[1] - 1) + 1))

    def update(self, stream: Stream) -> None:
        """Count one depth of a batch."""
        spectrum = _stream_spectrum(stream)
        self.add(stream.depth, (spectrum - spectrum[:, :1])[:, : len(self.cells)])


class TokenEffectiveRank(DepthwiseMetric):
    """`effective_rank` of an image's `token_spectrum` at each block's output, mean over images."""

    name, unit, consumes, layout = "token_effective_rank", "", frozenset({"block"}), ("depth",)

    def update(self, stream: Stream) -> None:
        """Count one depth of a batch."""
        self.add(stream.depth, _rank(_stream_spectrum(stream)))


def merge_moments(moments: Tensor) -> Tensor:
    """Count, mean and co-moment of several samples taken together: no precision is lost to a large mean.

    Args:
        moments: `R ... 1+D+DD`, for each of R samples its count, mean and co-moment (sum of outer products
            of the deviations from its mean), side by side.

    Returns:
        `... 1+D+DD` of all samples as one.

    Example: the samples {1, 3} and {5} have mean 3 and squared deviations 4 + 0 + 4.
        >>> merge_moments(torch.tensor([[2.0, 2.0, 2.0], [1.0, 5.0, 0.0]]))
        tensor([3., 3., 8.])
    """
    width = _width(moments)
    count, mean, comoment = moments[..., :1], moments[..., 1 : 1 + width], moments[..., 1 + width :]
    total = count.sum(0)
    centre = (count * mean).sum(0) / total.clamp(min=1)
    apart = count.sqrt() * (mean - centre)
    between = torch.einsum("r...d,r...e->...de", apart, apart)
    return torch.cat([total, centre, comoment.sum(0) + between.flatten(-2)], dim=-1)


def _width(moments: Tensor) -> int:
    """D of packed moments `... 1+D+DD`."""
    return round((moments.shape[-1] - 0.75) ** 0.5 - 0.5)


class ImageSpectrum(DepthwiseMetric):
    r"""Log eigenvalues of the covariance of the images' mean patch tokens, relative to the largest.

    .. math:: \log \frac{\lambda_r}{\lambda_1}, \quad \lambda = \operatorname{eig}\left(
        \frac{1}{n - 1} \sum_i (m_i - \bar m)(m_i - \bar m)^\top \right),
        \quad m_i = \frac{1}{N} \sum_n z_{in}

    All images of all batches and ranks count: count, mean and co-moment are merged without loss of
    precision. Ranks count from 1; those beyond n - 1 are left out. `low` and `high` are NaN: an eigenvalue
    is no mean over images. The sums take 8 (L+1) D^2 bytes (61 MB for ViT-B). `effective_rank` of a depth's
    `value` column is its one-number summary.

    Source: paper section 4, as the author defines it (official repository, issue 2).
    """

    name, unit, consumes, layout = "image_spectrum", "Δ log", frozenset({"block"}), ("depth", "width")
    column = "rank"

    moments: Tensor

    def __init__(self, *, depth: int, width: int) -> None:
        super().__init__(depth=depth, cells=range(1, width + 1))
        zeros = torch.zeros(depth + 1, 1 + width + width**2, dtype=torch.float64)
        self.add_state("moments", zeros, dist_reduce_fx=merge_moments)

    def update(self, stream: Stream) -> None:
        """Count one depth of a batch."""
        images = patch_tokens(stream).detach().mean(1, dtype=torch.float64)
        images = require_finite(images, self.name).to(self.moments)
        count, width = images.shape
        if width != len(self.cells):
            raise ValueError(
                f"{self.name}: made for width {len(self.cells)}, got (B N D) = {tuple(stream.tokens.shape)}"
            )
        moments = self.moments[stream.depth]
        before, mean, comoment = moments[:1], moments[1 : 1 + width], moments[1 + width :].view(width, width)
        centre = images.mean(0)
        step = centre - mean
        # The batch's own deviations, and a row for its distance from what came before: one product does both.
        rows = torch.cat([images - centre, (before * count / (before + count)).sqrt() * step[None]])
        comoment.addmm_(rows.T, rows)
        mean += step * count / (before + count)
        before += count

    def compute(self) -> pd.DataFrame:
        """Tidy frame of the relative log eigenvalues, per depth and rank.

        Raises:
            ValueError: fewer than two images, or images that are all equal.
        """
        images = self.moments[:, 0]
        if images.max() == 0:
            raise ValueError(f"{self.name}: no image was seen; call update() before compute()")
        width = len(self.cells)
        value = self.moments.new_full((len(images), width), torch.nan)
        for depth in images.nonzero()[:, 0].tolist():
            ranks = min(int(images[depth]) - 1, width)
            if ranks < 1:
                raise ValueError(
                    f"{self.name}: a covariance over images needs 2 images, got 1 at depth {depth}"
                )
            covariance = self.moments[depth, 1 + width :].view(1, width, width) / (images[depth] - 1)
            logs = _log_eigenvalues(covariance, ranks, width)[0]
            value[depth] = logs - logs[0]
        unknown = torch.full_like(value, torch.nan)
        return self.frame(value, unknown, unknown, images[:, None] * ~value.isnan())
