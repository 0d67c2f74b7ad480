"""Computed curves beside the published ones of the same weights: the difference in numbers."""

import pandas as pd
import pytest

from nbhelpers.models.registry import find
from nbhelpers.results import difference_to_published, published, published_triples
from nbhelpers.results.published import MODEL_OF

SIMMIM = "simmim.vit_base_patch16_224"


def curve(model, named, shift=0.0):
    """The published NMI of a model as the analysis would give it, with two heads, shifted."""
    rows = published().query("metric == 'nmi' and model == @model and part == 'encoder'")
    rows = rows.dropna(subset="depth")
    whole = pd.DataFrame({"metric": "nmi", "model": named, "depth": rows["depth"]})
    whole = whole.assign(head=-1, value=rows["value"] + shift)
    heads = [whole.assign(head=head, value=whole["value"] + 9) for head in range(2)]
    return pd.concat([whole, *heads], ignore_index=True)


def test_the_difference_is_that_of_whole_layers_at_the_depths_of_both_for_models_that_were_published():
    frame = curve("SimMIM", SIMMIM)
    frame.loc[(frame["head"] < 0) & (frame["depth"] == 3), "value"] += 0.3
    frame.loc[(frame["head"] < 0) & (frame["depth"] == 4), "value"] -= 0.4
    frame = pd.concat([frame[frame["depth"] > 2], curve("SimMIM", "shapes.mim")])
    (row,) = difference_to_published(frame, "nmi").to_dict("records")
    assert (row["model"], row["published"], row["depths"]) == (SIMMIM, "SimMIM", 10)
    assert row["rms"] == pytest.approx(((0.3**2 + 0.4**2) / 10) ** 0.5)
    assert row["error"] == pytest.approx(0.006)
    assert len(difference_to_published(frame.assign(label=float("nan")), "nmi")) == 1


def test_every_published_model_is_a_checkpoint_and_its_decoder_is_not_compared():
    assert set(MODEL_OF.values()) <= set(published()["model"])
    assert "unknown" not in {find(name).objective for name in MODEL_OF}
    frames = [curve("MAE", names, shift=0.01) for names in MODEL_OF if "mae" in names]
    differences = difference_to_published(pd.concat(frames), "nmi")
    assert difference_to_published(pd.DataFrame(), "nmi").empty
    assert differences["rms"].tolist() == pytest.approx([0.01, 0.01])
    assert differences["depths"].tolist() == [12, 12]


def test_ends_lie_the_reading_error_off_the_value():
    numbers = published()
    for end, sign in (("low", -1), ("high", 1)):
        assert (sign * (numbers[end] - numbers["value"])).to_numpy() == pytest.approx(
            numbers["error"].to_numpy()
        )


def test_what_cannot_be_compared_is_named():
    frame = curve("SimMIM", SIMMIM)
    with pytest.raises(ValueError, match=r"no curve of 'attention_entropy' .*nmi"):
        difference_to_published(frame, "attention_entropy")
    with pytest.raises(ValueError, match=r"simmim.* several values"):
        difference_to_published(pd.concat([frame, frame]), "nmi")


def test_triples_are_complete_and_have_a_source():
    everything = published_triples()
    assert everything["value"].between(0, 1).all() and everything["source"].str.len().gt(20).all()
    rows = everything[everything["images"] == "ImageNet-1k"]
    triples = rows.pivot(index=["model", "size"], columns="metric", values="value")
    assert triples.notna().all(axis=None) and (triples["attentive"] > triples["knn"]).all()
