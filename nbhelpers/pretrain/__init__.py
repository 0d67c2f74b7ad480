"""Pre-training of the book's own encoders, one file an objective and one trainer for all."""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nbhelpers import images
from nbhelpers.files import cache_dir
from nbhelpers.models import manifest, save_encoder
from nbhelpers.models.mini import WIDTH
from nbhelpers.pretrain.recipes import STUDIES, Recipe, moments, recipe
from nbhelpers.pretrain.trainer import Trainer
from nbhelpers.probes.linear import knn_by_depth
from nbhelpers.ranks import rank

__all__ = ["Recipe", "Trainer", "description", "moments", "pretrain", "recipe", "trained_name"]

SOURCES = {"shapes": images.shapes, "cifar10": images.cifar10}
KNN_TRAIN, KNN_TEST = 10_000, 2_000


def trained_name(recipe: Recipe, study: str) -> str:
    """Name of the encoder: "shapes.cl", with width, images and seed where they are not the study's default.

    >>> trained_name(recipe("shapes", "cl"), "shapes")
    'shapes.cl'
    >>> from dataclasses import replace
    >>> trained_name(replace(recipe("shapes", "cl").of_width(64), seed=1), "shapes")
    'shapes.cl.w64.s1'
    >>> trained_name(replace(recipe("shapes", "cl"), images=600_000), "shapes")
    'shapes.cl.n600000'
    """
    ours, usual = (recipe.width, recipe.images, recipe.seed), (WIDTH, STUDIES[study]["cl"].images, 0)
    unusual = [f".{what}{n}" for what, n, often in zip("wns", ours, usual, strict=True) if n != often]
    return f"{study}.{recipe.objective}{''.join(unusual)}"


def description(trainer: Trainer, study: str) -> dict[str, Any]:
    """Manifest fields of a run's encoder, as `nbhelpers.models.save_encoder` takes them."""
    recipe, train = trainer.recipe, trainer.train
    architecture = recipe.architecture | {"image_size": train[0].shape[-1]}
    if "decoder" in recipe.options:
        architecture["decoder"] = recipe.options["decoder"]
    return {
        "study": study,
        "objective": trainer.objective.group,
        "seed": recipe.seed,
        "architecture": architecture,
        "mean": [round(value, 6) for value in train.mean],
        "std": [round(value, 6) for value in trainer.std],
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
        stop_after: seconds after which to stop cleanly, as Ctrl-C and SIGTERM do; the same call resumes.
        folder: where the encoder goes, default `data/encoders`.
        precision: as `Trainer` takes it.

    Returns:
        Whether training is finished.

    Raises:
        FileExistsError: the folder has an encoder of that name, which a new training would replace.
        ValueError: another study, or the folder has an encoder of another architecture whose name differs
            in the seed alone.
    """
    if study not in SOURCES:
        own = "for images of your own take nbhelpers.pretrain.Trainer"
        raise ValueError(f"recipes are for {' and '.join(SOURCES)}, not for {study!r}; {own}")
    name = trained_name(recipe, study)
    train, val = SOURCES[study]("train"), SOURCES[study]("val")
    trainer = Trainer(recipe, train, val, cache_dir() / "pretrain" / name, device, precision)
    if trainer.step == 0 and name in manifest(folder):
        ways = "another seed or number of images gives another name, folder=... another place"
        raise FileExistsError(f"there is an encoder {name}, which would be replaced: {ways}")
    _require_seed_of(recipe, study, description(trainer, study)["architecture"], folder)
    if not trainer.done and not trainer.run(stop_after):
        return False
    if rank() > 0:
        return True
    row = description(trainer, study) | {
        "recipe": asdict(recipe),
        "training_images": {"name": train.name, "origin": train.origin, "fingerprint": train.fingerprint},
        "images_seen": recipe.steps * recipe.batch_size,
        "wall_time_s": round(trainer.wall_time),
        "images_per_second": round(median(entry["images_per_second"] for entry in trainer.rows), 1),
        "device": ", then ".join(trainer.devices),
        "precision": trainer.settings["precision"],
        "val_loss": round(trainer.rows[-1]["val_loss"], 5),
    }
    knn = knn_by_depth(trainer.encoder(), train.subset(KNN_TRAIN), val.subset(KNN_TEST), list(train.labels))
    row["knn_by_depth"] = knn.round({"value": 4}).groupby("label")["value"].agg(list).to_dict()
    save_encoder(trainer.objective.saved, name, row, folder)
    return True


def _require_seed_of(recipe: Recipe, study: str, architecture: dict[str, Any], folder: Path | None) -> None:
    """Raise where an encoder whose name differs in the seed alone has another architecture; warn of recipes.

    Such encoders are taken for seeds of one training, and their values are averaged.
    """
    first = trained_name(replace(recipe, seed=0), study)
    for name, row in manifest(folder).items():
        if name == first or name.startswith(f"{first}.s"):
            theirs = architecture | row["architecture"]
            differ = [f"{k} {theirs[k]}, not {ours}" for k, ours in architecture.items() if theirs[k] != ours]
            if differ:
                raise ValueError(f"{name} has {', '.join(differ)}: a seed of it has the same")
            ours = json.loads(json.dumps(asdict(replace(recipe, seed=row["seed"]))))
            theirs = ours | row.get("recipe", {})
            if apart := [key for key, value in ours.items() if theirs[key] != value]:
                what = f"{name} was trained with another {', '.join(apart)}"
                warnings.warn(f"{what}; tables and figures will take this one for a seed of it", stacklevel=3)
