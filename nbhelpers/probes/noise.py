"""Robustness of a probe: noise in a ring of frequencies, frequency filters, shuffled patches."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nbhelpers.images import filters
from nbhelpers.images.source import ImageSource
from nbhelpers.models.encoder import Encoder
from nbhelpers.names import nearest
from nbhelpers.probes.layers import Labels, Row, Undefined, accuracy, by_depth, row
from nbhelpers.probes.linear import fit_linear

Change = Callable[[Tensor], Tensor]
CHANGES: Mapping[str, Sequence[float]] = {
    "noise": tuple(k / 10 for k in range(1, 11)),
    "low-pass": (0.1, 0.2, 0.3, 0.5, 0.7),
    "high-pass": (0.1, 0.2, 0.3, 0.5, 0.7),
    "patch-shuffle": (16, 8, 4),
}
RING = 0.1 * math.pi  # half the width of the ring of noise, radians per pixel


@dataclass
class ChangedEncoder(Encoder):
    """An encoder whose input images are changed first, after resizing, on the scale 0..1, `B C H W`."""

    change: Change = field(kw_only=True)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize, change and normalise uint8 images `B C H W`."""
        images = super().preprocess(images)
        mean, std = (images.new_tensor(m)[:, None, None] for m in (self.mean, self.std))
        return (self.change(images * std + mean) - mean) / std


def make_change(name: str, parameter: float, epsilon: float) -> Change:
    """A change of images `B C H W` on the scale 0..1; two of the same kind draw the same noise.

    `parameter` is the centre frequency ("noise") or cut-off ("low-pass", "high-pass") as a share of Nyquist,
    or the side of a patch in px ("patch-shuffle").

    Raises:
        ValueError: for an unknown name, answered with the nearest ones.

    >>> change = make_change("low-pass", 0.0, epsilon=0.1)
    >>> change(torch.tensor([[[[0.0, 1.0]]]]))
    tensor([[[[0.5000, 0.5000]]]])
    """
    generator, frequency = torch.Generator().manual_seed(0), parameter * math.pi

    def shuffled(x: Tensor) -> Tensor:
        if any(side % parameter for side in x.shape[2:]):
            size = "{} x {}".format(*x.shape[2:])
            raise Undefined(f"patches of {parameter:g} px do not tile images of {size} px")
        return filters.patch_shuffle(x, int(parameter), generator)

    made: dict[str, Change] = {
        "noise": lambda x: filters.frequency_noise(x, frequency, epsilon, generator, RING),
        "low-pass": lambda x: filters.low_pass(x, frequency),
        "high-pass": lambda x: filters.high_pass(x, frequency),
        "patch-shuffle": shuffled,
    }
    if name not in made:
        raise ValueError(f"no change is named {name!r}; {nearest(name, made)}")
    return made[name]


def paired_drop(before: Tensor | None, after: Tensor | None, labels: Tensor) -> Row:
    r"""Columns `value low high images`: drop of accuracy from predictions `before` to `after`, all `N`.

    $\bar d$ of $d_i = [b_i = y_i] - [a_i = y_i]$, in [-1, 1]. Pairing the two decisions on each image makes
    the interval narrower than the difference of two accuracies would have: $\tilde d \pm 1.96\, \tilde s /
    \sqrt{N + 2}$, with mean and deviation of N + 2 images, half an image more in each of the four cells of
    (before, after), so that it has a width where no decision changes (Agresti and Min 2005). All NaN where
    predictions are lacking.

    Raises:
        ValueError: for shapes that differ.

    >>> paired_drop(torch.tensor([1, 1, 1, 1]), torch.tensor([1, 1, 0, 0]), torch.ones(4))["value"]
    0.5
    """
    if before is None or after is None:
        return accuracy(None, labels)
    if not before.shape == after.shape == labels.shape:
        shapes = [tuple(each.shape) for each in (before, after, labels)]
        raise ValueError(f"paired_drop: predictions and labels must all be N, got {shapes}")
    difference = (before == labels).double() - (after == labels).double()
    count = len(labels) + 2
    centre, moved = float(difference.sum()) / count, (float(difference.abs().sum()) + 1) / count
    error = 1.96 * ((moved - centre**2) / count) ** 0.5
    return row(float(difference.mean()), max(-1.0, centre - error), min(1.0, centre + error), len(labels))


def robustness_by_depth(
    encoder: Encoder,
    train: ImageSource,
    validation: ImageSource,
    test: ImageSource,
    label: Labels,
    changes: Mapping[str, Sequence[float]] = CHANGES,
    epsilon: float = 0.1,
    depths: Sequence[int] | None = None,
    **reading: Any,
) -> pd.DataFrame:
    """Accuracy of linear probes, fitted on plain images, when the test images are changed, and its drop.

    Args:
        encoder: the frozen model.
        train: images to fit the probe on.
        validation: images to choose its penalty on.
        test: images to change and to classify.
        label: which label, or several.
        changes: parameters for each change of `CHANGES`: centre frequency of the noise ring or cut-off as a
            share of Nyquist (0..1), or patch side in px.
        epsilon: amplitude of the noise before the ring is cut out, images being 0..1. A ring has as much of
            it as it holds frequencies.
        depths: depths to probe, the last alone by default.
        reading: `pool` and `norm`, as in `features`.

    Columns: `study model objective seed metric change parameter depth label pool norm value low high images`.
    metric is "accuracy" (Wilson's interval; also for change "none", parameter NaN) or "drop" (paired
    interval), value a share in [-1, 1].
    NaN where features are not finite or do not vary, and for patches that do not tile the encoder's input.
    Frequencies are those of the encoder's input pixels.
    The definition of the noise: Park and Kim 2022.
    Raises a TypeError for an encoder with a `preprocess` of its own, and the errors of `features`,
    `fit_linear`, `make_change` and `targets_of`.
    """
    if type(encoder) is not Encoder or "preprocess" in vars(encoder):
        what = "has a preprocess of its own, which a change of the images would undo"
        raise TypeError(f"{encoder.name} {what}")
    whats = [(name, parameter) for name, parameters in changes.items() for parameter in parameters]
    made = [make_change(*what, epsilon) for what in whats]

    def score(truth: Tensor, before: Tensor | None, *others: Tensor | None) -> Iterator[Row]:
        for (name, parameter), after in zip([("none", math.nan), *whats], (before, *others), strict=True):
            what = {"change": name, "parameter": parameter}
            yield {"metric": "accuracy"} | what | accuracy(after, truth)
            if name != "none":
                yield {"metric": "drop"} | what | paired_drop(before, after, truth)

    images, depths = [train, validation, test], [encoder.depth] if depths is None else depths
    viewers = [ChangedEncoder(**vars(encoder), change=change) for change in made]
    return by_depth(encoder, images, label, fit_linear, score, depths, **reading, viewers=viewers)
