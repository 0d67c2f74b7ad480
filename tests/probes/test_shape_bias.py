"""Shape-bias counts by hand, and probes that can only see one of the cues."""

import math

import pytest
import torch

from nbhelpers.images.source import PICTURES, ArraySource
from nbhelpers.intervals import wilson
from nbhelpers.probes import shape_bias, shape_bias_by_depth
from nbhelpers.probes.layers import Probe
from nbhelpers.probes.shape_bias import agreeing

NAMES = ("airplane", "boat", "car")


def cue_source(n, seed, cue):
    """Images whose colour is the number of one cue; the other cue cannot be seen."""
    generator = torch.Generator().manual_seed(seed)
    labels = {name: torch.randint(3, (n,), generator=generator) for name in ("shape", "texture")}
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(n), labels[cue]] += 120
    return ArraySource("toy/test", images, labels, {"shape": NAMES, "texture": NAMES})


def splits(cue):
    return [cue_source(n, seed, cue) for seed, n in enumerate((400, 100, 150))]


@pytest.mark.parametrize(
    ("predicted", "shape", "texture", "expected"),
    [
        # Trials 2 and 5 do not conflict: shape, texture, -, shape, shape, -, neither.
        ("0101121", "0001122", "1102020", (0.75, *wilson(3 / 4, 4), 0.8)),
        # Wilson's interval of five out of five, the decisions for either cue.
        ("0000022222", "0" * 10, "1" * 10, (1.0, 1 / (1 + 1.959964**2 / 5), 1.0, 0.5)),
        ("777", "111", "222", (math.nan, math.nan, math.nan, 0)),
    ],
)
def test_counts_and_interval_by_hand(predicted, shape, texture, expected):
    cues = (torch.tensor([int(digit) for digit in each]) for each in (predicted, shape, texture))
    assert shape_bias(*cues) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_trials_of_shared_pictures_widen_every_interval(encoder):
    *learn, conflict = splits("shape")
    conflict.images[::3, conflict.labels["shape"][0]] += 60  # so that some trials miss
    alone = shape_bias_by_depth(encoder, *learn, conflict, depths=[1]).set_index("metric")
    for label, share in zip(PICTURES, (5, 7), strict=True):
        conflict.labels[label] = torch.arange(len(conflict)) // share
        conflict.classes[label] = [str(number) for number in range(len(conflict))]
    shared = shape_bias_by_depth(encoder, *learn, conflict, depths=[1]).set_index("metric")
    assert (shared["value"] == alone["value"]).all() and 0.5 < shared["value"]["shape_bias"] < 1
    width = {name: frame["high"] - frame["low"] for name, frame in (("alone", alone), ("shared", shared))}
    assert (width["shared"] > 1.01 * width["alone"]).all()


@pytest.mark.parametrize(("cue", "bias"), [("shape", 1.0), ("texture", 0.0)])
def test_probe_follows_the_cue_it_can_see(encoder, cue, bias):
    *learn, conflict = splits(cue)
    frame = shape_bias_by_depth(encoder, *learn, conflict, depths=[0, 2])
    trials = int((conflict.labels["shape"] != conflict.labels["texture"]).sum())
    value = frame.set_index(["depth", "metric"]).value
    for depth in (0, 2):
        assert value[depth, "shape_bias"] == bias and value[depth, "covered"] == 1
        assert value[depth, "shape_decisions"] == bias and value[depth, "texture_decisions"] == 1 - bias
    assert (frame.images == trials).all() and (frame.study == "toy").all()


def test_photographs_teach_by_name(encoder):
    def photographs(n, seed):
        source = cue_source(n, seed, "shape")
        numbers = torch.tensor([3, 0, 2])[source.labels["shape"]]
        numbers[0] = 1  # one deer, which is no cue
        names = ("boat", "deer", "car", "airplane")
        return ArraySource("cifar10/train", source.images, {"class": numbers}, {"class": names})

    conflict = cue_source(150, 2, "texture")
    train = photographs(300, 0)
    kept, cues = agreeing(train, conflict)
    assert torch.equal(kept.images, train.images[1:])
    assert torch.equal(cues, cue_source(300, 0, "shape").labels["shape"][1:])
    frame = shape_bias_by_depth(encoder, train, photographs(90, 1), conflict, depths=[1])
    assert frame.set_index("metric").value["shape_bias"] == 0 and (frame.study == "cifar10").all()


def test_a_probe_that_follows_neither_cue_has_no_bias_but_the_other_rows(encoder, monkeypatch):
    neither = Probe(lambda x: torch.full((len(x),), 9))
    monkeypatch.setitem(shape_bias_by_depth.__globals__, "fit_linear", lambda *data: neither)
    value = shape_bias_by_depth(encoder, *splits("shape"), depths=[0]).set_index("metric")["value"]
    assert math.isnan(value["shape_bias"]) and (value.drop("shape_bias") == 0).all()


def test_errors(encoder, colours):
    ones, source = torch.ones(3, dtype=torch.long), cue_source(30, 0, "shape")
    agree = source.labels["shape"] == source.labels["texture"]
    alike, apart = (source.select(torch.nonzero(chosen).flatten()) for chosen in (agree, ~agree))
    with pytest.raises(ValueError, match=r"must all be N; got \[\(3,\), \(2,\), \(3,\)\]"):
        shape_bias(ones, ones[:2], ones)
    with pytest.raises(ValueError, match="none of 3 trials"):
        shape_bias(ones, ones, ones)
    for train, conflict, told in (
        (colours(9, 0), source, r"no label 'class'; it has \['coin', 'colour'\]"),
        (apart, source, "no image whose shape and texture"),
        (source, alike, "no trial whose shape differs"),
        (source, source.restrict(NAMES[::-1], "shape"), "number shapes or textures differently: .*select"),
    ):
        with pytest.raises(ValueError, match=told):
            shape_bias_by_depth(encoder, train, train, conflict)
