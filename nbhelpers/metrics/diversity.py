"""How alike maps and representations are: cosine similarity between heads, tokens and depths."""

import torch
from torch import Tensor

from nbhelpers.metrics.base import takes


@takes("... M D", M=2)
def mean_pairwise_cosine(vectors: Tensor) -> Tensor:
    r"""Mean cosine similarity over all pairs of different vectors, without storing the pairs.

    .. math:: \frac{1}{M (M - 1)} \sum_{i \ne j} u_i \cdot u_j
        = \frac{\lVert \sum_i u_i \rVert^2 - M}{M (M - 1)}, \quad u_i = \frac{v_i}{\lVert v_i \rVert}

    Args:
        vectors: ``... M D``, M at least 2. A zero vector counts as orthogonal to all.

    Returns:
        Values ``...`` in -1/(M-1)..1: 1 when all vectors point one way, 0 when they are orthogonal.

    Raises:
        ValueError: fewer than two vectors, or values that are not finite.

    Source: representation diversity in the paper (heads, depths, tokens); the released code has no function.

    Example: two equal vectors and one orthogonal to both: one pair of three is alike.
        >>> vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        >>> mean_pairwise_cosine(vectors)
        tensor(0.3333)
    """
    count = vectors.shape[-2]
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    inverse = norms.clamp(min=torch.finfo(norms.dtype).tiny).reciprocal()
    resultant = (inverse[..., None, :] @ vectors).square().sum((-2, -1))  # of the unit vectors
    value = (resultant - (norms * inverse).square().sum(-1)) / (count * (count - 1))
    return value.clamp(-1 / (count - 1), 1)


@takes("B N D", "B N D")
def mean_cosine(before: Tensor, after: Tensor) -> Tensor:
    r"""Mean over an image's tokens `B N D` of the cosine similarity of a token before and after a step.

    .. math:: \frac{1}{N} \sum_n \frac{z_n \cdot z'_n}{\lVert z_n \rVert \lVert z'_n \rVert}

    Returns:
        `B` in -1..1: 1 when no token turns. A zero vector counts as orthogonal.

    Raises:
        ValueError: different shapes, or values that are not finite.

    Source: representation diversity in the paper (depths); the released code has no function.

    Example: one token keeps its direction, one turns by 90 degrees.
        >>> before = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> mean_cosine(before, torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))
        tensor([0.5000])
    """
    norms = torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    return (torch.linalg.vecdot(before, after) / norms.clamp(min=torch.finfo(norms.dtype).tiny)).mean(-1)


@takes("B N D")
def class_patch_cosine(tokens: Tensor, prefix: int) -> Tensor:
    r"""Cosine similarity of an image's class token and a patch token, mean over patch tokens.

    .. math:: \frac{1}{N - P} \sum_{n > P} \frac{z_1 \cdot z_n}{\lVert z_1 \rVert \, \lVert z_n \rVert}

    Args:
        tokens: all tokens `B N D`, the class token first; a zero vector counts as orthogonal.
        prefix: P, the number of tokens before the patch tokens, at least 1.

    Returns:
        `B` in -1..1.

    Raises:
        ValueError: not `B N D`, no token before the patch tokens or no other, or values that are not finite.

    Source: DINOv3 (Simeoni et al. 2025), section 4: as it rises in long trainings, dense features get worse.

    Example: of two patches one points the way of the class token, one at right angles to it.
        >>> tokens = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]])
        >>> class_patch_cosine(tokens, prefix=1)
        tensor([0.5000])
    """
    if not 0 < prefix < tokens.shape[1]:
        raise ValueError(f"class_patch_cosine: {prefix} of {tokens.shape[1]} tokens before the patch tokens")
    patches = tokens[:, prefix:]
    return mean_cosine(tokens[:, :1].expand_as(patches), patches)


