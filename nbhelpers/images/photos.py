"""Data sets of others: CIFAR-10, a few photographs of scikit-image, and cue-conflict stimuli."""

import hashlib
import json
import os
import re
import socket
from pathlib import Path

import skimage.data
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets import CIFAR10

from nbhelpers.files import atomic_path, cache_dir, sha256
from nbhelpers.images.decode import DECODER, Size, resize
from nbhelpers.images.folders import find_images, folder, unpacked
from nbhelpers.images.source import (
    PICTURES,
    ArraySource,
    MissingDataError,
    channel_statistics,
    in_turns,
    named_path,
)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_PER_CLASS = {"train": 5000, "test": 1000}  # images of each class in the official parts
SPLITS = ("train", "val", "test")
VALIDATION_SEED = 0
VALIDATION_SHARE = 0.1

Part = tuple[Tensor, Tensor]  # images `uint8 N 3 H W`, and labels `N`

CUE_CLASSES = (
    "airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat",
    "chair", "clock", "dog", "elephant", "keyboard", "knife", "oven", "truck",
)  # fmt: skip
# The seven that CIFAR-10 shows too, by its names for them.
RENAMED = {"boat": "ship", "car": "automobile"}
TO_CIFAR10 = {name: RENAMED.get(name, name) for name in "airplane bird boat car cat dog truck".split()}
_CLASS = "|".join(CUE_CLASSES)
_SHAPE, _TEXTURE = (rf"(?P<{cue}_picture>(?P<{cue}>{_CLASS})\d+)" for cue in ("shape", "texture"))
_STIMULUS = re.compile(f"{_SHAPE}-{_TEXTURE}")

# In scikit-image's wheel (no download), free of rights: public domain or CC0.
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "rocket")


def cifar10(split: str = "test", download: bool = False) -> ArraySource:
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
        ValueError: there is no such split, or a copy is damaged or incomplete.
    """
    if split not in SPLITS:
        raise ValueError(f"CIFAR-10 has no split {split!r}; it has {', '.join(SPLITS)}")
    path = _find_cifar10(download)
    cached = cache_dir() / "images" / f"cifar10-{DECODER}-{_content(path)}.safetensors"
    if not cached.exists():
        _write_cifar10(path, cached)
    with safe_open(cached, "pt") as file:
        about = json.loads(file.metadata()["about"])
        images, labels = (file.get_tensor(f"{split}.{what}") for what in ("images", "labels"))
    mean, std = tuple(about["mean"]), tuple(about["std"])
    labels, classes = {"class": labels}, {"class": CIFAR10_CLASSES}
    return ArraySource(f"cifar10/{split}", images, labels, classes, None, mean, std, about["origin"])


def photographs(size: Size = 224) -> ArraySource:
    """Five photographs out of scikit-image's wheel, for attention maps at any resolution without a download.

    An astronaut, a man with a camera (grey), a cat, a cup of coffee and a rocket, 300 to 512 pixels high,
    scaled to cover `size` (one number, or rows and columns) and cropped at the centre.

    >>> photographs(32).batch([0, 2]).shape
    torch.Size([2, 3, 32, 32])
    """
    images = [resize(Image.fromarray(getattr(skimage.data, name)()), size) for name in PHOTOGRAPHS]
    labels, classes = {"class": torch.arange(len(PHOTOGRAPHS))}, {"class": PHOTOGRAPHS}
    return ArraySource("photographs", torch.stack(images), labels, classes, origin="scikit-image")


def cue_conflict(size: Size | None = None) -> ArraySource:
    """The cue-conflict stimuli of Geirhos et al. (2019): labels `shape` and `texture`, 16 classes each.

    Images are named `shapeN-textureM.png`. The labels `shape_picture` and `texture_picture` tell which two
    pictures a stimulus was made from; several share each. Of the 1,280, the 80 whose shape and texture agree
    are dropped, since they cannot tell which of the two a decision followed: 1,200 trials. Read from the
    folder or tar archive that `$NBHELPERS_CUE_CONFLICT` names.

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
            "NBHELPERS_CUE_CONFLICT to a folder or tar archive of SHAPE/shapeN-textureM.png, such as "
            "stimuli/style-transfer-preprocessed-512 of the authors' repository rgeirhos/texture-vs-shape"
        )
    source, cues, made_from = folder(path, size), [], []
    for file in source.files:
        match = _STIMULUS.fullmatch(file.stem)
        if match is None:
            names = f"airplane/airplane1-bicycle2.png with the classes {', '.join(CUE_CLASSES)}"
            raise ValueError(f"{file} is no cue-conflict stimulus; expected names such as {names}")
        cues.append([CUE_CLASSES.index(match[label]) for label in ("shape", "texture")])
        made_from.append([match[label] for label in PICTURES])
    shapes, textures = torch.tensor(cues).T
    trials = shapes != textures
    labels = {"shape": shapes[trials], "texture": textures[trials]}
    classes = {"shape": CUE_CLASSES, "texture": CUE_CLASSES}
    for label, names in zip(PICTURES, zip(*made_from, strict=True), strict=True):
        classes[label] = tuple(sorted({*names}))
        labels[label] = torch.tensor([classes[label].index(name) for name in names])[trials]
    return ArraySource("cue-conflict", source.batch(trials), labels, classes, origin=path.name)


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


