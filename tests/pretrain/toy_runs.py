"""A few small images, and training runs on them that are over in a few steps."""

from dataclasses import replace

import torch

from nbhelpers.images import ArraySource
from nbhelpers.models import mini_vit, wrap
from nbhelpers.pretrain import Trainer, recipe

OBJECTIVES = ("cl", "mim", "latent", "mae", "supervised", "dino", "hybrid-0.4")
PIXELS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def source(images=40, classes=2, blue=1):
    """Noise, the blue channel times a factor, whose classes take turns."""
    pixels = torch.randint(256, (images, 3, 16, 16), generator=seeded()).to(torch.uint8)
    pixels[:, 2] *= blue
    labels, names = torch.arange(images) % classes, tuple("abcdefghijkl"[:classes])
    return ArraySource(
        "toy/train", pixels, {"shape": labels, "class": labels}, {"shape": names, "class": names}
    )


def small(objective, steps=10, study="shapes", **changes):
    """The recipe of an objective for a small encoder, batches of 8 and so many steps."""
    sizes = {"width": 32, "depth": 2, "heads": 2, "batch_size": 8, "images": 8 * steps}
    return replace(recipe(study, objective), **sizes | changes)


def trainer(objective, folder, precision=torch.float32, device="cpu", captured=True, **changes):
    chosen = small(objective, **changes)
    return Trainer(chosen, source(), source(16), folder, device, precision, captured=captured)


def fresh(seed=0):
    """An encoder with random weights, of the architecture that `small` has."""
    torch.manual_seed(seed)
    return wrap(mini_vit(**small("mim").architecture, image_size=16), **PIXELS)
