"""The scorecard: effects computed by hand, intervals that hold, one rule, and a row in every chapter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import norm, ttest_ind
from scipy.stats import t as student

from nbhelpers import scorecard
from nbhelpers.images import MissingDataError
from nbhelpers.intervals import (
    Interval,
    combined,
    difference,
    independent_trials,
    largest,
    over_seeds,
    wilson,
)
from nbhelpers.metrics import effective_rank
from nbhelpers.models import manifest
from nbhelpers.results import NoTableError, StaleTableError, published, stored, table, tables
from nbhelpers.scorecard import CLAIMS, evidence
from nbhelpers.scorecard.evidence import Quantity, highest_less_last, late, late_effective_rank, peak
from nbhelpers.scorecard.page import figures
from nbhelpers.studies import study

BOOK = Path(__file__).parents[1] / "book"
MODELS = ("cl", "mim", "mae", "hybrid-0.2", "hybrid-0.4")
NONE = float("nan")


def curve(
    metric: str, model: str, values: list[float], margin: float = 0.0, **columns: object
) -> pd.DataFrame:
    """Rows of one model: depths 0, 1, ... unless said otherwise."""
    rows = {"model": f"shapes.{model}", "metric": metric, "head": -1, "images": 2000}
    rows |= {"depth": range(len(values))}
    ends = {"low": np.array(values) - margin, "high": np.array(values) + margin}
    return pd.DataFrame(rows | {"value": values} | ends | columns)


def curves(
    metric: str, values: dict[str, list[float]], margin: float = 0.0, **columns: object
) -> pd.DataFrame:
    """Rows of several models with one margin."""
    return pd.concat(curve(metric, model, each, margin, **columns) for model, each in values.items())


def probes(**last: float) -> pd.DataFrame:
    """A table of linear probes that are best at depth 1, with these accuracies at the last."""
    of = {name.replace("_", "-0."): [0.1, 0.9, value] for name, value in last.items()}
    texture = curve("linear", "cl", [0.9, 0.9, 0.9], label="texture")
    return pd.concat([curves("linear", of, label="shape"), texture])


def tuned(**accuracy: float) -> pd.DataFrame:
    """A table of fine-tuning, on a tenth of the labels and on all of them."""
    of = {name.replace("_", "-0."): [0.99, value] for name, value in accuracy.items()}
    return curves("fine_tuning", of, 0.01, depth=0, share=[0.1, 1.0], label="shape")


@pytest.fixture
def toy(monkeypatch) -> dict[str, pd.DataFrame | Exception]:
    """A study with encoders of every kind; the answer is its tables, to be filled by the test."""
    trained = {f"shapes.{name}": {"study": "shapes"} for name in MODELS}
    monkeypatch.setitem(study.__globals__, "manifest", lambda: trained)
    tables: dict[str, pd.DataFrame | Exception] = {}

    def table(name: str, kind: str, models: tuple[str, ...] | None = None) -> pd.DataFrame:
        there = tables.get(kind, MissingDataError(f"there is no {name}/{kind}"))
        if isinstance(there, Exception):
            raise there
        wanted = models or study(name).models
        return there[there["model"].str.partition(":")[0].isin(wanted)]

    monkeypatch.setattr(evidence, "table", table)
    tables["trained"] = trained
    return tables


def line(number: str) -> pd.Series:
    """What the toy study says of a claim."""
    return scorecard.scorecard(["shapes"], [c for c in CLAIMS if c.number == number]).iloc[0]


def effect(number: str) -> list[float]:
    """Effect and interval of a claim on the toy study."""
    return pytest.approx(line(number)[["effect", "low", "high"]].tolist(), abs=1e-9)


def test_an_interval_that_begins_at_zero_is_undecided():
    assert scorecard.verdict(Interval(1.0, 0.0, 2.0)) == "undecided"


def test_the_list_is_whole():
    numbers = [claim.number for claim in CLAIMS]
    assert len(set(numbers)) == len(numbers)
    assert list(dict.fromkeys(int(re.match(r"\d+", number)[0]) for number in numbers)) == list(range(1, 22))
    assert all(bool(claim.source) == bool(claim.published) for claim in CLAIMS)


def test_what_is_missing_is_said_and_no_error(toy):
    card = scorecard.scorecard(["shapes", "cifar10"])
    assert len(card) == 2 * len(CLAIMS)
    assert set(card["verdict"]) == {"not measured"}
    notes = card.set_index(["study", "number"])["note"]
    said = {
        ("shapes", "2"): "no table metrics of MIM",
        ("shapes", "15b"): "no table fine_tuning of hybrid 0.4",
        ("cifar10", "11b"): "MIM was not trained",
        ("cifar10", "13b"): "MAE's decoder was not trained",
        ("cifar10", "15a"): "no hybrid was trained",
        ("cifar10", "21a"): "only generated images come with masks of their objects",
    }
    assert notes[list(said)].to_dict() == said
    toy["metrics"] = StaleTableError("computed from other weights")
    assert line("1")["note"] == "the table metrics is of other weights"
    toy["metrics"] = NoTableError("the study has no table")
    assert line("1")["note"] == "no table metrics in this study"
    toy["tokens"] = curves("attentive", {"cl": [0.1], "mim": [0.1]}, label="mask")
    assert line("14b")["note"] == "the table tokens has no mIoU of MIM"
    toy["probes"] = probes(cl=NONE, mim=0.3)
    assert (line("14a")["verdict"], line("14a")["note"]) == ("not measured", "linear of CL is undefined")


def test_the_papers_own_encoders_are_those_of_imagenet(monkeypatch):
    asked = []
    monkeypatch.setattr(
        evidence, "table", lambda *what: asked.append(what) or pd.DataFrame({"metric": [], "model": []})
    )
    card = scorecard.scorecard(["imagenet"], [c for c in CLAIMS if c.number in ("2", "13b", "15a")])
    assert card["note"].tolist() == [
        "the table metrics has no NMI of MIM",
        "MAE's decoder was not trained",
        "no hybrid was trained",
    ]
    assert asked == [("imagenet", "metrics", None)]
    assert evidence.Evidence("imagenet")._encoders("CL", "metrics") == ["mocov3.vit_base_patch16_224"]


OF_TWO = norm.ppf(1 - 0.025 / 2) / norm.ppf(0.975)  # how much wider a bound is that holds for two depths
NMI = [
    curve("nmi", "cl", [0.9] * 7 + [0.1, 0.2, 0.3], 0.03),  # depths 0..9, late are 7, 8, 9
    curve("nmi", "mim", [0.0] * 7 + [0.5, 0.6, 0.7], 0.04),
    curve("nmi", "cl", [5.0] * 10, head=0),  # a single head says nothing of the layer
]
ATTENTION = [
    curves("object_attention", values, 0.01, label=label)
    for label, values in {
        "class token, beyond place": {"cl": [0.0, 0.9, 0.55]},
        "background patches, beyond place": {"cl": [0.9, 0.9, 0.1], "mim": [0, 0, 0.05]},
        "background patches": {"cl": [0.0, 0.0, 0.2], "mim": [0, 0, 0.15]},
    }.items()
]
FREQUENCIES = curves("delta_log_amplitude", {"mim": [-1, -1, -2, -4], "cl": [-3, -2, -2.5, -6]})
CUES = [
    curve("shape_bias", "cl", [0.1, 0.7], 0.03, label="shape/texture"),
    curve("shape_bias", "mim", [0.9, 0.2], 0.04, label="shape/texture"),
    curve("covered", "cl", [1.0, 1.0], label="shape/texture"),
]
RINGS = {"depth": [2, 2, 2, 1], "change": "noise", "parameter": [0.6, 0.7, 1.0, 1.0], "label": "shape"}
NOISE = [
    curves("drop", {"mim": [0.9, 0.2, 0.4, 0.9], "cl": [0.9, 0.1, 0.1, 0.9]}, **RINGS),
    curve("drop", "cl", [0.8] * 4, **RINGS | {"label": "texture"}),
    curve("drop", "cl", [0.8] * 4, **RINGS | {"change": "low-pass"}),
]
TOKENS = [
    curves("miou", {"cl": [0.1, 0.5], "mim": [0.1, 0.6]}, label="mask"),
    curve("miou", "cl", [0.9, 0.9], label="texture"),
    curves("attentive", {"cl": [0.9, 0.75], "mim": [0.9, 0.8]}, label="shape"),
]
PROBES = [probes(cl=0.7, mim=0.4), curves("knn", {"cl": [0.9, 0.6], "mim": [0.9, 0.1]}, label="shape")]
TUNED = [tuned(cl=0.75, mim=0.8)]
LEFT = {"depth": 0, "label": "shape", "parameter": [1 / 64, 1 / 16]}
READ = LEFT | {"parameter": [1 / 16, 1 / 8]}
COMPONENTS = [
    curves("knn_gained", {"cl": [0.8, -0.1], "mim": [0.1, 0.2]}, **LEFT),
    curves("linear_beyond", {"cl": [0.8, 0.1], "mim": [0.5, 0.4]}, **READ),
]
DECODER = curves("nmi", {"mae": [0.9, 0.1, 0.2, 0.3, 0.2], "mae:decoder": [0.9, 0.5, 0.7]}, 0.01)
BY_DEPTH = curves("linear", {"cl": [0.1, 0.2, 0.5, 0.9], "mim": [0.1, 0.9, 0.5, 0.3]}, 0.02, label="shape")
HYBRIDS = [probes(cl=0.6, mim=0.3, hybrid_2=0.7, hybrid_4=0.5)]
EARLY = curves("nmi", {"hybrid-0.2": [0.9, 0.3, 0.9, 0.4], "hybrid-0.4": [0.9, 0.2, 0.9, 0.1]})
BY_HAND = [
    ("2", {"metrics": NMI}, [0.4, 0.35, 0.45]),
    ("3a", {"metrics": [curve("nmi", "cl", [0.1, 0.5, 0.2], 0.01)]}, [0.3, 0.3 - 0.02 * OF_TWO, 0.32]),
    ("9a", {"metrics": [FREQUENCIES]}, [0.5] * 3),
    ("9b", {"metrics": [FREQUENCIES]}, [2.0] * 3),  # depth 2 less depth 3
    ("10", {"shape_bias": CUES}, [0.5, 0.45, 0.55]),
    ("11a", {"noise": NOISE}, [20.0] * 3),
    ("12", {"probes": [BY_DEPTH]}, [2.0] * 3),
    (
        "13a",
        {"metrics": [FREQUENCIES], "profile": [curve("delta_log_amplitude", "mae", [-1, -1, -1, -1.5])]},
        [1.5] * 3,
    ),
    ("13b", {"profile": [DECODER]}, [0.4, 0.38, 0.42]),  # over blocks 1 and 2, and 1 to 4, of one network
    ("14a", {"probes": PROBES}, [30.0] * 3),
    ("14b", {"tokens": TOKENS}, [10.0] * 3),
    ("14c", {"probes": PROBES, "fine_tuning": TUNED}, [35.0, 35 - 2**0.5, 35 + 2**0.5]),
    ("14e", {"probes": PROBES, "tokens": TOKENS}, [35.0] * 3),
    ("14f", {"probes": PROBES}, [20.0] * 3),
    ("15a", {"probes": HYBRIDS}, [10.0] * 3),
    ("15c", {"profile": [EARLY]}, [0.1] * 3),
    ("16a", {"components": COMPONENTS}, [30.0] * 3),
    ("16b", {"components": COMPONENTS}, [30.0] * 3),
    ("21a", {"objects": ATTENTION}, [55, 54, 56]),
    ("21b", {"objects": ATTENTION}, [10, 9, 11]),
    ("21c", {"objects": ATTENTION}, [5, 5 - 2**0.5, 5 + 2**0.5]),
]


@pytest.mark.parametrize(("number", "tables", "expected"), BY_HAND, ids=[number for number, *_ in BY_HAND])
def test_effects_by_hand(toy, number, tables, expected):
    toy.update({name: pd.concat(frames) for name, frames in tables.items()})
    assert effect(number) == expected
    assert line(number)["verdict"] == "shows"


def test_depths_without_a_value_stand_aside():
    rising, undefined = ([0.1, 0.2, 0.5], -0.3), ([NONE, 0.5, 0.2], 0.3)
    for values, fall in (rising, undefined):
        assert highest_less_last(curve("nmi", "cl", values)).value == pytest.approx(fall)
    last = curve("miou", "cl", [0.5], depth=8, objective="CL", seen=9)
    for reading in ("early", "taken_by_late", "highest_less_last"):
        found = scorecard.read_by(last, "seen", "miou", reading)
        assert found[["value", "low", "high"]].isna().all(axis=None)


def test_the_gain_from_width_is_from_the_narrowest_to_the_usual(toy):
    toy["fine_tuning"] = tuned(**{"cl": 0.75, "cl.w16": 0.5, "mim": 0.8, "mim.w16": 0.3, "mim.w32": 0.9})
    assert line("14d")["note"] == "no two widths of MIM and CL saw the same images"
    toy["trained"] |= {f"shapes.{name}": {"study": "shapes"} for name in ("cl.w16", "mim.w16", "mim.w32")}
    assert effect("14d") == [25.0, 23.0, 27.0]


def test_the_bootstrap_of_the_peak_knows_when_depths_are_alike():
    def of(values: list[float], margin: float = 0.02) -> Interval:
        return peak(curve("linear", "cl", values, margin))

    assert of([0.5] * 6 + [0.501]) == Interval(6.0, 0.0, 6.0)
    # Where two are 1.96 standard errors of their difference apart they swap in one case of forty.
    assert of([0.1, 0.5, 0.475]) == Interval(1.0, 1.0, 2.0)  # 1.73
    assert of([0.1, 0.5, 0.465]) == Interval(1.0, 1.0, 1.0)  # 2.43
    assert of([NONE, 0.5, 0.3]).value == 1
    assert np.isnan(of([NONE] * 3).value)
    of_one_image = of([0.1, 0.5, 0.3], NONE)
    assert of_one_image.value == 1 and np.isnan([of_one_image.low, of_one_image.high]).all()


def test_the_best_hybrid_against_the_better_parent(toy):
    toy["probes"], toy["profile"] = pd.concat(HYBRIDS), EARLY
    toy["fine_tuning"] = tuned(cl=0.75, mim=0.8, hybrid_2=0.7, hybrid_4=0.82)
    assert [line(number)["note"] for number in ("15a", "15c")] == ["hybrid 0.2", "hybrid 0.4"]
    best = line("15b")
    assert best["effect"] == pytest.approx(2) and best["note"] == "hybrid 0.4"
    plain = 2**0.5  # margins of 1 point each; the choice among two hybrids widens the lower one
    assert best["low"] < 2 - plain * 1.1 and best["high"] > 2 + plain


@pytest.mark.parametrize("other", [{}, {"hybrid_2": NONE}])
def test_a_hybrid_that_was_not_measured_stands_aside(toy, other):
    toy["probes"] = probes(cl=0.6, mim=0.3, hybrid_4=0.5, **other)
    assert effect("15a") == [-10.0] * 3 and line("15a")["note"] == "hybrid 0.4"


def test_encoders_are_compared_with_those_of_their_own_width_and_length(toy):
    of = {"cl": 0.9, "mim": 0.8, "mim.w64.n256000": 0.3, "mim.w32.n256000": 0.1, "latent.w64.n256000": 0.4}
    toy["trained"] |= {f"shapes.{name}": {"study": "shapes"} for name in of}
    toy["probes"] = curves("knn", {name: [0, end] for name, end in of.items()}, 0.01, label="shape")
    assert line("17e")["effect"] == pytest.approx(10)
    assert line("17e")["note"] == "width 64, 256,000 images"
    del toy["trained"]["shapes.mim.w64.n256000"]  # none is alike: the usual one, and the row says so
    assert line("17e")["effect"] == pytest.approx(-40)
    assert line("17e")["note"] == "latent MIM: width 64, 256,000 images; MIM: usual width and images"


def test_a_hybrid_is_compared_with_parents_of_its_own_width_and_length(toy):
    of = {"cl": 0.9, "mim": 0.8, "cl.w64.n9": 0.5, "mim.w64.n9": 0.3, "hybrid-0.2.w64.n9": 0.7}
    toy["trained"] |= {f"shapes.{name}": {"study": "shapes"} for name in of}
    del toy["trained"]["shapes.hybrid-0.2"], toy["trained"]["shapes.hybrid-0.4"]
    toy["probes"] = curves("linear", {name: [0, end] for name, end in of.items()}, label="shape")
    assert effect("15a") == [20.0] * 3
    del toy["trained"]["shapes.cl.w64.n9"]  # then with the usual one
    assert effect("15a") == [-20.0] * 3


def test_a_probe_with_all_labels_comes_before_one_with_few(toy):
    toy["trained"] |= {f"cifar10.{name}": {"study": "cifar10"} for name in ("cl", "mim")}
    few = probes(cl=0.7, mim=0.4).query("label == 'shape'")
    photographs = few.assign(model=few["model"].str.replace("shapes", "cifar10"), label="class")
    toy["probes"] = pd.concat([few, photographs])
    toy["all_labels"] = photographs.query("depth == 2").assign(value=[0.9, 0.8])
    claims = [claim for claim in CLAIMS if claim.number == "14a"]
    card = scorecard.scorecard(["shapes", "cifar10"], claims)
    assert card["effect"].tolist() == pytest.approx([30, 10])  # of generated images there is no such table
    card = scorecard.along("cifar10", photographs.assign(seen=9)).set_index("number")
    assert card["effect"]["14a"] == pytest.approx(30)


def test_seeds_are_read_with_all_labels_where_every_table_of_the_claim_has_them(toy):
    """Of the seeds only probes learnt from all labels, so 14c, which subtracts them, is read from few."""
    ends = {f"cl.w64.n9{seed}": 0.7 for seed in ("", ".s1")}
    ends |= {f"mim.w64.n9{seed}": 0.4 for seed in ("", ".s1")}
    toy["trained"] |= {f"cifar10.{name}": {"study": "cifar10"} for name in ("cl", "mim", *ends)}
    few = probes(**ends, cl=0.7, mim=0.4).query("label == 'shape' and depth == 2")
    few = few.assign(model=few["model"].str.replace("shapes", "cifar10"), label="class")
    every = few.assign(value=few["value"] + few["model"].str.contains(".cl", regex=False) / 10)
    tuned = few.assign(metric="fine_tuning", share=1.0, value=0.9)
    toy |= {"probes": few, "all_labels": every, "fine_tuning": tuned, "all_labels_tuned": tuned}
    card = scorecard.scorecard(["cifar10"], [claim for claim in CLAIMS if claim.number in ("14a", "14c")])
    assert card["effect"].tolist() == pytest.approx([40, 40])
    assert card["repeated_effect"].tolist() == pytest.approx([40, 30])


def test_a_row_is_asked_again_of_encoders_of_several_seeds(toy):
    ends = {"cl": 0.9, "mim": 0.8, "cl.w64.n9": 0.2, "mim.w64.n9": 0.5, "cl.w32.n9": 0.4, "mim.w32.n9": 0.1}
    ends |= {"cl.w64.n9.s1": 0.3, "mim.w64.n9.s1": 0.6, "cl.w32.n9.s1": 0.4, "mim.w32.n9.s1": 0.1}
    ends |= {"cl.w64.n99": 0.1, "mim.w64.n99": 0.9}  # of one seed
    toy["trained"] |= {f"shapes.{name}": {"study": "shapes"} for name in ends}
    toy["probes"] = probes(**ends).query("label == 'shape'")
    found = line("14a")
    assert found["effect"] == pytest.approx(10) and found["seeds"] == 1
    again = [found[f"repeated_{column}"] for column in ("effect", "verdict", "seeds", "note")]
    assert again == [pytest.approx(-30), "undecided", 2, "width 64, 9 images"]
    margin = student.ppf(0.975, 2) * 5 * 2**0.5  # of two seeds each, 10 points apart: Welch's t
    assert [found["repeated_low"], found["repeated_high"]] == pytest.approx([-30 - margin, -30 + margin])
    text = scorecard.result(["14a"], ["shapes"]).data
    assert "With width 64, 9 images, 2 seeds each, it **is undecided**: −30.0 points" in text
    assert "width 64, 9 images, 2 seeds each: ? −30.0 points" in scorecard.rows("components", ["shapes"]).data
    for name in [name for name in toy["trained"] if name.endswith(".s1")]:
        del toy["trained"][name]
    assert pd.isna(line("14a")["repeated_effect"])


def test_a_claim_turns_along_a_training(toy):
    """By hand: NMI of MIM lies below CL's at the first moment, above it at the second."""
    ends = {"mim": (0.1, 0.6), "cl": (0.2, 0.1)}
    toy["trained"] |= {f"shapes.{name}.w64.n9": {"study": "shapes"} for name in ends}
    parts = [
        curve("nmi", f"{name}.w64.n9", [0, 0, value], 0.01, seen=seen)
        for name, values in ends.items()
        for seen, value in zip((100, 200), values, strict=True)
    ]
    knn = curve("knn", "cl.w64.n9", [0, 0, 1.0], seen=100, label="shape")  # of one side alone
    card = scorecard.along("shapes", pd.concat([*parts, knn]))
    assert card[["seen", "number"]].to_numpy().tolist() == [
        [seen, number] for seen in (100, 200) for number in ("2", "3a", "3b")
    ]
    assert card["verdict"].eq("shows").tolist() == [False, False, False, True, False, True]
    assert card["effect"].to_list() == pytest.approx([-0.1, -0.2, -0.1, 0.5, -0.1, 0.5])


