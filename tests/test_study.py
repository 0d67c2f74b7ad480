"""Studies: their encoders, and folders of the reader's."""

import pytest

from nbhelpers.models import CHECKPOINTS, manifest
from nbhelpers.studies import VARIED, first_seeds, label, study


@pytest.fixture
def shapes_with(monkeypatch):
    """The study `shapes`, had it been trained these encoders, and `cifar10` the same."""

    def made(*names):
        rows = {f"{s}.{name}": {"study": s} for s in ("shapes", "cifar10") for name in names}
        monkeypatch.setitem(study.__globals__, "manifest", lambda: rows)
        return study("shapes")

    return made


def test_studies_are_known_by_name_and_folders_are_read_by_the_encoders_of_photographs(tmp_path):
    with pytest.raises(ValueError, match="shapes, cifar10"):
        study("cifar11")
    assert study(f"folder:{tmp_path}").models == study("cifar10").models
    assert set(study("imagenet").models[:-1]) <= set(CHECKPOINTS)


def test_chapters_draw_the_pair_and_others_by_their_objective(shapes_with):
    names = ["cl", "cl.s1", "dino", "hybrid-0.2", "hybrid-0.4.s2", "mae", "mim", "supervised"]
    chosen = shapes_with(*names, "cl.w16", "mim.w32.s1", "mim.n600000", "cl.w16.n600000")
    assert chosen.models == ("shapes.cl", "shapes.cl.s1", "shapes.mim", "shapes.random")
    assert first_seeds(chosen.models) == ("shapes.cl", "shapes.mim", "shapes.random")
    assert chosen.trained("hybrid") == ("shapes.hybrid-0.2", "shapes.hybrid-0.4.s2")
    assert chosen.trained("hybrid-0.4", "mae") == ("shapes.hybrid-0.4.s2", "shapes.mae")
    assert chosen.trained() == tuple(f"shapes.{name}" for name in names)
    wide_and_narrow = ("shapes.cl", "shapes.cl.s1", "shapes.mim", "shapes.cl.w16", "shapes.mim.w32.s1")
    assert chosen.trained("cl", "mim", vary=["width"]) == wide_and_narrow
    assert chosen.trained("mim", vary=["images"]) == ("shapes.mim", "shapes.mim.n600000")
    assert "shapes.cl.w16.n600000" in chosen.trained("cl", vary=VARIED)


def test_encoders_are_those_named_or_one_of_each_objective():
    chosen = study("shapes")
    assert [encoder.name for encoder in chosen.encoders(["shapes.mim"])] == ["shapes.mim"]
    assert tuple(encoder.name for encoder in chosen.encoders()) == first_seeds(chosen.models)


def test_the_nearest_stands_in_where_no_usual_encoder_was_trained(shapes_with):
    chosen = shapes_with(
        "dino.w32.n9", "dino.w64.n5", "dino.w64.n7", "dino.w64.n7.s1", "mae.n5", "mim", "mim.n9"
    )
    nearest = ("shapes.dino.w64.n7", "shapes.dino.w64.n7.s1", "shapes.mae.n5", "shapes.mim")
    assert chosen.trained() == nearest
    assert label(nearest[0]) == "DINO, width 64, 7 images"


def test_encoders_that_are_alike_have_one_width_and_length(shapes_with):
    latent, mim = ["latent.w64.n9", "latent.w32.n9"], ["mim.n9", "mim.w64.n9", "mim.w64.n9.s1", "mim.w32.n9"]
    chosen = shapes_with("mim", *mim, *latent, "dino.w64.n5")
    assert chosen.alike("mim") == ("shapes.mim",)
    alike = ("shapes.latent.w64.n9", "shapes.mim.w64.n9", "shapes.mim.w64.n9.s1")
    assert chosen.alike("latent", "mim") == alike
    with pytest.raises(LookupError, match=r"dino and mim .* images$"):
        chosen.alike("dino", "mim")
    assert chosen.alike("mim", seeds=2) == alike[1:]
    with pytest.raises(LookupError, match=r"latent and mim .*, with 2 seeds each"):
        chosen.alike("latent", "mim", seeds=2)


def test_encoders_of_one_label_are_seeds_of_one_architecture():
    found: dict[str, list[dict]] = {}
    for name, row in manifest().items():
        found.setdefault(label(name), []).append(row["architecture"])
    parts = ("width", "depth", "heads", "patch_size", "decoder")
    kinds = {who: {str([row.get(part) for part in parts]) for row in each} for who, each in found.items()}
    assert {who: each for who, each in kinds.items() if len(each) > 1} == {}
