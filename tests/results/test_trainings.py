"""Tables that compare the two objectives or follow a training: with whom, from what on, at which step."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from nbhelpers import results
from nbhelpers.files import cache_dir
from nbhelpers.images import ArraySource
from nbhelpers.images.shapes import SPLITS, shapes
from nbhelpers.measure import analyse
from nbhelpers.models import Encoder, load, mini_vit, wrap
from nbhelpers.pretrain import Trainer, moments, recipe, trained_name
from nbhelpers.pretrain.alignment import gradient_alignment
from nbhelpers.probes import linear_by_depth
from nbhelpers.results import tables, trainings
from nbhelpers.studies import Study, study

RUN = replace(recipe("shapes", "mim"), width=16, depth=1, heads=2, batch_size=4, images=16)


def noise(images: int, name: str = "shapes/train") -> ArraySource:
    pixels = torch.randint(256, (images, 3, 8, 8), generator=torch.Generator().manual_seed(images))
    return ArraySource(name, pixels.to(torch.uint8), {}, {})


def size(encoder) -> pd.DataFrame:
    """A number that every step of a training changes."""
    return pd.DataFrame({"value": [sum(float(p.abs().sum()) for p in encoder.module.parameters())]})


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The study `shapes` with a few images of noise, and no cache."""
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path))
    pixels = torch.randint(256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = ArraySource("shapes/test", pixels, {"shape": torch.zeros(40).long()}, {"shape": ("a",)})
    monkeypatch.setattr(Study, "images", lambda self, split="test": images)
    monkeypatch.setattr(Study, "sample", images)
    return study("shapes")


def measured(name, encoder, chosen):
    made = results.TABLES[name]
    return made.measure(encoder, made.images(chosen))


def test_every_encoder_is_compared_with_both_parents(toy, monkeypatch):
    frame = measured("cka", load("shapes.random"), toy)
    assert frame.groupby("other")[["depth", "other_depth"]].max().to_numpy().tolist() == [[8, 8], [8, 8]]
    assert set(frame["other"]) == {"shapes.cl", "shapes.mim"}
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("computed again"))
    twin = replace(load("shapes.random"), name="twin")
    assert set(measured("cka", twin, toy)["model"]) == {"twin"}
    monkeypatch.setattr(tables, "load", lambda name: load("shapes.random"))
    with pytest.raises(pytest.fail.Exception, match="computed again"):  # other parents
        measured("cka", twin, toy)


def test_gradients_are_followed_from_the_random_encoder(toy, monkeypatch):
    for name, value in {"RUN": {"images": 12, "batch_size": 6}, "STEPS": (0, 1), "BATCHES": 3}.items():
        monkeypatch.setattr(trainings, name, value)
    encoder = load(*results.TABLES["gradients"].models(toy))
    frame = measured("gradients", encoder, toy)
    assert set(frame["model"]) == {"shapes.random"}
    assert sorted(set(frame["step"])) == [0, 1]
    run = replace(recipe("shapes", trainings.OBJECTIVE), **trainings.RUN)
    trainer = Trainer(run, *results.TABLES["gradients"].images(toy).values(), Path())
    begin = trainer.objective.encoder.state_dict()
    assert all(torch.equal(value, begin[key]) for key, value in encoder.module.state_dict().items())


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


@pytest.mark.slow
def test_the_stored_gradients_are_those_of_the_initialisation():
    """Of six times as many batches, so that means over batches are near each other, not the same."""
    chosen = study("shapes")
    run = replace(recipe("shapes", trainings.OBJECTIVE), **trainings.RUN)
    sources = results.TABLES["gradients"].images(chosen).values()
    computed = gradient_alignment(run, *sources, steps=[0], batches=4)
    kept = results.stored("shapes", "gradients").query("step == 0")
    near = {"loss": {"rel": 0.02}, "norm": {"rel": 0.06}, "cosine": {"abs": 0.05}}
    for metric in ("mim_loss", "cl_loss", "mim_norm", "cl_norm", "mim_cosine", "cl_cosine", "cosine"):
        ours, theirs = (f[f["metric"] == metric]["value"].to_numpy() for f in (computed, kept))
        assert ours == pytest.approx(theirs, **near[metric.rpartition("_")[2]]), metric


def test_a_training_is_followed_from_random_weights_to_its_end(toy, monkeypatch):
    monkeypatch.setattr(trainings, "moments", lambda run: [1, run.steps])
    sources = [toy.images("train"), toy.images("val")]
    run = replace(recipe("shapes", "mim").of_width(32), images=12, batch_size=6, seed=3)
    whole = Trainer(run, *sources, cache_dir() / "whole")
    whole.run()
    encoder = replace(whole.encoder(), name="shapes.mim.w32.n12.s3")
    pixels = {"test": toy.sample}
    monkeypatch.setattr(trainings, "_at_a_moment", lambda now, images: analyse(now, images["test"], ["nmi"]))
    frame = results.TABLES["along_training"].measure(run, pixels)
    assert frame["seen"].unique().tolist() == [0, 6, 12]
    assert set(frame["model"]) == {encoder.name} == {trained_name(run, "shapes")}
    begin = Trainer(run, *sources, cache_dir() / "begin").encoder()
    for seen, expected in ((0, begin), (12, encoder)):
        values = analyse(expected, toy.sample, ["nmi"])["value"]
        assert frame[frame["seen"] == seen]["value"].tolist() == pytest.approx(values.tolist(), rel=1e-6)
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: pytest.fail("trained again"))
    assert results.TABLES["along_training"].measure(run, pixels).equals(frame)
    with pytest.raises(pytest.fail.Exception, match="trained again"):  # of other images it knows nothing
        results.TABLES["along_training"].measure(run, {"test": toy.sample.select([0, 1, 2])})


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
    folders.append(trainings._folder("along", "shapes.cl", {"test": noise(4)}, 1000))
    assert folders[0] == folders[2] and len(set(folders)) == 4