def test_several_seeds_count(toy):
    toy["trained"] |= {"shapes.cl.s1": {"study": "shapes"}, "shapes.cl.s2": {"study": "shapes"}}
    seeds = curves("nmi", {"cl": [0, 0, 1.0], "cl.s1": [0, 0, 2.0], "cl.s2": [0, 0, 3.0]}, 0.1)
    toy["metrics"] = pd.concat([seeds, curve("nmi", "mim", [0, 0, 5.0], 0.2)])
    margin = (0.2**2 + 0.1**2 + (student.ppf(0.975, 2) / 3**0.5) ** 2) ** 0.5
    assert effect("2") == [3.0, 3 - margin, 3 + margin]
    assert line("2")["seeds"] == 1  # MIM's
    assert line("3a")["seeds"] == 3
    assert scorecard.rows("attention/collapse", ["shapes"]).data.count("3 seeds each") == 1
    assert scorecard.ONE_RUN not in scorecard.result(["3a"], ["shapes"]).data


def test_a_correction_of_all_rows_knows_the_intervals_of_few_seeds():
    lines = [("1", np.inf), ("2", 2), ("3", 2), ("4", 2), ("5", np.inf)]
    card = pd.DataFrame(lines, columns=["number", "degrees"])
    card = card.assign(effect=1.0, low=0.4, high=1.6, verdict="shows")
    card.loc[4, ["effect", "low", "high", "verdict"]] = (NONE, NONE, NONE, "not measured")
    margin = 1 / 0.6
    p = 2 * student.sf(student.ppf(0.975, 2) * margin, 2)  # of an interval by Student's t over three seeds
    assert 2 * norm.sf(norm.ppf(0.975) * margin) * 4 < 0.05 < 3 * p
    assert [*scorecard.lost_together(card)["number"]] == ["2", "3", "4"]
    turned = card.assign(effect=-1.0, low=-1.6, high=-0.4, verdict="does not show")[1:4]
    assert [*scorecard.lost_together(turned)["number"]] == ["2", "3", "4"]
    assert scorecard.lost_together(turned[1:]).empty  # of two rows, 2 p is below 0.05
    assert scorecard.lost_together(card.assign(verdict="undecided")).empty


