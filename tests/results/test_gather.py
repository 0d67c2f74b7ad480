"""What chapters draw: any mixture of models, the draw of images, studies without images."""

from __future__ import annotations

import pytest

from nbhelpers import load, study
from nbhelpers.images import MissingDataError
from nbhelpers.measure import analyse
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


def test_names_and_encoders_on_the_images_that_were_drawn() -> None:
    frames, missing = gather(["shapes"], ["nmi"], ["shapes.cl", load("shapes.mim")], n_images=4, seed=3)
    drawn = study("shapes").images("test").subset(4, seed=3)
    rows = frames["shapes"].query("model == 'shapes.mim'")
    assert missing == {}
    assert list(frames["shapes"]["model"].unique()) == ["shapes.cl", "shapes.mim"]
    assert rows["value"].tolist() == analyse(load("shapes.mim"), drawn, ["nmi"])["value"].tolist()


def test_a_study_without_images_and_stored_rows_says_what_is_missing(no_photographs: None) -> None:
    frames, missing = gather(["shapes", "cifar10"], ["nmi"], ["shapes.random"], n_images=4)
    assert list(frames) == ["shapes"]
    assert missing == {"cifar10": "no photographs here"}


def test_decoders_of_stored_rows_are_left_out(no_photographs: None) -> None:
    frames, _ = gather(["cifar10"], ["nmi"], objectives=["mae"])
    assert [name for name in frames["cifar10"]["model"].unique() if name.endswith(":decoder")] == []


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(KeyError, match="no metric is named 'nmii'; nearest: nmi"):
        gather(["shapes"], ["nmii"], ["shapes.cl"])


def test_an_objective_without_encoders_is_not_answered_with_others() -> None:
    frames, missing = gather(["shapes"], ["nmi"], objectives=["MAE"])  # which is called "mae"
    assert frames == {} and missing == {"shapes": "no encoder of shapes was trained by MAE"}