def test_the_first_row_along_a_training_is_the_untrained_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path))
    monkeypatch.setattr(Study, "images", lambda self, split="test": noise(4, f"shapes/{split}"))
    monkeypatch.setattr(trainings, "_followed", lambda run, parts, folder, steps, measure: (parts, steps))
    parts, steps = trainings._along_training(RUN, {"test": noise(4, "shapes/test")})
    assert steps == [0, *moments(RUN)]
    assert [source.name for source in parts.values()] == ["shapes/train", "shapes/val"]


@pytest.fixture
def two_amplitudes(tmp_path, monkeypatch):
    """The table `nuisance` of two amplitudes and a few images."""
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path))
    monkeypatch.setattr(trainings, "NUISANCES", (0.0, 4.0))
    for module, number in ((tables, "TRAIN"), (tables, "VALIDATION"), (trainings, "IMAGES")):
        monkeypatch.setattr(module, number, 60)
    monkeypatch.setitem(shapes.__globals__, "BLOCK", 64)
    for split in SPLITS:
        monkeypatch.setitem(SPLITS, split, 64)


def test_a_pair_is_trained_and_probed_at_every_amplitude(two_amplitudes):
    made = results.TABLES["nuisance"]
    run = replace(recipe("shapes", "mim").of_width(32), depth=2, images=64, batch_size=32)
    frame = made.measure(run, made.images(study("shapes")))
    counts = frame.groupby(["nuisance", "seen", "metric", "label"]).size()
    assert len(counts) == 2 * 2 * 2 * 2 and set(counts) == {3}  # depths 0, 1, 2
    # The first row of each amplitude is of the same random encoder, the second of one trained on its images.
    whole = Trainer(run, shapes("train", 4.0), shapes("val", 4.0), cache_dir() / "whole")
    for seen in (0, 64):
        list(whole.steps(until=seen // 32))
        parts = [shapes(split, 4.0).subset(60) for split in ("train", "val", "test")]
        values = linear_by_depth(whole.encoder(), *parts, label="shape")["value"]
        rows = frame.query("nuisance == 4 and seen == @seen and metric == 'linear' and label == 'shape'")
        assert rows["value"].tolist() == pytest.approx(values.tolist())


def test_every_kind_is_trained_from_the_same_seeds():
    runs = results.TABLES["nuisance"].runs(study("shapes"))
    seeds = {kind: [run.seed for run in runs.values() if run.objective == kind] for kind in ("cl", "mim")}
    assert seeds == {"cl": [0, 1, 2], "mim": [0, 1, 2]} and len(runs) == 9
    rendered = [run for run in runs.values() if run.objective == trainings.RENDERED]
    assert rendered == [replace(rendered[0], seed=seed) for seed in range(3)]


def test_the_views_of_two_renderings_share_the_object_and_not_the_nuisance(two_amplitudes, monkeypatch):
    runs, trained = results.TABLES["nuisance"].runs(study("shapes")), {}
    plain, rendered = (
        next(run for run in runs.values() if run.objective == each) for each in ("cl", trainings.RENDERED)
    )
    assert rendered == replace(plain, objective=trainings.RENDERED)

    def probe(encoder, images):
        trained[run.objective, len(trained)] = encoder.module.blocks[0].mlp.fc1.weight
        return pd.DataFrame({"metric": ["linear"], "value": [0.0]})

    monkeypatch.setitem(results.TABLES, "probes", replace(results.TABLES["probes"], measure=probe))
    for run in (plain, rendered):
        run = replace(run.of_width(32), depth=2, images=64, batch_size=32)
        results.TABLES["nuisance"].measure(run, results.TABLES["nuisance"].images(study("shapes")))
    plain, rendered = (list(trained.values())[i : i + 4] for i in (0, 4))
    # At each amplitude before and after: renderings without nuisance are one.
    same = [torch.equal(*pair) for pair in zip(plain, rendered, strict=True)]
    assert same == [True, True, True, False]
    first, second = trainings._renderings("val", 4.0)[3].split(3)
    assert torch.equal(first, shapes("val", 4.0)[3])
    assert torch.equal(second, shapes("val", 4.0, rendering=1)[3])


def test_a_training_is_followed_on_a_gpu_where_there_is_one(toy, monkeypatch):
    def trainer(run, train, val, folder, device="cpu"):
        raise RuntimeError(device)

    monkeypatch.setattr(trainings, "Trainer", trainer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="cuda"):
        results.TABLES["along_training"].measure(recipe("shapes", "mim"), {"test": toy.sample})


def test_all_that_is_measured_at_a_moment(toy, monkeypatch):
    monkeypatch.setattr(tables, "TOKENS_TRAIN", 40)
    pixels, masks = toy.sample.images, toy.sample.images[:, 0] > 128
    names = torch.arange(40) % 2
    labels, classes = (dict.fromkeys(("shape", "texture"), each) for each in (names, ("a", "b")))
    split = ArraySource("shapes/test", pixels, labels, classes, masks)
    images = dict.fromkeys(("train", "validation", "test"), split)
    frame = trainings._at_a_moment(load("shapes.mim.w32.n256000"), images)
    assert {"nmi", "class_patch_cosine", "linear", "knn", "miou"} <= set(frame["metric"])
    dense = frame[frame["metric"] == "miou"]
    assert set(dense["depth"]) == {8} and set(dense["label"]) == {"mask", "texture"}
