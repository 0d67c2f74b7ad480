"""Pre-training of the book's own encoders, one file an objective and one trainer for all."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch

from nbhelpers import images
from nbhelpers.files import cache_dir
from nbhelpers.models import save_encoder, wrap
from nbhelpers.models.mini import WIDTH
from nbhelpers.pretrain.recipes import LABELS, RECIPES, Recipe, family, recipe
from nbhelpers.pretrain.trainer import Trainer
from nbhelpers.probes.knn import knn_by_depth
from nbhelpers.ranks import rank

__all__ = ["RECIPES", "Recipe", "Trainer", "description", "pretrain", "recipe", "trained_name"]

SOURCES = {"shapes": images.shapes, "cifar10": images.cifar10}
KNN_TRAIN, KNN_TEST = 10_000, 2_000


def trained_name(recipe: Recipe, study: str) -> str:
    """What the encoder is called: "shapes.cl"; its width, images and seed where they are not the usual ones.

    >>> trained_name(recipe("shapes", "cl"), "shapes")
    'shapes.cl'
    >>> from dataclasses import replace
    >>> trained_name(replace(recipe("shapes", "cl").of_width(16), seed=1), "shapes")
    'shapes.cl.w16.s1'
    >>> trained_name(replace(recipe("shapes", "cl"), images=600_000), "shapes")
    'shapes.cl.n600000'
    """
    differs = {
        f".w{recipe.width}": recipe.width != WIDTH,
        f".n{recipe.images}": recipe.images != Recipe.images,
        f".s{recipe.seed}": recipe.seed != 0,
    }
    return f"{study}.{recipe.objective}" + "".join(part for part, unusual in differs.items() if unusual)


def description(trainer: Trainer, study: str) -> dict[str, Any]:
    """What `nbhelpers.models.save_encoder` has to know of the encoder of a run, by its own keys."""
    recipe, train = trainer.recipe, trainer.train
    architecture = recipe.architecture | {"image_size": train[0].shape[-1]}
    if "decoder" in recipe.options:
        architecture["decoder"] = recipe.options["decoder"]
    return {
        "study": study,
        "objective": LABELS[family(recipe.objective)],
        "seed": recipe.seed,
        "architecture": architecture,
        "mean": [round(value, 6) for value in train.mean],
        "std": [round(value, 6) for value in train.std],
    }


def pretrain(
    recipe: Recipe,
    study: str,
    device: str = "cpu",
    stop_after: float | None = None,
    folder: Path | None = None,
    precision: torch.dtype | None = None,
) -> bool:
    """Train a recipe on a study's training images; when done, put the encoder into `data/encoders`.

    Args:
        recipe: see `nbhelpers.pretrain.recipe`.
        study: "shapes" or "cifar10".
        device: as torch names it.
        stop_after: seconds after which to stop cleanly; the same call resumes.
        folder: where the encoder goes, default `data/encoders`.
        precision: as `Trainer` takes it.

    Returns:
        Whether training is finished.
    """
    name = trained_name(recipe, study)
    train, val = SOURCES[study]("train"), SOURCES[study]("val")
    trainer = Trainer(recipe, train, val, cache_dir() / "pretrain" / name, device, precision)
    if not trainer.done and not trainer.run(stop_after):
        return False
    if rank() > 0:
        return True
    kept, encoder = trainer.objective.kept.cpu(), trainer.objective.encoder
    row = description(trainer, study) | {
        "recipe": recipe.as_dict(),
        "training_images": {"name": train.name, "origin": train.origin, "fingerprint": train.fingerprint},
        "images_seen": recipe.steps * recipe.batch_size,
        "wall_time_s": round(trainer.wall_time),
        "images_per_second": round(median(entry["images_per_second"] for entry in trainer.rows), 1),
        "device": ", then ".join(trainer.devices),
        "precision": str(trainer.precision).removeprefix("torch."),
        "val_loss": round(trainer.rows[-1]["val_loss"], 5),
    }
    read = wrap(encoder, mean=row["mean"], std=row["std"], name=name, objective=row["objective"])
    knn = knn_by_depth(read, train.subset(KNN_TRAIN), val.subset(KNN_TEST), list(train.labels))
    row["knn_by_depth"] = {
        label: [round(value, 4) for value in rows["value"]] for label, rows in knn.groupby("label")
    }
    save_encoder(kept, name, row, folder)
    return True
