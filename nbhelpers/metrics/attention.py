"""Where self-attention looks: distance, mutual information, entropy, and mass on prefix tokens or an object.

Each is a statistic of attention probabilities (image, head, query, key).
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nbhelpers.capture import Attention, full_precision
from nbhelpers.metrics.base import remembered, require_grid, takes, unchecked

# Numbers of the attention maps that are in memory at a time: on a CPU they stay in the L2 cache (20 % faster
# than whole batches), on an accelerator they only bound memory (256 MB in float32).
MAPS_CPU, MAPS_ACCELERATOR = 160_000, 64_000_000


@takes("B H N D", "B H N D")
def patch_attention(
    query: Tensor, key: Tensor, prefix: int = 1, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    r"""Attention probabilities of patch queries over patch keys.

    .. math:: A_{qk} = \frac{\exp(s\, q \cdot k + b_{qk})}
        {\sum_{k' \in \mathrm{patches}} \exp(s\, q \cdot k' + b_{qk'})}

    A softmax over the patch keys alone equals dropping the prefix columns and renormalising, without an
    epsilon.

    Args:
        query: `B H N D`, N = prefix + patch tokens, as the model uses it (after q/k norm, rotary positions).
        key: `B H N D`, likewise.
        prefix: number of leading class, distillation and register tokens; 0 gives the full attention.
        bias: additive (or boolean: True = may attend), broadcastable to `B H N N`.
        scale: s; default `D ** -0.5`.

    Returns:
        `B H N N` over the patch tokens, rows sum to 1. Half precision is computed in float32.

    Raises:
        ValueError: shapes that do not fit one another.
        RuntimeError: a bias that does not broadcast.

    Source: paper; official notebook self_attention_analysis, cells 10 and 12 (with an epsilon).

    Example: keys that score log 1 and log 3 get a quarter and three quarters of a query's attention.
        >>> query = torch.ones(1, 1, 3, 1)
        >>> key = torch.tensor([5.0, 0.0, math.log(3)]).reshape(1, 1, 3, 1)
        >>> patch_attention(query, key, prefix=1)
        tensor([[[[0.2500, 0.7500],
                  [0.2500, 0.7500]]]])
    """
    if not 0 <= prefix < query.shape[2]:
        raise ValueError(f"patch_attention: {query.shape[2]} tokens do not fit a prefix ({prefix})")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * query[:, :, prefix:] @ key[:, :, prefix:].mT
    if bias is not None:
        logits = logits + _additive(bias, query)[:, :, prefix:, prefix:].to(logits.dtype)
    return logits.softmax(-1)


def _additive(bias: Tensor, query: Tensor) -> Tensor:
    """A bias as a term of the logits `B H N N`."""
    bias = bias.expand(*query.shape[:3], query.shape[2])
    return torch.where(bias, 0.0, -torch.inf) if bias.dtype == torch.bool else bias


@takes("B H N N", rows_sum_to_one=True)
def attention_distance(attention: Tensor, grid: tuple[int, int], patch_size: int | tuple[int, int]) -> Tensor:
    r"""Mean distance in the image between query and key patch, weighted by attention.

    .. math:: D = \frac{1}{N} \sum_q \sum_k A_{qk}\, d_{qk}, \quad d_{qk} = \lVert x_q - x_k \rVert_2

    with patch centres :math:`x` in pixels.

    Args:
        attention: probabilities `B H N N` over patch tokens, rows sum to 1.
        grid: (rows, columns) of patches, N = rows * columns.
        patch_size: px, or (height, width).

    Returns:
        `B H`, px: 0 for attention to oneself; 116.49 for uniform attention on 14 x 14 patches of 16 px.

    Raises:
        ValueError: not `B H N N`, rows that do not sum to 1 or are not finite, another grid.

    Source: paper; official notebook self_attention_analysis, cell 10.

    Example: two patches of 16 px side by side, attention half to oneself and half to the neighbour.
        >>> attention = torch.full((1, 1, 2, 2), 0.5)
        >>> attention_distance(attention, grid=(1, 2), patch_size=16)
        tensor([[8.]])
    """
    require_grid(attention.shape[-1], grid, "attention_distance")
    patch = tuple(np.broadcast_to(patch_size, 2).tolist())
    distances = _distances(tuple(grid), patch, attention.dtype, attention.device)
    return torch.linalg.vecdot(attention, distances).mean(-1)  # row by row: one long sum would lose digits


@takes("B H N N", rows_sum_to_one=True, N=2)
def nmi(attention: Tensor) -> Tensor:
    r"""Mutual information of query and key positions under a uniform query prior, normalised.

    .. math:: \mathrm{NMI} = \frac{I(q; k)}{\sqrt{H(q)\, H(k)}},
        \quad I(q; k) = H(k) - \frac{1}{N} \sum_q H(A_{q \cdot}),

        p(q) = \frac{1}{N}, \quad p(k) = \sum_q p(q) A_{qk}

    Args:
        attention: probabilities `B H N N` over patch tokens, rows sum to 1; N at least 2.

    Returns:
        `B H` in 0..1: 0 when every query has the same map (attention collapse; also a uniform map), 1 when
        queries and keys are paired one to one.

    Raises:
        ValueError: not `B H N N`, a single token, rows that do not sum to 1 or are not finite.

    Source: paper; official notebook self_attention_analysis, cell 12 (with an epsilon of 1e-8).

    Example: a permutation pairs queries with keys; equal maps tell nothing about the query.
        >>> equal = torch.full((4, 4), 0.25)
        >>> nmi(torch.stack([torch.eye(4).flip(0), equal])[None])
        tensor([[1., 0.]])
    """
    query_entropy = math.log(attention.shape[-1])  # H(q) of p(q) = 1 / N
    key_entropy = entropy(attention.mean(-2))  # H(k)
    information = (key_entropy - entropy(attention).mean(-1)).clamp(min=0)  # I(q, k)
    normaliser = (query_entropy * key_entropy).sqrt()
    # 0 / 0, where all queries attend to one key, is 0.
    return (information / normaliser.clamp(min=torch.finfo(normaliser.dtype).tiny)).clamp(max=1)


@takes("B H N N", rows_sum_to_one=True, N=2)
def attention_entropy(attention: Tensor) -> Tensor:
    r"""Entropy of a query's attention, mean over queries, relative to uniform attention.

    .. math:: \frac{1}{N \log N} \sum_q H(A_{q \cdot}), \quad H(p) = -\sum_k p_k \log p_k

    Args:
        attention: probabilities `B H N N` over patch tokens, rows sum to 1; N at least 2.

    Returns:
        `B H` in 0..1: 0 when each query attends to one key, 1 when attention is uniform.

    Raises:
        ValueError: not `B H N N`, a single token, rows that do not sum to 1 or are not finite.

    Source: companion of attention distance: long distance at entropy near 1 is a uniform map, not a shape.

    Example: attention to 2 of 4 keys equally is log 2 of log 4.
        >>> row = torch.tensor([0.5, 0.5, 0.0, 0.0])
        >>> attention_entropy(row.expand(1, 1, 4, 4))
        tensor([[0.5000]])
    """
    return (entropy(attention).mean(-1) / math.log(attention.shape[-1])).clamp(0, 1)


@takes("B H N N", rows_sum_to_one=True)
def prefix_attention(attention: Tensor, prefix: int) -> Tensor:
    r"""Attention that patch queries pay to prefix tokens, mean over queries.

    .. math:: \frac{1}{N} \sum_q \sum_{k \in \mathrm{prefix}} A_{qk}

    Args:
        attention: probabilities over all tokens `B H N N`, prefix included, rows sum to 1.
        prefix: number of leading class, distillation and register tokens.

    Returns:
        `B H` in 0..1; 0 without prefix tokens.

    Raises:
        ValueError: not `B H N N`, no patch token left, rows that do not sum to 1 or are not finite.

    Source: attention sinks; what `patch_attention` leaves out.

    Example: a class token and one patch, which pays it 0.75.
        >>> attention = torch.tensor([[[[0.5, 0.5], [0.75, 0.25]]]])
        >>> prefix_attention(attention, prefix=1)
        tensor([[0.7500]])
    """
    if not 0 <= prefix < attention.shape[-1]:
        raise ValueError(f"prefix_attention: {attention.shape[-1]} tokens, of them {prefix} prefix tokens")
    return attention[:, :, prefix:, :prefix].sum(-1).mean(-1)


@remembered
def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats of probabilities `... K` along the last axis.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0])) / math.log(2)
    tensor(1.)
    """
    # 2.5 times as fast as torch.special.entr; the clamp makes 0 log 0 = 0.
    floor = torch.finfo(probabilities.dtype).tiny
    return -torch.linalg.vecdot(probabilities, probabilities.clamp(min=floor).log())


def patch_distances(grid: tuple[int, int], patch_size: int | tuple[int, int]) -> Tensor:
    """Distances in pixels between patch centres, float64 `N N`, patches in row-major order.

    Raises:
        ValueError: patches of a negative size.

    >>> patch_distances((2, 2), (3, 4))[0]
    tensor([0., 4., 3., 5.], dtype=torch.float64)
    """
    height, width = np.broadcast_to(patch_size, 2).tolist()
    if min(height, width) < 0:
        raise ValueError(f"patch_distances: a patch of {height} x {width} px")
    rows, columns = torch.arange(grid[0]).double() * height, torch.arange(grid[1]).double() * width
    centres = torch.cartesian_prod(rows, columns)
    return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a tensor born in inference mode would be barred from autograd later
def _distances(
    grid: tuple[int, int], patch_size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Patch distances in the type and on the device of the maps."""
    return patch_distances(grid, patch_size).to(device, dtype)


@torch.no_grad()
def attention_pieces(record: Attention, prefix: int, apart: bool) -> Iterator[tuple[Tensor]]:
    """`patch_attention` of a captured layer, a few of its B * H maps at a time, in order.

    Args:
        record: from `capture`.
        prefix: tokens to drop; 0 gives the attention among all tokens.
        apart: whether maps come one by one, `P 1 N N`, or those of an image together, `P H N N`.
    """
    batch, heads, tokens, _ = record.query.shape
    limit = MAPS_CPU if record.query.device.type == "cpu" else MAPS_ACCELERATOR
    maps = torch.arange(batch * heads, device=record.query.device)
    query, key = (full_precision(x).flatten(0, 1)[:, None] for x in (record.query, record.key))
    maps_of = unchecked(patch_attention)
    bias = None if record.bias is None else _additive(record.bias, record.query)
    together = 1 if apart else heads
    for part in maps.split(max(1, limit // (together * tokens**2)) * together):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        piece = None if bias is None else bias[part // heads, part % heads][:, None]
        found = maps_of(query[rows], key[rows], prefix, piece, record.scale)
        yield (found.view(-1, together, *found.shape[2:]),)
