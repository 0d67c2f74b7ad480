"""Where self-attention looks: attention distance, normalised mutual information, entropy.

All three are statistics of the attention probabilities over patch tokens, `B H N N` (image, head, query,
key). On a tensor they are the pure functions below; while an encoder runs, `AttentionMaps` yields all three
from one softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nbhelpers.metrics.base import PerHeadMetric, at_least_float32, require_axes

if TYPE_CHECKING:
    from nbhelpers.capture import Attention

# Maps are processed in pieces of this many numbers: on CPU a piece stays in the L2 cache (measured 20 %
# faster than whole batches), on an accelerator it only bounds memory (256 MB in float32).
CHUNK = {"cpu": 160_000}
CHUNK_ACCELERATOR = 64_000_000


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
        prefix: number of leading class, distillation and register tokens.
        bias: additive (or boolean: True = may attend), broadcastable to `B H N N`.
        scale: s; default `D ** -0.5`.

    Returns:
        `B H N N` over the patch tokens, rows sum to 1. Half precision is computed in float32.

    Raises:
        ValueError: shapes that do not fit one another.

    Source: paper section 3; official notebook self_attention_analysis, cells 10 and 12 (with an epsilon).

    Example: keys that score log 1 and log 3 share a query's attention as 1 : 3.
        >>> query = torch.ones(1, 1, 3, 1)
        >>> key = torch.tensor([5.0, 0.0, math.log(3)]).reshape(1, 1, 3, 1)
        >>> patch_attention(query, key, prefix=1)
        tensor([[[[0.2500, 0.7500],
                  [0.2500, 0.7500]]]])
    """
    scaled_query, patch_key, patch_bias = _patches(query, key, prefix, bias, scale)
    logits = scaled_query @ patch_key.mT
    return (logits if patch_bias is None else logits + patch_bias).softmax(-1)


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

    Source: paper section 3; official notebook self_attention_analysis, cell 10.

    Example: two patches of 16 px side by side, attention half to oneself and half to the neighbour.
        >>> attention_distance(torch.full((1, 1, 2, 2), 0.5), grid=(1, 2), patch_size=16)
        tensor([[8.]])
    """
    attention = _probabilities(attention, "attention_distance")
    tokens = attention.shape[-1]
    if grid[0] * grid[1] != tokens:
        raise ValueError(
            f"attention_distance: a grid of {grid} has {grid[0] * grid[1]} patches, "
            f"attention (B H N N) = {tuple(attention.shape)} has {tokens}"
        )
    distances = patch_distances(grid, patch_size).to(attention)
    return (attention.flatten(2) @ distances.flatten()) / tokens


def normalized_mutual_information(attention: Tensor) -> Tensor:
    r"""Mutual information of query and key positions under a uniform query prior, normalised.

    .. math:: \mathrm{NMI} = \frac{I(q, k)}{\sqrt{H(q)\, H(k)}}, \quad p(q) = \frac{1}{N},
        \quad p(k) = \sum_q p(q) A_{qk}, \quad I(q, k) = H(k) - \frac{1}{N} \sum_q H(A_{q \cdot})

    Args:
        attention: probabilities `B H N N` over patch tokens, rows sum to 1; N at least 2.

    Returns:
        `B H` in 0..1: 0 when every query has the same map (attention collapse; also a uniform map), 1 when
        queries and keys are paired one to one.

    Raises:
        ValueError: not `B H N N`, a single token, rows that do not sum to 1 or are not finite.

    Source: paper section 3; official notebook self_attention_analysis, cell 12 (with an epsilon of 1e-8).

    Example: a permutation pairs queries with keys; equal maps tell nothing about the query.
        >>> normalized_mutual_information(torch.stack([torch.eye(4).flip(0), torch.full((4, 4), 0.25)])[None])
        tensor([[1., 0.]])
    """
    attention = _probabilities(attention, "normalized_mutual_information", least=2)
    return _nmi(torch.special.entr(attention).sum(-1), attention.mean(-2))


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
        >>> attention_entropy(torch.tensor([0.5, 0.5, 0.0, 0.0]).expand(1, 1, 4, 4))
        tensor([[0.5000]])
    """
    attention = _probabilities(attention, "attention_entropy", least=2)
    return _relative_entropy(torch.special.entr(attention).sum(-1))


