"""What every source of pictures offers: `uint8 C H W` images with labels, a name and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

Triple = tuple[float, float, float]


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
        fingerprint: hexadecimal, changes when images, labels or their order change.
    """

    name: str
    origin: str
    labels: dict[str, Tensor]
    classes: dict[str, tuple[str, ...]]
    masks: Tensor | None
    mean: Triple
    std: Triple
    fingerprint: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as `uint8 C H W`."""
        raise NotImplementedError

    def select(self, indices: Sequence[int] | Tensor) -> ImageSource:
        """The images at `indices`, in that order; labels and masks follow, name, mean and std stay."""
        raise NotImplementedError

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The images at `indices` as `uint8 B C H W`; a ValueError where their sizes differ."""
        images = [self[int(i)] for i in indices]
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) != 1:
            raise ValueError(
                f"{self.name}: images of one batch must share one size, got {shapes}; "
                "open the source with size=... or take them one by one"
            )
        return torch.stack(images)

    def subset(self, n: int, seed: int = 0, label: str | None = None) -> ImageSource:
        """`n` images drawn without replacement; the same `seed` draws the same ones.

        With a `label`, its classes take turns for as long as they have images: all have the same number, but
        for those that have too few. (`balanced` raises there.)

        Raises:
            ValueError: `n` is not between 1 and the number of images.
        """
        if not 1 <= n <= len(self):
            raise ValueError(
                f"{self.name} holds {len(self)} images; cannot draw {n} of them without replacement"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        if label is not None:
            order = order[take_turns(self.labels[label][order]).argsort(stable=True)]
        return self.select(order[:n])

    def balanced(self, n: int, label: str = "class", seed: int = 0) -> ImageSource:
        """`n` images of every class of `label`, drawn without replacement, classes taking turns.

        Raises:
            ValueError: a class has fewer than `n` images, or there is no such label.
        """
        if label not in self.labels:
            raise ValueError(f"{self.name} has no label {label!r}; it has {sorted(self.labels)}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        drawn = self.labels[label][order]
        rows = []
        for number, title in enumerate(self.classes[label]):
            members = order[drawn == number]
            if not 1 <= n <= len(members):
                raise ValueError(
                    f"{self.name}: {label} {title!r} has {len(members)} images; cannot draw {n} of them"
                )
            rows.append(members[:n])
        return self.select(torch.stack(rows, dim=1).flatten())

    def restrict(self, names: Sequence[str], label: str = "class") -> ImageSource:
        """The images whose `label` is one of `names`; these become its classes, in that order.

        Raises:
            ValueError: an unknown label or class, or one without images.
        """
        if label not in self.labels:
            raise ValueError(f"{self.name} has no label {label!r}; it has {sorted(self.labels)}")
        numbers = torch.full((len(self.classes[label]),), -1)
        for number, title in enumerate(names):
            if title not in self.classes[label]:
                raise ValueError(
                    f"{self.name} has no {label} {title!r}; it has {', '.join(self.classes[label])}"
                )
            numbers[self.classes[label].index(title)] = number
        renumbered = numbers[self.labels[label]]
        kept = torch.nonzero(renumbered >= 0).flatten()
        empty = [names[i] for i in range(len(names)) if i not in renumbered]
        if empty:
            raise ValueError(f"{self.name} has no image with {label} {', '.join(empty)}")
        part = self.select(kept)
        part.labels[label] = renumbered[kept]
        part.classes[label] = tuple(names)
        part.fingerprint = selection_fingerprint(part.fingerprint, numbers)
        return part

    def __repr__(self) -> str:
        labels = ", ".join(f"{len(names)} x {label}" for label, names in self.classes.items())
        return f"{type(self).__name__}({self.name!r}, {len(self)} images, {labels}, {self.origin})"


class ArraySource(ImageSource):
    """A source that holds all its images in one `uint8 N C H W` tensor.

    `mean`, `std` and `fingerprint` are computed from the content where they are not given.

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

    def __init__(
        self,
        name: str,
        images: Tensor,
        labels: Mapping[str, Tensor],
        classes: Mapping[str, Sequence[str]],
        masks: Tensor | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
        fingerprint: str | None = None,
        origin: str = "generated",
    ) -> None:
        """Check that everything fits together and fill in what was not given."""
        _check(name, images, labels, classes, masks)
        self.name = name
        self.origin = origin
        self.images = images
        self.labels = dict(labels)
        self.classes = {label: tuple(names) for label, names in classes.items()}
        self.masks = masks
        if mean is None or std is None:
            content_mean, content_std = channel_statistics([images])
            mean, std = mean or content_mean, std or content_std
        self.mean, self.std = mean, std
        self.fingerprint = fingerprint or content_fingerprint(images, *self.labels.values())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as `uint8 C H W`."""
        return self.images[index]

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The images at `indices` as `uint8 B C H W`."""
        return self.images[torch.as_tensor(indices, dtype=torch.long)]

    def select(self, indices: Sequence[int] | Tensor) -> ArraySource:
        """The images at `indices`, in that order; labels and masks follow, name, mean and std stay."""
        indices = torch.as_tensor(indices, dtype=torch.long)
        return ArraySource(
            self.name,
            self.images[indices],
            {label: values[indices] for label, values in self.labels.items()},
            self.classes,
            None if self.masks is None else self.masks[indices],
            self.mean,
            self.std,
            selection_fingerprint(self.fingerprint, indices),
            self.origin,
        )


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


def take_turns(labels: Tensor) -> Tensor:
    """How many earlier entries have the same label, `N -> N`: sorted by it, classes take turns.

    >>> take_turns(torch.tensor([5, 5, 7, 5])).tolist()
    [0, 1, 0, 2]
    """
    turn = torch.empty_like(labels)
    for number in labels.unique():
        members = labels == number
        turn[members] = torch.arange(int(members.sum()))
    return turn


def content_fingerprint(*tensors: Tensor) -> str:
    """Hexadecimal SHA-256 of the shapes, types and bytes of `tensors`."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def selection_fingerprint(fingerprint: str, indices: Tensor) -> str:
    """The fingerprint of a selection: of the whole source's fingerprint and the indices."""
    return hashlib.sha256(fingerprint.encode() + content_fingerprint(indices).encode()).hexdigest()


def _check(name: str, images: Tensor, labels: Mapping, classes: Mapping, masks: Tensor | None) -> None:
    """Raise a ValueError that names the part that does not fit."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"{name}: images must be uint8 N 3 H W with N > 0, got {_describe(images)}")
    if set(labels) != set(classes):
        raise ValueError(
            f"{name}: labels {sorted(labels)} and classes {sorted(classes)} must have the same names"
        )
    for label, values in labels.items():
        if values.dtype != torch.int64 or values.shape != images.shape[:1]:
            raise ValueError(
                f"{name}: label {label!r} must be int64 of length {len(images)}, got {_describe(values)}"
            )
        if values.min() < 0 or values.max() >= len(classes[label]):
            raise ValueError(f"{name}: label {label!r} holds numbers outside 0..{len(classes[label]) - 1}")
    expected = (len(images), *images.shape[2:])
    if masks is not None and (masks.dtype != torch.bool or masks.shape != expected):
        raise ValueError(f"{name}: masks must be bool N H W = {expected}, got {_describe(masks)}")


def _describe(tensor: Tensor) -> str:
    """Type and shape, for error messages."""
    return f"{tensor.dtype} {tuple(tensor.shape)}"
