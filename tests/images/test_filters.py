"""Frequency filters and noise against explicit float64 sums, and analytic cases."""

import cmath
import math

import pytest
import torch
from einops import EinopsError

from nbhelpers.images.filters import frequency_noise, high_pass, low_pass, patch_shuffle, ring_mask


def naive_dft(image, inverse=False):
    """The two-dimensional discrete Fourier transform of a list of lists as four nested sums."""
    rows, columns = len(image), len(image[0])
    sign = 1 if inverse else -1
    result = [[0j] * columns for _ in range(rows)]
    for v in range(rows):
        for u in range(columns):
            for y in range(rows):
                for x in range(columns):
                    turn = sign * 2j * math.pi * (v * y / rows + u * x / columns)
                    result[v][u] += image[y][x] * cmath.exp(turn)
            if inverse:
                result[v][u] /= rows * columns
    return result


def signed(index, n):
    """The frequency number -n/2..n/2-1 of an unshifted index."""
    return index if index < (n + 1) // 2 else index - n


def naive_filter(image, keep):
    """Keep what `keep(v, u)` says of signed frequency numbers; the real part of the inverse transform."""
    rows, columns = image.shape
    spectrum = naive_dft(image.tolist())
    for v in range(rows):
        for u in range(columns):
            spectrum[v][u] *= keep(signed(v, rows), signed(u, columns))
    return torch.tensor([[value.real for value in row] for row in naive_dft(spectrum, inverse=True)]).double()


def wave(size, cycles, phase=0.3):
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    return torch.cos(2 * math.pi * (cycles[0] * y / size[0] + cycles[1] * x / size[1]) + phase)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


