"""The study of public checkpoints on the reader's photographs, with small encoders in their place."""

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from nbhelpers import results
from nbhelpers.images import MissingDataError
from nbhelpers.models import mini_vit, store
from nbhelpers.results import TABLES, table, tables
from nbhelpers.results.__main__ import main
from nbhelpers.studies import study

# The package exports a function of the same name, which hides the module from attribute access.
module = importlib.import_module("nbhelpers.studies")
CLASSES = {"n01440764": 20, "n02102040": 20, "n03000684": 8}
ENCODERS = ("public.cl", "public.mim")
MADE = {"metrics", "profile", "probes", "components", "noise"}


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A folder of small JPEGs of different sizes in three classes, and two encoders with random weights."""
    random = np.random.default_rng(0)
    for name, number in CLASSES.items():
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(number):
            pixels = random.integers(256, size=(*random.integers(30, 50, 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{i:02}.JPEG")
    monkeypatch.setenv("NBHELPERS_IMAGENET", str(tmp_path / "val"))
    monkeypatch.delenv("NBHELPERS_IMAGENET_PER_CLASS", raising=False)
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "ENCODERS", tmp_path / "encoders")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tables, "CHANGES", {"low-pass": (0.3,), "patch-shuffle": (16,)})
    architecture = {"width": 16, "depth": 2, "heads": 2, "image_size": 32, "patch_size": 8}
    for seed, name in enumerate(ENCODERS):
        row = {"study": "public", "objective": name[7:].upper(), "seed": 0, "architecture": architecture}
        torch.manual_seed(seed)
        store.save_encoder(mini_vit(**architecture), name, row | {"mean": (0.5,) * 3, "std": (0.25,) * 3})
    monkeypatch.setattr(module, "IMAGENET_MODELS", ENCODERS)
    return tmp_path


def test_every_table_is_made_or_left_out_with_the_reason(photographs, monkeypatch, capsys):
    assert main(["--study", "imagenet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TABLES)
    left_out = dict(line.removeprefix("left out ").split(": ", 1) for line in lines if "left out" in line)
    assert set(left_out) == set(TABLES) - MADE
    assert "stimuli" in left_out["shape_bias"] and "small enough" in left_out["fine_tuning"]
    assert "fixed number of labels" in left_out["all_labels_tuned"]
    monkeypatch.delenv("NBHELPERS_IMAGENET")
    for name in MADE:
        frame = table("imagenet", name)
        assert frame["source"].str.startswith("stored").all()
        assert set(frame["study"]) == {"imagenet"}
        assert set(frame["model"]) == set(ENCODERS)
        assert frame["value"].notna().any()
        about = json.loads((photographs / "results" / "imagenet" / f"{name}.json").read_text())
        assert {source["name"] for source in about["images"].values()} == {"imagenet"}
        assert str(photographs) not in json.dumps(about)


def test_without_photographs_nothing_is_made(photographs, monkeypatch, capsys):
    monkeypatch.delenv("NBHELPERS_IMAGENET")
    assert main(["--study", "imagenet"]) == 1
    assert "Imagenette" in capsys.readouterr().err
    assert not (photographs / "results").exists()


def test_classes_take_turns_in_the_sample(photographs, monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 12)
    assert study("imagenet").sample.labels["class"].bincount().tolist() == [4, 4, 4]
    monkeypatch.setattr(module, "IMAGES", 30)
    assert study("imagenet").sample.labels["class"].bincount().tolist() == [11, 11, 8]


def test_the_sample_follows_files_that_come_and_go(photographs):
    chosen = study("imagenet")
    before, identity = chosen.sample, chosen.sample.fingerprint
    kept = (photographs / "val" / "n03000684" / "00.JPEG").rename(photographs / "00.JPEG")
    assert len(chosen.sample) == len(before) - 1
    assert chosen.sample.fingerprint != identity
    kept.rename(photographs / "val" / "n03000684" / "00.JPEG")
    assert chosen.sample.fingerprint == identity


def test_the_reader_can_limit_the_images_of_a_class(photographs, monkeypatch):
    monkeypatch.setenv("NBHELPERS_IMAGENET_PER_CLASS", "3")
    assert study("imagenet").sample.labels["class"].bincount().tolist() == [3, 3, 3]
    with pytest.raises(MissingDataError, match=r"at least 40 photographs of two classes.* has 9 of 3"):
        table("imagenet", "probes")
    monkeypatch.setenv("NBHELPERS_IMAGENET_PER_CLASS", "few")
    with pytest.raises(ValueError, match="PER_CLASS must be a number of images, got 'few'"):
        study("imagenet").images()
