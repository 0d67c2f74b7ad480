"""Shape or texture: which cue a linear probe follows when the two disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.intervals import wilson
from nbhelpers.measure import identified
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.features import Pool, features
from nbhelpers.probes.linear import STRENGTHS, predictor
from nbhelpers.probes.rows import labels_of, predictions

COUNTS = ("shape_decisions", "texture_decisions", "covered")


class ShapeBias(NamedTuple):
    """Shape bias with its 95 % interval, and the share of conflict trials it rests on; all in [0, 1]."""

    bias: float
    low: float
    high: float
    covered: float


def decisions(predicted: Tensor, shape: Tensor, texture: Tensor) -> tuple[int, int, int]:
    """Numbers of (shape decisions, texture decisions, conflict trials) of predictions and cues `N`.

    Trials whose two cues agree are dropped; what is neither cue counts as a trial only.

    Raises:
        ValueError: for shapes that differ, or no trial in conflict.

    >>> decisions(torch.tensor([1, 2, 0, 1]), torch.tensor([1, 1, 1, 1]), torch.tensor([2, 2, 2, 1]))
    (1, 1, 3)
    """
    if not predicted.shape == shape.shape == texture.shape or predicted.ndim != 1:
        shapes = [tuple(x.shape) for x in (predicted, shape, texture)]
        raise ValueError(f"predicted, shape and texture must all be N; got {shapes}")
    conflict = shape != texture
    if not conflict.any():
        raise ValueError(f"none of {len(shape)} trials has a shape that differs from its texture")
    on_shape, on_texture = ((conflict & (predicted == cue)).sum() for cue in (shape, texture))
    return int(on_shape), int(on_texture), int(conflict.sum())


def shape_bias(
    predicted: Tensor, shape: Tensor, texture: Tensor, resamples: int = 2000, seed: int = 0
) -> ShapeBias:
    r"""Share of shape decisions among the decisions for either cue, for predictions and cues `N`.

    $\mathrm{bias} = n_s / (n_s + n_t)$ from the numbers of shape and of texture decisions over the n trials
    whose cues conflict; $\mathrm{covered} = (n_s + n_t) / n$. 0 = texture alone, 1 = shape alone. The
    interval is the percentile bootstrap over trials (Geirhos et al. 2019, section 3).

    Raises:
        ValueError: as `decisions`, or when no decision is for either cue.

    >>> shape_bias(torch.tensor([1, 1, 1, 2, 0]), torch.ones(5), torch.full((5,), 2))[::3]
    (0.75, 0.8)
    """
    on_shape, on_texture, trials = decisions(predicted, shape, texture)
    if on_shape + on_texture == 0:
        raise ValueError(f"in none of {trials} conflict trials was the decision the shape or the texture")
    # Redrawing trials with replacement redraws the three counts from a multinomial.
    shares = np.array([on_shape, on_texture, trials - on_shape - on_texture]) / trials
    draws = np.random.default_rng(seed).multinomial(trials, shares, resamples)[:, :2]
    draws = draws[draws.sum(1) > 0]
    low, high = np.quantile(draws[:, 0] / draws.sum(1), [0.025, 0.975])
    covered = on_shape + on_texture
    return ShapeBias(on_shape / covered, float(low), float(high), covered / trials)


def agreeing(source: ImageSource, conflict: ImageSource) -> tuple[ImageSource, Tensor]:
    """The images whose cues agree, and the cue's number `N` as `conflict` numbers it.

    Of a source with labels shape and texture: those where both have the same number. Of photographs with a
    label class: those of the classes that `conflict` shows.

    Raises:
        ValueError: for a source without these labels, without a class that `conflict` shows, or without an
            image whose cues agree.
    """
    if not {"shape", "texture"} <= set(source.labels):
        photographs = source.restrict(conflict.classes["shape"])
        return photographs, photographs.labels["class"]
    same = torch.nonzero(source.labels["shape"] == source.labels["texture"]).flatten()
    if len(same) == 0:
        raise ValueError(f"{source.name} has no image whose shape and texture have the same number")
    return source.select(same), source.labels["shape"][same]


def shape_bias_by_depth(
    encoder: Encoder,
    train: ImageSource,
    validation: ImageSource,
    conflict: ImageSource,
    depths: Sequence[int] | None = None,
    pool: Pool = "mean",
    norm: bool = False,
    strengths: Sequence[float] = STRENGTHS,
) -> pd.DataFrame:
    """Shape bias of a linear probe at every depth.

    The probe learns from the images of `train` whose cues agree (`agreeing`): generated images whose shape
    and texture have the same number, or photographs. It is tested where the labels shape and texture of
    `conflict` differ: other generated images, or cue-conflict stimuli.

    Columns: `study model objective seed metric depth label pool norm value low high images`; metric is
    "shape_bias" (bootstrap interval), "shape_decisions", "texture_decisions" or "covered" (shares of the
    trials, Wilson's interval); label is "shape/texture", images the number of conflict trials, and study that
    of `train`. NaN where no probe could be fitted, the bias also where no decision is for either cue.
    Raises the errors of `features`, `fit_linear` and `agreeing`.
    """
    shape, texture = labels_of(conflict, "shape"), labels_of(conflict, "texture")
    trials = torch.nonzero(shape != texture).flatten()
    if len(trials) == 0:
        raise ValueError(f"{conflict.name} has no trial whose shape differs from its texture")
    learn, targets = zip(*(agreeing(source, conflict) for source in (train, validation)), strict=True)
    tests = {"": (encoder, conflict.select(trials))}
    read, fit = partial(features, pool=pool, norm=norm, finite=False), partial(predictor, strengths=strengths)
    rows = [
        {"metric": metric, "depth": depth, "label": label, "pool": pool, "norm": norm}
        | {"value": value, "low": low, "high": high, "images": len(trials)}
        for _, label, depth, predicted in predictions(
            encoder, learn, tests, {"shape/texture": targets}, read, fit, depths
        )
        for metric, value, low, high in _summary(predicted, shape[trials], texture[trials])
    ]
    return identified(pd.DataFrame(rows), encoder, train)


def _summary(
    predicted: Tensor | None, shape: Tensor, texture: Tensor
) -> Iterator[tuple[str, float, float, float]]:
    """Rows (metric, value, low, high) of one depth; NaN where nothing was predicted, or neither cue."""
    nothing = (math.nan,) * 3
    if predicted is None:
        yield from ((name, *nothing) for name in ("shape_bias", *COUNTS))
        return
    on_shape, on_texture, trials = decisions(predicted, shape, texture)
    covered = on_shape + on_texture
    yield "shape_bias", *(shape_bias(predicted, shape, texture)[:3] if covered else nothing)
    for name, count in zip(COUNTS, (on_shape, on_texture, covered), strict=True):
        yield name, count / trials, *wilson(count, trials)
