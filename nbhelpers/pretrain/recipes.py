"""Every training recipe of the book, in one place.

A recipe is chosen by the objective's own validation loss and k-NN accuracy, never by a finding.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from timm.models.vision_transformer import VisionTransformer

from nbhelpers.pretrain.augment import Augmentation
from nbhelpers.pretrain.moco import MoCo
from nbhelpers.pretrain.objective import Objective
from nbhelpers.pretrain.simmim import SimMIM


@dataclass(frozen=True)
class Recipe:
    """What one training run needs to know beside its images.

    `options` go to the objective's constructor. Sizes are the encoder's; `images` counts images drawn, with
    repetition from epoch to epoch.
    """

    objective: str
    augmentation: Augmentation
    options: dict[str, float | int] = field(default_factory=dict)
    width: int = 64
    depth: int = 8
    heads: int = 4
    patch_size: int = 4
    standardised: bool = False
    images: int = 256_000
    batch_size: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.images // self.batch_size

    @property
    def architecture(self) -> dict[str, int | bool]:
        """Arguments of `mini_vit`, without the image size."""
        names = ("width", "depth", "heads", "patch_size", "standardised")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict:
        """Plain values, for the manifest."""
        return asdict(self)


CLASSES: dict[str, Callable[..., Objective]] = {"cl": MoCo, "mim": SimMIM}
LABELS = {"cl": "CL", "mim": "MIM"}

# SimMIM crops from two thirds of the area upwards and leaves colours alone (its section 4.1).
_MIM = Recipe("mim", Augmentation(crop_scale=(0.67, 1.0), colour="none"), {"mask_ratio": 0.6, "mask_unit": 2})
_CL = Recipe(
    "cl",
    Augmentation(crop_scale=(0.2, 1.0), colour="jitter"),
    {"temperature": 0.2, "momentum": 0.99, "hidden": 256, "dim": 128},
)

RECIPES: dict[str, Recipe] = {
    # Colours and contrast alone would identify a generated image, and CL would learn little else.
    "shapes.cl": replace(
        _CL, augmentation=Augmentation(crop_scale=(0.4, 1.0), colour="orthogonal"), standardised=True
    ),
    "shapes.mim": replace(_MIM, standardised=True),
    "cifar10.cl": _CL,
    "cifar10.mim": _MIM,
}


def recipe(study: str, objective: str) -> Recipe:
    """The recipe for an objective ("cl", "mim") on the images of a study.

    Raises:
        KeyError: for a pair without a recipe, naming the nearest ones.

    >>> recipe("shapes", "mim").options["mask_ratio"]
    0.6
    """
    name = f"{study}.{objective}"
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, cutoff=0.3) or list(RECIPES)
        raise KeyError(f"no recipe for {name!r}; nearest: {', '.join(near)}")
    return RECIPES[name]


def build(
    recipe: Recipe, encoder: VisionTransformer, mean: tuple[float, ...], std: tuple[float, ...]
) -> Objective:
    """The recipe's objective around an encoder."""
    return CLASSES[recipe.objective](encoder, mean, std, recipe.augmentation, **recipe.options)
