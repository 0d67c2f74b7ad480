"""How alike representations are: cosine similarity between heads, between tokens and between depths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nbhelpers.metrics.base import (
    DepthwiseMetric,
    PerHeadMetric,
    SuccessiveMetric,
    at_least_float32,
    patch_tokens,
    require_finite,
)

if TYPE_CHECKING:
    from nbhelpers.capture import Stream
    from nbhelpers.metrics.attention import AttentionMaps


def mean_pairwise_cosine(vectors: Tensor) -> Tensor:
    r"""Mean cosine similarity over all pairs of different vectors, without storing the pairs.

    .. math:: \frac{1}{M (M - 1)} \sum_{i \ne j} u_i \cdot u_j
        = \frac{\lVert \sum_i u_i \rVert^2 - M}{M (M - 1)}, \quad u_i = \frac{v_i}{\lVert v_i \rVert}

    Args:
        vectors: `... M D`, M at least 2. A zero vector counts as orthogonal to all.

    Returns:
        `...` in -1/(M-1)..1: 1 when all vectors point one way, 0 when they are orthogonal.

    Raises:
        ValueError: fewer than two vectors, or values that are not finite.

    Source: representation diversity in the paper (heads, depths, tokens); the released code has no function.

    Example: two equal vectors and one orthogonal to both: one pair of three is alike.
        >>> mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
        tensor(0.3333)
    """
    if vectors.ndim < 2 or vectors.shape[-2] < 2 or 0 in vectors.shape:
        raise ValueError(
            f"mean_pairwise_cosine: expected shape (... M D) with M at least 2, got {tuple(vectors.shape)}"
        )
    return require_finite(_pairwise(at_least_float32(vectors)), "mean_pairwise_cosine")


def _pairwise(vectors: Tensor) -> Tensor:
    """Mean pairwise cosine of vectors (... M D), unchecked."""
    count = vectors.shape[-2]
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    inverse = norms.clamp(min=torch.finfo(norms.dtype).tiny).reciprocal()
    resultant = (inverse[..., None, :] @ vectors).square().sum((-2, -1))
    value = (resultant - (norms * inverse).square().sum(-1)) / (count * (count - 1))
    return value.clamp(-1 / (count - 1), 1)


def mean_cosine(before: Tensor, after: Tensor) -> Tensor:
    r"""Mean over an image's tokens of the cosine similarity of a token before and after a step.

    .. math:: \frac{1}{N} \sum_n \frac{z_n \cdot z'_n}{\lVert z_n \rVert \lVert z'_n \rVert}

    Args:
        before: `B N D`.
        after: `B N D`.

    Returns:
        `B` in -1..1: 1 when no token turns. A zero vector counts as orthogonal.

    Raises:
        ValueError: different shapes, or values that are not finite.

    Source: representation diversity in the paper (depths); the released code has no function.

    Example: one token keeps its direction, one turns by 90 degrees.
        >>> mean_cosine(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))
        tensor([0.5000])
    """
    if before.ndim != 3 or before.shape != after.shape or 0 in before.shape:
        raise ValueError(
            f"mean_cosine: expected two tensors of one shape (B N D), got {tuple(before.shape)} and "
            f"{tuple(after.shape)}"
        )
    return require_finite(_cosine(at_least_float32(before), at_least_float32(after)), "mean_cosine")


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    """Mean cosine of tokens before and after (B N D), unchecked."""
    norms = torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    return (torch.linalg.vecdot(before, after) / norms.clamp(min=torch.finfo(norms.dtype).tiny)).mean(-1)


class HeadCosine(DepthwiseMetric):
    """`mean_pairwise_cosine` between the heads' attention outputs for a token, mean over patch tokens."""

    name, unit, consumes, layout = "head_cosine", "", frozenset({"attention"}), ("depth",)

    def update(self, maps: AttentionMaps) -> None:
        """Count one depth of a batch."""
        self.add(maps.depth, _pairwise(at_least_float32(maps.outputs).transpose(1, 2)).mean(1))


class QueryCosine(PerHeadMetric):
    """`mean_pairwise_cosine` between the attention maps of an image's patch queries, per depth and head.

    1 where all queries have the same map, whatever that map is; 0 where no two of them share a key.
    """

    name, unit, consumes = "query_cosine", "", frozenset({"attention"})

    def update(self, maps: AttentionMaps) -> None:
        """Count one depth of a batch, a few maps in memory at a time."""
        cosines = torch.cat([_pairwise(piece) for piece in maps.pieces()])
        self.add(maps.depth, cosines.unflatten(0, (-1, maps.record.query.shape[1])))


class AttentionTokenCosine(DepthwiseMetric):
    """`mean_pairwise_cosine` between an image's patch tokens as attention outputs, heads side by side."""

    name, unit, consumes, layout = "attention_token_cosine", "", frozenset({"attention"}), ("depth",)

    def update(self, maps: AttentionMaps) -> None:
        """Count one depth of a batch."""
        self.add(maps.depth, _pairwise(at_least_float32(maps.outputs).transpose(1, 2).flatten(2)))


class TokenCosine(DepthwiseMetric):
    """`mean_pairwise_cosine` between an image's patch tokens in the residual stream, depth 0..L."""

    name, unit, consumes, layout = "token_cosine", "", frozenset({"block"}), ("depth",)

    def update(self, stream: Stream) -> None:
        """Count one depth of a batch."""
        self.add(stream.depth, _pairwise(patch_tokens(stream)))


class AcrossAttentionCosine(SuccessiveMetric):
    """`mean_cosine` of the patch tokens before and after the self-attention of each block."""

    name, unit = "across_attention_cosine", ""

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Mean cosine of an image's tokens (`B`)."""
        return _cosine(before, after)


class AcrossBlockCosine(AcrossAttentionCosine):
    """`mean_cosine` of the patch tokens between the outputs of consecutive blocks."""

    name, unit, consumes, after = "across_block_cosine", "", frozenset({"block"}), "block"
