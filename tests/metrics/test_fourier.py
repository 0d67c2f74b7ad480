import cmath
import math
from types import SimpleNamespace

import pytest
import torch

from nbhelpers.metrics import (
    METRICS,
    delta_log_amplitude,
    feature_map_log_amplitude,
    half_diagonal_frequencies,
    log_amplitude,
    radial_delta_log_amplitude,
    radial_frequencies,
)


def amplitude_by_loops(tokens: torch.Tensor, grid: tuple[int, int], down: int, across: int) -> float:
    """Mean over channels of the log amplitude of one image (N D) at one frequency."""
    rows, columns = grid
    total = 0.0
    for channel in tokens.T.tolist():
        value = sum(
            z * cmath.exp(-2j * math.pi * (down * (n // columns) / rows + across * (n % columns) / columns))
            for n, z in enumerate(channel)
        )
        total += math.log(abs(value) + 1e-6)
    return total / tokens.shape[1]


def shifted_half_diagonal(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """The official recipe: transform, log, shift, mean over channels, half diagonal, minus DC."""
    images = tokens.mT.unflatten(-1, (side, side))
    logs = torch.fft.fftshift((torch.fft.fft2(images).abs() + 1e-6).log(), dim=(-2, -1)).mean(1)
    half = logs.diagonal(dim1=-2, dim2=-1)[:, side // 2 :]
    return half - half[:, :1]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (5, 3), (4, 7)])
def test_log_amplitudes_equal_the_loop(grid):
    tokens = torch.randn(2, grid[0] * grid[1], 3, dtype=torch.float64)
    values = log_amplitude(tokens, grid).unflatten(1, (grid[0], grid[1] // 2 + 1))
    for down in range(grid[0]):
        for across in range(grid[1] // 2 + 1):
            expected = amplitude_by_loops(tokens[1], grid, down, across)
            assert values[1, down, across].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("side", [14, 5, 8])
def test_square_grids_follow_the_official_recipe(side):
    tokens = torch.randn(2, side * side, 6, dtype=torch.float64)
    torch.testing.assert_close(delta_log_amplitude(tokens, (side, side)), shifted_half_diagonal(tokens, side))


def test_frequencies_are_shares_of_nyquist():
    torch.testing.assert_close(half_diagonal_frequencies((37, 37)), torch.arange(19).double() * 2 / 37)
    torch.testing.assert_close(half_diagonal_frequencies((6, 12)), torch.arange(3).double() / 3)
    point = METRICS["delta_log_amplitude"].cells(SimpleNamespace(grid=(14, 14)))
    assert point.tolist() == [6 / 7]  # which the paper plots by depth


def test_longer_axis_is_read_at_the_same_frequency():
    grid = (4, 8)
    tokens = torch.randn(1, 32, 2, dtype=torch.float64)
    expected = amplitude_by_loops(tokens[0], grid, 1, 2) - amplitude_by_loops(tokens[0], grid, 0, 0)
    assert delta_log_amplitude(tokens, grid)[0, 1].item() == pytest.approx(expected)
    between = [amplitude_by_loops(tokens[0, :20], (4, 5), 1, across) for across in (1, 2)]
    expected = 0.75 * between[0] + 0.25 * between[1] - amplitude_by_loops(tokens[0, :20], (4, 5), 0, 0)
    assert delta_log_amplitude(tokens[:, :20], (4, 5))[0, 1].item() == pytest.approx(expected)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (6, 4), (4, 8), (10, 3)])
def test_rings_average_the_whole_plane(grid):
    tokens = torch.randn(1, grid[0] * grid[1], 2, dtype=torch.float64)
    rings: dict[int, list[tuple[float, float]]] = {}
    for down in range(grid[0]):
        for across in range(grid[1]):
            radius = math.hypot(
                min(down, grid[0] - down) / grid[0] * 2, min(across, grid[1] - across) / grid[1] * 2
            )
            ring = max(round(radius * min(grid) / 2), int(radius > 0))  # that of DC holds nothing else
            rings.setdefault(ring, []).append((radius, amplitude_by_loops(tokens[0], grid, down, across)))
    means = torch.tensor(
        [[sum(x) / len(x) for x in zip(*rings[ring], strict=True)] for ring in sorted(rings)]
    )
    torch.testing.assert_close(radial_frequencies(grid).float(), means[:, 0])
    values = radial_delta_log_amplitude(tokens, grid)[0].float()
    torch.testing.assert_close(values, means[:, 1] - means[0, 1], rtol=0, atol=1e-5)


def test_two_rows_of_patches_have_no_half_diagonal():
    metric = METRICS["fourier_diagonal"].of(SimpleNamespace(depth=0, grid=(2, 8)))
    metric.update(0, metric.measure(torch.randn(3, 16, 4)))
    assert metric.compute()["value"].isna().all()


def test_any_feature_map():
    features = torch.randn(2, 5, 10, 7, dtype=torch.float64)  # a stage of a CNN
    expected = delta_log_amplitude(features.flatten(2).mT, (10, 7))
    torch.testing.assert_close(feature_map_log_amplitude(features), expected)
