"""Trainings that are measured on the way: of which step a row is, and on which images it was trained."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from nbhelpers.images import ArraySource
from nbhelpers.models import mini_vit, wrap
from nbhelpers.pretrain import Trainer, moments, recipe
from nbhelpers.results import tables, trainings
from nbhelpers.studies import study

RUN = replace(recipe("shapes", "mim"), width=16, depth=1, heads=2, batch_size=4, images=16)


def noise(images: int, name: str = "shapes/train") -> ArraySource:
    pixels = torch.randint(256, (images, 3, 8, 8), generator=torch.Generator().manual_seed(images))
    return ArraySource(name, pixels.to(torch.uint8), {}, {})


def size(encoder) -> pd.DataFrame:
    """A number that every step of a training changes."""
    return pd.DataFrame({"value": [sum(float(p.abs().sum()) for p in encoder.module.parameters())]})


def test_a_row_is_of_the_step_it_says_also_after_a_stop(tmp_path):
    parts, steps = {"train": noise(16), "val": noise(8)}, [0, 2, 4]
    trainer, expected = Trainer(RUN, *parts.values(), tmp_path / "alone"), []
    for step in steps:
        list(trainer.steps(until=step))
        expected.append(size(trainer.encoder())["value"].item())

    def stopped(encoder):
        if len([*(tmp_path / "run").glob("*.csv")]) == 3:  # two moments, and the log
            raise KeyboardInterrupt
        return size(encoder)

    with pytest.raises(KeyboardInterrupt):
        trainings._followed(RUN, parts, tmp_path / "run", steps, stopped)
    frame = trainings._followed(RUN, parts, tmp_path / "run", steps, size)
    assert frame["seen"].tolist() == [0, 8, 16]
    assert frame["value"].tolist() == expected and len(set(expected)) == 3


def test_a_training_that_is_stopped_gives_no_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: False)
    with pytest.raises(KeyboardInterrupt, match="run stopped"):
        trainings._followed(RUN, {"train": noise(16), "val": noise(8)}, tmp_path / "run", [4], size)


def test_other_code_and_other_images_have_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path))
    folders = [trainings._folder("along", "shapes.cl", {"test": noise(number)}) for number in (4, 5, 4)]
    monkeypatch.setattr(trainings, "code_version", lambda kind: "other code")
    folders.append(trainings._folder("along", "shapes.cl", {"test": noise(4)}))
    assert folders[0] == folders[2] and len(set(folders)) == 3


@pytest.fixture
def followed(tmp_path, monkeypatch) -> list[SimpleNamespace]:
    """Generated images whose pixels say amplitude and rendering, and what a training would be given."""
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path))

    def shapes(split: str, nuisance: float = 1.0, rendering: int = 0) -> ArraySource:
        pixels = torch.full((4, 3, 2, 2), int(10 * nuisance) + rendering, dtype=torch.uint8)
        return ArraySource(f"shapes/{split}", pixels, {}, {}, std=(1.0,) * 3)

    for module, name in ((tables, "TRAIN"), (tables, "VALIDATION"), (trainings, "IMAGES")):
        monkeypatch.setattr(module, name, 3)
    calls = []

    def follow(run, parts, folder, steps, measure):
        calls.append(SimpleNamespace(run=run, parts=parts, folder=folder, steps=steps, measure=measure))
        return pd.DataFrame({"value": [0.0]})

    monkeypatch.setattr(trainings, "shapes", shapes)
    monkeypatch.setattr(trainings, "_followed", follow)
    return calls


@pytest.mark.parametrize("objective", ["cl", trainings.RENDERED])
def test_probes_read_the_amplitude_that_was_trained_on(followed, objective):
    run = replace(RUN, objective=objective)
    frame = trainings._nuisance(run, trainings._amplitudes(study("shapes")))
    assert frame["nuisance"].tolist() == [*trainings.NUISANCES]
    assert len({call.folder for call in followed}) == len(followed)
    for amplitude, call in zip(trainings.NUISANCES, followed, strict=True):
        read = call.measure.keywords["images"]
        assert [*read] == [*tables.ROLES] and [len(each) for each in read.values()] == [3, 3, 3]
        assert all((each.images == 10 * amplitude).all() for each in read.values())
        renderings = [10 * amplitude] if objective == "cl" else [10 * amplitude, 10 * amplitude + 1]
        for each in call.parts.values():
            shown = each.images.split(3, 1)
            assert [part.unique().tolist() for part in shown] == [[value] for value in renderings]
        assert call.steps == [0, run.steps]


def test_along_a_training_the_first_row_is_the_untrained_encoder(followed, monkeypatch):
    monkeypatch.setattr(
        type(study("shapes")), "images", lambda self, split="test": noise(4, f"shapes/{split}")
    )
    trainings._along_training(RUN, {"test": noise(4, "shapes/test")})
    (call,) = followed
    assert call.steps == [0, *moments(RUN)]
    assert [source.name for source in call.parts.values()] == ["shapes/train", "shapes/val"]


def test_gradients_are_of_the_run_that_begins_with_the_encoder(monkeypatch):
    runs = []
    monkeypatch.setattr(
        trainings, "gradient_alignment", lambda run, *_: runs.append(run) or pd.DataFrame({"value": [0.0]})
    )
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    encoder = wrap(mini_vit(16, 1, 2), **half, seed=2, provenance={"study": "cifar10"})
    trainings._gradients(encoder, {"train": noise(4), "validation": noise(4)})
    assert [(run.objective, run.seed) for run in runs] == [(trainings.OBJECTIVE, 2)]
    assert runs[0].augmentation == recipe("cifar10", trainings.OBJECTIVE).augmentation
