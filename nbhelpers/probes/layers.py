"""Frozen features of every depth, and the loop and the rows that all probes of them share.

A new probe is a function such as `fit_linear`, of features and labels to learn from (and of others to choose
on), whose result can `predict`; `by_depth` makes its frame, with `accuracies` for its score.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from nbhelpers.capture import Stream, capture
from nbhelpers.images.source import ArraySource, ImageSource, labels_of
from nbhelpers.intervals import wilson
from nbhelpers.measure import identified
from nbhelpers.models import Encoder, UnsupportedArchitecture, without_decoder

Pool = Literal["mean", "class", "none"]
Labels = str | Sequence[str]  # name of a label, or of several
Row = dict[str, Any]
Score = Callable[..., Iterable[Row]]


def checked_depths(encoder: Encoder, depths: Sequence[int] | None) -> list[int]:
    """Depths asked for, all of 0..L when none are named."""
    available = range(encoder.depth + 1)
    chosen = list(available if depths is None else depths)
    if not chosen or not set(chosen) <= set(available) or len(set(chosen)) < len(chosen):
        raise ValueError(f"depths {chosen} are not distinct depths of {encoder.name}, 0..{encoder.depth}")
    return chosen


@torch.no_grad()
def features(
    encoder: Encoder,
    images: ImageSource | Tensor,
    depths: Sequence[int] | None = None,
    pool: Pool = "mean",
    norm: bool = False,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Pooled features `L+1 N D`, or patch tokens `L+1 N P D`, in one pass over the images `N C H W`.

    $f_l = \frac{1}{P} \sum_{i \in \mathrm{patches}} z_{l,i}$ (`pool="mean"`), the class token $z_{l,0}$
    (`pool="class"`) or all $z_{l,i}$ of patches (`pool="none"`), where depth 0 is the embedding and depth l
    the output of block l. Features that are not finite are returned as they are.

    Args:
        encoder: the frozen model.
        images: an image source or a uint8 tensor `N C H W`.
        depths: depths wanted, in the order of the result; all of 0..L by default.
        pool: how the tokens of an image become a feature; no prefix token counts as a patch.
        norm: pass the tokens through the model's final norm first; it was trained on depth L alone.
        batch_size: images per forward pass.
        dtype: precision of the result; half for large sets.

    Raises:
        ValueError: for an unknown depth or pool, no class token, no final norm, or no images.
        UnsupportedArchitecture: passes differ from each other, or see an image several times.

    Layer-wise probing: Park et al. 2023, on components; pooled patch tokens without norm: SimMIM's probe.
    """
    chosen = checked_depths(encoder, depths)
    pools = {
        "mean": lambda tokens: tokens[:, encoder.prefix :].mean(1),
        "class": lambda tokens: tokens[:, 0],
        "none": lambda tokens: tokens[:, encoder.prefix :],
    }
    if pool not in pools:
        raise ValueError(f"unknown pool {pool!r}; there are {', '.join(pools)}")
    if pool == "class" and not encoder.has_class_token:
        raise ValueError(f"{encoder.name} has no class token; use pool='mean'")
    if not len(images):
        raise ValueError("no images: the source is empty")
    over_tokens = over_pooled = nn.Identity()
    if norm:  # timm keeps one over tokens, "norm", or one over pooled features, "fc_norm"
        module = without_decoder(encoder).module
        over_tokens = getattr(module, "norm", None) or over_tokens
        if pool != "none":
            over_pooled = getattr(module, "fc_norm", None) or over_pooled
        if isinstance(over_tokens, nn.Identity) and isinstance(over_pooled, nn.Identity):
            raise ValueError(f"norm=True, but {type(module).__name__} has no final norm; ask for norm=False")
    if isinstance(images, Tensor):
        images = ArraySource("images", images.cpu(), {}, {})
    kept: dict[int, list[Tensor]] = {depth: [] for depth in chosen}

    def keep(stream: Stream) -> None:
        if stream.depth in kept:
            pooled = over_pooled(pools[pool](over_tokens(stream.tokens)))
            kept[stream.depth].append(pooled.to("cpu", dtype, copy=True))  # a view would hold all tokens

    # This also runs one image alone, of which `capture` tells tokens `N B D` from `B N D` by their shape.
    with capture(encoder, on_stream=lambda _: None, places=("block",)):
        encoder.require_repeatable(encoder.batch(images, range(min(2, len(images)))))
    with capture(encoder, on_stream=keep, places=("block",)):
        for rows in torch.arange(len(images)).split(batch_size):
            encoder.forward(encoder.batch(images, rows))
    if sum(map(len, kept[chosen[0]])) != len(images):
        raise UnsupportedArchitecture(f"{encoder.name}: a pass runs its blocks several times an image")
    return torch.stack([torch.cat(kept.pop(depth)) for depth in chosen])


class Probe(NamedTuple):
    """What a fit of `by_depth` gives, unless it has a type of its own: labels of features."""

    predict: Callable[[Tensor], Tensor]


class Undefined(ValueError):
    """Features that no probe can read: not finite, the same for every image, or none at all."""