@takes("B H N D", H=2)
def head_cosine(outputs: Tensor) -> Tensor:
    r"""`mean_pairwise_cosine` between the heads' attention outputs for a token, mean over tokens.

    .. math:: \frac{1}{N H (H - 1)} \sum_n \sum_{g \ne h}
        \frac{o_{gn} \cdot o_{hn}}{\lVert o_{gn} \rVert \lVert o_{hn} \rVert}

    Args:
        outputs: o, `B H N D`, before the output projection; H at least 2.

    Returns:
        `B` in -1/(H-1)..1.

    Raises:
        ValueError: not `B H N D`, a single head, or values that are not finite.

    Example: two heads agree for one token and are orthogonal for the other.
        >>> first, second = [[1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]
        >>> head_cosine(torch.tensor([[first, second]]))
        tensor([0.5000])
    """
    return mean_pairwise_cosine(outputs.transpose(1, 2)).mean(1)


@takes("B H N N", rows_sum_to_one=True, H=2)
def head_map_cosine(attention: Tensor) -> Tensor:
    r"""`mean_pairwise_cosine` between the heads' attention maps of a query, mean over queries.

    .. math:: \frac{1}{N H (H - 1)} \sum_q \sum_{g \ne h}
        \frac{A_{gq} \cdot A_{hq}}{\lVert A_{gq} \rVert \lVert A_{hq} \rVert}

    Args:
        attention: probabilities `B H N N` over patch tokens, rows sum to 1; H at least 2.

    Returns:
        `B` in 0..1: 1 when all heads have one map (also the uniform one), 0 when no two share a key.

    Raises:
        ValueError: not `B H N N`, a single head, rows that do not sum to 1 or are not finite.

    Source: the paper's claim that attention collapses for all queries and heads; no function was released.

    Example: two heads agree for one query, and look at different keys for the other.
        >>> first, second = [[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]
        >>> head_map_cosine(torch.tensor([[first, second]]))
        tensor([0.5000])
    """
    return mean_pairwise_cosine(attention.transpose(1, 2)).mean(1)


@takes("B H N N", rows_sum_to_one=True, H=2)
def centred_head_map_cosine(attention: Tensor) -> Tensor:
    r"""`head_map_cosine` of what the heads select, their maps minus the uniform one: :math:`A_{hq} - 1 / N`.

    Args:
        attention: probabilities `B H N N` over patch tokens, rows sum to 1; H at least 2.

    Returns:
        `B` in -1/(H-1)..1: 1 when all heads prefer the same keys, 0 when they select independently or not.

    Raises:
        ValueError: not `B H N N`, a single head, rows that do not sum to 1 or are not finite.

    Source: companion of `head_map_cosine`, which is near 1 for any two flat maps.

    Example: two heads look at the same key for one query; for the other, one of them looks at both alike.
        >>> first, second = [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.5, 0.5]]
        >>> centred_head_map_cosine(torch.tensor([[first, second]]))
        tensor([0.5000])
    """
    return mean_pairwise_cosine((attention - 1 / attention.shape[-1]).transpose(1, 2)).mean(1)


@takes("B H N D", N=2)
def attention_token_cosine(outputs: Tensor) -> Tensor:
    r"""`mean_pairwise_cosine` between an image's tokens as attention outputs, heads side by side.

    .. math:: \frac{1}{N (N - 1)} \sum_{m \ne n}
        \frac{o_m \cdot o_n}{\lVert o_m \rVert \lVert o_n \rVert}, \quad o_n = (o_{1n}, \ldots, o_{Hn})

    Args:
        outputs: o, `B H N D`, before the output projection; N at least 2.

    Returns:
        `B` in -1/(N-1)..1.

    Raises:
        ValueError: not `B H N D`, a single token, or values that are not finite.

    Example: two tokens that agree in one head, and in the other of which one has no output.
        >>> outputs = torch.tensor([[[[3.0], [3.0]], [[4.0], [0.0]]]])
        >>> attention_token_cosine(outputs)
        tensor([0.6000])
    """
    return mean_pairwise_cosine(outputs.transpose(1, 2).flatten(2))