def _find_cifar10(download: bool) -> Path:
    """The folder or archive that holds CIFAR-10, in the documented order."""
    named, own = named_path("NBHELPERS_CIFAR10"), cache_dir() / "torchvision"
    usual = [own, Path("data"), Path("~/data").expanduser(), Path(torch.hub.get_dir()).parent / "datasets"]
    for root in [named] if named else usual:
        batches = root if root.name == CIFAR10.base_folder else root / CIFAR10.base_folder
        if batches.is_dir():
            return batches
    if named:
        return named
    ways = (
        "Three ways to get it: (1) set NBHELPERS_CIFAR10 to a folder or tar archive laid out as "
        f"cifar10/{{train,test}}/CLASS/*.jpg; (2) put a torchvision copy (the folder {CIFAR10.base_folder}) "
        f"into one of {', '.join(map(str, usual))}; (3) with a network connection, run once: "
        'python -c "from nbhelpers.images import cifar10; cifar10(download=True)"'
    )
    if not download:
        raise MissingDataError(f"CIFAR-10 is not on this machine. {ways}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision would wait for a silent network without end
    try:
        CIFAR10(str(own), download=True)
    except (OSError, RuntimeError) as error:
        raise MissingDataError(f"downloading CIFAR-10 failed ({error}). {ways}") from error
    finally:
        socket.setdefaulttimeout(before)
    return own / CIFAR10.base_folder


def _content(path: Path) -> str:
    """SHA-256 of an archive, or of names and contents of the files in a folder that CIFAR-10 is made of."""
    if path.is_file():
        return sha256(path)
    # torchvision's batches are no images
    names = sorted(os.listdir(path)) if path.name == CIFAR10.base_folder else find_images(path)[1]
    lines = [path.name, *(f"{name} {sha256(path / name)}" for name in names)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_cifar10(path: Path, cached: Path) -> None:
    """Decode CIFAR-10 at `path`, split it, and write the cache file."""
    read = _read_torchvision if path.name == CIFAR10.base_folder else _read_image_files
    origin, train, test = read(path)
    tensors, orders = {}, (*_hold_out(train[1]), in_turns(test[1]))
    for split, (images, labels), order in zip(SPLITS, (train, train, test), orders, strict=True):
        tensors |= {f"{split}.images": images[order], f"{split}.labels": labels[order]}
    mean, std = channel_statistics([tensors["train.images"]])
    about = {"mean": mean, "std": std, "origin": origin}
    with atomic_path(cached) as temporary:
        save_file(tensors, temporary, metadata={"about": json.dumps(about)})


def _read_torchvision(batches: Path) -> tuple[str, Part, Part]:
    """Origin, and the official training and test images; torchvision checks sums."""
    official = []
    for train in (True, False):
        try:
            data = CIFAR10(str(batches.parent), train=train)
        except RuntimeError as error:
            raise ValueError(f"{batches} is incomplete or fails its checksums; fetch it again") from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        official.append((images, torch.tensor(data.targets)))
    return "torchvision (original)", *official


def _read_image_files(path: Path) -> tuple[str, Part, Part]:
    """The same from `{train,test}/CLASS/FILE`, at `path` or in one folder below it, by class and name."""
    root, official, lossy = unpacked(path), [], False
    places = [p for p in (root, *root.iterdir()) if (p / "train").is_dir() and (p / "test").is_dir()]
    if not places:
        raise ValueError(f"{path} is not CIFAR-10 laid out as cifar10/{{train,test}}/CLASS/*.jpg")
    for part, number in CIFAR10_PER_CLASS.items():
        source = folder(places[0] / part)
        labels, titles = source.labels["class"], source.classes["class"]
        counts = dict(zip(titles, labels.bincount().tolist(), strict=True))
        if counts != dict.fromkeys(CIFAR10_CLASSES, number):
            wanted = f"{number} images of every class as cifar10/{part}/CLASS/*.jpg"
            raise ValueError(f"{path} is not CIFAR-10, which has {wanted}; it holds {counts}")
        images = source.batch(range(len(source)))
        if images.shape[1:] != (3, 32, 32):
            raise ValueError(f"{source.name}: images are not 32 x 32 but {tuple(images.shape[2:])}")
        official.append((images, labels))
        lossy |= any(file.suffix.lower() in (".jpg", ".jpeg", ".webp") for file in source.files)
    return f"{path.name} ({'JPEG copy' if lossy else 'lossless copy'})", *official


def _hold_out(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of training and validation part, classes taking turns: the same share of every class."""
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    members = [torch.nonzero(labels == number).flatten() for number in range(len(CIFAR10_CLASSES))]
    rows = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in members], dim=1)
    held = round(len(rows) * VALIDATION_SHARE)
    return rows[held:].flatten(), rows[:held].flatten()
