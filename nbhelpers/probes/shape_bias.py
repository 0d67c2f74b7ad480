"""Shape or texture: which cue a linear probe follows when the two disagree."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from nbhelpers.images.source import PICTURES, ImageSource, labels_of
from nbhelpers.intervals import independent_trials, wilson
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.layers import Row, by_depth, row
from nbhelpers.probes.linear import fit_linear

UNKNOWN = (math.nan,) * 3  # a value without trials, and its interval


class ShapeBias(NamedTuple):
    """Shape bias with its 95 % interval, and the share of conflict trials it rests on; all in [0, 1]."""

    bias: float
    low: float
    high: float
    covered: float


def shape_bias(
    predicted: Tensor, shape: Tensor, texture: Tensor, pictures: Sequence[Tensor] = ()
) -> ShapeBias:
    r"""Share of shape decisions among the decisions for either cue, for predictions and cues `N`.

    $\mathrm{bias} = n_s / (n_s + n_t)$ from the numbers of shape and of texture decisions over the n trials
    whose cues conflict; $\mathrm{covered} = (n_s + n_t) / n$. 0 = texture alone, 1 = shape alone, NaN where
    no decision is for either cue (Geirhos et al. 2019, section 3). The interval is Wilson's, over the
    decisions for either cue; where trials share `pictures`, over as many as `independent_trials` says.

    Args:
        predicted: `N`.
        shape: `N`.
        texture: `N`.
        pictures: which picture each trial has its shape from, and which its texture, `N` each.

    Raises:
        ValueError: for shapes that differ, or no trial in conflict.

    >>> shape_bias(torch.tensor([1, 1, 1, 2, 0]), torch.ones(5), torch.full((5,), 2))[::3]
    (0.75, 0.8)
    """
    given = (predicted, shape, texture, *pictures)
    shapes = [tuple(x.shape) for x in given]
    if predicted.ndim != 1 or len({*shapes}) > 1:
        raise ValueError(f"predicted, shape, texture and pictures must all be N; got {shapes}")
    conflict = shape != texture
    if not conflict.any():
        raise ValueError(f"none of {len(shape)} trials has a shape that differs from its texture")
    on_shape = predicted == shape
    decided = conflict & (on_shape | (predicted == texture))
    bias = _share(on_shape[decided], [picture[decided] for picture in pictures])
    return ShapeBias(*bias, int(decided.sum()) / int(conflict.sum()))


def _share(hits: Tensor, pictures: Sequence[Tensor]) -> tuple[float, float, float]:
    """A share of trials `N` with its interval; all NaN where there are none."""
    if not len(hits):
        return UNKNOWN
    share = int(hits.sum()) / len(hits)
    return share, *wilson(share, independent_trials(hits, pictures))


def agreeing(source: ImageSource, conflict: ImageSource) -> tuple[ImageSource, Tensor]:
    """The images whose cues agree, and the cue's number `N` as `conflict` numbers it.

    Of a source with labels shape and texture: those where both have the same number. Of photographs with a
    label class: those of the classes that `conflict` shows.

    Raises:
        ValueError: for a source without these labels, without a class that `conflict` shows, without an image
            whose cues agree, or with other classes, by whose numbers nothing can agree.
    """
    if not {"shape", "texture"} <= set(source.labels):
        photographs = source.restrict(conflict.classes["shape"])
        return photographs, photographs.labels["class"]
    if any(source.classes[cue] != conflict.classes[cue] for cue in ("shape", "texture")):
        way = "choose by select(), which leaves the numbers as they are"
        raise ValueError(f"{source.name} and {conflict.name} number shapes or textures differently: {way}")
    same = torch.nonzero(source.labels["shape"] == source.labels["texture"]).flatten()
    if len(same) == 0:
        raise ValueError(f"{source.name} has no image whose shape and texture have the same number")
    return source.select(same), source.labels["shape"][same]


def shape_bias_by_depth(
    encoder: Encoder, train: ImageSource, validation: ImageSource, conflict: ImageSource, **reading: Any
) -> pd.DataFrame:
    """Shape bias of a linear probe at every depth; `reading` is `depths`, `pool`, `norm`, as in `features`.

    The probe learns from the images of `train` whose cues agree (`agreeing`): generated images whose shape
    and texture have the same number, or photographs. It is tested where the labels shape and texture of
    `conflict` differ: other generated images, or cue-conflict stimuli.

    Columns: `study model objective seed metric depth label pool norm value low high images`; metric is
    "shape_bias", or a share of the trials: "shape_decisions", "texture_decisions" or "covered", all with
    intervals as of `shape_bias`, which heed the labels that `PICTURES` names. Label is "shape/texture",
    images the number of conflict trials, and study that of `train`. NaN where no probe could be fitted, the
    bias also where no decision is for either cue. Raises the errors of `features`, `fit_linear` and
    `agreeing`.
    """
    shape, texture = labels_of(conflict, "shape"), labels_of(conflict, "texture")
    trials = torch.nonzero(shape != texture).flatten()
    if len(trials) == 0:
        raise ValueError(f"{conflict.name} has no trial whose shape differs from its texture")
    learn, cues = zip(*(agreeing(source, conflict) for source in (train, validation)), strict=True)
    shape, texture = shape[trials], texture[trials]
    pictures = [conflict.labels[name][trials] for name in PICTURES if name in conflict.labels]

    def score(_: Tensor, said: Tensor | None) -> Iterator[Row]:
        found = dict.fromkeys(("shape_bias", "shape_decisions", "texture_decisions", "covered"), UNKNOWN)
        if said is not None:
            hits = {"shape_decisions": said == shape, "texture_decisions": said == texture}
            hits["covered"] = hits["shape_decisions"] | hits["texture_decisions"]
            found |= {metric: _share(each, pictures) for metric, each in hits.items()}
            found["shape_bias"] = shape_bias(said, shape, texture, pictures)[:3]
        for metric, share in found.items():
            yield {"metric": metric} | row(*share, len(trials))

    images, targets = [*learn, conflict.select(trials)], {"shape/texture": [*cues, shape]}
    return by_depth(encoder, images, targets, fit_linear, score, **reading)
