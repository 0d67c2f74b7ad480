"""Computed curves beside the published ones of the same weights: the difference in numbers."""

import pandas as pd
import pytest

from nbhelpers.models.registry import find
from nbhelpers.results import difference_to_published, published, published_triples
from nbhelpers.results.published import MODEL_OF

SIMMIM = "simmim.vit_base_patch16_224"


def curve(model, named, metric="nmi", shift=0.0):
    """The published curve of a model as the analysis would give it, with two heads, shifted."""
    rows = (
        published()
        .query("metric == @metric and model == @model and part == 'encoder'")
        .dropna(subset="depth")
    )
    whole = pd.DataFrame({"metric": metric, "model": named, "objective": "MIM", "depth": rows["depth"]})
    whole = whole.assign(head=-1, value=rows["value"] + shift)
    heads = [whole.assign(head=head, value=whole["value"] + 9) for head in range(2)]
    return pd.concat([whole, *heads], ignore_index=True)


def test_the_difference_is_that_of_whole_layers_at_the_depths_of_both():
    frame = curve("SimMIM", SIMMIM)
    frame.loc[(frame["head"] < 0) & (frame["depth"] == 3), "value"] += 0.3
    frame.loc[(frame["head"] < 0) & (frame["depth"] == 4), "value"] -= 0.4
    row = difference_to_published(frame[frame["depth"] > 2], "nmi").iloc[0]
    assert (row["model"], row["published"], row["depths"]) == (SIMMIM, "SimMIM", 10)
    assert row["rms"] == pytest.approx(((0.3**2 + 0.4**2) / 10) ** 0.5)
    assert row["error"] == pytest.approx(0.006)


def test_every_published_model_is_a_checkpoint_and_its_decoder_is_not_compared():
    assert set(MODEL_OF.values()) <= set(published()["model"])
    assert "unknown" not in {find(name).objective for name in MODEL_OF}
    frames = [curve("MAE", names, shift=0.01) for names in MODEL_OF if "mae" in names]
    differences = difference_to_published(pd.concat(frames), "nmi")
    assert differences["rms"].tolist() == pytest.approx([0.01, 0.01])
    assert differences["depths"].tolist() == [12, 12]


def test_models_that_nobody_published_are_left_out():
    frame = curve("SimMIM", "shapes.mim")
    assert difference_to_published(frame, "nmi").empty


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ValueError, match=r"no curve of 'attention_entropy' was published; there are .*nmi"):
        difference_to_published(curve("SimMIM", SIMMIM), "attention_entropy")
    frame = curve("SimMIM", SIMMIM)
    with pytest.raises(ValueError, match=r"simmim.* has several values at a depth"):
        difference_to_published(pd.concat([frame, frame]), "nmi")


def test_triples_are_complete_and_have_a_source():
    everything = published_triples()
    assert everything["value"].between(0, 1).all() and everything["source"].str.len().gt(20).all()
    rows = everything[everything["images"] == "ImageNet-1k"]
    triples = rows.pivot(index=["model", "size"], columns="metric", values="value")
    assert triples.notna().all(axis=None) and (triples["attentive"] > triples["knn"]).all()
    assert triples.loc[("SimMIM", "ViT-B/16")].to_dict() == {
        "knn": 0.086,
        "linear": 0.471,
        "attentive": 0.649,
    }
    assert rows["source"].str.contains("2506.10178").all()
