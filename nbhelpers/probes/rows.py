"""What all probe frames share: labels by name, who was probed, and a binomial interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scipy.stats import binomtest
from torch import Tensor

if TYPE_CHECKING:
    from nbhelpers.images.source import ImageSource
    from nbhelpers.models.encoder import Encoder


def labels_of(source: ImageSource, label: str) -> Tensor:
    """The labels `N` of that name; an unknown name is answered with those the source has."""
    if label not in source.labels:
        raise ValueError(f"{source.name} has no label {label!r}; it has {sorted(source.labels) or 'none'}")
    return source.labels[label]


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `images` trials (E. B. Wilson, JASA 1927).

    >>> [round(bound, 4) for bound in wilson(50, 100)]
    [0.4038, 0.5962]
    """
    interval = binomtest(int(correct), int(images)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def identity(encoder: Encoder, source: ImageSource) -> dict[str, object]:
    """Columns that say which model was probed on which study (`shapes/test` belongs to study `shapes`)."""
    study = source.name if ":" in source.name else source.name.split("/")[0]
    return {"study": study, "model": encoder.name, "objective": encoder.objective, "seed": encoder.seed}