def patch_distances(grid: tuple[int, int], patch_size: int | tuple[int, int]) -> Tensor:
    """Distances in pixels between patch centres, float64 `N N`, patches in row-major order.

    >>> patch_distances((2, 2), (3, 4))[0]
    tensor([0., 4., 3., 5.], dtype=torch.float64)
    """
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    rows, columns = torch.arange(grid[0]).double() * height, torch.arange(grid[1]).double() * width
    centres = torch.cartesian_prod(rows, columns)
    return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")


class AttentionMaps:
    """One depth's attention maps of a batch, as lazily computed statistics that metrics share.

    Distance, row entropy and key marginal come from one softmax, in pieces of a few maps: memory does not
    grow with the batch, and no map is kept. Every property is computed at its first use.

    Args:
        record: a `capture.Attention`.

    Raises:
        ValueError: tokens that are not prefix + grid, or shapes that do not fit one another.

    Example: with zero keys attention is uniform.
        >>> from types import SimpleNamespace
        >>> zeros = torch.zeros(1, 1, 3, 2)
        >>> record = SimpleNamespace(depth=1, query=zeros, key=zeros, value=zeros, output=zeros, bias=None,
        ...                          scale=1.0, prefix=1, grid=(1, 2), patch_size=(16, 16))
        >>> maps = AttentionMaps(record)
        >>> maps.distance, maps.key_marginal, maps.outputs.shape
        (tensor([[8.]]), tensor([[[0.5000, 0.5000]]]), torch.Size([1, 1, 2, 2]))
    """

    def __init__(self, record: Attention) -> None:
        tokens = record.prefix + record.grid[0] * record.grid[1]
        if record.query.shape[-2] != tokens:
            raise ValueError(
                f"AttentionMaps: query (B H N D) = {tuple(record.query.shape)} has another number of tokens "
                f"than {record.prefix} prefix tokens and a grid of {tuple(record.grid)} = {tokens}"
            )
        self.record = record
        self.depth, self.prefix = record.depth, record.prefix
        self.grid, self.patch_size = tuple(record.grid), tuple(record.patch_size)

    @cached_property
    def probabilities(self) -> Tensor:
        """Attention over patch tokens, `B H N N`: all heads at once, 90 MB for 12 heads of 1,369 tokens."""
        record = self.record
        return patch_attention(record.query, record.key, record.prefix, record.bias, record.scale)

    @property
    def outputs(self) -> Tensor:
        """Attention outputs of the patch tokens before the output projection, `B H N D`."""
        return self.record.output[:, :, self.prefix :]

    @property
    def row_entropy(self) -> Tensor:
        """Entropy of each query's attention, nats, `B H N`."""
        return self._statistics[0]

    @property
    def key_marginal(self) -> Tensor:
        """Attention that a key receives, mean over queries, `B H N`, sums to 1."""
        return self._statistics[1]

    @property
    def distance(self) -> Tensor:
        """Attention distance, px, `B H`."""
        return self._statistics[2]

    @property
    def patch_logsumexp(self) -> Tensor:
        """Log of each patch query's softmax denominator over the patch keys, `B H N`."""
        return self._statistics[3]

    @cached_property
    def prefix_share(self) -> Tensor:
        """Attention that each patch query pays to the prefix tokens in the full softmax, `B H N`."""
        record, prefix = self.record, self.prefix
        if prefix == 0:
            return torch.zeros_like(self.patch_logsumexp)
        query, key = (
            at_least_float32(record.query[:, :, prefix:]),
            at_least_float32(record.key[:, :, :prefix]),
        )
        logits = query @ key.mT * record.scale
        if record.bias is not None:
            logits = logits + _additive(record.bias, record.query, slice(prefix, None), slice(prefix)).to(
                logits
            )
        return (logits.logsumexp(-1) - self.patch_logsumexp).sigmoid()

    @torch.no_grad()
    def pieces(self) -> Iterator[Tensor]:
        """Attention over patch tokens, a few of the B * H maps at a time, `P N N`, in the order of `B H`.

        A piece is overwritten by the next one.
        """
        for logits, room in self._logits():
            yield torch.softmax(logits, -1, out=room)

    def _logits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Scaled and biased logits of the patch tokens, `CHUNK` numbers or one map at a time, and equal room.

        All pieces (P N N) share two buffers: taken from the heap one by one, they leave it full of holes.
        """
        record = self.record
        query, key, bias = _patches(record.query, record.key, record.prefix, record.bias, record.scale)
        batch, heads, tokens, _ = query.shape
        query, key = query.flatten(0, 1), key.flatten(0, 1)
        if bias is not None:
            bias = bias.expand(batch, heads, tokens, tokens)
        size = max(1, CHUNK.get(query.device.type, CHUNK_ACCELERATOR) // tokens**2)
        buffers = [query.new_empty(min(size, batch * heads), tokens, tokens) for _ in range(2)]
        for start in range(0, batch * heads, size):
            part = query[start : start + size]
            logits, room = (buffer[: len(part)] for buffer in buffers)
            torch.bmm(part, key[start : start + size].mT, out=logits)
            if bias is not None:
                maps = torch.arange(start, start + len(part), device=query.device)
                logits += bias[maps // heads, maps % heads]
            yield logits, room

    @cached_property
    @torch.no_grad()  # works in place, and is to keep no graph
    def _statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row entropy, key marginal, distance and log denominator from one pass over pieces of the maps."""
        columns = []
        for logits, room in self._logits():
            # Against the largest logit, both terms of the entropy are positive: nothing cancels.
            largest = logits.amax(-1, keepdim=True)
            attention = torch.softmax(logits.sub_(largest), -1, out=room)
            if self.record.bias is not None:
                logits.clamp_(min=torch.finfo(logits.dtype).min)  # a masked key: 0 * -inf would be NaN
            denominator = -attention.amax(-1).log()
            entropy = denominator - logits.mul_(attention).sum(-1)
            distances = _cached_distances(self.grid, self.patch_size, logits.dtype, logits.device)
            distance = attention.flatten(1) @ distances.flatten() / len(distances)
            columns.append((entropy, attention.mean(-2), distance, denominator + largest[..., 0]))
        heads = self.record.query.shape[1]
        entropy, marginal, distance, logsumexp = (
            torch.cat(column).unflatten(0, (-1, heads)) for column in zip(*columns, strict=True)
        )
        return entropy, marginal, distance, logsumexp


