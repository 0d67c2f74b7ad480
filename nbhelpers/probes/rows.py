"""The loop and the rows that all probes share: fit at every depth, predict, score, in one frame format.

A new probe is a function `fit(train, validation)` of two pairs (features, labels) that returns a predictor;
`accuracy_by_depth` makes its frame.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.intervals import wilson
from nbhelpers.measure import identified
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.features import Read, checked_depths

Predictor = Callable[[Tensor], Tensor]
Fit = Callable[..., Predictor]
Test = tuple[
    Encoder, ImageSource
]  # what is looked at, and by whom: a probe may be tested on changed features
MEMORY = 2**30  # bytes that the features of the depths that are held together may take


class Undefined(ValueError):
    """Features that no probe can be fitted to: not finite, or the same for every image."""


def labels_of(source: ImageSource, label: str) -> Tensor:
    """The labels `N` of that name; an unknown name is answered with those the source has."""
    if label not in source.labels:
        raise ValueError(f"{source.name} has no label {label!r}; it has {sorted(source.labels) or 'none'}")
    return source.labels[label]


def label_names(label: str | Sequence[str]) -> list[str]:
    """One label name or several, as a list."""
    return [label] if isinstance(label, str) else list(label)


def accuracy(predicted: Tensor | None, labels: Tensor) -> dict[str, float | int]:
    """Columns `value low high images`: share of predictions `N` equal to the labels `N`, Wilson's interval.

    All NaN where there are no predictions.

    >>> import torch
    >>> accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 0]))["value"]
    0.75
    """
    images = len(labels)
    if predicted is None:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "images": images}
    if predicted.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels for {len(predicted)} predictions")
    correct = int((predicted.cpu() == labels.cpu()).sum())
    low, high = wilson(correct, images)
    return {"value": correct / images, "low": low, "high": high, "images": images}


def predictions(
    encoder: Encoder,
    learn: Sequence[ImageSource],
    tests: Mapping[Hashable, Test],
    targets: Mapping[str, Sequence[Tensor]],
    read: Read,
    fit: Fit,
    depths: Sequence[int] | None = None,
) -> Iterator[tuple[Any, str, int, Tensor | None]]:
    """Fit a probe at every depth for every label, and predict the tests: `(test, label, depth, predicted)`.

    The encoder runs once for as many depths as fit `MEMORY`. Where a probe is `Undefined`, a warning says why
    and the prediction is None.

    Args:
        encoder: the frozen model.
        learn: images to learn from, and, for probes that choose something, to choose on.
        tests: images to predict, by a key of the caller.
        targets: for each label, what to predict for the images of `learn`.
        read: features of each depth, such as `features` and `patch_tokens`.
        fit: the probe.
        depths: default all of 0..L.
    """
    remaining = checked_depths(encoder, depths)
    images = sum(map(len, learn)) + max(len(source) for _, source in tests.values())
    together = max(1, MEMORY // (images * read(encoder, learn[0].select([0]), remaining[:1])[0].nbytes))
    while remaining:
        chosen, remaining = remaining[:together], remaining[together:]
        layers = [read(encoder, source, chosen) for source in learn]
        probes = {
            (label, depth): _attempt(
                f"{encoder.name}, depth {depth}, {label}",
                fit,
                *((x[place], y) for x, y in zip(layers, goals, strict=True)),
            )
            for label, goals in targets.items()
            for place, depth in enumerate(chosen)
        }
        for key, (viewer, source) in tests.items():
            layer = dict(zip(chosen, read(viewer, source, chosen), strict=True))
            for (label, depth), probe in probes.items():
                where = f"{viewer.name}, depth {depth}, {label}, {source.name}"
                predicted = probe and _attempt(where, probe, layer[depth])
                yield key, label, depth, predicted


def _attempt(where: str, function: Callable, *arguments: object) -> Any:
    """The function's result; None, with a warning, where it is `Undefined`."""
    try:
        return function(*arguments)
    except Undefined as reason:
        warnings.warn(f"{where}: {reason}; its rows are NaN", stacklevel=2)
        return None


def accuracy_by_depth(
    metric: str,
    encoder: Encoder,
    learn: Sequence[ImageSource],
    test: ImageSource,
    label: str | Sequence[str],
    read: Read,
    fit: Fit,
    depths: Sequence[int] | None = None,
    **columns: object,
) -> pd.DataFrame:
    """Accuracy of a probe at every depth for one label or several: the frame of a probe.

    Columns: `study model objective seed metric depth label`, `columns`, `value low high images`.

    Raises:
        ValueError: a label that the images lack, a class to be recognised that the training images lack, or
            as `read` and `fit` raise.
    """
    targets = {name: [labels_of(source, name) for source in (*learn, test)] for name in label_names(label)}
    for name, (known, *_, asked) in targets.items():
        if unseen := sorted({*asked.tolist()} - {*known.tolist()}):
            names = ", ".join(test.classes[name][number] for number in unseen)
            raise ValueError(f"{test.name} shows {name} {names}, of which there is no image to learn from")
    learnt = {name: goals[:-1] for name, goals in targets.items()}
    rows = [
        {"metric": metric, "depth": depth, "label": name, **columns} | accuracy(predicted, targets[name][-1])
        for _, name, depth, predicted in predictions(
            encoder, learn, {"": (encoder, test)}, learnt, read, fit, depths
        )
    ]
    return identified(pd.DataFrame(rows), encoder, test)
