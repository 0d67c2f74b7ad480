"""A study pairs images with the encoders that were trained on their like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from nbhelpers import images as sources
from nbhelpers.images import ImageSource, MissingDataError
from nbhelpers.models import Encoder, load, manifest

IMAGES = 2_000  # how many test images a figure of the book is averaged over


@dataclass(frozen=True)
class Study:
    """Images and the encoders that were trained on their like.

    Attributes:
        name: "shapes", "cifar10", "imagenet" or "folder:PATH".
        title: what figures write above a panel.
        models: names of its encoders, for `nbhelpers.load`; "NAME.random" is the untrained reference.
    """

    name: str
    title: str
    models: tuple[str, ...]

    def images(self, split: str = "test") -> ImageSource:
        """The images of a split: "train", "val" or "test"; a folder has no splits and gives all it holds.

        Raises:
            MissingDataError: if they are not on this machine; the message says how to get them.
        """
        if self.name.startswith("folder:"):
            return sources.folder(Path(self.name.removeprefix("folder:")))
        return {"shapes": sources.shapes, "cifar10": sources.cifar10}[self.name](split)

    @cached_property
    def sample(self) -> ImageSource:
        """The test images that the book's figures are averaged over: the same for every model."""
        images = self.images("test")
        return images.subset(min(IMAGES, len(images)), seed=0)

    @property
    def missing(self) -> str | None:
        """Why the images cannot be had on this machine; None where they can."""
        try:
            self.images("test")
        except MissingDataError as error:
            return str(error)
        return None

    def encoders(self, models: Sequence[str] | None = None) -> list[Encoder]:
        """Its encoders, or those named, ready to be looked at."""
        return [load(name) for name in models or self.models]


TITLES = {"shapes": "shapes (generated)", "cifar10": "CIFAR-10 (photographs)"}


@lru_cache
def study(name: str) -> Study:
    """The study of that name: "shapes", "cifar10", or "folder:PATH" for any folder of images.

    Photographs of a folder are read by the encoders of `cifar10`.

    Raises:
        ValueError: for another name.

    >>> study("shapes").title
    'shapes (generated)'
    """
    family = "cifar10" if name.startswith("folder:") else name
    if family not in TITLES:
        raise ValueError(f"unknown study {name!r}: there are {', '.join(TITLES)} and folder:PATH")
    trained = [key for key, row in manifest().items() if row["study"] == family]
    models = (*trained, f"{family}.random")
    return Study(name, TITLES.get(name, name), models)
