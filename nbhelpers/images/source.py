"""Image data sets: `uint8 C H W` images with labels, a name and a fingerprint."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

Triple = tuple[float, float, float]
PICTURES = ("shape_picture", "texture_picture")  # labels of an image that was made from two: from which


class MissingDataError(FileNotFoundError):
    """A data set is not on this machine; the message names the ways to get it."""


class ImageSource(Dataset):
    """A map-style data set of `uint8 C H W` RGB images.

    Attributes:
        name: what the source is called in result tables, for example `"cifar10/test"`.
        origin: where its pictures came from, for example `"torchvision"` or `"generated"`.
        labels: `int64 N` per label name: `{"class": ...}`, or `{"shape": ..., "texture": ...}`.
        classes: the names that each label's numbers stand for.
        masks: `bool N H W`, true on the object, or None where the source knows no objects.
        mean: mean of each colour channel, images scaled to 0..1.
        std: standard deviation of each colour channel over all pixels, images scaled to 0..1.
        known_by_labels: whether images of equal labels and name are generated alike; those that replace
            them are not.
        fingerprint: hexadecimal, changes when images, labels or their order change.
        digests: hexadecimal, of each image: equal for equal pixels, or for equal files where it reads files.
    """

    name: str
    origin: str
    labels: dict[str, Tensor]
    classes: dict[str, tuple[str, ...]]
    masks: Tensor | None
    mean: Triple
    std: Triple
    known_by_labels = False
    fingerprint: str
    digests: list[str]

    @property
    def identity(self) -> str:
        """As `fingerprint`, but of labels alone where they tell all: machines round pixels apart."""
        labels = [self.labels[key] for key in sorted(self.labels)]
        return content_fingerprint(*labels) if self.known_by_labels else self.fingerprint

    def select(self, indices: Sequence[int] | Tensor) -> "ImageSource":
        """The images at `indices`, in that order, or where a `bool N` is true.

        Labels and masks follow, name, mean and std stay.
        """
        indices = self._numbers(indices)
        part = copy(self)
        part.labels = {label: values[indices] for label, values in self.labels.items()}
        part.classes = dict(self.classes)
        part.masks = None if self.masks is None else self.masks[indices]
        part._keep(indices)
        return part

    def _numbers(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Indices from 0 on; an IndexError for what is none, or a mask of another length.

        Raises:
            ValueError: nothing is chosen.
        """
        indices = torch.as_tensor(indices)
        numbers = torch.arange(len(self))[indices if indices.numel() else indices.long()]
        if not numbers.numel():
            raise ValueError(f"{self.name}: no image is chosen")
        return numbers

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The images at `indices` as `uint8 B C H W`; a ValueError where their sizes differ."""
        images = [self[i] for i in self._numbers(indices).tolist()]
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) != 1:
            ways = "open the source with size=... or take them one by one"
            raise ValueError(f"{self.name}: images of one batch must share one size, got {shapes}; {ways}")
        return torch.stack(images)

    def subset(self, n: int, seed: int = 0, label: str | None = None) -> "ImageSource":
        """`n` images drawn without replacement; the same `seed` draws the same ones.

        With a `label`, its classes take turns for as long as they have images: all have the same number, but
        for those that have too few. (`balanced` raises there.)

        Raises:
            ValueError: `n` is not between 1 and the number of images, or there is no such label.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"{self.name} holds {len(self)} images; cannot draw {n} of them")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        if label is not None:
            order = order[earlier(labels_of(self, label)[order]).argsort(stable=True)]
        return self.select(order[:n])

    def at_most(self, n: int, seed: int = 0, label: str | None = None) -> "ImageSource":
        """As `subset`, but all images where there are fewer than `n`."""
        return self.subset(min(n, len(self)), seed, label)

    def balanced(self, n: int, label: str = "class", seed: int = 0) -> "ImageSource":
        """`n` images of every class of `label`, drawn without replacement, classes taking turns.

        Raises:
            ValueError: a class has fewer than `n` images, or there is no such label.
        """
        counts = labels_of(self, label).bincount(minlength=len(self.classes[label]))
        if not 1 <= n <= counts.min():
            title = self.classes[label][counts.argmin()]
            raise ValueError(f"{self.name}: {label} {title!r} has {counts.min()} images; cannot draw {n}")
        part = self.subset(n * len(counts), seed, label)
        return part.select(in_turns(part.labels[label]))

    def restrict(self, names: Sequence[str], label: str = "class") -> "ImageSource":
        """The images whose `label` is one of `names`; these become its classes, in that order.

        Raises:
            ValueError: an unknown label or class, or one without images.
        """
        values, known = labels_of(self, label), self.classes[label]
        if unknown := set(names) - set(known):
            raise ValueError(f"{self.name} has no {label} {min(unknown)!r}; it has {', '.join(known)}")
        if empty := [title for title in names if known.index(title) not in values]:
            raise ValueError(f"{self.name} has no image with {label} {', '.join(empty)}")
        numbers = torch.tensor([names.index(title) if title in names else -1 for title in known])
        part = self.select(numbers[values] >= 0)
        part.labels[label] = numbers[part.labels[label]]
        part.classes[label] = tuple(names)
        return part

    def __repr__(self) -> str:
        labels = ", ".join(f"{len(names)} x {label}" for label, names in self.classes.items())
        return f"{type(self).__name__}({self.name!r}, {len(self)} images, {labels}, {self.origin})"


