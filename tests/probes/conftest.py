"""A tiny frozen encoder and images whose class is plain to see."""

import pytest
import torch

from nbhelpers.images.source import ArraySource
from nbhelpers.models.encoder import wrap
from nbhelpers.models.mini import mini_vit


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    module = mini_vit(width=8, depth=2, heads=2, image_size=8, patch_size=4)
    half = (0.5, 0.5, 0.5)
    return wrap(module, mean=half, std=half, name="toy.cl", objective="CL", seed=0)


@pytest.fixture
def colours():
    """(images, seed) -> source of red, green and blue noise images; labels colour, and coin (noise)."""

    def make(n: int, seed: int) -> ArraySource:
        generator = torch.Generator().manual_seed(seed)
        colour = torch.randint(3, (n,), generator=generator)
        images = torch.randint(0, 100, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
        images[torch.arange(n), colour] += 120
        coin = torch.randint(2, (n,), generator=generator)
        classes = {"colour": ("red", "green", "blue"), "coin": ("heads", "tails")}
        return ArraySource("toy/test", images, {"colour": colour, "coin": coin}, classes)

    return make


@pytest.fixture
def splits(colours):
    """Numbers of images -> as many sources: to learn from, to choose on and to test on."""
    return lambda *numbers: [colours(n, seed) for seed, n in enumerate(numbers)]
