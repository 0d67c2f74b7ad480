"""What the trainer asks of an objective."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nbhelpers.models.mini import StandardisedPatchEmbed, standardise


class Objective(nn.Module):
    """An encoder with what its training needs beside it; `forward` gives the loss of a batch.

    Attributes:
        encoder: the Vision Transformer that is kept when training ends.
        mean: per-channel mean of the images on the scale 0..1.
        std: per-channel standard deviation likewise.
    """

    def __init__(self, encoder: VisionTransformer, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Float `B C H W` on the scale 0..1 as the encoder sees it: mean 0, deviation 1.

        That is over all training images, or over each image where the encoder standardises them one by one.
        """
        if isinstance(self.encoder.patch_embed, StandardisedPatchEmbed):
            return standardise(images)
        return (images - self.mean) / self.std

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Loss (a scalar) of uint8 images `B C H W`; all randomness comes from `generator`."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """What happens after each optimiser step; `progress` is the share of training done, 0..1."""
