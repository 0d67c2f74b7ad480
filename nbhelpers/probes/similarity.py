"""Do two encoders represent images alike: linear CKA between all depths of one and all of another."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.metrics.cka import CKA
from nbhelpers.models import Encoder
from nbhelpers.probes.features import Pool, features
from nbhelpers.probes.rows import identity

PARTS = 10  # of the images, each of which gives a value of its own


def cka_by_depth(
    encoder: Encoder, others: Sequence[Encoder], images: ImageSource, pool: Pool = "mean"
) -> pd.DataFrame:
    r"""Linear CKA of pooled features between every depth of an encoder and every depth of each other one.

    The images `N C H W` are dealt into ten parts. The value is the mean over parts, :math:`\bar c \pm
    t_{0.975, 9}\, s / \sqrt{10}` its 95 % interval. The HSIC inside is unbiased, so small parts do not
    raise it.

    Args:
        encoder: one side.
        others: the other sides, one after the other.
        images: at least 40, since a part needs four.
        pool: as in `features`.

    Returns:
        Tidy frame `study model objective seed metric depth other other_depth value low high images`; values
        at most about 1 (features that agree up to rotation and scale) and about 0 for unrelated ones.

    Raises:
        ValueError: for fewer than 40 images, or features that do not vary over them.

    Source: `nbhelpers.metrics.linear_cka`.
    """
    if len(images) < 4 * PARTS:
        raise ValueError(f"cka_by_depth: needs at least {4 * PARTS} images, got {len(images)}")
    ours = _parts(features(encoder, images, pool=pool))
    frames = []
    for other in others:
        theirs = _parts(features(other, images, pool=pool))
        values = []
        for one, two in zip(ours, theirs, strict=True):
            cka = CKA(first=len(one), second=len(two))
            cka.update(list(one), list(two))
            values.append(cka.compute().set_index(["first", "second"])["value"])
        table = pd.concat(values, axis=1)
        mean, half = table.mean(axis=1), stdtrit(PARTS - 1, 0.975) * table.sem(axis=1)
        frame = pd.DataFrame({"value": mean, "low": mean - half, "high": mean + half}).reset_index()
        frame = frame.rename(columns={"first": "depth", "second": "other_depth"})
        frames.append(frame.assign(metric=CKA.name, other=other.name, images=len(images)))
    columns = ["metric", "depth", "other", "other_depth", "value", "low", "high", "images"]
    who = identity(encoder, images)
    return pd.concat(frames, ignore_index=True).assign(**who)[[*who, *columns]]


def _parts(rows: Tensor) -> list[Tensor]:
    """Features `L+1 N D` dealt into parts `L+1 n D`."""
    dealt = [torch.arange(start, rows.shape[1], PARTS) for start in range(PARTS)]
    return [rows[:, indices] for indices in dealt]
