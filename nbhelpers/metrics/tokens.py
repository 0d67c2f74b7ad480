"""Tokens out of the ordinary: patch tokens of large norm (register-like), attention on prefix tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nbhelpers.metrics.attention import AttentionMaps
from nbhelpers.metrics.base import (
    DepthwiseMetric,
    PerHeadMetric,
    at_least_float32,
    patch_tokens,
    require_axes,
    require_finite,
)

if TYPE_CHECKING:
    from nbhelpers.capture import Stream


def token_norms(tokens: Tensor) -> Tensor:
    """Euclidean norm of each token.

    Args:
        tokens: `B N D`.

    Returns:
        `B N`, at least 0, in units of the residual stream.

    Raises:
        ValueError: not `B N D`, or values that are not finite.

    Source: Darcet et al. 2024, "Vision Transformers need registers".

    >>> token_norms(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]))
    tensor([[5., 0.]])
    """
    require_axes(tokens, "B N D", "token_norms")
    return require_finite(torch.linalg.vector_norm(at_least_float32(tokens), dim=-1), "token_norms")


def outlier_share(norms: Tensor, ratio: float = 3.0) -> Tensor:
    """Share of an image's tokens whose norm exceeds `ratio` times the median norm of that image.

    Args:
        norms: norms of the patch tokens, `B N`.
        ratio: how many times the median is out of the ordinary; 3 separates the two groups that DINOv2 has.

    Returns:
        `B` in 0..0.5.

    Raises:
        ValueError: not `B N`, or values that are not finite.

    Source: register-like tokens of Darcet et al. 2024 (there a fixed norm, here relative, so that encoders
    compare).

    Example: one of four tokens stands out.
        >>> outlier_share(torch.tensor([[1.0, 1.0, 1.0, 4.0]]))
        tensor([0.2500])
    """
    require_axes(norms, "B N", "outlier_share")
    require_finite(norms, "outlier_share")
    return (norms > ratio * _median(norms)).to(norms.dtype).mean(1)


def norm_peak(norms: Tensor) -> Tensor:
    """Largest norm of an image's tokens against the median norm.

    Args:
        norms: norms of the patch tokens, `B N`.

    Returns:
        `B`, at least 1; 1 where all norms are equal.

    Raises:
        ValueError: not `B N`, values that are not finite, or a median of 0.

    Source: as `outlier_share`.

    >>> norm_peak(torch.tensor([[1.0, 2.0, 3.0, 10.0]]))
    tensor([4.])
    """
    require_axes(norms, "B N", "norm_peak")
    return require_finite(norms.amax(1) / _median(norms)[:, 0], "norm_peak")


def prefix_attention(attention: Tensor, prefix: int) -> Tensor:
    """Attention that patch queries pay to prefix tokens, mean over queries.

    Args:
        attention: probabilities over all tokens `B H N N`, prefix included, rows sum to 1.
        prefix: number of leading class, distillation and register tokens.

    Returns:
        `B H` in 0..1.

    Raises:
        ValueError: not `B H N N`, no patch token left, or values that are not finite.

    Source: attention sinks; what `patch_attention` leaves out.

    Example: a class token and one patch, which pays it 0.75.
        >>> prefix_attention(torch.tensor([[[[0.5, 0.5], [0.75, 0.25]]]]), prefix=1)
        tensor([[0.7500]])
    """
    require_axes(attention, "B H N N", "prefix_attention")
    if attention.shape[-1] != attention.shape[-2] or not 0 <= prefix < attention.shape[-1]:
        raise ValueError(
            f"prefix_attention: expected (B H N N) with N above the number of prefix tokens ({prefix}), "
            f"got {tuple(attention.shape)}"
        )
    share = at_least_float32(attention)[:, :, prefix:, :prefix].sum(-1).mean(-1)
    return require_finite(share, "prefix_attention")


def _median(norms: Tensor) -> Tensor:
    """Median (B 1) of norms (B N), midway between the middle two where N is even."""
    ordered = norms.sort(dim=1).values
    return ordered[:, [(norms.shape[1] - 1) // 2, norms.shape[1] // 2]].mean(1, keepdim=True)


class TokenNorm(DepthwiseMetric):
    """Mean `token_norms` of the patch tokens at each block's output."""

    name, unit, consumes, layout = "token_norm", "", frozenset({"block"}), ("depth",)

    def update(self, stream: Stream) -> None:
        """Count one depth of a batch."""
        self.add(stream.depth, _norms(stream, self.name).mean(1))


class TokenNormPeak(DepthwiseMetric):
    """`norm_peak` of the patch tokens at each block's output."""

    name, unit, consumes, layout = "token_norm_peak", "", frozenset({"block"}), ("depth",)

    def update(self, stream: Stream) -> None:
        """Count one depth of a batch."""
        self.add(stream.depth, norm_peak(_norms(stream, self.name)))


class OutlierTokens(DepthwiseMetric):
    """`outlier_share` of the patch tokens at each block's output."""

    name, unit, consumes, layout = "outlier_tokens", "", frozenset({"block"}), ("depth",)

    def update(self, stream: Stream) -> None:
        """Count one depth of a batch."""
        self.add(stream.depth, outlier_share(_norms(stream, self.name)))


class PrefixAttention(PerHeadMetric):
    """`prefix_attention` per depth and head; 0 for an encoder without prefix tokens."""

    name, unit, consumes = "prefix_attention", "", frozenset({"attention"})

    def update(self, maps: AttentionMaps) -> None:
        """Count one depth of a batch."""
        self.add(maps.depth, maps.prefix_share.mean(-1))


def _norms(stream: Stream, name: str) -> Tensor:
    """Norms (B N) of a record's patch tokens, checked in the metric's name."""
    return require_finite(torch.linalg.vector_norm(patch_tokens(stream), dim=-1), name)