def test_newcombe():
    """Differences of two proportions (Newcombe, Statistics in Medicine 1998, table II, method 10)."""
    for counts, expected in {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (10, 10, 0, 20): (0.6791, 1.0),
    }.items():
        hits = [Interval(k / n, *wilson(k / n, n)) for k, n in (counts[:2], counts[2:])]
        both = difference(*hits)
        assert (both.low, both.high) == pytest.approx(expected, abs=5e-5)


def test_seeds_on_both_sides_are_compared_as_welch_does():
    sides = [1.0, 2.0, 4.0], [0.5, 0.7, 0.4, 0.6]
    more, less = (over_seeds([Interval(x, x, x) for x in each]) for each in sides)
    both, by_scipy = difference(more, less), ttest_ind(*sides, equal_var=False)
    assert (both.low, both.high) == pytest.approx(tuple(by_scipy.confidence_interval()))
    assert both.spread.degrees == pytest.approx(by_scipy.df) and both.spread.error > 0
    alone = Interval(0.5, 0.0, 1.5)  # a side with one seed adds its squared margins over images
    mixed = difference(more, alone)
    assert mixed.margins == pytest.approx(np.hypot(more.margins, [1.0, 0.5])) and mixed.spread == more.spread
    turned = difference(alone, more)
    assert (turned.low, turned.high) == (-mixed.high, -mixed.low) and turned.spread == more.spread
    images = [Interval(x, x - 1, x + 1) for x in sides[1]]  # over images as well, and for three comparisons
    wide = over_seeds(images, 3)
    error = np.std(sides[1], ddof=1) / 2
    over = norm.ppf(1 - 0.025 / 3) / norm.ppf(0.975), student.ppf(1 - 0.025 / 3, 3) * error
    assert wide.margins == pytest.approx(np.hypot(*over)) and wide.spread.margin == pytest.approx(over[1])
    twice = difference(difference(wide, alone), wide)  # gains from width are differences of differences
    welch = student.ppf(1 - 0.025 / 3, 6) * error * 2**0.5
    squares = 2 * over[0] ** 2 + np.array([1.0, 0.25]) + welch**2
    assert twice.margins == pytest.approx(np.sqrt(squares))


