"""Every training recipe of the book, in one place.

A recipe is chosen by the objective's own validation loss and k-NN accuracy, never by a finding.
"""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from timm.models.vision_transformer import VisionTransformer

from nbhelpers.images.source import Triple
from nbhelpers.models.mini import WIDTH
from nbhelpers.names import nearest
from nbhelpers.pretrain.augment import Augmentation, View
from nbhelpers.pretrain.dino import DINO
from nbhelpers.pretrain.hybrid import Hybrid
from nbhelpers.pretrain.latent import Latent
from nbhelpers.pretrain.mae import MAE
from nbhelpers.pretrain.moco import MoCo
from nbhelpers.pretrain.objective import Objective
from nbhelpers.pretrain.simmim import SimMIM
from nbhelpers.pretrain.supervised import Supervised

# From as many images a model learns more in small batches. A CPU core is as fast with them, a GPU is not.
BATCH_SIZES = {"cpu": 256, "cuda": 1024}


@dataclass(frozen=True)
class Recipe:
    """What one training run needs to know beside its images.

    `options` go to the objective's constructor. Sizes are the encoder's; `images` counts images drawn, with
    repetition from epoch to epoch, and is rounded up to whole batches.

    Raises:
        ValueError: for a size, a number of images or a learning rate that is not above 0, or a width that its
            heads do not divide.
    """

    objective: str
    augmentation: Augmentation
    options: dict[str, Any] = field(default_factory=dict)
    width: int = WIDTH
    depth: int = 8
    heads: int = 4
    patch_size: int = 4
    standardised: bool = False
    images: int = 5_000_000
    batch_size: int = BATCH_SIZES["cpu"]
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch_size", "images", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")

    def of_width(self, width: int) -> "Recipe":
        """The same recipe for an encoder of another width, whose heads have as many channels each.

        Raises:
            ValueError: for a width that is no whole number of heads.

        >>> recipe("shapes", "cl").of_width(64).heads
        2
        """
        channels = self.width // self.heads
        if width < channels or width % channels:
            raise ValueError(f"width {width} is no multiple of the {channels} channels of a head")
        return replace(self, width=width, heads=width // channels)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run.

        >>> replace(recipe("shapes", "cl"), images=257).steps
        2
        """
        return math.ceil(self.images / self.batch_size)

    @property
    def architecture(self) -> dict[str, int | bool]:
        """Arguments of `mini_vit`, without the image size."""
        names = ("width", "depth", "heads", "patch_size", "standardised")
        return {name: getattr(self, name) for name in names}


CLASSES: dict[str, type[Objective]] = {
    "mim": SimMIM,
    "cl": MoCo,
    "latent": Latent,
    "mae": MAE,
    "supervised": Supervised,
    "hybrid": Hybrid,
    "dino": DINO,
}
HYBRIDS = (0.2, 0.4, 0.5, 0.6, 0.8)


def hybrid(mim: Recipe, cl: Recipe, weight: float) -> Recipe:
    """The hybrid of two recipes, which agree in all but objective, views and options; weight is lambda.

    >>> hybrid(recipe("shapes", "mim"), recipe("shapes", "cl"), 0.2).objective
    'hybrid-0.2'
    """
    options = {"weight": weight, "mim": mim.options, "cl": {"augmentation": cl.augmentation} | cl.options}
    return replace(mim, objective=f"hybrid-{weight:g}", options=options)


def _recipes(views: Augmentation, standardised: bool, label: str, images: int) -> dict[str, Recipe]:
    """The recipes of a study by objective.

    Args:
        views: of objectives that learn what an image as a whole shows.
        standardised: see `mini_vit`.
        label: what supervised training learns; ten classes in every study.
        images: how many are seen.
    """

    def of(objective: str, augmentation: Augmentation, **options: Any) -> Recipe:
        return Recipe(objective, augmentation, options, standardised=standardised, images=images)

    # SimMIM crops from two thirds of the area upwards (its section 4.1), MAE as others do (its section 4);
    # both leave colours alone.
    mim = of("mim", Augmentation(crop_scale=(0.67, 1.0)), mask_ratio=0.6, mask_unit=2)
    latent = of("latent", mim.augmentation, **mim.options, momentum=0.96, averaged_blocks=4)
    cl = of("cl", views, temperature=0.2, momentum=0.99, dim=128)
    decoder = {"width": 96, "depth": 4, "heads": 4}
    others = [
        of("mae", replace(views, colour="none"), decoder=decoder, mask_ratio=0.75),
        of("supervised", views, label=label, classes=10, smoothing=0.1),
        of("dino", views, student_temperature=0.1, teacher_temperature=0.04, momentum=0.99),
    ]
    recipes = [mim, cl, latent, *others, *(hybrid(mim, cl, weight) for weight in HYBRIDS)]
    return {recipe.objective: recipe for recipe in recipes}


STUDIES = {
    # Colours and contrast alone would identify a generated image, and CL would learn little else.
    "shapes": _recipes(Augmentation(crop_scale=(0.4, 1.0), colour="orthogonal"), True, "shape", 2_000_000),
    "cifar10": _recipes(Augmentation(crop_scale=(0.2, 1.0), colour="jitter"), False, "class", 5_000_000),
}


def recipe(study: str, objective: str) -> Recipe:
    """The recipe for an objective on the images of a study; "hybrid-LAMBDA" takes any lambda in 0..1.

    Raises:
        KeyError: for a pair without a recipe, naming the nearest ones.

    >>> recipe("shapes", "mim").options["mask_ratio"]
    0.6
    >>> recipe("cifar10", "hybrid-0.25").options["weight"]
    0.25
    """
    recipes = STUDIES.get(study, {})
    if objective in recipes:
        return recipes[objective]
    number = re.fullmatch(r"hybrid-([01]|0?\.\d+)", objective)
    if number and recipes:
        return hybrid(recipes["mim"], recipes["cl"], float(number[1]))
    name, known = f"{study}.{objective}", [f"{study}.{each}" for study in STUDIES for each in STUDIES[study]]
    raise KeyError(f"no recipe for {name!r}; {nearest(name, known)}")


def moments(recipe: Recipe, first: int = 16_000, count: int = 10) -> list[int]:
    """Steps at which a run is measured: `count` of them, log-spaced from `first` images to the end.

    >>> [step * 256 for step in moments(recipe("shapes", "cl"), count=3)]
    [16128, 179712, 2000128]
    """
    start = min(max(1, math.ceil(first / recipe.batch_size)), recipe.steps)
    return sorted({round(step) for step in np.geomspace(start, recipe.steps, count)})


def build(recipe: Recipe, encoder: VisionTransformer, mean: Triple, std: Triple) -> Objective:
    """The recipe's objective around an encoder."""
    kind = recipe.objective.partition("-")[0]  # "hybrid" of "hybrid-0.2"
    if kind not in CLASSES:
        way = f"enter it in recipes.CLASSES, {nearest(kind, CLASSES)}"
        raise KeyError(f"no objective has the class {kind!r}; {way}")
    objective = CLASSES[kind]
    view = View(recipe.augmentation, mean, std, recipe.standardised)
    return objective(encoder, view, **recipe.options)
