"""Cue-conflict stimuli: the shape of one class painted in the texture of another."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import torch

from nbhelpers.images.decode import Size
from nbhelpers.images.folders import read_all
from nbhelpers.images.source import ArraySource, MissingDataError, named_path

CUE_CLASSES = (
    "airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat",
    "chair", "clock", "dog", "elephant", "keyboard", "knife", "oven", "truck",
)  # fmt: skip
# The seven that CIFAR-10 shows too, by its names for them.
RENAMED = {"boat": "ship", "car": "automobile"}
TO_CIFAR10 = {
    name: RENAMED.get(name, name) for name in ("airplane", "bird", "boat", "car", "cat", "dog", "truck")
}
_CLASS = "|".join(CUE_CLASSES)
_NAME = re.compile(rf"(?P<shape>{_CLASS})\d+-(?P<texture>{_CLASS})\d+")


def cue_conflict(size: Size | None = None) -> ArraySource:
    """The cue-conflict stimuli of Geirhos et al. (2019): labels `shape` and `texture`, 16 classes each.

    Images are named `shapeN-textureM.png`. Of the 1,280, the 80 whose shape and texture agree are dropped,
    since they cannot tell which of the two a decision followed: 1,200 trials. Read from the folder or tar
    archive that `$NBHELPERS_CUE_CONFLICT` names.

    Args:
        size: pixels of a side (or rows, columns) to resize to; None keeps the size of the files.

    Raises:
        MissingDataError: the stimuli are not there.
        ValueError: the folder holds other files, or a file cannot be decoded.
    """
    path = named_path("NBHELPERS_CUE_CONFLICT")
    if path is None:
        raise MissingDataError(
            "the cue-conflict stimuli of Geirhos et al. (2019) are not on this machine: set "
            "NBHELPERS_CUE_CONFLICT to a folder or tar archive laid out as cue-conflict/SHAPE/shapeN-textureM"
            ".png, such as stimuli/style-transfer-preprocessed-512 in a clone of the authors' repository "
            "rgeirhos/texture-vs-shape"
        )
    images, shapes, textures = [], [], []
    for name, image in read_all(path, size):
        match = _NAME.fullmatch(PurePosixPath(name).stem)
        if match is None:
            raise ValueError(
                f"{path}: {name} is no cue-conflict stimulus; expected names such as "
                f"airplane/airplane1-bicycle2.png, the classes being {', '.join(CUE_CLASSES)}"
            )
        if match["shape"] != match["texture"]:
            images.append(image)
            shapes.append(CUE_CLASSES.index(match["shape"]))
            textures.append(CUE_CLASSES.index(match["texture"]))
    if not images:
        raise ValueError(f"{path} holds no cue-conflict stimuli, SHAPE/shapeN-textureM.png")
    labels = {"shape": torch.tensor(shapes), "texture": torch.tensor(textures)}
    classes = {"shape": CUE_CLASSES, "texture": CUE_CLASSES}
    return ArraySource("cue-conflict", torch.stack(images), labels, classes, origin=path.name)


def cue_conflict_cifar10(size: Size = 32) -> ArraySource:
    """The trials whose shape and texture are both among the seven classes of CIFAR-10, under its names.

    Five images for each of the 42 pairs: 210 trials. `cifar10(split).restrict(classes)`, with `classes`
    those of this source's `shape` label, numbers the photographs in the same way.

    Raises:
        MissingDataError: the stimuli are not there.
    """
    trials = cue_conflict(size)
    for label in ("shape", "texture"):
        trials = trials.restrict(tuple(TO_CIFAR10), label)
        trials.classes[label] = tuple(TO_CIFAR10.values())
    trials.name = "cue-conflict/cifar10"
    return trials
