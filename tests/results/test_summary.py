"""The difference of two models' curves, against numbers by hand."""

import numpy as np
import pandas as pd
import pytest

from nbhelpers.results import by_label, difference_by_depth, early, highest, late
from nbhelpers.scorecard import read_by

LABELS = {"shape": 0.9, "texture": 0.1}


def curve(model: str, values: list[float], margin: float = 0.1, metric: str = "nmi") -> pd.DataFrame:
    values = np.array(values)
    rows = {"depth": range(1, len(values) + 1), "value": values, "low": values - margin}
    return pd.DataFrame(rows | {"high": values + margin, "model": model, "metric": metric, "head": -1})


def test_margins_add_in_squares_and_the_verdict_holds_for_all_depths():
    frame = pd.concat([curve("a", [0.5, 0.65], 0.3 * 2**0.5 / 2), curve("b", [0.5, 0.3], 0.3 * 2**0.5 / 2)])
    found = difference_by_depth(frame, "a", "b")
    assert found["value"].tolist() == pytest.approx([0, 0.35])
    assert found["low"].tolist() == pytest.approx([-0.3, 0.05])
    assert found["high"].tolist() == pytest.approx([0.3, 0.65])
    # Two depths: 2.241 / 1.960 * 0.3 = 0.343 < 0.35; three would need 2.394 / 1.960 * 0.3 = 0.366.
    assert found["apart"].tolist() == [False, True]
    longer = pd.concat([curve("a", [0.5, 0.5, 0.65], 0.2121), curve("b", [0.5, 0.5, 0.3], 0.2121)])
    assert not difference_by_depth(longer, "a", "b")["apart"].any()
    turned = difference_by_depth(frame, "b", "a")
    assert turned["apart"].tolist() == [False, True] and turned["high"].iloc[1] < 0


def test_models_of_different_depth_meet_at_the_same_share():
    frame = pd.concat([curve("a", [1.0, 2.0, 3.0, 4.0]), curve("b", [2.0, 4.0])])
    # Shares 1/2, 3/4, 1 of b: its first block, 3, 4; there is nothing at 1/4.
    found = difference_by_depth(frame, "a", "b")
    assert found["depth"].tolist() == [2, 3, 4] and found["value"].tolist() == pytest.approx([0, 0, 0])


@pytest.mark.parametrize(("values", "first", "last"), [([0.1, 0.5], 0.1, 0.5), ([0.1], 0.1, 0.1)])
def test_a_shallow_model_has_an_early_and_a_late_block(values, first, last):
    frame = curve("a", values)
    assert (early(frame, "nmi"), late(frame, "nmi")) == ({"a": first}, {"a": last})


def test_encoders_of_two_studies_are_not_averaged_as_seeds():
    frame = pd.concat([curve(f"{name}.cl", [value]) for name, value in (("shapes", 0.1), ("cifar10", 0.9))])
    assert late(frame, "nmi") == by_label(frame) == {"shapes.cl": 0.1, "cifar10.cl": 0.9}
    seeds = pd.concat([curve(f"shapes.cl{seed}", [value]) for seed, value in (("", 0.1), (".s1", 0.9))])
    assert late(seeds, "nmi") == {"CL": 0.5}


def test_values_of_two_labels_are_not_mixed():
    both = [curve(model, [v], metric="linear").assign(label=of) for model in "ab" for of, v in LABELS.items()]
    frame = pd.concat(both).assign(objective="CL", seen=0)
    for summary in (
        lambda: late(frame, "linear"),
        lambda: highest(frame, "linear"),
        lambda: difference_by_depth(frame, "a", "b"),
        lambda: read_by(frame, "seen", "linear", "last"),
    ):
        with pytest.raises(ValueError, match="several values at one depth; choose one label"):
            summary()


def test_values_that_differ_in_more_than_the_label_are_told_apart():
    for column in ("study", "pool", "seen", "nuisance"):
        with pytest.raises(ValueError, match=f"choose one {column}"):
            late(pd.concat(curve("a", [0.5]).assign(**{column: value}) for value in (0, 1)), "nmi")


def test_heads_and_foreign_metrics_stand_aside_and_what_is_not_there_is_named():
    frame = pd.concat([curve("a", [0.5]), curve("b", [0.5]), curve("a", [9.0]).assign(head=0)])
    frame = pd.concat([frame, curve("b", [1.0], metric="entropy")])
    assert difference_by_depth(frame, "a", "b")[["metric", "value"]].to_numpy().tolist() == [["nmi", 0.0]]
    with pytest.raises(ValueError, match="'c'"):
        difference_by_depth(frame, "a", "c")
    with pytest.raises(ValueError, match="in common"):
        difference_by_depth(frame[frame["metric"].eq("entropy") | frame["model"].eq("a")], "a", "b")
    with pytest.raises(ValueError, match="no rows of 'rank'; there are nmi"):
        late(frame, "rank")


def test_a_curve_that_lacks_depths_is_not_compared_with_a_whole_one():
    whole = pd.DataFrame({"model": "a", "metric": "nmi", "head": -1, "depth": range(5), "value": 0.5})
    both = pd.concat([whole, whole[::2].assign(model="b")]).assign(low=0.4, high=0.6)
    with pytest.raises(ValueError, match=r"b lacks depths \[1, 3\]"):
        difference_by_depth(both, "a", "b")
