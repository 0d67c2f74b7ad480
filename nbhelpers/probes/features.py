"""Frozen features of every depth: pooled for linear and k-NN probes, patch tokens for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nbhelpers.capture import Stream, capture
from nbhelpers.images.source import ImageSource
from nbhelpers.models import Encoder, without_decoder

Pool = Literal["mean", "class"]
Read = Callable[[Encoder, ImageSource, Sequence[int]], Tensor]  # features of some depths, `L N ...`


def batches(encoder: Encoder, images: ImageSource | Tensor, batch_size: int) -> Iterator[Tensor]:
    """Images `N C H W` of a source or a tensor, in order, as uint8 batches `B C H W` for the encoder.

    >>> from nbhelpers.models import mini_vit, wrap
    >>> encoder = wrap(mini_vit(width=64, depth=1), mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> [len(batch) for batch in batches(encoder, torch.zeros(5, 3, 2, 2, dtype=torch.uint8), 2)]
    [2, 2, 1]
    """
    if len(images) == 0:
        raise ValueError("no images: the source is empty")
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        rows = range(start, stop)
        yield images[start:stop] if isinstance(images, Tensor) else encoder.batch(images, rows)


def _final_norm(encoder: Encoder) -> tuple[nn.Module, nn.Module]:
    """The model's last norms, over tokens and over pooled features (timm keeps one of the two)."""
    module = without_decoder(encoder).module
    norms = tuple(getattr(module, name, None) or nn.Identity() for name in ("norm", "fc_norm"))
    if all(isinstance(norm, nn.Identity) for norm in norms):
        raise ValueError(f"norm=True, but {type(module).__name__} has no final norm; ask for norm=False")
    return norms


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
def _run(
    encoder: Encoder,
    images: ImageSource | Tensor,
    depths: list[int],
    reduce: Callable[[Tensor], Tensor],
    batch_size: int,
    dtype: torch.dtype,
    finite: bool,
) -> Tensor:
    """What `reduce` makes of the tokens `B N D` of each depth, in one pass, stacked over depths."""
    rows: dict[int, list[Tensor]] = {depth: [] for depth in depths}

    def keep(stream: Stream) -> None:
        if stream.depth in rows:
            rows[stream.depth].append(reduce(stream.tokens).to("cpu", dtype))

    with capture(encoder, on_stream=keep, places=("block",)):
        for batch in batches(encoder, images, batch_size):
            encoder.forward(batch)
    result = torch.stack([torch.cat(rows.pop(depth)) for depth in depths])
    if finite and not result.isfinite().all():
        bad = [depth for depth, values in zip(depths, result, strict=True) if not values.isfinite().all()]
        raise ValueError(f"non-finite features of {encoder.name} at depths {bad} in {dtype}")
    return result


def features(
    encoder: Encoder,
    images: ImageSource | Tensor,
    depths: Sequence[int] | None = None,
    pool: Pool = "mean",
    norm: bool = False,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    finite: bool = True,
) -> Tensor:
    r"""Pooled features `L+1 N D` of every depth in one pass over the images `N C H W`.

    $f_l = \frac{1}{N_p} \sum_{i \in \mathrm{patches}} z_{l,i}$ (`pool="mean"`) or the class token $z_{l,0}$
    (`pool="class"`), where depth 0 is the embedding and depth l the output of block l.

    Args:
        encoder: the frozen model.
        images: an image source or a uint8 tensor `N C H W`.
        depths: depths wanted, in the order of the result; all of 0..L by default.
        pool: mean over the patch tokens (no prefix token counts), or the class token.
        norm: pass the tokens through the model's final norm first; it was trained on depth L alone.
        batch_size: images per forward pass.
        dtype: precision of the result; half for large sets.
        finite: refuse features that are not finite.

    Raises:
        ValueError: for an unknown depth or pool, no class token, no final norm, no images, or features
            that are not finite.

    Layer-wise probing: section 5 of Park et al. 2023; pooled patch tokens without norm: SimMIM's probe.
    """
    chosen = checked_depths(encoder, depths)
    if pool not in ("mean", "class"):
        raise ValueError(f"unknown pool {pool!r}; there are 'mean' and 'class'")
    if pool == "class" and encoder.prefix == 0:
        raise ValueError(f"{encoder.name} has no class token; use pool='mean'")
    token_norm, pooled_norm = _final_norm(encoder) if norm else (nn.Identity(), nn.Identity())

    def reduce(tokens: Tensor) -> Tensor:
        tokens = token_norm(tokens)
        return pooled_norm(tokens[:, encoder.prefix :].mean(1) if pool == "mean" else tokens[:, 0])

    return _run(encoder, images, chosen, reduce, batch_size, dtype, finite)


def patch_tokens(
    encoder: Encoder,
    images: ImageSource | Tensor,
    depths: Sequence[int],
    norm: bool = False,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float16,
    finite: bool = True,
) -> Tensor:
    """Patch tokens `L N P D` of the depths named, prefix tokens dropped.

    All are kept in memory. `norm` and `finite` as in `features`; raises the same errors.
    """
    chosen = checked_depths(encoder, depths)
    token_norm = _final_norm(encoder)[0] if norm else nn.Identity()

    def reduce(tokens: Tensor) -> Tensor:
        return token_norm(tokens)[:, encoder.prefix :]

    return _run(encoder, images, chosen, reduce, batch_size, dtype, finite)
