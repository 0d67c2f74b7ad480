"""Which spatial frequencies a representation carries: log amplitude on the grid, against DC."""

import math

import torch
from torch import Tensor

from nbhelpers.metrics.base import remembered, require_grid, takes

EPSILON = 1e-6  # of the official code: amplitudes below it read as it


@remembered
@takes("B N D")
def log_amplitude(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    r"""Log amplitude of each spatial frequency of the tokens on their grid, mean over channels.

    .. math:: F(f, g) = \frac{1}{D} \sum_d \log\left( \lvert \hat z_d(f, g) \rvert + 10^{-6} \right)

    with :math:`\hat z_d` the two-dimensional Fourier transform of channel d.

    Args:
        tokens: patch tokens `B N D` of the residual stream, before the final norm.
        grid: (rows, columns), N = rows * columns.

    Returns:
        `B K`, natural log, at the K = rows * (columns // 2 + 1) frequencies of `torch.fft.rfft2`; DC first.

    Raises:
        ValueError: tokens that are not `B N D` on this grid, or values that are not finite.

    Source: official notebook representation_analysis, cell 8 (log, then mean over channels).

    Example: four tokens of 1 on 2 x 2 have the amplitude 4 at DC, and none elsewhere.
        >>> log_amplitude(torch.ones(1, 4, 3, dtype=torch.float64), (2, 2)).exp()
        tensor([[4.0000e+00, 1.0000e-06, 1.0000e-06, 1.0000e-06]], dtype=torch.float64)
    """
    require_grid(tokens.shape[1], grid, "log_amplitude")
    amplitude = torch.fft.rfft2(tokens.unflatten(1, grid), dim=(1, 2)).abs().flatten(1, 2)
    return (amplitude + EPSILON).log().mean(-1)


def delta_log_amplitude(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    r"""Log amplitude on the half diagonal of the spectrum, mean over channels, relative to the constant part.

    .. math:: F(f) = \frac{1}{D} \sum_d \log\left( \lvert \hat z_d(f, f) \rvert + 10^{-6} \right), \quad
        \Delta F(f) = F(f) - F(0)

    with :math:`\hat z_d` the two-dimensional Fourier transform of channel d on the patch grid.

    Args:
        tokens: patch tokens `B N D` of the residual stream, before the final norm.
        grid: (rows, columns), N = rows * columns, both at least 3.

    Returns:
        `B F`, natural log, at `half_diagonal_frequencies(grid)`: the first value is 0, lower values are
        weaker. The last is the point that the paper plots by depth, 6/7 of Nyquist on 14 x 14.

    Raises:
        ValueError: tokens that are not `B N D` on this grid, or values that are not finite.

    Source: official notebook representation_analysis, cell 8 (log, then mean over channels).

    Example: equal tokens have no frequency but DC; 16 tokens of 1 have the amplitude 16 there.
        >>> tokens = torch.ones(1, 16, 3, dtype=torch.float64)
        >>> delta_log_amplitude(tokens, (4, 4)).exp() * 16 / 1e-6
        tensor([[1.6000e+07, 1.0000e+00]], dtype=torch.float64)
    """
    return _relative(log_amplitude(tokens, grid), _half_diagonal(grid)[1])


def radial_delta_log_amplitude(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    r"""Log amplitude by distance from DC, mean over rings and channels, relative to the constant part.

    .. math:: \Delta F(r) = \frac{1}{\lvert R_r \rvert} \sum_{(f, g) \in R_r} F(f, g) - F(0, 0), \quad
        F(f, g) = \frac{1}{D} \sum_d \log\left( \lvert \hat z_d(f, g) \rvert + 10^{-6} \right)

    with :math:`R_r` the frequencies of a ring around DC, one frequency step of the shorter axis wide, and DC
    alone in the first.

    Args:
        tokens: patch tokens `B N D` of the residual stream, before the final norm.
        grid: (rows, columns), N = rows * columns.

    Returns:
        `B R`, natural log, at `radial_frequencies(grid)`; the first value is 0.

    Raises:
        ValueError: tokens that are not `B N D` on this grid, or values that are not finite.

    Source: the whole-spectrum companion of `delta_log_amplitude`, which stops below Nyquist.

    Example: a checkerboard lives in the corner of the spectrum alone.
        >>> signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        >>> board = signs.outer(signs).reshape(1, 16, 1)
        >>> values = radial_delta_log_amplitude(board, (4, 4))
        >>> (values / math.log(16 / 1e-6)).round(decimals=4)
        tensor([[0., 0., 0., 1.]], dtype=torch.float64)
    """
    return _relative(log_amplitude(tokens, grid), _rings(grid)[1])


@takes("B C H W")
def feature_map_log_amplitude(features: Tensor) -> Tensor:
    """`delta_log_amplitude` of any feature map: a stage of a CNN or a hierarchical ViT, a grid of any size.

    Args:
        features: `B C H W`, height and width at least 3.

    Returns:
        `B F`, natural log, at `half_diagonal_frequencies((H, W))`; the first value is 0.

    Raises:
        ValueError: not `B C H W`, a smaller map, or values that are not finite.

    Source: Park and Kim 2022, "How do Vision Transformers work?", Fourier analysis of feature maps.

    Example: a constant map of 3 x 3 has no frequency but DC, with the amplitude 9.
        >>> features = torch.ones(1, 2, 3, 3, dtype=torch.float64)
        >>> feature_map_log_amplitude(features).exp() * 9 / 1e-6
        tensor([[9.0000e+06, 1.0000e+00]], dtype=torch.float64)
    """
    return delta_log_amplitude(features.flatten(2).mT, tuple(features.shape[-2:]))


def half_diagonal_frequencies(grid: tuple[int, int]) -> Tensor:
    """Frequencies of `delta_log_amplitude`, on both axes alike, as a share of Nyquist, all below 1.

    On a grid that is not square, the longer axis is read between its own frequencies (linear interpolation).

    >>> half_diagonal_frequencies((14, 14)) * 7
    tensor([0., 1., 2., 3., 4., 5., 6.], dtype=torch.float64)
    """
    return _half_diagonal(grid)[0]


def radial_frequencies(grid: tuple[int, int]) -> Tensor:
    """Mean radius of each ring of `radial_delta_log_amplitude`, in units of one axis' Nyquist, 0..sqrt(2).

    The rings of a grid of 4 x 4 have the radii 0; 1/2 and sqrt(1/2); 1 and sqrt(5/4); sqrt(2).

    >>> radial_frequencies((4, 4))
    tensor([0.0000, 0.6036, 1.0787, 1.4142], dtype=torch.float64)
    """
    return _rings(grid)[0]


def _relative(log_amplitudes: Tensor, weights: Tensor) -> Tensor:
    """Weighted means (B F) of log amplitudes (B K), minus that of DC, the first."""
    values = log_amplitudes @ weights.to(log_amplitudes).T
    return values - values[:, :1]


def _half_diagonal(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Frequencies (F) below Nyquist and their weights (F K) in the half plane."""
    shorter = min(grid)
    if shorter < 3:
        what = "holds no frequency below Nyquist but DC; use 3 x 3 up"
        raise ValueError(f"the half diagonal of a grid of {grid} {what}")
    steps = torch.arange(math.ceil(shorter / 2), dtype=torch.float64)
    # Linear interpolation between the frequencies of an axis: a hat around each of them.
    down, across = (
        (1 - (steps[:, None] * size / shorter - torch.arange(count)).abs()).clamp(min=0)
        for size, count in zip(grid, (grid[0], grid[1] // 2 + 1), strict=True)
    )
    weights = down[:, :, None] * across[:, None, :]
    return steps * 2 / shorter, weights.flatten(1)


def _rings(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean radius (R) of the rings and the weights (R K) of their frequencies in the half plane."""
    down = 2 * torch.fft.fftfreq(grid[0], dtype=torch.float64).abs()
    across = 2 * torch.fft.rfftfreq(grid[1], dtype=torch.float64)
    radius = torch.hypot(down[:, None], across[None, :]).flatten()
    # Columns other than DC and Nyquist stand for their mirror image too.
    twice = 1 + ((across > 0) & (across < 1)).double().expand(grid[0], -1).flatten()
    ring = (radius * min(grid) / 2).round().long()
    ring[1:].clamp_(min=1)  # DC stays alone in ring 0, however near the next frequency of a long axis
    weights = torch.nn.functional.one_hot(ring).T * twice
    weights = weights / weights.sum(1, keepdim=True)
    return weights @ radius, weights
