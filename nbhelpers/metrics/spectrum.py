"""How many directions a representation uses: spectra of the covariance of tokens and of images."""

import pandas as pd
import torch
from torch import Tensor

from nbhelpers.metrics.base import Accumulator, Metric, remembered, takes
from nbhelpers.models import Encoder


@remembered
@takes("B N D", N=2)
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
        but rounding. Tokens that are all equal have no spectrum: all NaN.

    Raises:
        ValueError: not `B N D`, a single token, or values that are not finite.

    Source: paper, as the author defines it (official repository, issue 2): log of the singular
    values of the covariance, so eigenvalues, the squares of the tokens' own singular values.

    Example: three tokens on a line have one direction of variance 1; two ranks are what 3 tokens can have.
        >>> line = torch.zeros(1, 3, 3)
        >>> line[0, :, 0] = torch.tensor([-1.0, 0.0, 1.0])
        >>> token_spectrum(line).abs().round(decimals=2)
        tensor([[ 0.0000, 36.0400,     nan]], dtype=torch.float64)
    """
    tokens = tokens.double()
    shifted = tokens - tokens[:, :1]  # exactly 0 where all are equal
    centred = shifted - shifted.mean(1, keepdim=True)
    count, width = tokens.shape[1:]
    product = centred @ centred.mT if count <= width else centred.mT @ centred  # the same eigenvalues
    return _log_eigenvalues(product / (count - 1), ranks=min(count - 1, width), width=width)


def effective_rank(spectrum: Tensor) -> Tensor:
    r"""Number of directions that a spectrum amounts to: exponential of its entropy.

    .. math:: \exp\left( -\sum_r p_r \log p_r \right), \quad p_r = \frac{\lambda_r}{\sum_{r'} \lambda_{r'}}

    Args:
        spectrum: log eigenvalues ``... R``, absolute or relative to the largest; NaN ranks are left out.

    Returns:
        Values ``...`` in 1..R: 1 when all variance lies in one direction, R when all directions have the
        same; NaN where no rank is left.

    Source: Roy and Vetterli 2007, "The effective rank", here of the covariance.

    Example: two directions of equal variance, one without.
        >>> effective_rank(torch.tensor([0.0, 0.0, -36.0, torch.nan]))
        tensor(2.)
    """
    present = spectrum.masked_fill(spectrum.isnan(), -torch.inf)
    return torch.special.entr(present.softmax(-1)).sum(-1).exp()


def relative_spectrum(spectrum: Tensor) -> Tensor:
    """Log eigenvalues `B R` relative to the largest.

    >>> relative_spectrum(torch.tensor([[3.0, 1.0, torch.nan]]))
    tensor([[ 0., -2.,  nan]])
    """
    return spectrum - spectrum[..., :1]


def _log_eigenvalues(covariance: Tensor, ranks: int, width: int, floor: Tensor | float = 0.0) -> Tensor:
    """Log of the `ranks` largest eigenvalues of matrices (B M M), padded with NaN to `B width`.

    All are NaN where the largest is not above the floor (`B 1`): there is nothing but rounding.
    """
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(-1)[:, :ranks]
    largest = eigenvalues[:, :1]
    logs = eigenvalues.clamp(min=torch.finfo(eigenvalues.dtype).eps * largest).log()
    logs = logs.where(largest > floor, torch.nan)
    return torch.nn.functional.pad(logs, (0, width - ranks), value=torch.nan)


def image_means(tokens: Tensor) -> Tensor:
    """Mean patch token `B D` of each image, float64, of tokens `B N D`.

    >>> image_means(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[2., 3.]], dtype=torch.float64)
    """
    return tokens.mean(1, dtype=torch.float64)


def merge_moments(moments: Tensor) -> Tensor:
    """Count, mean and co-moment of several samples taken together: no precision is lost to a large mean.

    Args:
        moments: `R ... 1+D 1+D`, for each of R samples its count and mean in the first row, and in the rows
            below, behind a zero, the co-moment (sum of outer products of the deviations from its mean).

    Returns:
        `... 1+D 1+D` of all samples as one.

    Example: the samples {1, 3} and {5} have mean 3 and squared deviations 4 + 0 + 4.
        >>> two, one = [[2.0, 2.0], [0.0, 2.0]], [[1.0, 5.0], [0.0, 0.0]]
        >>> merge_moments(torch.tensor([two, one]))
        tensor([[3., 3.],
                [0., 8.]])
    """
    count, mean = moments[..., 0, :1], moments[..., 0, 1:]
    merged = moments.sum(0)
    merged[..., 0, 1:] = (count * mean).sum(0) / merged[..., 0, :1].clamp(min=1)
    apart = count.sqrt() * (mean - merged[..., 0, 1:])
    merged[..., 1:, 1:] += torch.einsum("r...d,r...e->...de", apart, apart)
    return merged


class ImageSpectrum(Accumulator):
    r"""Accumulator of `image_spectrum`: log eigenvalues of the covariance of the images' mean patch tokens.

    .. math:: \log \frac{\lambda_r}{\lambda_1}, \quad \lambda = \operatorname{eig}\left(
        \frac{1}{n - 1} \sum_i (m_i - \bar m)(m_i - \bar m)^\top \right),
        \quad m_i = \frac{1}{N} \sum_n z_{in}

    for n images. All of them count, whatever the batches and processes. Ranks r count from 1; those beyond
    n - 1 are left out. `low` and `high` are NaN: an eigenvalue is no mean over images. A single image, or
    images that are all equal, have one row of NaN per depth. The sums take 8 (L+1) D^2 bytes (61 MB for
    ViT-B). `effective_rank` of a depth's `value` column sums a spectrum up in one number.

    Source: paper, as the author defines it (official repository, issue 2).
    """

    moments: Tensor

    def __init__(self, metric: Metric, encoder: Encoder) -> None:
        super().__init__(metric, encoder)
        zeros = torch.zeros(encoder.depth + 1, 1 + encoder.width, 1 + encoder.width, dtype=torch.float64)
        self.add_state("moments", zeros, dist_reduce_fx=merge_moments)

    def update(self, depth: int, values: Tensor) -> None:
        """Count the mean tokens `B D` of a few images."""
        super().update(depth, values)
        if not len(values):  # whose mean is none
            return
        images = values.detach().to(self.moments)
        batch = torch.zeros_like(self.moments[depth])
        batch[0, 0], batch[0, 1:] = len(images), images.mean(0)
        deviations = images - batch[0, 1:]
        batch[1:, 1:] = deviations.T @ deviations
        self.moments[depth] = merge_moments(torch.stack([self.moments[depth], batch]))

    def compute(self) -> pd.DataFrame:
        """Tidy frame of the relative log eigenvalues, per depth and rank."""
        images, width = self.moments[:, 0, 0], len(self.cells)
        freedom = max(int(images.max()) - 1, 1)  # every depth saw the same images
        rounding = 1e-30 * self.moments[:, 0, 1:].square().sum(1, keepdim=True)  # of means, in float64
        logs = _log_eigenvalues(self.moments[:, 1:, 1:] / freedom, min(freedom, width), width, rounding)
        value, unknown = relative_spectrum(logs), torch.full_like(logs, torch.nan)
        rows = ~value.isnan()
        rows[:, 0] = images > 0
        return self._frame(value, unknown, unknown, images[:, None].expand_as(value), rows)
