"""The tables that compare the two objectives: who is compared with whom, and where a followed run begins."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nbhelpers import results
from nbhelpers.images import ArraySource
from nbhelpers.models import load
from nbhelpers.pretrain import Trainer, recipe
from nbhelpers.pretrain.alignment import gradient_alignment
from nbhelpers.results import tables
from nbhelpers.studies import Study, study


@pytest.fixture
def shapes(tmp_path, monkeypatch):
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


def test_every_encoder_is_compared_with_both_parents(shapes, monkeypatch):
    frame = measured("cka", load("shapes.random"), shapes)
    assert frame.groupby("other")[["depth", "other_depth"]].max().to_numpy().tolist() == [[8, 8], [8, 8]]
    assert set(frame["other"]) == {"shapes.cl", "shapes.mim"}
    monkeypatch.setattr(tables, "cka_by_depth", lambda *_: pytest.fail("computed again"))
    twin = replace(load("shapes.random"), name="twin")
    assert set(measured("cka", twin, shapes)["model"]) == {"twin"}
    monkeypatch.setattr(tables, "load", lambda name: load("shapes.random"))
    with pytest.raises(pytest.fail.Exception, match="computed again"):  # other parents
        measured("cka", twin, shapes)


def test_gradients_are_followed_from_the_random_encoder(shapes, monkeypatch):
    for name, value in {"RUN": {"images": 12, "batch_size": 6}, "STEPS": (0, 2), "BATCHES": 3}.items():
        monkeypatch.setattr(tables, name, value)
    encoder = load(*results.TABLES["gradients"].models(shapes))
    frame = measured("gradients", encoder, shapes)
    assert set(frame["model"]) == {"shapes.random"}
    assert sorted(set(frame["step"])) == [0, 2]
    run = replace(recipe("shapes", tables.OBJECTIVE), **tables.RUN)
    begin = Trainer(
        run, *results.TABLES["gradients"].images(shapes).values(), Path()
    ).objective.encoder.state_dict()
    assert all(torch.equal(value, begin[key]) for key, value in encoder.module.state_dict().items())


@pytest.mark.slow
def test_the_stored_gradients_are_those_of_the_initialisation():
    chosen = study("shapes")
    run = replace(recipe("shapes", tables.OBJECTIVE), **tables.RUN)
    sources = results.TABLES["gradients"].images(chosen).values()
    computed = gradient_alignment(run, *sources, steps=[0], batches=tables.BATCHES)
    kept = results.stored("shapes", "gradients").query("step == 0")
    # Class tokens of a fresh encoder hardly differ, and the heads' batch norm magnifies what rounding adds to
    # them: between two kinds of CPU, cosines with CL's gradient, near 0, differ by up to 2e-4.
    near = {"cosine": 5e-4, "cl_cosine": 5e-4}
    for metric in ("cosine", "mim_cosine", "cl_cosine", "mim_norm", "cl_norm", "mim_loss", "cl_loss"):
        ours, theirs = (f[f["metric"] == metric]["value"].to_numpy() for f in (computed, kept))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=near.get(metric, 1e-4)), metric