def test_trials_with_a_cause_in_common_count_as_fewer():
    """Two pictures make a trial: the interval of a share holds in 95 of 100 cases only if it heeds them."""
    generator, inside = np.random.default_rng(0), {True: [], False: []}
    for _ in range(400):
        ways = [generator.permuted(np.repeat(np.arange(count), 240 // count)) for count in (24, 60)]
        effects = [generator.normal(size=count)[way] for count, way in zip((24, 60), ways, strict=True)]
        hits = sum(effects) + generator.normal(size=240) > 0  # half of them in the long run
        for heeded, groups in ((True, ways), (False, [])):
            low, high = wilson(hits.mean(), independent_trials(hits, groups))
            inside[heeded].append(low < 0.5 < high)
    assert 0.92 < np.mean(inside[True]) < 0.98 and np.mean(inside[False]) < 0.85


def test_independent_trials_by_hand():
    hits, pairs, sides = [1, 1, 1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 0, 1, 0, 1]
    # Residuals 1/2 and -1/2, of squares 2 in all; sums of pairs 1, 0, -1, 0, of sides 0, 0.
    t = {count: student.ppf(0.975, count - 1) / norm.ppf(0.975) for count in (2, 4)}
    assert independent_trials(hits, [pairs]) == pytest.approx(8 * 2 / (4 / 3 * 2) / t[4] ** 2)
    assert independent_trials(hits, [sides]) == 8  # no more than there are, though they balance
    both = 4 / 3 * 2 + 2 * 0 - 2
    assert independent_trials(hits, [pairs, sides]) == pytest.approx(8 * min(1, 2 / both / t[2] ** 2))
    assert independent_trials([1, 1, 1], [[0, 0, 1]]) == 2 and independent_trials([0, 0, 0]) == 3
    assert np.isnan(independent_trials(hits, [[0] * 8]))
    assert np.isnan(wilson(0.5, np.nan)).all()


def test_the_stored_shape_bias_of_photographs_heeds_that_trials_share_pictures():
    rows = stored("cifar10", "shape_bias").set_index(["metric", "model", "depth"])
    assert rows["images"].unique() == [210]  # of 21 textures and 67 outlines
    trials = {"shape_bias": 210 * rows["value"]["covered"], "texture_decisions": rows["images"]["covered"]}
    for metric, number in trials.items():
        found = rows.loc[metric]
        alone = [high - low for low, high in map(wilson, found["value"], number)]
        wider = (found["high"] - found["low"]) / alone
        assert wider.min() > 0.999 and wider.median() > 1.5


def test_margins_within_an_encoder_hold_for_every_correlation():
    error = np.array([0.3, 0.4])
    for correlation in (-1, 0, 1):
        weights = np.array([1, -1])
        covariance = np.outer(error, error) * np.array([[1, correlation], [correlation, 1]])
        true = 1.96 * (weights @ covariance @ weights) ** 0.5
        parts = [(w, Interval(0, -1.96 * e, 1.96 * e)) for w, e in zip(weights, error, strict=True)]
        assert combined(parts, same_encoder=True).high >= true - 1e-9
    assert combined(parts, same_encoder=False).high == pytest.approx(1.96 * 0.5)


def test_the_choice_of_the_best_is_paid_for():
    """Of eight contrasts that are all 0 one seems above it in far more than one case of forty."""
    paid, plain = [], []
    for values in np.random.default_rng(0).normal(size=(800, 8)):
        parts = [Interval(v, v - 1.96, v + 1.96) for v in values]
        chosen = largest(lambda c, parts=parts: [over_seeds([part], c) for part in parts])
        paid.append(chosen.low > 0)
        plain.append(max(part.low for part in parts) > 0)
    assert np.mean(paid) < 0.035 < 0.1 < np.mean(plain)


def test_effective_rank_over_images_has_an_interval_that_holds():
    generator, true = torch.Generator().manual_seed(0), effective_rank(torch.tensor([4.0, 2, 1, 1]).log())
    inside = 0
    for _ in range(60):
        images = torch.randn(400, 4, generator=generator) * torch.tensor([4.0, 2, 1, 1]).sqrt()
        spectrum = torch.linalg.eigvalsh(images.T.cov()).flip(0).log()
        rows = pd.DataFrame({"depth": 1, "value": (spectrum - spectrum[0]).numpy(), "images": 400})
        estimate = late_effective_rank(rows)
        assert estimate.value == pytest.approx(effective_rank(spectrum).item(), rel=1e-6)
        inside += estimate.low <= true <= estimate.high
    assert inside >= 53
    spectrum.requires_grad_()  # propagation of error: of a logarithm of variance 2 / 399 each
    effective_rank(spectrum).backward()
    half = 1.96 * (2 / 399) ** 0.5 * spectrum.grad.norm().item()
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)


SEEDS = ("", ".s1", ".s2")
LATE = (late, late_effective_rank)
ALIKE = ["token_cosine", "across_block_cosine"]
PAPER = {
    "CL": ("MoCo v3", "encoder"),
    "MIM": ("SimMIM", "encoder"),
    "MAE": ("MAE", "encoder"),
    "MAE's decoder": ("MAE", "decoder"),
    "hybrid": ("SimMIM+MoCo", "encoder"),
}
OTHER_FORM = {  # than a value read off one curve
    "9a": 2.508 - 2.308,
    "14b": 50.3 - 47.9,
    "14c": (83.8 - 45.34) - (83.2 - 71.71),  # probes of the last block
    "14d": (81.8 - 64.6) - (81.2 - 68.9),
    "14e": (64.9 - 47.1) - (76.5 - 75.7),
    "14f": (47.1 - 8.6) - (75.7 - 66.8),
    "14g": 83.8 - 83.2,
    "15a": 62.3 - 58.1,
    "15b": 82.29 - 81.9,
}


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.published], ids=lambda claim: claim.number)
def test_the_papers_own_values_are_read_off_its_curves_as_ours_are(claim):
    def read(who: str, text: str) -> float:
        quantity, rows, (model, part) = Quantity.parse(text), published(), PAPER[who]
        chosen = (rows["metric"] == quantity.metric) & (rows["model"] == model) & (rows["part"] == part)
        return quantity.read(rows[chosen & rows["depth"].notna()].assign(low=0.0, high=0.0)).value

    if (effect := OTHER_FORM.get(claim.number)) is None:
        more, less = (
            read(who, claim.quantity) - (read(who, claim.minus) if claim.minus else 0) if who else 0
            for who in (claim.more, claim.less)
        )
        effect = (more - less) * (100 if claim.unit == "points" else 1)
    assert effect == pytest.approx(float(claim.published), abs=1e-9)