class AttentionDistance(PerHeadMetric):
    """`attention_distance` of any number of images, per depth and head, px."""

    name, unit, consumes = "attention_distance", "px", frozenset({"attention"})

    def update(self, maps: AttentionMaps) -> None:
        """Count one depth of a batch."""
        self.add(maps.depth, maps.distance)


class NormalizedMutualInformation(PerHeadMetric):
    """`normalized_mutual_information` of any number of images, per depth and head, 0..1."""

    name, unit, consumes = "nmi", "", frozenset({"attention"})

    def update(self, maps: AttentionMaps) -> None:
        """Count one depth of a batch."""
        self.add(maps.depth, _nmi(maps.row_entropy, maps.key_marginal))


class AttentionEntropy(PerHeadMetric):
    """`attention_entropy` of any number of images, per depth and head, 0..1."""

    name, unit, consumes = "attention_entropy", "", frozenset({"attention"})

    def update(self, maps: AttentionMaps) -> None:
        """Count one depth of a batch."""
        self.add(maps.depth, _relative_entropy(maps.row_entropy))


def _nmi(row_entropy: Tensor, key_marginal: Tensor) -> Tensor:
    """NMI from the entropies of the rows (B H N) and the mean row (B H N); 0 when all attend to one key."""
    key_entropy = torch.special.entr(key_marginal).sum(-1)
    information = (key_entropy - row_entropy.mean(-1)).clamp(min=0)  # rounding of equal maps
    normaliser = (key_entropy * math.log(key_marginal.shape[-1])).sqrt()
    return (information / normaliser.clamp(min=torch.finfo(normaliser.dtype).tiny)).clamp(max=1)


