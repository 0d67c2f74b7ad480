"""What all probe frames share: labels by name, who was probed, and a binomial interval."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.models.encoder import Encoder


def labels_of(source: ImageSource, label: str) -> Tensor:
    """The labels `N` of that name; an unknown name is answered with those the source has."""
    if label not in source.labels:
        raise ValueError(f"{source.name} has no label {label!r}; it has {sorted(source.labels) or 'none'}")
    return source.labels[label]


def label_names(label: str | Sequence[str]) -> list[str]:
    """One label name or several, as a list."""
    return [label] if isinstance(label, str) else list(label)


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `images` trials (E. B. Wilson, JASA 1927).

    >>> [round(bound, 4) for bound in wilson(50, 100)]
    [0.4038, 0.5962]
    """
    interval = binomtest(int(correct), int(images)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def accuracy(predicted: Tensor, labels: Tensor) -> dict[str, float | int]:
    """Columns `value low high images` of a row: share of predictions `N` equal to the labels `N`.

    >>> import torch
    >>> accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 0]))["value"]
    0.75
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels for {len(predicted)} predictions")
    correct, images = int((predicted.cpu() == labels.cpu()).sum()), len(labels)
    low, high = wilson(correct, images)
    return {"value": correct / images, "low": low, "high": high, "images": images}


def identity(encoder: Encoder, source: ImageSource) -> dict[str, object]:
    """Columns that say which model was probed on which study (`shapes/test` belongs to study `shapes`)."""
    study = source.name if ":" in source.name else source.name.split("/")[0]
    return {"study": study, "model": encoder.name, "objective": encoder.objective, "seed": encoder.seed}
