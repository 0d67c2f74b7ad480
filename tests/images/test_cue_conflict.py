"""The cue-conflict loader on generated stimuli, and on the real ones where they are."""

import os
import tarfile

import pytest
from PIL import Image

from nbhelpers.images import cue_conflict, cue_conflict_cifar10
from nbhelpers.images.photos import CIFAR10_CLASSES, CUE_CLASSES, TO_CIFAR10
from nbhelpers.images.source import MissingDataError


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
    pairs = [(shape, texture) for shape in CUE_CLASSES for texture in CUE_CLASSES]
    root = write(tmp_path / "cue-conflict", [f"{shape}10-{texture}2" for shape, texture in pairs])
    monkeypatch.setenv("NBHELPERS_CUE_CONFLICT", str(root))
    return root


def test_labels_agree_with_the_pictures_and_equal_cues_are_dropped(stimuli):
    source = cue_conflict()
    assert len(source) == 16 * 15 and source.classes == {"shape": CUE_CLASSES, "texture": CUE_CLASSES}
    assert (source.labels["shape"] != source.labels["texture"]).all()
    assert (source.images[:, 0, 0, 0] == 10 * source.labels["shape"]).all()
    assert (source.images[:, 1, 0, 0] == 10 * source.labels["texture"]).all()


def test_any_size_and_an_archive(stimuli, tmp_path, monkeypatch):
    assert cue_conflict().images.shape[-2:] == (8, 8)
    assert cue_conflict(size=16).images.shape[-2:] == (16, 16)
    with tarfile.open(tmp_path / "stimuli.tar.gz", "w:gz") as archive:
        archive.add(stimuli, "cue-conflict")
    before = cue_conflict()
    monkeypatch.setenv("NBHELPERS_CUE_CONFLICT", str(tmp_path / "stimuli.tar.gz"))
    after = cue_conflict()
    assert after.fingerprint == before.fingerprint and after.origin == "stimuli.tar.gz"


def test_the_seven_classes_of_cifar10(stimuli):
    source = cue_conflict_cifar10()
    names = ("airplane", "bird", "ship", "automobile", "cat", "dog", "truck")
    assert set(names) == set(CUE_CLASSES + CIFAR10_CLASSES) & set(TO_CIFAR10.values()) and set(names) <= set(
        CIFAR10_CLASSES
    )
    assert source.classes == {"shape": names, "texture": names}
    assert len(source) == 7 * 6 and source.images.shape[-2:] == (32, 32)
    back = {cifar: cue for cue, cifar in TO_CIFAR10.items()}
    for image, shape, texture in zip(
        source.images, source.labels["shape"].tolist(), source.labels["texture"].tolist(), strict=True
    ):
        assert image[0, 0, 0] == 10 * CUE_CLASSES.index(back[names[shape]])
        assert image[1, 0, 0] == 10 * CUE_CLASSES.index(back[names[texture]])


def test_missing_stimuli_name_the_ways(tmp_path, monkeypatch):
    monkeypatch.delenv("NBHELPERS_CUE_CONFLICT", raising=False)
    with pytest.raises(MissingDataError, match=r"NBHELPERS_CUE_CONFLICT.*rgeirhos/texture-vs-shape"):
        cue_conflict()
    monkeypatch.setenv("NBHELPERS_CUE_CONFLICT", str(tmp_path / "nowhere"))
    with pytest.raises(MissingDataError, match=r"names .*nowhere, which does not exist"):
        cue_conflict()


@pytest.mark.parametrize("name", ["airplane1", "airplane1-zebra2", "airplane-car", "plane1-car2"])
def test_other_files_are_named(stimuli, name):
    write(stimuli, [name])
    with pytest.raises(ValueError, match=rf"{name}\.png is no cue-conflict stimulus; expected names such as"):
        cue_conflict()


def test_damaged_and_empty(stimuli, tmp_path, monkeypatch):
    (stimuli / "car" / "car10-cat2.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"car/car10-cat2\.png"):
        cue_conflict()
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("NBHELPERS_CUE_CONFLICT", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="no images in"):
        cue_conflict()


@pytest.mark.skipif(
    "NBHELPERS_CUE_CONFLICT" not in os.environ, reason="NBHELPERS_CUE_CONFLICT names no stimuli"
)
def test_real_stimuli():
    trials = cue_conflict_cifar10()
    assert len(trials) == 210
    for label in ("shape", "texture"):
        assert trials.labels[label].bincount().tolist() == [30] * 7
