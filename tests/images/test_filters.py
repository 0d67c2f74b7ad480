"""Frequency filters and noise against explicit float64 sums, and analytic cases."""

import math

import pytest
import torch

from nbhelpers.images.filters import frequency_noise, high_pass, low_pass, patch_shuffle, ring_mask


def naive_filter(image, keep):
    """The waves of an image, each times what `keep(v, u)` says of its signed frequency numbers, added up."""
    rows, columns = image.shape
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    result = torch.zeros_like(image)
    for v in range(-(rows // 2), (rows + 1) // 2):
        for u in range(-(columns // 2), (columns + 1) // 2):
            wave = torch.polar(torch.ones_like(y), 2 * math.pi * (v * y / rows + u * x / columns))
            result += keep(v, u) * ((image * wave.conj()).mean() * wave).real
    return result


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


def test_rings_are_as_wide_as_those_of_the_official_code():
    images = torch.zeros(1, 1, 32, 32)
    assert torch.equal(ring_mask((32, 32), 1.0), ring_mask((32, 32), 1.0, 0.2))
    usual, wide = (frequency_noise(images, 1.0, 0.1, seeded(), *width) for width in ((), (0.2,)))
    assert torch.equal(usual, wide)


def test_neighbouring_rings_share_no_frequency_and_cover_the_spectrum():
    rings = [ring_mask((32, 32), (2 * i + 1) * math.pi / 8, math.pi / 8) for i in range(4)]
    assert torch.equal(torch.stack(rings).sum(0), torch.ones(32, 32, dtype=torch.long))


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [0.0, 1.0, math.pi / 2, math.pi, 5.0])
def test_low_pass_equals_the_definition(size, cutoff):
    image = torch.rand(*size, dtype=torch.float64, generator=seeded(2))

    def keep(v, u):
        return float(math.hypot(2 * math.pi * v / size[0], 2 * math.pi * u / size[1]) <= cutoff + 1e-9)

    assert torch.allclose(low_pass(image[None, None], cutoff)[0, 0], naive_filter(image, keep), atol=1e-6)


@pytest.mark.parametrize("cycles", [3, 6])  # whose frequency is rounded up where it is a multiple of 1 / 20
def test_a_cutoff_on_a_frequency_lets_it_pass(cycles):
    image = wave((20, 20), (0, cycles))[None, None]
    assert torch.allclose(low_pass(image, 2 * math.pi * cycles / 20), image, atol=1e-6)


def test_filters_part_a_sum_of_waves():
    slow, fast = wave((12, 16), (1, 2)), wave((12, 16), (4, 5))
    images = torch.stack([0.5 + slow + fast, 0.2 + fast])[:, None]
    assert torch.allclose(low_pass(images, 1.5), torch.stack([0.5 + slow, 0.2 + 0 * slow])[:, None])
    assert torch.allclose(high_pass(images, 1.5), torch.stack([0.5 + fast, 0.2 + fast])[:, None])


def test_each_channel_keeps_its_own_brightness():
    images = torch.rand(2, 3, 6, 8, generator=seeded(3)) + torch.arange(3.0).view(3, 1, 1)
    assert torch.allclose(high_pass(images, 5.0), images.mean((2, 3), keepdim=True), atol=1e-5)


FILTERS = [
    lambda images: low_pass(images, 1.2),
    lambda images: high_pass(images, 1.2),
    lambda images: frequency_noise(images, 2.0, 0.1, seeded(), 0.8),
]


@pytest.mark.parametrize("operation", FILTERS)
def test_the_type_is_kept_and_images_that_are_none_are_refused(operation):
    images = torch.rand(2, 3, 8, 8, generator=seeded(4))
    result = operation(images.bfloat16())
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float(), operation(images), atol=2e-2)
    for wrong, what in (
        (images.byte(), r"torch.uint8 \(2, 3, 8, 8\)"),
        (images[0], r"torch.float32 \(3, 8, 8\)"),
        (images / 0, "not finite"),
    ):
        with pytest.raises(ValueError, match=what):
            operation(wrong)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: ring_mask((32, 32), 0.0, 0.1), "no frequency of a 32 x 32"),
        (lambda: ring_mask((32, 32), 5.0, 0.2), "no frequency"),
        (lambda: ring_mask((32, 32), -1.0), "frequency must be >= 0"),
        (lambda: ring_mask((32, 32), 1.0, 0.0), "half_width > 0"),
        (lambda: low_pass(torch.zeros(1, 1, 4, 4), -0.1), "cutoff"),
        (lambda: low_pass(torch.zeros(1, 1, 4, 4), math.nan), "cutoff"),
    ],
)
def test_impossible_frequencies_are_refused(call, what):
    with pytest.raises(ValueError, match=what):
        call()


def test_patch_shuffle_moves_whole_patches():
    images = torch.arange(3 * 2 * 6 * 8, dtype=torch.uint8).reshape(3, 2, 6, 8)
    shuffled = patch_shuffle(images, (2, 4), seeded(1))
    assert shuffled.dtype == images.dtype and torch.equal(shuffled, patch_shuffle(images, (2, 4), seeded(1)))

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
