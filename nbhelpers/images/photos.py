"""Photographs: CIFAR-10, any folder or archive of images, and the few that scikit-image carries."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets import CIFAR10

from nbhelpers.files import atomic_path, cache_dir
from nbhelpers.images.archive import decode, read_images, stamp
from nbhelpers.images.source import ArraySource, MissingDataError, channel_statistics, content_fingerprint

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = ("train", "val", "test")
VALIDATION_SEED = 0
VALIDATION_SHARE = 0.1


def cifar10(split: str, download: bool = False) -> ArraySource:
    """CIFAR-10: 32 x 32 photographs of ten classes (Krizhevsky 2009).

    `"train"` (45,000) and `"val"` (5,000) are drawn, class by class with a fixed seed, from the official
    training images; `"test"` is the official 10,000. Classes take turns (image i shows class i mod 10), so
    that every prefix is balanced. `origin` says where the photographs came from.

    Looked for in this order: the folder or tar archive that `$NBHELPERS_CIFAR10` names
    (`cifar10/{train,test}/CLASS/*.jpg`, or a torchvision copy), a torchvision copy in a usual place, and,
    only with `download=True`, a torchvision download with its checksum. Decoded once, then read from the
    cache folder.

    Raises:
        MissingDataError: none of the three is there.
        ValueError: there is no such split, or a copy is incomplete.
    """
    if split not in SPLITS:
        raise ValueError(f"CIFAR-10 has no split {split!r}; it has {', '.join(SPLITS)}")
    path = _find_cifar10(download)
    cached = cache_dir() / f"cifar10-{stamp(path)}.safetensors"
    if not cached.exists():
        _write_cifar10(path, cached)
    with safe_open(cached, "pt") as file:
        about = json.loads(file.metadata()["about"])
        return ArraySource(
            f"cifar10/{split}",
            file.get_tensor(f"{split}.images"),
            {"class": file.get_tensor(f"{split}.labels")},
            {"class": CIFAR10_CLASSES},
            mean=tuple(about["mean"]),
            std=tuple(about["std"]),
            fingerprint=about["fingerprint"][split],
            origin=about["origin"],
        )


def _find_cifar10(download: bool) -> Path:
    """The folder or archive that holds CIFAR-10, in the documented order."""
    if named := os.environ.get("NBHELPERS_CIFAR10"):
        path = Path(named).expanduser()
        if not path.exists():
            raise MissingDataError(f"NBHELPERS_CIFAR10 names {path}, which does not exist")
        return _torchvision_copy(path) or path
    own = cache_dir() / "torchvision"
    roots = [own, Path("data"), Path("~/data").expanduser(), Path(torch.hub.get_dir()).parent / "datasets"]
    for root in roots:
        if copy := _torchvision_copy(root):
            return copy
    if download:
        with _network_timeout(30):
            CIFAR10(str(own), download=True)
        return own / CIFAR10.base_folder
    raise MissingDataError(
        "CIFAR-10 is not on this machine. Three ways to get it: (1) set NBHELPERS_CIFAR10 to a folder or tar "
        "archive laid out as cifar10/{train,test}/CLASS/*.jpg; (2) put a torchvision copy (the folder "
        f"{CIFAR10.base_folder}) into one of {', '.join(map(str, roots))}; (3) with a network connection, "
        "run once: "
        "python -c \"from nbhelpers.images import cifar10; cifar10('train', download=True)\""
    )


def _torchvision_copy(root: Path) -> Path | None:
    """The folder of torchvision's batches at or under `root`, if there is one."""
    for folder in (root, root / CIFAR10.base_folder):
        if (folder / CIFAR10.test_list[0][0]).is_file():
            return folder
    return None


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Give up on a silent network, which torchvision's downloader would wait for without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _write_cifar10(path: Path, cached: Path) -> None:
    """Decode CIFAR-10 at `path`, split it, and write the cache file."""
    if path.name == CIFAR10.base_folder or _torchvision_copy(path):
        origin, official = "torchvision original", _read_torchvision(path)
    else:
        origin, official = f"{path.name} (JPEG copy)", _read_image_files(path)
    parts = dict(zip(("train", "val"), _hold_out(*official["train"]), strict=True))
    parts["test"] = _take_turns(*official["test"])
    mean, std = channel_statistics(parts["train"][0])
    about = {
        "origin": origin,
        "mean": mean,
        "std": std,
        "fingerprint": {split: content_fingerprint(*part) for split, part in parts.items()},
    }
    tensors = {}
    for split, (images, labels) in parts.items():
        tensors[f"{split}.images"], tensors[f"{split}.labels"] = images, labels
    with atomic_path(cached) as temporary:
        save_file(tensors, temporary, metadata={"about": json.dumps(about)})


def _read_torchvision(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Official `train` and `test` images `uint8 N 3 H W` and labels, checksums verified by torchvision."""
    official = {}
    for split in ("train", "test"):
        data = CIFAR10(str(folder.parent), train=split == "train")
        official[split] = (
            torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(data.targets),
        )
    return official


def _read_image_files(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """`train` and `test` images `uint8 N 3 H W` and labels from `{train,test}/CLASS/FILE`, in order of names."""
    found: dict[str, list] = {"train": [], "test": []}
    for name, data in read_images(path):
        parts = PurePosixPath(name).parts[-3:]
        if len(parts) == 3 and parts[0] in found and parts[1] in CIFAR10_CLASSES:
            found[parts[0]].append((CIFAR10_CLASSES.index(parts[1]), parts[2], decode(data, (32, 32))))
    official = {}
    for split, rows in found.items():
        missing = sorted(set(CIFAR10_CLASSES) - {CIFAR10_CLASSES[row[0]] for row in rows})
        if missing:
            raise ValueError(
                f"{path} holds no {split} images of {', '.join(missing)}; "
                "expected cifar10/{train,test}/CLASS/*.jpg"
            )
        rows.sort(key=lambda row: row[:2])
        images = torch.from_numpy(np.stack([row[2] for row in rows])).permute(0, 3, 1, 2).contiguous()
        official[split] = images, torch.tensor([row[0] for row in rows])
    return official


def _hold_out(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Training and validation part: the same share of every class, drawn with the fixed seed."""
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    train, val = [], []
    for number in range(len(CIFAR10_CLASSES)):
        members = torch.nonzero(labels == number).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held = round(len(members) * VALIDATION_SHARE)
        val.append(members[:held])
        train.append(members[held:])
    return [_take_turns(images[rows], labels[rows]) for rows in (torch.cat(train), torch.cat(val))]


def _take_turns(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Reorder so that classes take turns: first of every class, second of every class, ..."""
    turn = torch.empty_like(labels)
    for number in labels.unique():
        members = labels == number
        turn[members] = torch.arange(int(members.sum()))
    order = torch.argsort(turn * len(CIFAR10_CLASSES) + labels)
    return images[order], labels[order]