SIZES = [(6, 6), (4, 8), (5, 6), (7, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("frequency", "half_width"), [(0.0, 1.6), (1.5, 0.8), (math.pi, 1.0)])
def test_ring_mask_is_the_difference_of_two_boxes(size, frequency, half_width):
    mask = ring_mask(size, frequency, half_width)
    for row in range(size[0]):
        for column in range(size[1]):
            inside = []
            for radius in (frequency + half_width, frequency - half_width):
                place = (row - size[0] // 2, column - size[1] // 2)
                reach = [max(0, int(radius * n / (2 * math.pi))) for n in size]
                inside.append(all(-r <= k < r for k, r in zip(place, reach, strict=True)))
            assert bool(mask[row, column]) == (inside[0] and not inside[1])


def test_ring_mask_at_32_pixels_by_hand():
    # f = 1, s = 0.2: int(1.2 * 32 / 2 pi) = 6 and int(0.8 * 32 / 2 pi) = 4, so 12 x 12 minus 8 x 8.
    mask = ring_mask((32, 32), 1.0, 0.2)
    assert mask.sum() == 12 * 12 - 8 * 8
    assert mask[10, 10] and mask[21, 21] and not mask[9, 16] and not mask[22, 16] and not mask[16, 16]


def test_neighbouring_rings_share_no_frequency_and_cover_the_spectrum():
    rings = [ring_mask((32, 32), (2 * i + 1) * math.pi / 8, math.pi / 8) for i in range(4)]
    assert torch.equal(torch.stack(rings).sum(0), torch.ones(32, 32, dtype=torch.long))


def test_ring_mask_errors():
    with pytest.raises(ValueError, match=r"0\.000 \+- 0\.100 rad holds no frequency of a 32 x 32 image"):
        ring_mask((32, 32), 0.0, 0.1)
    with pytest.raises(ValueError, match="holds no frequency"):
        ring_mask((32, 32), 5.0, 0.2)
    with pytest.raises(ValueError, match="frequency must be >= 0"):
        ring_mask((32, 32), -1.0)
    with pytest.raises(ValueError, match="half_width > 0"):
        ring_mask((32, 32), 1.0, 0.0)


@pytest.mark.parametrize("size", SIZES)
def test_noise_equals_the_definition(size):
    images = torch.rand(2, 2, *size, dtype=torch.float64, generator=seeded(1))
    noisy = frequency_noise(images, 1.5, 0.1, seeded(7), half_width=0.9)
    delta = 0.1 * torch.randn(images.shape, generator=seeded(7), dtype=torch.float64).sign()
    mask = ring_mask(size, 1.5, 0.9)

    def keep(v, u):
        return float(mask[v + size[0] // 2, u + size[1] // 2])

    for image, noise, result in zip(*(t.flatten(0, 1) for t in (images, delta, noisy)), strict=True):
        assert torch.allclose(result, image + naive_filter(noise, keep), atol=1e-6)


def test_noise_lives_in_its_ring_only():
    noise = frequency_noise(torch.zeros(64, 3, 32, 32), 1.0, 1.0, seeded())
    power = torch.fft.fftshift(torch.fft.fft2(noise).abs() ** 2, dim=(-2, -1)).mean((0, 1))
    mask = ring_mask((32, 32), 1.0)
    mirrored = mask.roll((-1, -1), (0, 1)).flip(0, 1)
    assert power[~(mask | mirrored)].max() < 1e-6
    # White noise of variance 1 has power H W everywhere; frequencies without a mirror image keep a quarter.
    assert power[mask & mirrored].mean() == pytest.approx(32 * 32, rel=0.05)
    assert power[mask ^ mirrored].mean() == pytest.approx(32 * 32 / 4, rel=0.1)


def test_noise_is_linear_in_epsilon_and_reproducible():
    images = torch.rand(2, 3, 8, 8, generator=seeded(1))
    one = frequency_noise(images, 2.0, 0.1, seeded(5), 0.8) - images
    two = frequency_noise(images, 2.0, 0.2, seeded(5), 0.8) - images
    assert torch.allclose(2 * one, two, atol=1e-6) and one.abs().max() > 0.01
    assert not torch.allclose(one, frequency_noise(images, 2.0, 0.1, seeded(6), 0.8) - images)
    assert not torch.allclose(one[0], one[1], atol=1e-3)


def test_noise_leaves_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    frequency_noise(torch.zeros(1, 1, 8, 8), 2.0, 0.1, seeded(), 0.8)
    patch_shuffle(torch.zeros(1, 1, 8, 8), 2, seeded())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [0.0, 1.0, math.pi / 2, math.pi, 5.0])
def test_low_pass_equals_the_definition(size, cutoff):
    image = torch.rand(*size, dtype=torch.float64, generator=seeded(2))

    def keep(v, u):
        return float(math.hypot(2 * math.pi * v / size[0], 2 * math.pi * u / size[1]) <= cutoff + 1e-9)

    assert torch.allclose(low_pass(image[None, None], cutoff)[0, 0], naive_filter(image, keep), atol=1e-6)


def test_filters_part_a_sum_of_waves():
    slow, fast = wave((12, 16), (1, 2)), wave((12, 16), (4, 5))
    images = (0.5 + slow + fast)[None, None]
    assert torch.allclose(low_pass(images, 1.5), (0.5 + slow)[None, None], atol=1e-12)
    assert torch.allclose(high_pass(images, 1.5), (0.5 + fast)[None, None], atol=1e-12)


def test_extreme_cutoffs():
    images = torch.rand(2, 3, 6, 7, dtype=torch.float64, generator=seeded(3))
    means = images.mean((-2, -1), keepdim=True)
    assert torch.allclose(low_pass(images, 0.0), means.expand_as(images))
    assert torch.allclose(low_pass(images, math.sqrt(2) * math.pi), images)
    assert torch.allclose(high_pass(images, 0.0), images)
    assert torch.allclose(high_pass(images, math.sqrt(2) * math.pi), means.expand_as(images))
    assert torch.allclose(low_pass(images, 1.7) + high_pass(images, 1.7), images + means)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_close_and_kept(dtype):
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=seeded(4))
    for operation in (low_pass, high_pass):
        result = operation(images.to(dtype), 1.2)
        assert result.dtype == dtype
        assert torch.allclose(
            result.double(), operation(images, 1.2), atol=2e-2 if dtype != torch.float32 else 1e-6
        )
    assert frequency_noise(images.to(dtype), 2.0, 0.1, seeded(), 0.8).dtype == dtype


@pytest.mark.parametrize(
    "operation",
    [
        lambda images: low_pass(images, 1.0),
        lambda images: high_pass(images, 1.0),
        lambda images: frequency_noise(images, 2.0, 0.1, seeded(), 0.8),
    ],
)
def test_bad_images(operation):
    with pytest.raises(ValueError, match=r"floating B C H W, got torch.uint8 \(1, 3, 8, 8\)"):
        operation(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"floating B C H W, got torch.float32 \(3, 8, 8\)"):
        operation(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="not finite"):
        operation(torch.full((1, 3, 8, 8), math.nan))


@pytest.mark.parametrize("cutoff", [-0.1, math.nan])
def test_bad_cutoff(cutoff):
    with pytest.raises(ValueError, match="cutoff must be at least 0"):
        low_pass(torch.zeros(1, 1, 4, 4), cutoff)


def test_patch_shuffle_moves_whole_patches():
    images = torch.arange(3 * 2 * 6 * 8).reshape(3, 2, 6, 8)
    shuffled = patch_shuffle(images, (2, 4), seeded(1))

    def patches(image):
        return [image[:, y : y + 2, x : x + 4].tolist() for y in (0, 2, 4) for x in (0, 4)]

    for before, after in zip(images, shuffled, strict=True):
        assert sorted(patches(before)) == sorted(patches(after))
        assert patches(before) != patches(after)


def test_patch_shuffle_gives_every_image_its_own_uniform_permutation():
    images = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(4800, 1, 2, 2)
    orders, counts = patch_shuffle(images, 1, seeded()).flatten(1).unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 140 and counts.max() < 260  # 200 expected, standard deviation 14


def test_patch_shuffle_keeps_type_and_extremes():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    assert patch_shuffle(images, 2, seeded()).dtype == torch.uint8
    assert torch.equal(patch_shuffle(images, 8, seeded()), images)
    assert torch.equal(patch_shuffle(images, 2, seeded(1)), patch_shuffle(images, 2, seeded(1)))


def test_patch_shuffle_errors():
    with pytest.raises(EinopsError, match="8 in chunks of 3"):
        patch_shuffle(torch.zeros(1, 3, 8, 8), 3, seeded())
    with pytest.raises(EinopsError):
        patch_shuffle(torch.zeros(3, 8, 8), 2, seeded())