def test_sentences_and_table_say_what_the_row_says(toy):
    toy["metrics"] = curves("nmi", {"cl": [0.1, 0.5], "mim": [0.1, 0.2]}, 0.01)
    text = scorecard.result(["2", "3a"], ["shapes", "cifar10"]).data
    assert "On shapes (generated) it **does not show**: −0.300 [−0.314, −0.286], not above zero" in text
    assert "On CIFAR-10 (photographs) it **is not measured**: CL was not trained. But every encoder" in text
    assert scorecard.result(["3a"], ["shapes"]).data.endswith(scorecard.ONE_RUN)
    page = scorecard.rows("attention", ["shapes", "cifar10"]).data
    assert page.count('<th scope="row">') == 8 and page.count('<th scope="col">') == 4
    assert '<a href="attention/collapse.html">' in page
    assert "✗</span> does not show" in page and "–</span> not measured" in page
    assert page.count("<small>But every encoder of its chapter passes this") == 1
    assert page.count("none found") == 4  # is published of 3c and 21a to 21c
    assert "CL was not trained" in page and "−0.300" in page and "figure 10a" in page
    own = scorecard.rows("attention/collapse", ["shapes"]).data
    assert own.count('<th scope="row">') == 4 and "<a href" not in own
    assert "own models" in scorecard.rows("attention/collapse", ["shapes"], ["vit_tiny"]).data
    with pytest.raises(KeyError, match="attention/collapse"):
        scorecard.rows("attention/sinks", ["shapes"])
    with pytest.raises(KeyError, match="99"):
        scorecard.result(["99"], ["shapes"])


