"""A tiny frozen encoder and images whose class is plain to see."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from nbhelpers.models.mini import mini_vit


@dataclass
class ToyEncoder:
    module: nn.Module
    name: str = "toy.cl"
    objective: str = "CL"
    seed: int = 0
    prefix: int = 1
    grid: tuple[int, int] = (2, 2)
    depth: int = 2

    def forward(self, images: Tensor) -> Tensor:
        return self.module.forward_features(images.float() / 255 - 0.5)


@dataclass
class ToySource:
    images: Tensor
    labels: dict[str, Tensor]
    name: str = "toy/test"
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices) -> Tensor:
        return self.images[torch.as_tensor(list(indices))]


@pytest.fixture
def encoder() -> ToyEncoder:
    torch.manual_seed(0)
    return ToyEncoder(mini_vit(width=8, depth=2, heads=2, image_size=8, patch_size=4).eval())


@pytest.fixture
def colours():
    """(images, seed) -> source of red, green and blue noise images; labels colour, and coin (noise)."""

    def make(n: int, seed: int) -> ToySource:
        generator = torch.Generator().manual_seed(seed)
        colour = torch.randint(3, (n,), generator=generator)
        images = torch.randint(0, 100, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
        images[torch.arange(n), colour] += 120
        coin = torch.randint(2, (n,), generator=generator)
        return ToySource(images, {"colour": colour, "coin": coin})

    return make
