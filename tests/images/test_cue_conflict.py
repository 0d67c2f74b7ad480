"""The cue-conflict loader on generated stimuli, and on the real ones where they are."""

import os

import pytest
import torch
from PIL import Image

from nbhelpers.images import cue_conflict, cue_conflict_cifar10
from nbhelpers.images.photos import CIFAR10_CLASSES, CUE_CLASSES, TO_CIFAR10
from nbhelpers.images.source import PICTURES, MissingDataError


def write(root, names, size=(8, 8)):
    for name in names:
        shape = name.rstrip("0123456789").split("-")[0].rstrip("0123456789")
        target = root / shape / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        texture = name.split("-")[-1].rstrip("0123456789")
        red, green = (10 * CUE_CLASSES.index(cue) if cue in CUE_CLASSES else 0 for cue in (shape, texture))
        Image.new("RGB", size, (red, green, 0)).save(target)
    return root


@pytest.fixture
def stimuli(tmp_path, monkeypatch):
    """A stimulus for each pair of eight classes, of which CIFAR-10 shows all but bears."""
    names = ["bear", *TO_CIFAR10]
    pairs = [f"{shape}10-{texture}2" for shape in names for texture in names]
    root = write(tmp_path / "cue-conflict", pairs)
    monkeypatch.setenv("NBHELPERS_CUE_CONFLICT", str(root))
    return root


def test_labels_agree_with_the_pictures_and_equal_cues_are_dropped(stimuli):
    source = cue_conflict()
    assert source.images.shape == (8 * 7, 3, 8, 8)
    assert source.classes["shape"] == source.classes["texture"] == CUE_CLASSES
    assert (source.labels["shape"] != source.labels["texture"]).all()
    assert (source.images[:, 0, 0, 0] == 10 * source.labels["shape"]).all()
    assert (source.images[:, 1, 0, 0] == 10 * source.labels["texture"]).all()


def test_the_pictures_that_stimuli_share(stimuli):
    write(stimuli, ["bear3-cat2", "bear3-cat1"])
    source = cue_conflict()
    pictures = {label: source.classes[label] for label in PICTURES}
    assert pictures["shape_picture"][:3] == ("airplane10", "bear10", "bear3")
    assert len(pictures["shape_picture"]) == 8 + 1
    assert "cat1" in pictures["texture_picture"] and len(pictures["texture_picture"]) == 8 + 1
    for label, names in pictures.items():
        cue = label.removesuffix("_picture")
        classes = [CUE_CLASSES[number] for number in source.labels[cue].tolist()]
        said = [names[number].rstrip("0123456789") for number in source.labels[label].tolist()]
        assert said == classes
    of_bear3 = source.labels["shape_picture"] == pictures["shape_picture"].index("bear3")
    textures = source.labels["texture_picture"][of_bear3]
    assert [pictures["texture_picture"][number] for number in textures] == ["cat1", "cat2"]


def test_any_size_and_an_archive(stimuli, tmp_path, monkeypatch, as_tar):
    before = cue_conflict(size=16)
    assert before.images.shape[-2:] == (16, 16)
    monkeypatch.setenv("NBHELPERS_CUE_CONFLICT", str(as_tar(stimuli, tmp_path / "stimuli.tar.gz", "w:gz")))
    after = cue_conflict(size=16)
    assert after.fingerprint == before.fingerprint and after.origin == "stimuli.tar.gz"


def test_the_seven_classes_of_cifar10(stimuli):
    source = cue_conflict_cifar10()
    names = ("airplane", "bird", "ship", "automobile", "cat", "dog", "truck")
    assert source.classes["shape"] == source.classes["texture"] == names
    assert set(names) <= set(CIFAR10_CLASSES)
    assert len(source) == 7 * 6 and source.images.shape[-2:] == (32, 32)
    numbers = torch.tensor([CUE_CLASSES.index(name) for name in TO_CIFAR10])
    assert (source.images[:, 0, 0, 0] == 10 * numbers[source.labels["shape"]]).all()
    assert (source.images[:, 1, 0, 0] == 10 * numbers[source.labels["texture"]]).all()


def test_missing_stimuli_name_the_ways(monkeypatch):
    monkeypatch.delenv("NBHELPERS_CUE_CONFLICT", raising=False)
    with pytest.raises(MissingDataError, match=r"NBHELPERS_CUE_CONFLICT.*rgeirhos/texture-vs-shape"):
        cue_conflict()


@pytest.mark.parametrize("name", ["airplane1", "airplane1-zebra2", "airplane-car", "plane1-car2"])
def test_other_files_are_named(stimuli, name):
    write(stimuli, [name])
    with pytest.raises(ValueError, match=rf"{name}\.png is no cue-conflict stimulus"):
        cue_conflict()


@pytest.fixture
def real(monkeypatch):
    """The real stimuli where their place is named, with the machine's own cache."""
    monkeypatch.undo()
    if "NBHELPERS_CUE_CONFLICT" not in os.environ:
        pytest.skip("NBHELPERS_CUE_CONFLICT names no stimuli")


def test_real_stimuli(real):
    trials = cue_conflict_cifar10()
    assert len(trials) == 210
    for label in ("shape", "texture"):
        assert trials.labels[label].bincount().tolist() == [30] * 7
    assert [len(trials.labels[label].unique()) for label in PICTURES] == [67, 21]
    assert len({*zip(*(trials.labels[label].tolist() for label in PICTURES), strict=True)}) == 210
