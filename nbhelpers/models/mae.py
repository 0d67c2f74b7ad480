"""A masked autoencoder with its transformer decoder (He et al., arXiv 2111.06377)."""

from dataclasses import replace

import torch
from einops import rearrange
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from nbhelpers.models.encoder import Encoder
from nbhelpers.models.mini import positions

DECODER = ":decoder"  # how the name of a decoder ends, behind that of its encoder


class Decoder(nn.Module):
    """The decoder: from the encoder's tokens of the visible patches to the pixels of all patches.

    Positions are fixed 2-D sin-cos; masked patches enter as one learned mask token.
    """

    def __init__(
        self, encoder_width: int, grid: tuple[int, int], patch_pixels: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = positions(grid, width)
        self.blocks = nn.Sequential(*[Block(width, heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, patch_pixels)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encoder tokens `B 1+K D` of the kept patches -> decoder tokens `B 1+N W`, after the last norm.

        Args:
            tokens: class token first.
            keep: indices `B K` of the kept patches in the grid; None: all, in order.
        """
        tokens = self.embed(tokens)
        if keep is not None:
            count, width = self.pos_embed.shape[1] - 1, tokens.shape[-1]
            patches = self.mask_token.to(tokens.dtype).repeat(len(tokens), count, 1)
            patches = patches.scatter(1, keep[..., None].expand(-1, -1, width), tokens[:, 1:])
            tokens = torch.cat([tokens[:, :1], patches], 1)
        return self.norm(self.blocks(tokens + self.pos_embed))


class MaskedAutoencoder(nn.Module):
    """A timm ViT with class token, which sees the kept patches only, and a `Decoder` of the sizes given.

    Patches that are predicted have mean 0 and deviation 1 each if they are `normalised`.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        *,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        embed, self.normalised = encoder.patch_embed, normalised
        self.grid, self.patch_size = tuple(embed.grid_size), tuple(embed.patch_size)
        self.encoder = encoder
        patch_pixels = encoder.in_chans * self.patch_size[0] * self.patch_size[1]
        self.decoder = Decoder(encoder.embed_dim, self.grid, patch_pixels, width, depth, heads)

    def forward_features(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised images `B C H W` -> tokens `B 1+K D` of the kept patches (indices `B K`; None: all)."""
        tokens = self.encoder._pos_embed(self.encoder.patch_embed(pixels))
        if keep is not None:
            patches = tokens[:, 1:].gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
            tokens = torch.cat([tokens[:, :1], patches], 1)
        return self.encoder.norm(self.encoder.blocks(self.encoder.norm_pre(tokens)))

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Predicted patches `B N P` (rows, columns, channels of a patch run in this order in P)."""
        return self.decoder.predict(self.decoder(self.forward_features(pixels, keep), keep))[:, 1:]

    def patchify(self, pixels: Tensor) -> Tensor:
        """Images `B C H W` -> patches `B N P`, as the decoder predicts them."""
        height, width = self.patch_size
        return rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=height, q=width)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Patches `B N P` -> images `B C H W`."""
        (rows, columns), (height, width) = self.grid, self.patch_size
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, w=columns, p=height, q=width)


class _DecoderTokens(nn.Module):
    """The autoencoder seen from its decoder's end."""

    def __init__(self, autoencoder: MaskedAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Tokens `B 1+N W` of the decoder at mask ratio 0."""
        return self.autoencoder.decoder(self.autoencoder.forward_features(pixels))


def decoder_of(encoder: Encoder) -> Encoder:
    """The decoder's blocks as an encoder: images in, at mask ratio 0, decoder tokens out.

    Depth 0 is the input of the first decoder block, after the embedding into the decoder's width.

    Raises:
        TypeError: the encoder has no such decoder.

    >>> from nbhelpers.models import mini_vit, wrap
    >>> autoencoder = MaskedAutoencoder(mini_vit(width=64, depth=2), width=32, depth=3, heads=2)
    >>> encoder = wrap(autoencoder, blocks="encoder.blocks", mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> encoder.depth, decoder_of(encoder).depth, decoder_of(encoder).width
    (2, 3, 32)
    """
    autoencoder = encoder.module
    if not isinstance(autoencoder, MaskedAutoencoder):
        raise TypeError(f"{encoder.name} has no decoder; of the public models mae_visualize.* have one")
    decoder, module = autoencoder.decoder, _DecoderTokens(autoencoder).eval()
    sizes = {"heads": decoder.blocks[0].attn.num_heads, "width": decoder.embed.out_features}
    where = {"module": module, "block_path": "autoencoder.decoder.blocks"}
    return replace(encoder, name=f"{encoder.name}{DECODER}", **where, **sizes)


def without_decoder(encoder: Encoder) -> Encoder:
    """The plain ViT of an autoencoder; any other encoder as it is.

    >>> from nbhelpers.models import mini_vit, wrap
    >>> autoencoder = MaskedAutoencoder(mini_vit(width=64, depth=2), width=32, depth=3, heads=2)
    >>> encoder = wrap(autoencoder, blocks="encoder.blocks", mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> type(without_decoder(encoder).module).__name__
    'VisionTransformer'
    """
    if not isinstance(encoder.module, MaskedAutoencoder):
        return encoder
    return replace(encoder, module=encoder.module.encoder, block_path="blocks")
