"""A study: images, and the encoders that were trained on similar ones."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from nbhelpers import images as sources
from nbhelpers.files import DATA
from nbhelpers.images import ImageSource, MissingDataError
from nbhelpers.images.source import named_path
from nbhelpers.models import Encoder, load, manifest
from nbhelpers.models.mini import WIDTH

IMAGES = 2_000  # how many test images a figure of the book is averaged over
IMAGENET = "NBHELPERS_IMAGENET"  # environment variable that names the validation images
PER_CLASS = "NBHELPERS_IMAGENET_PER_CLASS"  # how many of each class are looked at; default: all
VARIED = ("width", "images")  # recipe fields that a name holds where they are not the default
OWN = ("shapes", "cifar10")  # the studies that encoders of this book were trained for
PAIR = ("cl", "mim")  # the objectives that every chapter sets beside each other
_LOOKS = pd.read_csv(DATA / "styles.csv", index_col="label")
NAMES = {key: name for name, key in _LOOKS.pop("key").dropna().items()}  # by what training calls an objective
# Colour (Okabe and Ito's, safe for colour-blind readers), marker and line of each objective, everywhere.
# Models of one objective that are drawn together, by `label`, share its hue and differ in marker and line.
# Published models look like ours of the same objective, and so do their public checkpoints.
STYLES: dict[str, dict] = _LOOKS.to_dict("index")
# The paper's own models, and an untrained one of their architecture.
IMAGENET_MODELS = tuple(f"{of}vit_base_patch16_224" for of in "mocov3. dino. simmim. mae. random:".split())


@dataclass(frozen=True)
class Study:
    """Images and the encoders that were trained on similar ones.

    Attributes:
        name: "shapes", "cifar10", "imagenet" or "folder:PATH".
        title: what figures write above a panel.
        models: names of the encoders that chapters draw unless they say otherwise, for `nbhelpers.load`: CL
            and MIM with all their seeds, and the untrained "NAME.random".
    """

    name: str
    title: str
    models: tuple[str, ...]

    def images(self, split: str = "test") -> ImageSource:
        """The images of a split: "train", "val" or "test"; where there are no splits, all there are.

        Raises:
            MissingDataError: if they are not on this machine; the message says how to get them.
        """
        if self.name.startswith("folder:"):
            return sources.folder(Path(self.name.removeprefix("folder:")))
        if self.name == "imagenet":
            return _imagenet()
        return {"shapes": sources.shapes, "cifar10": sources.cifar10}[self.name](split)

    @property
    def splits(self) -> bool:
        """Whether there are training, validation and test images; else probes split those of `images`."""
        return self.name in OWN

    @property
    def sample(self) -> ImageSource:
        """The test images that the book's figures are averaged over: the same for every model.

        Drawn again at each access, since files may have been added to a folder. Without splits, classes take
        turns, so that a few images still cover many classes.
        """
        images = self.images("test")
        label = None if self.splits else next(iter(images.classes))
        return images.at_most(IMAGES, label=label)

    @property
    def missing(self) -> str | None:
        """Why the images cannot be had on this machine; None where they can."""
        try:
            self.images("test")
        except MissingDataError as error:
            return str(error)
        return None

    def trained(self, *objectives: str, vary: Collection[str] = ()) -> tuple[str, ...]:
        """Names of the encoders that were trained for this study, all of them or those of some objectives.

        An objective is named as for training, such as "mae" or "hybrid-0.2"; "hybrid" means every lambda.
        Encoders of another than the default width, or trained on another number of images, such as
        "shapes.cl.w64.n600000", come where `vary` has "width" or "images". Where an objective has no encoder
        of the default size, the widest come, and of these the longest trained; `label` says so.
        """
        family = "cifar10" if self.name.startswith("folder:") else self.name
        of = {name: _parts(name) for name, row in manifest().items() if row["study"] == family}
        nearest: dict[str, str] = {}
        for name, (key, _) in of.items():
            nearest[key] = max(nearest.get(key, name), name, key=nearness)
        return tuple(
            name
            for name, (key, unusual) in of.items()
            if (unusual == of[nearest[key]][1] or unusual.keys() <= {*vary})
            and (not objectives or {key, key.partition("-")[0]} & {*objectives})
        )

    def alike(self, *objectives: str, seeds: int = 1) -> tuple[str, ...]:
        """Names of the encoders of some objectives, all of one width and with equally many images seen.

        Of several such sets, with at least so many `seeds` of each objective, the one nearest to the default
        width and number of images; all its seeds.

        Raises:
            LookupError: if the objectives have no such width and number of images in common.
        """
        found = [self.trained(objective, vary=VARIED) for objective in objectives]
        sizes = [Counter(map(nearness, names)).items() for names in found]
        if not (common := set.intersection(*({size for size, n in each if n >= seeds} for each in sizes))):
            raise LookupError(
                f"no encoders of {self.name} for {' and '.join(objectives)} share a width and a number of "
                f"training images{f', with {seeds} seeds each' if seeds > 1 else ''}"
            )
        return tuple(name for names in found for name in names if nearness(name) == max(common))

    def encoders(self, models: Sequence[str | Encoder] | None = None) -> list[Encoder]:
        """Loaded encoders: those named or given, else one per objective."""
        return [*map(load, listed(models) or first_seeds(self.models))]


def at_hand(names: Iterable[str]) -> Study:
    """The first of some studies whose images are on this machine, else that of generated images.

    >>> at_hand(["imagenet", "shapes"]).name
    'shapes'
    """
    return next((each for each in map(study, names) if not each.missing), study("shapes"))


def listed(models: Iterable | None) -> list:
    """Models as a list, which is empty for None.

    Raises:
        TypeError: a single one, such as a name, whose letters would be taken for models.
        ValueError: an empty list, which is not the default but a choice that found nothing.
    """
    if isinstance(models, str | Path | Encoder):
        raise TypeError(f"models must be a list of encoders, names or files, not a {type(models).__name__}")
    if models is None:
        return []
    if not (chosen := list(models)):
        raise ValueError("the list of models is empty; pass None for the study's own models")
    return chosen


TITLES = {
    "shapes": "shapes (generated)",
    "cifar10": "CIFAR-10 (photographs)",
    "imagenet": "ImageNet (public ViT-B/16)",
}


def label(model: str) -> str:
    """What legends and prose call a model: by its objective where it is one of the book's own, else its name.

    >>> label("shapes.cl.s1"), label("cifar10.hybrid-0.2"), label("deit_tiny")
    ('CL', 'hybrid 0.2', 'deit_tiny')
    >>> label("shapes.mae"), label("shapes.mae:decoder"), label("shapes.cl.w16")
    ('MAE', "MAE's decoder", 'CL, width 16')
    >>> label("cifar10.hybrid-0.2.n600000"), label("shapes.mae.w64:decoder")
    ('hybrid 0.2, 600,000 images', "MAE's decoder, width 64")
    """
    if model.partition(".")[0] not in TITLES:
        return model
    words = {"width": "width {}", "images": "{:,} images"}
    unusual = _parts(model)[1]
    return ", ".join([kind(model), *(words[what].format(number) for what, number in unusual.items())])


def kind(model: str) -> str:
    """What figures call the objective of one of the book's own encoders, whatever its width and training.

    >>> kind("cifar10.hybrid-0.2.n600000"), kind("shapes.mae.w64:decoder")
    ('hybrid 0.2', "MAE's decoder")
    """
    key = _parts(model)[0]
    return NAMES.get(key, key.replace("-", " "))


def nearness(model: str) -> tuple[float, float]:
    """Sort key by which the encoder nearest to the default width and number of images is the largest.

    >>> nearness("shapes.cl") > nearness("shapes.cl.n9") > nearness("shapes.cl.w64")
    True
    """
    unusual = _parts(model)[1]
    return unusual.get("width", WIDTH), unusual.get("images", float("inf"))


def first_seeds(models: Iterable[str]) -> tuple[str, ...]:
    """Of models that differ in nothing but their seed, the first one named; others as they are.

    >>> first_seeds(["shapes.cl.s1", "shapes.cl.s2", "shapes.cl.w16", "cifar10.cl", "deit_tiny"])
    ('shapes.cl.s1', 'shapes.cl.w16', 'cifar10.cl', 'deit_tiny')
    """
    first: dict[tuple[str, str], str] = {}
    for model in models:
        first.setdefault(_but_for_seed(model), model)
    return tuple(first.values())


def labels(models: Iterable[str]) -> dict[str, str]:
    """What a figure calls each of its models: by label, or, where two studies' share one, by the first seed.

    >>> labels(["shapes.cl", "shapes.cl.s1", "cifar10.mim"])
    {'shapes.cl': 'CL', 'shapes.cl.s1': 'CL', 'cifar10.mim': 'MIM'}
    >>> labels(["shapes.cl", "shapes.cl.s1", "cifar10.cl"])
    {'shapes.cl': 'shapes.cl', 'shapes.cl.s1': 'shapes.cl', 'cifar10.cl': 'cifar10.cl'}
    """
    models = [*models]
    firsts = first_seeds(models)
    names = dict(zip(map(_but_for_seed, firsts), distinct_labels(firsts), strict=True))
    return {model: names[_but_for_seed(model)] for model in models}


def distinct_labels(models: Iterable[str]) -> list[str]:
    """The label of each model, or, where two share one, of seeds, say, the names of all.

    >>> distinct_labels(["shapes.cl", "shapes.mim"]), distinct_labels(["shapes.cl", "shapes.cl.s1"])
    (['CL', 'MIM'], ['shapes.cl', 'shapes.cl.s1'])
    """
    models = [*models]
    return models if len({*map(label, models)}) < len(models) else [*map(label, models)]


def _but_for_seed(model: str) -> tuple[str, str]:
    """What models that differ in nothing but their seed have in common."""
    return model.partition(".")[0], label(model)


def _parts(model: str) -> tuple[str, dict[str, int]]:
    """Objective, as training knows it, and the VARIED in the name of an encoder of the book or a decoder."""
    encoder, _, part = model.partition(":")
    numbers = r"(?:\.w(?P<width>\d+))?(?:\.n(?P<images>\d+))?(?:\.s\d+)?"
    parts = re.fullmatch(r"(?:\w+\.)?(?P<objective>.+?)" + numbers, encoder)
    return part or parts["objective"], {key: int(parts[key]) for key in VARIED if parts[key]}


def _imagenet() -> ImageSource:
    """The folder or archive of validation images that the environment names."""
    if not (path := named_path(IMAGENET)):
        raise MissingDataError(
            f"the imagenet study needs photographs: set {IMAGENET} to a folder or tar archive laid out as "
            "CLASS/FILE, either (1) ImageNet-1k's validation images, (2) the folder imagenette2/val that "
            "torchvision.datasets.Imagenette(root, 'val', download=True) fetches, or (3) any of your own; "
            f"{PER_CLASS} limits the images of each class"
        )
    number = os.environ.get(PER_CLASS)
    if number and not number.isdecimal():
        raise ValueError(f"{PER_CLASS} must be a number of images, got {number!r}")
    images = sources.folder(path)
    images.name = "imagenet"  # in tables, rather than where it lies on this machine
    if number:  # as classes take turns, each gives so many or all that it has
        chosen = images.labels["class"].bincount().clamp(max=int(number)).sum()
        images = images.subset(int(chosen), label="class")
    return images


def study(name: str) -> Study:
    """The study of that name: "shapes", "cifar10", "imagenet", or "folder:PATH" for any folder of images.

    Photographs of a folder are read by the encoders of `cifar10`, those of `imagenet` by public checkpoints.

    Raises:
        ValueError: for another name.

    >>> study("shapes").title
    'shapes (generated)'
    """
    family = "cifar10" if name.startswith("folder:") else name
    if family not in TITLES:
        raise ValueError(f"unknown study {name!r}; the studies are {', '.join(TITLES)} and folder:PATH")
    if name == "imagenet":
        return Study(name, TITLES[name], IMAGENET_MODELS)
    chosen = Study(name, TITLES.get(name, name), ())
    return replace(chosen, models=(*chosen.trained(*PAIR), f"{family}.random"))
