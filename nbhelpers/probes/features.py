"""Frozen features of every depth: pooled, or the patch tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nbhelpers.capture import Stream, capture
from nbhelpers.images.source import ArraySource, ImageSource
from nbhelpers.models import Encoder, without_decoder

Pool = Literal["mean", "class", "none"]


def checked_depths(encoder: Encoder, depths: Sequence[int] | None) -> list[int]:
    """Depths asked for, all of 0..L when none are named."""
    available = range(encoder.depth + 1)
    chosen = list(available if depths is None else depths)
    if not chosen or not set(chosen) <= set(available) or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"depths {chosen} are not distinct depths of {encoder.name}; it has 0..{available[-1]}"
        )
    return chosen


@torch.no_grad()
def features(
    encoder: Encoder,
    images: ImageSource | Tensor,
    depths: Sequence[int] | None = None,
    pool: Pool = "mean",
    norm: bool = False,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Pooled features `L+1 N D`, or patch tokens `L+1 N P D`, in one pass over the images `N C H W`.

    $f_l = \frac{1}{P} \sum_{i \in \mathrm{patches}} z_{l,i}$ (`pool="mean"`), the class token $z_{l,0}$
    (`pool="class"`) or all $z_{l,i}$ of patches (`pool="none"`), where depth 0 is the embedding and depth l
    the output of block l. Features that are not finite are returned as they are.

    Args:
        encoder: the frozen model.
        images: an image source or a uint8 tensor `N C H W`.
        depths: depths wanted, in the order of the result; all of 0..L by default.
        pool: how the tokens of an image become a feature; no prefix token counts as a patch.
        norm: pass the tokens through the model's final norm first; it was trained on depth L alone.
        batch_size: images per forward pass.
        dtype: precision of the result; half for large sets.

    Raises:
        ValueError: for an unknown depth or pool, no class token, no final norm, or no images.

    Layer-wise probing: section 5 of Park et al. 2023; pooled patch tokens without norm: SimMIM's probe.
    """
    chosen = checked_depths(encoder, depths)
    pools = {
        "mean": lambda tokens: tokens[:, encoder.prefix :].mean(1),
        "class": lambda tokens: tokens[:, 0],
        "none": lambda tokens: tokens[:, encoder.prefix :],
    }
    if pool not in pools:
        raise ValueError(f"unknown pool {pool!r}; there are {', '.join(pools)}")
    if pool == "class" and encoder.prefix == 0:
        raise ValueError(f"{encoder.name} has no class token; use pool='mean'")
    if not len(images):
        raise ValueError("no images: the source is empty")
    over_tokens = over_pooled = nn.Identity()
    if norm:  # timm keeps one over tokens, or one over pooled features
        module = without_decoder(encoder).module
        norms = over_tokens, over_pooled = [
            getattr(module, n, None) or nn.Identity() for n in ("norm", "fc_norm")
        ]
        if all(isinstance(each, nn.Identity) for each in norms):
            raise ValueError(f"norm=True, but {type(module).__name__} has no final norm; ask for norm=False")
    if isinstance(images, Tensor):
        images = ArraySource("images", images.cpu(), {}, {})
    kept: dict[int, list[Tensor]] = {depth: [] for depth in chosen}

    def keep(stream: Stream) -> None:
        if stream.depth in kept:
            pooled = pools[pool](over_tokens(stream.tokens))
            kept[stream.depth].append((pooled if pool == "none" else over_pooled(pooled)).to("cpu", dtype))

    with capture(encoder, on_stream=keep, places=("block",)):
        for rows in torch.arange(len(images)).split(batch_size):
            encoder.forward(encoder.batch(images, rows))
    return torch.stack([torch.cat(kept.pop(depth)) for depth in chosen])
