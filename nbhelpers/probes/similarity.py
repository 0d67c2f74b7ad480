"""Do two encoders represent images alike: linear CKA between all depths of one and all of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.intervals import mean_interval
from nbhelpers.measure import identified
from nbhelpers.metrics.cka import alignments, gram
from nbhelpers.models import Encoder
from nbhelpers.probes.features import Pool, features
from nbhelpers.probes.rows import row

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
        at most about 1 (features that agree up to rotation and scale) and about 0 for unrelated ones; NaN for
        features that do not vary.

    Raises:
        ValueError: for fewer than 40 images, or the errors of `features`.

    Source: `nbhelpers.metrics.linear_cka`.
    """
    if len(images) < 4 * PARTS:
        raise ValueError(f"cka_by_depth: needs at least {4 * PARTS} images, got {len(images)}")

    def parts(seen_by: Encoder) -> list[Tensor]:
        layers = features(seen_by, images, pool=pool)  # L+1 N D
        return [gram(layers[:, start::PARTS]) for start in range(PARTS)]

    ours, rows = parts(encoder), []
    for other in others:
        theirs = ours if other is encoder else parts(other)
        values = torch.stack([alignments(*pair) for pair in zip(ours, theirs, strict=True)])
        found = np.stack(mean_interval(values.numpy()), axis=-1)
        rows += [
            {"metric": "cka", "depth": depth, "other": other.name, "other_depth": other_depth}
            | row(*found[depth, other_depth], len(images))
            for depth, other_depth in np.ndindex(found.shape[:2])
        ]
    return identified(pd.DataFrame(rows), encoder, images)