def test_digits():
    assert figures(4.0, 3.0, 5.0) == ["4.0", "3.0", "5.0"]
    assert figures(0.0, 0.0, 0.0) == ["0", "0", "0"]
    assert figures(26.37) == ["26"]
    assert figures(16.205, 16.2, 16.21) == ["16.20", "16.20", "16.21"]


def test_every_claim_has_a_chapter_that_shows_it():
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())["parts"]
    chapters = {claim.chapter for claim in CLAIMS}
    assert chapters <= {entry["file"] for part in contents for entry in part["chapters"]}
    for chapter in chapters:
        assert f'scorecard.rows("{chapter}", STUDIES' in (BOOK / f"{chapter}.py").read_text()
        assert f'scorecard.rows("{chapter.partition("/")[0]}", STUDIES)' in (BOOK / "index.py").read_text()


def _of_the_pair(name: str, metrics: list[str]) -> pd.DataFrame:
    """Metrics of CL and MIM: as stored, or of a few generated images."""
    pair = [f"{name}.cl", f"{name}.mim"]
    if name == "shapes":
        return table(name, "metrics", pair, metrics=metrics, n_images=500)
    return stored(name, "metrics", pair)


def test_the_page_on_moments_is_true_of_the_stored_table():
    for name in ("shapes", "cifar10"):
        rows = stored(name, "along_training").query(
            "objective == 'CL' and head == -1 and depth == 8 and seen > 0"
        )
        curves = rows.pivot_table("value", "seen", "metric")
        assert curves["class_patch_cosine"].idxmax() <= curves.index.max() / 5
        alike = curves["token_cosine"].idxmax()
        assert (curves["nmi"].loc[:alike] < 0.001).all() and alike < curves.index.max() / 5
        assert curves["nmi"].iloc[-1] > 10 * curves["nmi"].loc[:alike].max()
        if name == "shapes":
            assert curves["nmi"].iloc[-1] > 0.01
        late = stored(name, "along_training").query("objective == 'CL' and head == -1 and depth > 5")
        late = late.pivot_table("value", "seen", "metric")
        assert late["attention_entropy"].iloc[:2].min() > 0.99  # uniform at first, then collapsed
        collapsed = late.loc[70_000:170_000]
        assert collapsed["attention_entropy"].max() < 0.95 and collapsed["nmi"].max() < 0.002
        masked = stored(name, "along_training").query(
            "objective == 'MIM' and metric == 'token_cosine' and head == -1 and depth == 8"
        )
        begin, first, *others, end = masked.sort_values("seen")["value"]
        assert (first > begin) == (name == "shapes")
        assert masked.set_index("seen")["value"].idxmin() < alike * 2 and end > min(others) + 0.1
        # Of one width, tokens and depths are more alike in CL at the end of the lines, not after the longest.
        last = stored(name, "along_training").query("seen == seen.max() and head == -1 and depth > 5")
        longest = _of_the_pair(name, ALIKE)
        for frame, more in ((last, "CL"), (longest.query("head == -1 and depth > 5"), "MIM")):
            means = frame[frame["metric"].isin(ALIKE)].pivot_table("value", "metric", "objective")
            assert [*means.idxmax(axis=1)] == [more] * len(ALIKE)