def targets_of(sources: Sequence[ImageSource], label: Labels) -> dict[str, list[Tensor]]:
    """The labels `N` of each source by the name of the label, or of several.

    A class has one number in all sources: that of the first source, where that has it.

    Raises:
        ValueError: a label that a source lacks, or a class that the last one shows and the first does not.
    """
    targets, test = {}, sources[-1]
    for name in [label] if isinstance(label, str) else label:
        numbers = [labels_of(source, name) for source in sources]
        order = [*dict.fromkeys(title for source in sources for title in source.classes[name])]
        places = [torch.tensor([order.index(title) for title in s.classes[name]]) for s in sources]
        known, *_, asked = targets[name] = [place[n] for place, n in zip(places, numbers, strict=True)]
        if unseen := sorted({*asked.tolist()} - {*known.tolist()}):
            names = ", ".join(order[number] for number in unseen)
            raise ValueError(f"{test.name} shows {name} {names}, of which there is no image to learn from")
    learnt = {digest for source in sources[:-1] for digest in source.digests}
    if shared := sum(digest in learnt for digest in test.digests):
        what = f"{shared} of {len(test)} test images are learnt from, too"
        warnings.warn(f"{test.name}: {what}; the accuracy is too high", stacklevel=3)
    return targets


def checked(name: str, x: Tensor, layout: str, labels: Tensor | None = None) -> Tensor:
    """The features, if they have this layout, such as "N P D", and are finite; labels must be as many.

    Features named "train" need labels of at least two classes.
    """
    if x.ndim != len(layout.split()) or (labels is not None and len(labels) != len(x)):
        wrong = "" if labels is None else f" with a label for each; got {len(labels)} {name}_labels"
        raise ValueError(f"{name} features must be {layout}{wrong}; they are {tuple(x.shape)}")
    if name == "train" and len(classes := labels.unique()) < 2:  # any guess would be right
        raise ValueError(f"a probe needs at least two classes; got {classes.tolist()}")
    if not x.isfinite().all():
        most = " (kept in half precision, which ends at 65,504)" if x.dtype == torch.float16 else ""
        raise Undefined(f"non-finite {name} features {tuple(x.shape)}{most}")
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
    share = int((predicted.cpu() == labels.cpu()).sum()) / len(labels)
    return row(share, *wilson(share, len(labels)), len(labels))


def accuracies(metric: str) -> Score:
    """The score of probes that predict one test: a row with the accuracy, under that name."""
    return lambda truth, predicted: [{"metric": metric} | accuracy(predicted, truth)]


def row(value: float, low: float, high: float, images: int) -> Row:
    """The columns that every row of a probe ends with."""
    return {"value": value, "low": low, "high": high, "images": images}


def by_depth(
    encoder: Encoder,
    images: Sequence[ImageSource],
    label: Labels | Mapping[str, Sequence[Tensor]],
    fit: Callable[..., Any],
    score: Score,
    depths: Sequence[int] | None = None,
    pool: str = "mean",
    norm: bool = False,
    viewers: Sequence[Encoder] = (),
) -> pd.DataFrame:
    """Fit a probe at every depth for every label, predict the test images, and score: the frame of a probe.

    The encoder runs once for pooled features, which are held for all depths together. Patch tokens are too
    large for that: they are read one depth at a time. Where a probe is `Undefined`, a warning says why and
    the prediction is None.

    Args:
        encoder: the frozen model.
        images: sources to learn from, to choose on (for probes that choose something), and to test on.
        label: name of the label, or of several; or, by name, the targets to predict in each of the sources.
        fit: gives a probe, which can `predict` targets from features. Its arguments are the features and
            the targets of the first source, then those of the next, without the source to test on.
        score: gives the rows of a frame. Its arguments are the targets of the test images, then what the
            probe predicts from the features of the encoder, and from those of each of the `viewers`.
        depths: default all of 0..L.
        pool: as in `features`, where "none" and "query" are all patch tokens, in half precision.
        norm: as in `features`.
        viewers: further encoders whose features of the test images the probe reads, too.

    Returns:
        Columns `study model objective seed`, the names that `score` gives, `depth label pool norm`, and
        `value low high images`.
    """
    *learn, test = images
    targets = label if isinstance(label, Mapping) else targets_of(images, label)
    tokens, rows = pool in ("none", "query"), {name: [] for name in targets}
    as_read, dtype = ("none", torch.float16) if tokens else (pool, torch.float32)

    def read(viewer: Encoder, source: ImageSource, chosen: Sequence[int]) -> dict[int, Tensor]:
        return dict(zip(chosen, features(viewer, source, chosen, as_read, norm, dtype=dtype), strict=True))

    every = checked_depths(encoder, depths)
    for chosen in [[depth] for depth in every] if tokens else [every]:
        layers = [read(encoder, source, chosen) for source in learn]
        probes, predicted = {}, {(name, depth): [] for name in targets for depth in chosen}
        for name, depth in predicted:
            pairs = zip([layer[depth] for layer in layers], targets[name], strict=False)
            where = f"{encoder.name}, depth {depth}, {name}"
            probes[name, depth] = _attempt(where, fit, *chain.from_iterable(pairs))
        for viewer in (encoder, *viewers):
            layer = _attempt(f"{viewer.name}, {test.name}", read, viewer, test, chosen)
            for (name, depth), probe in probes.items():
                where = f"{viewer.name}, depth {depth}, {name}, {test.name}"
                read_off = probe and layer and _attempt(where, probe.predict, layer[depth])
                predicted[name, depth].append(read_off)
        for (name, depth), found in predicted.items():
            place = {"depth": depth, "label": name, "pool": pool, "norm": norm}
            rows[name] += [place | scored for scored in score(targets[name][-1], *found)]
    frame, last = pd.DataFrame(chain(*rows.values())), [*place, "value", "low", "high", "images"]
    frame = frame[[*frame.columns.difference(last, sort=False), *last]]
    return identified(frame, encoder, learn[0])


def _attempt(where: str, function: Callable, *arguments: object) -> Any:
    """The function's result; None, with a warning, where it is `Undefined`."""
    try:
        return function(*arguments)
    except Undefined as reason:
        warnings.warn(f"{where}: {reason}; its rows are NaN", stacklevel=2)
        return None
