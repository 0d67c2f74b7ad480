"""Attention that falls on an object, where masks are known: which patches, which queries, how much."""

import torch
from torch import Tensor

from nbhelpers.metrics.base import takes
from nbhelpers.models import Encoder


@takes("B H Q K", "B K", rows_sum_to_one=True)
def object_attention(attention: Tensor, on_object: Tensor) -> Tensor:
    r"""Share of each query's attention that falls on the patches of an object.

    .. math:: m_q = \sum_{k \in \mathrm{object}} A_{qk}

    Args:
        attention: probabilities `B H Q K`, rows sum to 1; any queries over any keys.
        on_object: bool `B K`, which keys lie on the object.

    Returns:
        `B H Q` in 0..1; uniform attention has the object's share of the keys.

    Raises:
        ValueError: shapes that do not fit, rows that do not sum to 1 or are not finite.

    Example: a query that attends to three patches, of which the first two are the object.
        >>> attention = torch.tensor([[[[0.5, 0.25, 0.25]]]])
        >>> object_attention(attention, torch.tensor([[True, True, False]]))
        tensor([[[0.7500]]])
    """
    return torch.einsum("bhqk,bk->bhq", attention, on_object.bool().to(attention))


def patch_masks(masks: Tensor, grid: tuple[int, int], sides: tuple[float, float] | None = None) -> Tensor:
    """Whether at least half of a patch is object: masks `N H W` -> `N P`, patches in row order.

    The grid covers the masks exactly, unless `sides` gives height and width of a patch in px of the masks.
    What lies beyond a mask is no object.

    >>> masks = torch.tensor([[[1, 1, 0, 1], [1, 0, 0, 0]]], dtype=torch.bool)
    >>> patch_masks(masks, (1, 2)).tolist()
    [[True, False]]
    """
    size = masks.shape[1:]
    sides = [pixels / patches for pixels, patches in zip(size, grid, strict=True)] if sides is None else sides
    down, across = map(_overlaps, size, grid, sides)
    shares = torch.einsum("nhw,rh,cw->nrc", masks.double(), down, across).flatten(1)
    return shares >= 0.5 - 1e-9  # rounding must not decide about a half


def _overlaps(pixels: int, patches: int, side: float) -> Tensor:
    """Which share of each patch, float64 `P N`, lies in each of the pixels of an axis.

    >>> _overlaps(3, 2, 1.5).tolist() == [[2 / 3, 1 / 3, 0.0], [0.0, 1 / 3, 2 / 3]]
    True
    """
    pixel, patch = (torch.arange(count, dtype=torch.float64) for count in (pixels, patches))
    end = torch.minimum(pixel + 1, side * (patch[:, None] + 1))
    return (end - torch.maximum(pixel, side * patch[:, None])).clamp(min=0) / side


def object_tokens(encoder: Encoder, masks: Tensor) -> Tensor:
    """Which tokens lie on the object, `B N`, of masks `B H W` seen as the encoder sees their images.

    Prefix tokens, which come first, count as not on the object.
    """
    parts = []
    for some in masks.split(256):  # all of them at the size of a large encoder would not fit in memory
        seen = encoder.resize(255 * some[:, None].to(torch.uint8))[:, 0] > 127
        parts.append(patch_masks(seen, encoder.grid, encoder.patch_size))
    patches = torch.cat(parts)
    return torch.cat([patches.new_zeros(len(masks), encoder.prefix), patches], 1).to(encoder.device)


def queries_by_kind(encoder: Encoder, on_object: Tensor) -> dict[str, Tensor]:
    """Which queries are the class token, patches of the object, patches of the background: `B N` each.

    Example: a class token and three patches, of which the first is the object.
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(prefix=1, has_class_token=True)
        >>> kinds = queries_by_kind(encoder, torch.tensor([[False, True, False, False]]))
        >>> kinds["background patches"].tolist()
        [[False, False, True, True]]
    """
    class_token, patch = torch.zeros_like(on_object), torch.ones_like(on_object)
    class_token[:, :1] = encoder.has_class_token  # it comes first, where there is one
    patch[:, : encoder.prefix] = False
    kinds = {"class token": class_token, "object patches": on_object}
    return kinds | {"background patches": patch & ~on_object}


def object_prior(on_object: Tensor, every: Tensor) -> Tensor:
    r"""How often a key lies on the objects of other images: what a map has on its own owing to place.

    .. math:: p_{qk} = a + \langle o'_k - a' \rangle

    with $o'_k$ whether key $k$ lies on another image's object, $a'$ the share of its tokens that do and $a$
    the same of the query's own image, so that no difference in size counts. The mean is over the images that
    are alike in query $q$: on their objects where it lies on its own, else (a class token, too) those on
    whose objects it does not lie.

    Args:
        on_object: bool `B N`, which tokens lie on the object, of some images.
        every: the same of all images, these included, `M N`.

    Returns:
        `B N N`, queries by keys; NaN in rows of queries that no other image has alike.

    Example: objects of two tokens; the first token of the first image lies on that of the second, too.
        >>> every = torch.tensor([[True, True, False], [True, False, True]])
        >>> object_prior(every[:1], every)[0].abs().round(decimals=3).tolist()
        [[1.0, 0.0, 1.0], [nan, nan, nan], [nan, nan, nan]]
    """
    all_on, area = every.float(), on_object.float().mean(1)[:, None, None]
    beyond = all_on - all_on.mean(1, keepdim=True)  # M N
    total, with_query = beyond.sum(0), all_on.mT @ beyond  # of all images, of those with the query on it
    query_on, count = on_object[:, :, None], all_on.sum(0)[:, None]
    images = torch.where(query_on, count, len(every) - count) - 1  # without its own
    others = torch.where(query_on, with_query, total - with_query) - (on_object[:, None].float() - area)
    return area + others / images