def _relative_entropy(row_entropy: Tensor) -> Tensor:
    """Mean row entropy (B H N) as a share of log N."""
    return (row_entropy.mean(-1) / math.log(row_entropy.shape[-1])).clamp(0, 1)


def _probabilities(attention: Tensor, name: str, least: int = 1) -> Tensor:
    """Attention (B H N N) in float32 or better; refused unless square, `least` tokens, rows that sum to 1."""
    require_axes(attention, "B H N N", name)
    if attention.shape[-1] != attention.shape[-2] or attention.shape[-1] < least:
        raise ValueError(
            f"{name}: expected attention over patch tokens of shape (B H N N) with N at least {least}, "
            f"got {tuple(attention.shape)}"
        )
    tolerance = 2e-2 if attention.dtype in (torch.float16, torch.bfloat16) else 1e-4
    attention = at_least_float32(attention)
    deviation = (attention.sum(-1) - 1).abs().amax()
    if not deviation <= tolerance:  # also where it is NaN
        raise ValueError(
            f"{name}: attention of shape {tuple(attention.shape)} is not finite, or its rows do not sum to 1 "
            f"(off by {deviation:.2g}); patch_attention() gives maps renormalised over the patch tokens"
        )
    return attention


def _patches(
    query: Tensor, key: Tensor, prefix: int, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scaled queries and keys (B H N D) and additive bias (broadcastable to B H N N) of the patch tokens."""
    require_axes(query, "B H N D", "patch_attention")
    if query.shape != key.shape or not 0 <= prefix < query.shape[-2]:
        raise ValueError(
            "patch_attention: query and key must have one shape (B H N D) with N above the number of prefix "
            f"tokens ({prefix}), got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    patches = slice(prefix, None)
    if bias is not None:
        bias = _additive(bias, query, patches, patches)
    query, key = at_least_float32(query[:, :, patches]), at_least_float32(key[:, :, patches])
    bias = None if bias is None else bias.to(query.dtype)
    return query * (query.shape[-1] ** -0.5 if scale is None else scale), key, bias


def _additive(bias: Tensor, query: Tensor, queries: slice, keys: slice) -> Tensor:
    """Part of a bias of all tokens as a term of the logits, four axes; axes of size 1 stay as they are."""
    batch, heads, tokens, _ = query.shape
    full = (batch, heads, tokens, tokens)
    sizes = zip(bias.shape[::-1], full[::-1], strict=False)
    if bias.ndim > 4 or any(size not in (1, whole) for size, whole in sizes):
        raise ValueError(
            f"patch_attention: bias {tuple(bias.shape)} does not broadcast to (B H N N) = {full}"
        )
    bias = bias[(None,) * (4 - bias.ndim)]
    bias = bias[:, :, queries] if bias.shape[2] > 1 else bias
    bias = bias[..., keys] if bias.shape[3] > 1 else bias
    if bias.dtype == torch.bool:
        return torch.zeros(bias.shape, device=bias.device).masked_fill(~bias, -torch.inf)
    return bias


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a tensor born in inference mode would be barred from autograd later
def _cached_distances(
    grid: tuple[int, int], patch_size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Patch distances in the type and on the device of the maps."""
    return patch_distances(grid, patch_size).to(device, dtype)
