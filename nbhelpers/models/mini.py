"""The small Vision Transformer that the book trains itself."""

import torch
from timm.layers import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

WIDTH = 128  # of the book's encoders; those of another width have it in their names


def standardise(images: Tensor) -> Tensor:
    """Standardise each image: per-channel mean 0, deviation over all its pixels and channels 1.

    Float `B C H W` -> `B C H W`; a constant image becomes 0. Doing it twice changes nothing.

    >>> standardise(torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)).flatten()
    tensor([-1.,  1.])
    """
    centred = images - images.mean((2, 3), keepdim=True)
    return centred / centred.pow(2).mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-3)


def positions(grid: tuple[int, int], width: int) -> nn.Parameter:
    """Fixed 2-D sin-cos positions `1 1+N D` of a class token (zeros) and the patches of a grid.

    >>> positions((1, 2), 4)[0].round(decimals=2).tolist()[:2]
    [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    patches = build_sincos2d_pos_embed(grid, width, interleave_sin_cos=False)
    return nn.Parameter(torch.cat([torch.zeros(1, width), patches])[None], requires_grad=False)


class StandardisedPatchEmbed(PatchEmbed):
    """timm's patch embedding of images that are standardised one by one first."""

    def forward(self, x: Tensor) -> Tensor:
        """Images `B C H W` -> tokens `B N D`."""
        return super().forward(standardise(x))


def mini_vit(
    width: int = WIDTH,
    depth: int = 8,
    heads: int = 4,
    image_size: int = 32,
    patch_size: int = 4,
    standardised: bool = False,
) -> VisionTransformer:
    """A timm `VisionTransformer` with a class token and fixed 2-D sin-cos positions.

    Weights are drawn from a truncated normal of standard deviation 0.02 with torch's global generator; the
    position embedding never gets a gradient (MoCo v3, section 4). `standardised` encoders see every image
    with mean 0 and deviation 1, which suits generated images, whose colours and contrast mean nothing.

    >>> sum(p.numel() for p in mini_vit(width=64, depth=1).blocks.parameters())  # 12 D^2 + 13 D
    49984
    """
    sizes = {"img_size": image_size, "patch_size": patch_size, "embed_dim": width, "depth": depth}
    embed = StandardisedPatchEmbed if standardised else PatchEmbed
    model = VisionTransformer(**sizes, num_heads=heads, num_classes=0, embed_layer=embed)
    model.pos_embed = positions(model.patch_embed.grid_size, width)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    return model