def test_a_mean_over_late_blocks_that_hides_both_signs_has_a_remark():
    of_pair = [claim for claim in CLAIMS if {claim.more, claim.less} == {"CL", "MIM"} and not claim.contrast]
    parsed = {claim: Quantity.parse(claim.quantity) for claim in of_pair}
    parsed = {claim: quantity for claim, quantity in parsed.items() if quantity.read in LATE}
    wanted = [quantity.metric for quantity in parsed.values() if quantity.table == "metrics"]
    frames = {name: _of_the_pair(name, wanted) for name in ("cifar10", "shapes")}
    frames["shapes"] = pd.concat([frames["shapes"], stored("shapes", "objects")])

    def ahead(name: str, claim: scorecard.Claim, depth: int) -> bool:
        quantity, rows = parsed[claim], frames[name].query("head == -1 and depth == @depth")
        rows = rows[rows["metric"] == quantity.metric]
        rows = rows.query(quantity.where) if quantity.where else rows
        models = (f"{name}.{who.lower()}" for who in (claim.more, claim.less))
        more, less = (quantity.read(rows[rows["model"] == model]).value for model in models)
        return more > less

    mixed = set()
    for name, said in (("shapes", "on shapes"), ("cifar10", "on photographs")):
        there = [claim for claim in parsed if parsed[claim].metric in set(frames[name]["metric"])]
        for claim in (c for c in there if len({ahead(name, c, depth) for depth in (6, 7, 8)}) > 1):
            assert "of the late blocks" in claim.remark
            assert said in claim.remark or claim.chapter == "attention/maps"  # of generated images alone
            mixed.add(claim.number)
    assert mixed == {"4", "5a", "5b", "6", "7", "8a", "8b", "9c", "21c"}


def test_the_remarks_are_true_of_the_stored_tables():
    evidences = {name: evidence.Evidence(name) for name in ("shapes", "cifar10")}
    size = ", width 64, 256,000 images"

    def read(name: str, who: str, *quantities: str) -> Interval:
        return evidences[name].of(who, [*map(Quantity.parse, quantities)])

    def rows(name: str, table: str, metric: str, model: str) -> pd.DataFrame:
        found = stored(name, table, [f"{name}.{model}"])
        return found[(found["metric"] == metric) & (found["head"] == -1)]

    remarks = [claim.number for claim in CLAIMS if claim.remark]
    # Each has its lines below, or is about single late blocks, as above.
    numbers = "3a 3b 3c 4 5a 5b 6 7 8a 8b 9c 13a 13b 14b 14c 14d 14e 14f 14g 15c 16a 17a 17b 17c 18 19b"
    assert remarks == [*numbers.split(), *"20a 20b 21a 21b 21c".split()]
    for name in evidences:  # 3a: the encoders of the chapter, and untrained ones
        models = [*study(name).trained("cl", "dino", "mim", "mae", "supervised"), f"{name}.random"]
        falls = [rows(name, "profile", "nmi", model.partition(".")[2]) for model in models]
        assert all(highest_less_last(curve).low > 0 for curve in falls)
    assert rows("shapes", "profile", "nmi", "cl")["value"].max() < 0.2  # 3b
    heads = {  # 4; of photographs, whose table is stored
        kind: late(rows("cifar10", "metrics", "head_cosine", kind)).value for kind in ("cl", "mim", "random")
    }
    assert heads["cl"] - heads["mim"] < abs(heads["random"])
    outputs = [late(rows("cifar10", "metrics", "attention_token_cosine", kind)) for kind in ("random", "cl")]
    assert outputs[0].low > outputs[1].high  # 5b
    maps = [late(rows("cifar10", "metrics", "head_map_cosine", kind)) for kind in ("random", "cl")]
    assert maps[0].low > maps[1].high  # 3c
    spectra = table("shapes", "metrics", ["shapes.cl", "shapes.mim"], metrics=["image_spectrum"])  # 8a
    ranks = scorecard.read_labels(spectra, late_effective_rank)
    assert 0 < ranks["CL"].value - ranks["MIM"].value < 1
    mim, cl = (rows("shapes", "profile", "delta_log_amplitude", kind)["value"] for kind in ("mim", "cl"))
    assert [*(mim > cl)][-3:] == [True, False, False]  # 9c
    about = {kind: manifest()[f"shapes.{kind}"] for kind in ("mae", "mim")}  # 13a
    steps = {kind: row["images_seen"] / row["recipe"]["batch_size"] for kind, row in about.items()}
    assert 3.9 < steps["mae"] / steps["mim"] < 4.1
    decoders = [f"mae.w64.n256000{seed}:decoder" for seed in ("", ".s1", ".s2")]  # 13b
    means = stored("shapes", "profile").query("metric == 'nmi' and head == -1 and depth > 0")
    means = means.groupby("model")["value"].mean()
    assert any(means[f"shapes.{each}"] < means[f"shapes.{each[:-8]}"] for each in decoders)
    dense = stored("shapes", "tokens", ["shapes.random"]).query("metric == 'miou' and label == 'mask'")  # 14b
    assert dense["value"].iloc[-1] > 0.85
    assert read("shapes", "CL", "probes linear last").value > 0.95  # 14c, 14e
    of_page = [claim for claim in CLAIMS if claim.chapter == "components/behaviour"]
    card = scorecard.scorecard([*evidences], of_page)
    effects = card.pivot(index="study", columns="number", values="effect")
    np.testing.assert_allclose(effects["14c"], effects["14a"] + effects["14g"])
    gains = stored("cifar10", "all_labels").pivot_table("value", "model", "metric")  # 14f
    tuned = stored("cifar10", "all_labels_tuned").set_index("model")["value"]  # 14c, in as many epochs
    more = (tuned - gains["linear"])[[f"cifar10.{kind}" for kind in ("random", "mim", "cl")]]
    assert more.is_monotonic_decreasing
    gains = (gains["linear"] - gains["knn"])[[f"cifar10.{kind}" for kind in ("random", "mim", "cl")]]
    assert gains.is_monotonic_decreasing
    for name in evidences:  # 14g
        ends = stored(name, "fine_tuning").query("share == 1").set_index("model")["value"]
        cl, mae = ([ends[f"{name}.{kind}.w64.n256000{seed}"] for seed in SEEDS] for kind in ("cl", "mae"))
        assert max(cl) < min(mae)
        narrow = [f"{name}.{kind}.w16.n256000" for kind in ("cl", "mim")]  # 14d
        reached = [np.mean([ends[kind + seed] for seed in SEEDS]) for kind in narrow]
        assert max(reached) < ends[f"{name}.random"] + 0.02
    assert 1 < tables.FINE_TUNING.steps * tables.FINE_TUNING.batch_size / tables.LABELLED < 1.5  # 14g
    for name in evidences:  # 17a to 17c
        for metric in ("attention_distance", "nmi", "delta_log_amplitude"):
            latent, mim = (
                read(name, who + size, f"metrics {metric} late").value for who in ("latent MIM", "MIM")
            )
            untrained = evidence.mean(rows(name, "profile", metric, "random").query("depth > 5")).value
            assert sorted([mim, latent, untrained])[1] == latent, (name, metric)
    for name, hybrid in (("shapes", "hybrid 0.2"), ("cifar10", "hybrid 0.5")):  # 15c
        of_hybrid, of_mim = (read(name, who + size, "metrics nmi early").value for who in (hybrid, "MIM"))
        assert of_hybrid < of_mim / 3
    fall = "metrics nmi early", "metrics nmi late"
    hybrids = [read("shapes", f"hybrid {weight}{size}", *fall).value for weight in (0.2, 0.4, 0.6, 0.8)]
    assert read("shapes", "MIM" + size, *fall).value > max(hybrids)
    knn = "components knn_gained last parameter==0.0625"  # 16a
    gains = {who: read("cifar10", who, knn).value for who in ("CL", "MIM")}
    assert gains["CL"] < 0 < gains["MIM"] < -gains["CL"]
    nuisance = stored("shapes", "nuisance").query("metric == 'linear' and label == 'shape' and seen > 0")
    ends = scorecard.read_by(nuisance, "nuisance", "linear", "late")  # 18, 19b
    most, none = (ends[ends["nuisance"] == amplitude].set_index("objective")["value"] for amplitude in (4, 0))
    assert most["CL"].max() < 0.2 and most["MIM"].max() < 0.23 and none["MIM"].max() < none["CL"].min()
    assert all(stored(name, "along_training")["seen"].max() < 1_000_000 for name in evidences)  # 20a, 20b
    looks = "objects object_attention late label=='{}'".format  # 21a
    own, elsewhere, area = (
        read("shapes", "CL", looks(kind)).value
        for kind in ("class token", "class token, other images", "uniform attention")
    )
    assert (elsewhere - area) / (own - area) > 0.5
    beyond = stored("shapes", "objects", ["shapes.cl"]).query("label == 'background patches, beyond place'")
    beyond = beyond[beyond["head"] == -1].sort_values("depth")  # 21b
    assert beyond["low"].iloc[-3] > 0 > beyond["high"].iloc[-2:].max()


