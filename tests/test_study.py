"""Studies: their images, their encoders, folders of the reader's."""

import pytest
from PIL import Image

from nbhelpers.images import MissingDataError
from nbhelpers.models import CHECKPOINTS, manifest
from nbhelpers.studies import VARIED, first_seeds, label, study


def test_studies_have_titles_and_an_untrained_reference():
    assert study("shapes").models[-1] == "shapes.random"
    assert study("cifar10").title == "CIFAR-10 (photographs)"
    with pytest.raises(ValueError, match="shapes, cifar10"):
        study("cifar11")


def test_a_folder_is_a_study_read_by_the_encoders_of_photographs(tmp_path):
    assert study(f"folder:{tmp_path}").models == study("cifar10").models


def test_imagenet_names_the_ways_to_its_images(monkeypatch):
    monkeypatch.delenv("NBHELPERS_IMAGENET", raising=False)
    chosen = study("imagenet")
    with pytest.raises(MissingDataError, match="Imagenette"):
        chosen.images()
    assert "NBHELPERS_IMAGENET" in chosen.missing
    assert set(chosen.models[:-1]) <= set(CHECKPOINTS)


def test_imagenet_reads_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    for name in ("n01", "n02"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 20)).save(tmp_path / name / "a.JPEG")
    monkeypatch.setenv("NBHELPERS_IMAGENET", str(tmp_path))
    images = study("imagenet").images()
    assert images.labels["class"].tolist() == [0, 1]
    assert images.classes["class"] == ("n01", "n02")


def test_chapters_draw_the_pair_and_others_by_their_objective(monkeypatch):
    names = ["cl", "cl.s1", "dino", "hybrid-0.2", "hybrid-0.4.s2", "mae", "mim", "supervised"]
    others = ["cl.w16", "mim.w32.s1", "mim.n600000", "cl.w16.n600000"]
    rows = {f"{s}.{name}": {"study": s} for s in ("shapes", "cifar10") for name in [*names, *others]}
    monkeypatch.setitem(study.__wrapped__.__globals__, "manifest", lambda: rows)
    chosen = study.__wrapped__("shapes")
    assert chosen.models == ("shapes.cl", "shapes.cl.s1", "shapes.mim", "shapes.random")
    assert first_seeds(chosen.models) == ("shapes.cl", "shapes.mim", "shapes.random")
    assert chosen.trained("hybrid") == ("shapes.hybrid-0.2", "shapes.hybrid-0.4.s2")
    assert chosen.trained("hybrid-0.4", "mae") == ("shapes.hybrid-0.4.s2", "shapes.mae")
    assert chosen.trained() == tuple(f"shapes.{name}" for name in names)
    wide_and_narrow = ("shapes.cl", "shapes.cl.s1", "shapes.mim", "shapes.cl.w16", "shapes.mim.w32.s1")
    assert chosen.trained("cl", "mim", vary=["width"]) == wide_and_narrow
    assert chosen.trained("mim", vary=["images"]) == ("shapes.mim", "shapes.mim.n600000")
    assert "shapes.cl.w16.n600000" in chosen.trained("cl", vary=VARIED)


def test_the_nearest_stands_in_where_no_usual_encoder_was_trained(monkeypatch):
    names = ["dino.w32.n9", "dino.w64.n5", "dino.w64.n7", "dino.w64.n7.s1", "mae.n5", "mim", "mim.n9"]
    rows = {f"shapes.{name}": {"study": "shapes"} for name in names}
    monkeypatch.setitem(study.__wrapped__.__globals__, "manifest", lambda: rows)
    chosen = study.__wrapped__("shapes")
    nearest = ("shapes.dino.w64.n7", "shapes.dino.w64.n7.s1", "shapes.mae.n5", "shapes.mim")
    assert chosen.trained() == nearest
    assert label(nearest[0]) == "DINO, width 64, 7 images"


def test_a_name_in_place_of_a_list_of_encoders_is_refused():
    with pytest.raises(TypeError, match=r"models are a list .*, not a str"):
        study("shapes").encoders("shapes.cl")


def test_encoders_that_are_alike_have_one_width_and_length(monkeypatch):
    names = ["mim", "mim.n9", "mim.w64.n9", "mim.w64.n9.s1", "mim.w32.n9", "latent.w64.n9", "latent.w32.n9"]
    rows = {f"shapes.{name}": {"study": "shapes"} for name in [*names, "dino.w64.n5"]}
    monkeypatch.setitem(study.__wrapped__.__globals__, "manifest", lambda: rows)
    chosen = study.__wrapped__("shapes")
    assert chosen.alike("mim") == ("shapes.mim",)
    alike = ("shapes.latent.w64.n9", "shapes.mim.w64.n9", "shapes.mim.w64.n9.s1")
    assert chosen.alike("latent", "mim") == alike
    with pytest.raises(LookupError, match="dino and mim"):
        chosen.alike("dino", "mim")


def test_encoders_of_one_label_are_seeds_of_one_architecture():
    found: dict[str, list[dict]] = {}
    for name, row in manifest().items():
        found.setdefault(label(name), []).append(row["architecture"])
    parts = ("width", "depth", "heads", "patch_size", "decoder")
    kinds = {who: {str([row.get(part) for part in parts]) for row in each} for who, each in found.items()}
    assert {who: each for who, each in kinds.items() if len(each) > 1} == {}
