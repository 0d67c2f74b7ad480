"""The loop and the rows that all probes share: fit at every depth, predict, score, in one frame format.

A new probe is a function `fit(train, validation)` of pairs (features, labels) that returns a predictor;
`by_depth` makes its frame, with `accuracies` for its score.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.intervals import wilson
from nbhelpers.measure import identified
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.features import checked_depths, features

Predictor = Callable[[Tensor], Tensor]
Row = dict[str, Any]
Score = Callable[[dict[Any, Tensor | None], Tensor], Iterable[tuple[Row, Row]]]
MEMORY = 2**30  # bytes that the features of the depths that are held together may take


class Undefined(ValueError):
    """Features that no probe can be fitted to: not finite, or the same for every image."""


def labels_of(source: ImageSource, label: str) -> Tensor:
    """The labels `N` of that name; an unknown name is answered with those the source has."""
    if label not in source.labels:
        raise ValueError(f"{source.name} has no label {label!r}; it has {sorted(source.labels) or 'none'}")
    return source.labels[label]


def targets_of(sources: Sequence[ImageSource], label: str | Sequence[str]) -> dict[str, list[Tensor]]:
    """The labels `N` of each source, by the name of the label, or of several.

    Raises:
        ValueError: a label that a source lacks, or a class that the last one shows and the first does not.
    """
    targets, test = {}, sources[-1]
    for name in [label] if isinstance(label, str) else label:
        known, *_, asked = targets[name] = [labels_of(source, name) for source in sources]
        if unseen := sorted({*asked.tolist()} - {*known.tolist()}):
            names = ", ".join(test.classes[name][number] for number in unseen)
            raise ValueError(f"{test.name} shows {name} {names}, of which there is no image to learn from")
    return targets


def checked(name: str, x: Tensor, layout: str, labels: Tensor | None = None) -> Tensor:
    """Features, if they are finite and have the layout, such as "N P D", and as many labels as images."""
    if x.ndim != len(layout.split()) or (labels is not None and len(labels) != len(x)):
        wrong = "" if labels is None else f" with a label for each; got {len(labels)} {name}_labels"
        raise ValueError(f"{name} features must be {layout}{wrong}; they are {tuple(x.shape)}")
    if not x.isfinite().all():
        raise Undefined(f"non-finite {name} features {tuple(x.shape)}")
    return x


def accuracy(predicted: Tensor | None, labels: Tensor) -> Row:
    """Columns `value low high images`: share of predictions `N` equal to the labels `N`, Wilson's interval.

    All NaN where there are no predictions.

    >>> accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 0]))["value"]
    0.75
    """
    if predicted is None:
        return row(math.nan, math.nan, math.nan, len(labels))
    if predicted.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels for {len(predicted)} predictions")
    correct = int((predicted.cpu() == labels.cpu()).sum())
    return row(correct / len(labels), *wilson(correct, len(labels)), len(labels))


def accuracies(metric: str) -> Score:
    """The score of probes that predict one test: a row with the accuracy, under that name."""
    return lambda predicted, truth: [({"metric": metric}, accuracy(predicted[""], truth))]


def row(value: float, low: float, high: float, images: int) -> Row:
    """The columns that every row of a probe ends with."""
    return {"value": value, "low": low, "high": high, "images": images}


def by_depth(
    encoder: Encoder,
    learn: Sequence[ImageSource],
    tests: Mapping[Hashable, tuple[Encoder, ImageSource]],
    targets: Mapping[str, Sequence[Tensor]],
    fit: Callable[..., Predictor],
    score: Score,
    depths: Sequence[int] | None,
    pool: str,
    norm: bool,
) -> pd.DataFrame:
    """Fit a probe at every depth for every label, predict the tests, and score: the frame of a probe.

    The encoder runs once for as many depths as fit `MEMORY`. Where a probe is `Undefined`, a warning says why
    and the prediction is None.

    Args:
        encoder: the frozen model.
        learn: images to learn from, and, for probes that choose something, to choose on.
        tests: images to predict and the encoder that sees them, by a key of the caller.
        targets: for each label, what to predict for the images of `learn`, and for those of the tests.
        fit: the probe; gets a pair (features, targets) for each of `learn`.
        score: rows (first columns, last columns) of the predictions by test, and their targets.
        depths: default all of 0..L.
        pool: as in `features`, where "none" and "query" are all patch tokens, in half precision.
        norm: as in `features`.

    Returns:
        Columns `study model objective seed`, those that `score` puts first, `depth label pool norm`, and its
        last ones.
    """

    def read(viewer: Encoder, source: ImageSource, chosen: Sequence[int]) -> dict[int, Tensor]:
        as_read, dtype = ("none", torch.float16) if pool in ("none", "query") else (pool, torch.float32)
        return dict(zip(chosen, features(viewer, source, chosen, as_read, norm, dtype=dtype), strict=True))

    rows, remaining = [], checked_depths(encoder, depths)
    images = sum(map(len, learn)) + max(len(source) for _, source in tests.values())
    one = read(encoder, learn[0].select([0]), remaining[:1])[remaining[0]]
    together = max(1, MEMORY // (images * one.nbytes))
    while remaining:
        chosen, remaining = remaining[:together], remaining[together:]
        layers = [read(encoder, source, chosen) for source in learn]
        probes, predicted = {}, {(label, depth): {} for label in targets for depth in chosen}
        for label, depth in predicted:
            pairs = [(layer[depth], goal) for layer, goal in zip(layers, targets[label], strict=False)]
            probes[label, depth] = _attempt(f"{encoder.name}, depth {depth}, {label}", fit, *pairs)
        for key, (viewer, source) in tests.items():
            layer = read(viewer, source, chosen)
            for (label, depth), probe in probes.items():
                where = f"{viewer.name}, depth {depth}, {label}, {source.name}"
                predicted[label, depth][key] = probe and _attempt(where, probe, layer[depth])
        for (label, depth), found in predicted.items():
            place = {"depth": depth, "label": label, "pool": pool, "norm": norm}
            rows += [first | place | last for first, last in score(found, targets[label][-1])]
    return identified(pd.DataFrame(rows), encoder, learn[0])


def _attempt(where: str, function: Callable, *arguments: object) -> Any:
    """The function's result; None, with a warning, where it is `Undefined`."""
    try:
        return function(*arguments)
    except Undefined as reason:
        warnings.warn(f"{where}: {reason}; its rows are NaN", stacklevel=2)
        return None
