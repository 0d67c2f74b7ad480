"""Result tables of trainings that are made for them, and measured on the way; their weights are not kept."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import joblib
import pandas as pd
import torch

from nbhelpers.files import atomic_path, cache_dir
from nbhelpers.images import ArraySource
from nbhelpers.images.shapes import shapes
from nbhelpers.measure import code_version, identified, read_table
from nbhelpers.models import Encoder
from nbhelpers.pretrain import Recipe, Trainer, moments, recipe, trained_name
from nbhelpers.pretrain.alignment import gradient_alignment
from nbhelpers.probes import dense_by_depth
from nbhelpers.results import tables
from nbhelpers.results.tables import TABLES, Images, Measure, declare, probed, splits_of
from nbhelpers.studies import IMAGES, PAIR, Study, study

# The hybrid whose two gradients are followed: a run of 400 steps, of which a core makes one in seconds.
OBJECTIVE = "hybrid-0.5"
RUN = {"images": 25_600, "batch_size": 64}
STEPS, BATCHES = (0, 25, 50, 100, 200, 400), 24
FOLLOWED = {"images": 512_000}  # a pair that is measured on the way
# Trainings at each amplitude of what does not matter.
DIALLED = {"width": 64, "heads": 4, "batch_size": 128, "images": 76_800}
SEEDS = range(3)
NUISANCES = (0.0, 1.0, 2.0, 4.0)
RENDERED = "cl-renderings"  # as "cl", with each view of a rendering of its own


def _hybrid(study_name: str, seed: int = 0) -> Recipe:
    return replace(recipe(study_name, OBJECTIVE), **RUN, seed=seed)


# Rows are stored of the random encoder, with which a run of seed 0 begins.
@declare(
    "gradients",
    lambda study: {"train": study.images("train"), "validation": study.images("val")},
    settings=lambda study: [asdict(_hybrid(study.name)), STEPS, BATCHES],
    code="pretrain",
    models=lambda study: (f"{study.name}.random",),
    **tables.SLOW,
)
def _gradients(encoder: Encoder, images: Images) -> pd.DataFrame:
    """Whether the two losses of a hybrid agree in each block, along a short training."""
    run = _hybrid(encoder.provenance["study"], encoder.seed)
    sources = images["train"], images["validation"]
    return identified(gradient_alignment(run, *sources, STEPS, BATCHES), encoder, sources[0])


def _at_a_moment(encoder: Encoder, images: Images) -> pd.DataFrame:
    """What is measured of an encoder in training; of single tokens, the last block alone."""
    splits, test = splits_of(images), images["test"]
    frames = [TABLES[name].measure(encoder, images) for name in ("metrics", "probes")]
    if test.masks is not None:
        few = [splits[0].subset(tables.TOKENS_TRAIN), *splits[1:]]
        frames.append(probed(dense_by_depth, encoder, *few, depths=[encoder.depth]))
    return pd.concat(frames, ignore_index=True)


def _named(study: Study, runs: Iterable[Recipe]) -> dict[str, Recipe]:
    """Trainings by the names that their encoders would have."""
    return {trained_name(run, study.name): run for run in runs}


def _folder(kind: str, name: str, images: Images, settings: object = None) -> Path:
    """Where a training that is measured on the way is kept; another for other code, images or settings."""
    measured = [source.identity for source in images.values()]
    key = joblib.hash([code_version("pretrain"), measured, settings])[:12]
    return cache_dir() / kind / key / name


def _followed(
    run: Recipe, parts: Images, folder: Path, steps: Collection[int], measure: Measure
) -> pd.DataFrame:
    """What is measured of an encoder at some steps of its training, with how many images it had seen.

    What a stopped training has measured stays in its folder, where it goes on the next time.

    Raises:
        KeyboardInterrupt: a signal stopped it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(run, parts["train"], parts["val"], folder, device)
    for step in steps:
        if trainer.step < step and not trainer.run(until=step):
            raise KeyboardInterrupt(f"{folder.name} stopped; the same command goes on")
        if trainer.step == step:  # else it was resumed at a later step, and this one was measured before
            frame = measure(trainer.encoder())
            frame.insert(0, "seen", step * run.batch_size)
            with atomic_path(folder / f"{step}.csv") as temporary:
                frame.to_csv(temporary, index=False)
    return pd.concat([read_table(folder / f"{step}.csv") for step in steps], ignore_index=True)


@declare(
    "along_training",
    TABLES["probes"].images,
    settings=lambda study: tables.TOKENS_TRAIN,
    code="pretrain",
    runs=lambda study: _named(study, [replace(recipe(study.name, each), **FOLLOWED) for each in PAIR]),
    **tables.SLOW,
)
def _along_training(run: Recipe, images: Images) -> pd.DataFrame:
    """Metrics and probes along a training by today's recipe."""
    chosen = study(images["test"].name.split("/")[0])
    folder = _folder("along_training", trained_name(run, chosen.name), images, tables.TOKENS_TRAIN)
    parts = {split: chosen.images(split) for split in ("train", "val")}
    return _followed(run, parts, folder, [0, *moments(run)], lambda now: _at_a_moment(now, images))


def _amplitudes(study: Study) -> Images:
    """Images to learn from, to choose the penalty on and to test on, by amplitude and role."""
    numbers = {"train": tables.TRAIN, "val": tables.VALIDATION, "test": IMAGES}
    return {
        f"{amplitude:g} {role}": shapes(split, amplitude).subset(number)
        for amplitude in NUISANCES
        for role, (split, number) in zip(tables.ROLES, numbers.items(), strict=True)
    }


def _renderings(split: str, nuisance: float) -> ArraySource:
    """Generated images of an amplitude, rendered twice: `6 32 32`, in which contrastive views take turns."""
    both, again = (shapes(split, nuisance, rendering) for rendering in range(2))
    both.images = torch.cat([both.images, again.images], 1)
    return both


def _dialled(study: Study) -> dict[str, Recipe]:
    """CL and MIM, and CL whose two views are of two renderings, so that they do not share the nuisance."""
    kinds = [recipe(study.name, each) for each in PAIR]
    kinds.append(replace(kinds[0], objective=RENDERED))
    return _named(study, [replace(each, **DIALLED, seed=seed) for each in kinds for seed in SEEDS])


@declare(
    "nuisance",
    _amplitudes,
    settings=lambda study: NUISANCES,
    code="pretrain",
    runs=_dialled,
    slow=True,
    why="only generated images have an amplitude of what does not matter",
    studies=("shapes",),
)
def _nuisance(run: Recipe, images: Images) -> pd.DataFrame:
    """Probes before and after a training, at several amplitudes of background and noise."""
    frames = []
    for amplitude in NUISANCES:
        images_of = _renderings if run.objective == RENDERED else shapes
        parts = {split: images_of(split, amplitude) for split in ("train", "val")}
        folder = _folder(f"nuisance/{amplitude:g}", trained_name(run, "shapes"), images)
        here = {role: images[f"{amplitude:g} {role}"] for role in tables.ROLES}
        frame = _followed(run, parts, folder, [0, run.steps], partial(TABLES["probes"].measure, images=here))
        frame.insert(0, "nuisance", amplitude)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
