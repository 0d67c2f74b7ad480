"""Dense prediction from frozen patch tokens: which patches are object, and of which texture."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nbhelpers.images.source import ImageSource, labels_of
from nbhelpers.metrics.objects import patch_masks
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.layers import Labels, Probe, Row, by_depth, row, targets_of
from nbhelpers.probes.linear import fit_linear

# There are P tokens per image to learn from, so the penalty matters less than for one feature per image.
STRENGTHS = (1e-2, 1e-1, 1.0)
DRAWS = 1000  # of a bootstrap


def patch_targets(encoder: Encoder, source: ImageSource, label: str, numbers: Tensor | None = None) -> Tensor:
    """What each patch `N P` of the encoder's grid shows: 0 background, 1 object (or 1 + its label's number).

    The numbers `N` are those of the source's labels unless others are given.

    Raises:
        ValueError: for a source without masks or without that label, or an encoder that crops the image.
    """
    if source.masks is None:
        raise ValueError(f"{source.name} has no object masks")
    size = tuple(source.masks.shape[1:])
    wanted = encoder.image_size
    whole = encoder.crop_mode == "squash" or size[0] * wanted[1] == size[1] * wanted[0]
    if size != wanted and not (whole and encoder.crop == 1):
        raise ValueError(f"{encoder.name} crops images of {size} px, so its patches do not tile the masks")
    # The patches may leave a margin of the image out, or reach beyond it.
    sides = [patch * own / side for patch, own, side in zip(encoder.patch_size, size, wanted, strict=True)]
    masks = patch_masks(source.masks, encoder.grid, sides).long()
    if label == "mask":
        return masks
    return masks * (1 + (labels_of(source, label) if numbers is None else numbers)[:, None])


def mean_iou(predicted: Tensor, target: Tensor) -> tuple[float, float, float]:
    r"""Mean intersection over union of the classes of all patches `N P`, and its 95 % interval.

    $\mathrm{mIoU} = \frac{1}{C} \sum_c TP_c / (TP_c + FP_c + FN_c)$, counts summed over all images, over the
    classes that occur; in [0, 1]. The interval is the percentile bootstrap over images (PASCAL VOC,
    Everingham et al. 2010); its ends are NaN of a single image.

    Raises:
        ValueError: for shapes that differ, or negative classes.

    >>> predicted, target = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 1]])
    >>> round(mean_iou(predicted, target)[0], 4)  # (1 / 2 + 2 / 3) / 2
    0.5833
    """
    if predicted.shape != target.shape or target.ndim != 2:
        shapes = f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)}"
        raise ValueError(f"{shapes} must both be N P")
    if min(predicted.min(), target.min()) < 0:
        raise ValueError("mean_iou: classes are numbered from 0; leave out patches to be ignored")
    images, classes = len(target), int(torch.maximum(predicted, target).max()) + 1
    cell = (torch.arange(images)[:, None] * classes + target) * classes + predicted
    confusion = torch.bincount(cell.flatten(), minlength=images * classes**2).double().numpy()
    confusion = confusion.reshape(images, classes**2)
    draws = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), DRAWS)
    value = _mean_iou(confusion.sum(0).reshape(1, classes, classes))[0]
    ends = np.quantile(_mean_iou((draws @ confusion).reshape(-1, classes, classes)), [0.025, 0.975])
    low, high = ends if images > 1 else (np.nan, np.nan)
    return float(value), float(low), float(high)


def _mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Mean IoU `R` over the classes that occur, of confusion counts `R C C` (target, predicted)."""
    hit = np.diagonal(confusion, axis1=1, axis2=2)
    union = confusion.sum(1) + confusion.sum(2) - hit
    return np.divide(hit, union, out=np.zeros_like(hit), where=union > 0).sum(1) / (union > 0).sum(1)


def dense_by_depth(
    encoder: Encoder,
    train: ImageSource,
    validation: ImageSource,
    test: ImageSource,
    label: Labels = ("mask", "texture"),
    depths: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Mean IoU at every depth of a linear head on single patch tokens, with a bootstrap interval over images.

    `label` "mask" asks for object against background; a label of the source ("texture", "shape") for
    background and each of its classes on the object. Images need masks.

    Columns: `study model objective seed metric depth label pool norm value low high images`; metric "miou";
    NaN at a depth whose tokens are not finite or do not vary.
    Raises the errors of `features`, `fit_linear`, `patch_targets` and `targets_of`.
    """
    images, names = [train, validation, test], [label] if isinstance(label, str) else label
    # A class has one number in all sources, whatever its number in each.
    numbers = targets_of(images, [name for name in names if name != "mask"])
    numbers["mask"] = [None] * len(images)
    targets = {
        name: [patch_targets(encoder, s, name, n) for s, n in zip(images, numbers[name], strict=True)]
        for name in names
    }

    def fit(*data: Tensor) -> Probe:
        probe = fit_linear(*(tokens_or_targets.flatten(0, 1) for tokens_or_targets in data), STRENGTHS)
        return Probe(lambda tokens: probe.predict(tokens.flatten(0, 1)).view(tokens.shape[:2]))

    def score(target: Tensor, predicted: Tensor | None) -> list[Row]:
        found = (math.nan,) * 3 if predicted is None else mean_iou(predicted, target)
        return [{"metric": "miou"} | row(*found, len(target))]

    return by_depth(encoder, images, targets, fit, score, depths, "none")
