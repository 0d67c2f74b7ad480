"""What chapters draw: any mixture of models, the draw of images, studies without images."""

from __future__ import annotations

import pytest

from nbhelpers import load, study
from nbhelpers.images import MissingDataError
from nbhelpers.measure import analyse
from nbhelpers.metrics import METRICS, Metric
from nbhelpers.results import gather
from nbhelpers.studies import Study


@pytest.fixture
def no_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `shapes` has images."""
    images = Study.images

    def lacking(self: Study, split: str = "test"):
        if self.name != "shapes":
            raise MissingDataError("no photographs here")
        return images(self, split)

    monkeypatch.setattr(Study, "images", lacking)


def test_names_and_encoders_on_the_images_that_were_drawn(no_photographs: None) -> None:
    models = ["shapes.random", load("shapes.mim")]
    frames, missing = gather(["shapes", "cifar10"], ["nmi"], models, n_images=4, seed=3)
    assert missing == {"cifar10": "no photographs here"}
    assert list(frames) == ["shapes"]
    assert list(frames["shapes"]["model"].unique()) == ["shapes.random", "shapes.mim"]
    rows = frames["shapes"].query("model == 'shapes.mim'")
    drawn = study("shapes").images("test").subset(4, seed=3)
    assert rows["value"].tolist() == analyse(load("shapes.mim"), drawn, ["nmi"])["value"].tolist()


def test_encoders_of_another_study_are_named(no_photographs: None) -> None:
    with pytest.warns(UserWarning, match=r"cifar10\.cl, on shapes"):
        gather(["shapes"], ["nmi"], ["cifar10.cl", "shapes.cl"], n_images=4)


def test_a_metric_of_ones_own_is_gathered(no_photographs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "spread", Metric("spread", lambda tokens: tokens.std(1).mean(-1), "block"))
    frames, missing = gather(["shapes"], ["spread"], ["shapes.cl"], n_images=4)
    assert missing == {} and set(frames["shapes"]["metric"]) == {"spread"}


def test_decoders_of_stored_rows_are_left_out(no_photographs: None) -> None:
    frames, _ = gather(["cifar10"], ["nmi"], objectives=["mae"])
    assert [name for name in frames["cifar10"]["model"].unique() if name.endswith(":decoder")] == []


def test_of_imagenet_all_models_come_whatever_the_objectives(no_photographs: None) -> None:
    frames, missing = gather(["imagenet"], ["nmi"], objectives=["mae"])
    assert frames == {} and missing["imagenet"].startswith("no photographs here")


def test_an_unknown_metric_and_an_unknown_objective_are_named() -> None:
    with pytest.raises(KeyError, match="nearest: nmi"):
        gather(["shapes"], ["nmii"], ["shapes.cl"])
    frames, missing = gather(["shapes"], ["nmi"], objectives=["MAE"])  # which is called "mae"
    assert frames == {} and missing == {"shapes": "no encoder of shapes was trained by MAE"}
