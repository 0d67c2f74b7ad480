"""Stored tables: written with provenance, read back, refused when stale; published numbers."""

import json

import pandas as pd
import pytest
import torch

from nbhelpers import results
from nbhelpers.images import ArraySource, MissingDataError
from nbhelpers.models import mini_vit, store
from nbhelpers.results import StaleTableError, Table, published, stored, table
from nbhelpers.study import Study, analyse


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A study of two small encoders with a table of one metric, everything in a scratch folder."""
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "ENCODERS", tmp_path / "encoders")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    pixels = torch.randint(256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = ArraySource("toy/test", pixels, {"class": torch.zeros(5).long()}, {"class": ("a",)})
    architecture = {"width": 32, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 4}
    for seed, objective in enumerate(("CL", "MIM")):
        row = {"study": "toy", "objective": objective, "seed": 0, "architecture": architecture}
        torch.manual_seed(seed)
        name = f"toy.{objective.lower()}"
        store.save_encoder(mini_vit(**architecture), name, row | {"mean": (0.5,) * 3, "std": (0.25,) * 3})

    class Toy(Study):
        there = True

        def images(self, split="test"):
            if not Toy.there:
                raise MissingDataError("one way, another way, a third way")
            return images

    chosen = Toy("toy", "toy", ("toy.cl", "toy.mim"))
    monkeypatch.setattr(results, "study", lambda name: chosen)
    monkeypatch.setattr(
        results,
        "TABLES",
        {"small": Table("small", lambda s, e: pd.concat([analyse(x, s.sample, ["nmi"]) for x in e]), "nmi")},
    )
    results._computed.cache_clear()
    yield Toy
    results._computed.cache_clear()


def test_a_stored_table_is_the_computed_one(toy):
    results.store("toy", "small")
    computed = table("toy", "small")
    toy.there = False
    read = table("toy", "small")
    assert (computed["source"] == "computed").all()
    assert read["source"].str.startswith("stored 20").all()
    assert read["value"].to_numpy() == pytest.approx(computed["value"].to_numpy(), rel=1e-6)
    assert set(table("toy", "small", ["toy.cl"])["model"]) == {"toy.cl"}


def test_provenance_names_weights_images_code_and_command(toy):
    path = results.store("toy", "small")
    about = json.loads((path.parent / "small.json").read_text())
    assert set(about["weights"]) == {"toy.cl", "toy.mim"}
    assert about["images"]["number"] == 5
    assert {"date", "code", "command", "device", "versions"} <= set(about)


def test_a_table_of_other_weights_is_refused(toy):
    results.store("toy", "small")
    architecture = {"width": 32, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 4}
    row = {"study": "toy", "objective": "CL", "seed": 0, "architecture": architecture}
    store.save_encoder(mini_vit(**architecture), "toy.cl", row | {"mean": (0.5,) * 3, "std": (0.25,) * 3})
    toy.there = False
    with pytest.raises(StaleTableError, match=r"toy\.cl.*make results STUDY=toy"):
        table("toy", "small")


def test_without_images_and_table_the_ways_are_named(toy):
    toy.there = False
    with pytest.raises(MissingDataError, match="make results STUDY=toy"):
        table("toy", "small")
    with pytest.raises(KeyError, match="small"):
        table("toy", "tiny")


def test_another_model_needs_the_images(toy):
    results.store("toy", "small")
    toy.there = False
    with pytest.raises(MissingDataError, match=r"vit_tiny.*a third way"):
        table("toy", "small", ["toy.cl", "vit_tiny"])


def test_the_same_numbers_give_the_same_bytes(toy):
    path = results.store("toy", "small")
    before = path.read_bytes()
    assert results.store("toy", "small").read_bytes() == before


def test_published_numbers_have_source_and_error():
    rows = published()
    assert rows["source"].notna().all()
    assert (rows["error"] > 0).all()
    nmi = rows[(rows["metric"] == "nmi") & (rows["model"] == "MoCo v3")]
    assert nmi["depth"].tolist() == list(range(1, 13))
    assert nmi["value"].between(0, 1).all()


@pytest.mark.parametrize(
    "path", sorted(stored.__globals__["RESULTS"].glob("*/*.csv.gz")), ids=lambda p: p.parent.name
)
def test_every_shipped_table_belongs_to_the_shipped_weights(path):
    frame = stored(path.parent.name, path.name.removesuffix(".csv.gz"))
    assert frame["value"].notna().any()