def test_what_takeaways_say_of_briefly_trained_seeds_of_generated_images_is_true():
    names = {who: study("shapes").alike(who, seeds=3) for who in ("cl", "mim")}
    assert {kind: len(of) for kind, of in names.items()} == {"cl": 3, "mim": 3}
    profile = stored("shapes", "profile").query("head == -1 and depth > 5").set_index("model")

    def metric(name: str, who: str) -> pd.Series:
        return profile.loc[[*names[who]]].query("metric == @name")

    entropy = metric("attention_entropy", "mim").query("depth == 8")["value"]
    assert entropy.min() > 0.95  # distance
    cosine = {who: metric("token_cosine", who).groupby("model")["value"].mean() for who in names}
    least, *others = sorted(cosine["cl"])  # diversity
    assert least < cosine["mim"].min() and min(others) > cosine["mim"].max()
    bias = stored("shapes", "shape_bias").query("metric == 'shape_bias' and depth == 8").set_index("model")
    cl, mim = (bias.loc[[*names[who]], "value"] for who in names)
    assert 0.5 > cl.max() and cl.min() > 2 * mim.max()  # shape or texture
    noise = stored("shapes", "noise").query("metric == 'drop' and change == 'noise' and parameter > 2 / 3")
    noise = noise.query("depth == 8 and label == 'shape'").groupby("model")["value"].mean()
    for length in ("n512000", "w64.n256000"):
        cl, mim = ([noise[f"shapes.{who}.{length}{seed}"] for seed in SEEDS] for who in names)
        assert min(cl) > max(mim)
    rows = {name: row for name, row in manifest().items() if row["study"] == "shapes"}
    steps = {name: row["images_seen"] // row["recipe"]["batch_size"] for name, row in rows.items()}
    brief = [name for each in ("cl", "mim") for name in steps if name.startswith(f"shapes.{each}.")]
    assert min(steps[name] for name in brief) >= max(steps["shapes.cl"], steps["shapes.mim"])  # images
    tuned = stored("shapes", "fine_tuning").query("share == 1").set_index("model")["value"]  # behaviour
    assert tuned[[*names["cl"]]].min() > tuned[[*names["mim"]]].max() + 0.15


def test_what_the_page_on_nuisance_says_of_seeds_is_true():
    rows = stored("shapes", "nuisance").query("metric == 'linear' and label == 'shape'")
    late = scorecard.read_by(rows[rows["seen"] > 0], "nuisance", "linear", "late")
    of = late.pivot(index="model", columns="nuisance", values="value")
    lost = of.rsub(of[0], axis=0)  # up to each amplitude
    first = {kind: lost.loc[f"shapes.{kind}.w64.n76800", 1] for kind in ("cl", "mim")}
    assert first["mim"] > 0.1 > 0.02 > first["cl"]
    (claim,) = (claim for claim in CLAIMS if claim.number == "18")
    upto = [claim._replace(minus=claim.minus.replace("nuisance==4", f"nuisance=={a}")) for a in (1, 2, 4)]
    card = scorecard.scorecard(["shapes"], upto)
    assert [*card["verdict"]] == ["undecided", "undecided", "does not show"]
    assert card["effect"].is_monotonic_decreasing and abs(card["effect"][0]) < 2  # points
    rendered = [f"shapes.cl-renderings.w64.n76800{seed}" for seed in SEEDS]
    apart = lost.loc[rendered].to_numpy() - lost.loc[[f"shapes.cl.w64.n76800{seed}" for seed in SEEDS]]
    assert (apart[[1, 2, 4]].min() < -0.02).all() and (apart[[1, 2, 4]].max() > 0.02).all()
    assert (apart.mean().abs() < 0.03).all()
    best = rows.query("seen > 0 and nuisance == 0").set_index(["model", "depth"])["value"].unstack()
    best = best.idxmax(axis=1)
    assert best[of.index.str.contains("mim")].max() <= 2 < best[of.index.str.contains("cl")].min()