@dataclass(eq=False, repr=False)
class ArraySource(ImageSource):
    """A source that holds all its images in one `uint8 N C H W` tensor.

    `mean` and `std` are computed from the content where they are not given.

    >>> black = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    >>> images = torch.cat([black, 255 - black])
    >>> source = ArraySource("two", images, {"class": torch.tensor([0, 1])}, {"class": ("black", "white")})
    >>> source.mean, source.std
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> source.batch([1]).shape, source.select([1]).labels["class"].tolist()
    (torch.Size([1, 3, 2, 2]), [1])

    Raises:
        ValueError: images are not `uint8 N 3 H W` with N > 0, or labels or masks do not fit them.
    """

    name: str
    images: Tensor
    labels: Mapping[str, Tensor]
    classes: Mapping[str, Sequence[str]]
    masks: Tensor | None = None
    mean: Triple | None = None
    std: Triple | None = None
    origin: str = "memory"

    def __post_init__(self) -> None:
        """Check that everything fits together and compute what was not given."""
        self.labels = dict(self.labels)
        self.classes = {label: tuple(names) for label, names in self.classes.items()}
        self._check()
        if self.mean is None or self.std is None:
            mean, std = channel_statistics([self.images])
            self.mean, self.std = self.mean or mean, self.std or std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as `uint8 C H W`."""
        return self.images[index]

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The images at `indices` as `uint8 B C H W`."""
        return self.images[self._numbers(indices)]

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; images of other pixels are no longer those that labels tell."""
        super().__setattr__(name, value)
        if name == "images":
            self.known_by_labels = False

    def _keep(self, indices: Tensor) -> None:
        vars(self)["images"] = self.images[indices]  # whose labels tell as much as before

    @property
    def fingerprint(self) -> str:
        """Identity of pixels, labels and masks as they are now."""
        masks = [] if self.masks is None else [self.masks]
        return content_fingerprint(self.images, *self.labels.values(), *masks)

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the pixels of each image."""
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.images]

    def _check(self) -> None:
        """Raise a ValueError that names the part that does not fit."""
        n, size = len(self.images), self.images.shape[-2:]
        parts = {"images": (self.images, torch.uint8, (n, 3, *size))}
        parts |= {f"label {label!r}": (values, torch.int64, (n,)) for label, values in self.labels.items()}
        if self.masks is not None:
            parts["masks"] = (self.masks, torch.bool, (n, *size))
        for what, (tensor, dtype, shape) in parts.items():
            if tensor.dtype != dtype or tensor.shape != shape or n == 0:
                found = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise ValueError(f"{self.name}: {what} must be {dtype} {shape} with N > 0, got {found}")
        if self.labels.keys() != self.classes.keys():
            names = f"labels {sorted(self.labels)} and classes {sorted(self.classes)}"
            raise ValueError(f"{self.name}: {names} must have the same names")
        for label, values in self.labels.items():
            last = len(self.classes[label]) - 1
            if values.min() < 0 or values.max() > last:
                raise ValueError(f"{self.name}: label {label!r} holds numbers outside 0..{last}")


def channel_statistics(batches: Iterable[Tensor]) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each colour channel over all pixels, scaled to 0..1.

    Exact: computed in float64 from the histogram of the 256 values of all `uint8 B 3 H W`.

    >>> half_white = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2)
    >>> channel_statistics([half_white])
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    counts = torch.zeros(3, 256, dtype=torch.long)
    for images in batches:
        counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)])
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(1, keepdim=True)
    means = (shares * values).sum(1, keepdim=True)
    variances = (shares * (values - means) ** 2).sum(1)
    return tuple(means.flatten().tolist()), tuple(variances.sqrt().tolist())


def labels_of(source: ImageSource, label: str) -> Tensor:
    """The labels `N` of that name; a ValueError, with the names the source has, for another one."""
    if label not in source.labels:
        raise ValueError(f"{source.name} has no label {label!r}; it has {sorted(source.labels) or 'none'}")
    return source.labels[label]


def earlier(labels: Tensor) -> Tensor:
    """How many earlier entries have the same label, `N -> N`.

    >>> earlier(torch.tensor([5, 5, 7, 5])).tolist()
    [0, 1, 0, 2]
    """
    values = pd.Series(labels.numpy())
    return torch.from_numpy(values.groupby(values).cumcount().to_numpy(copy=True))


def in_turns(labels: Tensor) -> Tensor:
    """Indices `N` by which classes take turns: the first of every class, the second of every class, ...

    >>> in_turns(torch.tensor([1, 1, 0, 1])).tolist()
    [2, 0, 1, 3]
    """
    return torch.argsort(earlier(labels) * (labels.max() + 1) + labels)


def content_fingerprint(*tensors: Tensor) -> str:
    """Hexadecimal SHA-256 of the shapes, types and bytes of `tensors`."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def named_path(variable: str) -> Path | None:
    """The file or folder that an environment variable names, None if it is not set.

    Raises:
        MissingDataError: there is nothing at that path.
    """
    if not (named := os.environ.get(variable)):
        return None
    if not (path := Path(named).expanduser()).exists():
        raise MissingDataError(f"{variable} names {path}, which does not exist; correct or unset it")
    return path
