"""The small Vision Transformer that the book trains itself."""

from __future__ import annotations

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def mini_vit(
    width: int = 64, depth: int = 8, heads: int = 4, image_size: int = 32, patch_size: int = 4
) -> VisionTransformer:
    """A timm `VisionTransformer` with a class token and fixed 2-D sin-cos positions.

    Weights are drawn from a truncated normal of standard deviation 0.02 with torch's global generator;
    the position embedding is a buffer-like parameter that never gets a gradient (MoCo v3, section 4).

    >>> sum(p.numel() for p in mini_vit(width=64, depth=1).blocks.parameters())  # 12 D^2 + 13 D
    49984
    """
    model = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
    )
    grid = model.patch_embed.grid_size
    positions = build_sincos2d_pos_embed(grid, width, interleave_sin_cos=False)
    class_position = torch.zeros(1, width)
    model.pos_embed = nn.Parameter(torch.cat([class_position, positions])[None], requires_grad=False)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    return model
