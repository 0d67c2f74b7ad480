"""Shape-bias counts by hand, and probes that can only see one of the cues."""

import math

import pytest
import torch

from nbhelpers.images.source import ArraySource
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


def test_counts_by_hand():
    shape = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    texture = torch.tensor([1, 1, 0, 2, 0, 2, 0])  # trials 2 and 5 do not conflict
    predicted = torch.tensor([0, 1, 0, 1, 1, 2, 1])  # shape, texture, -, shape, shape, -, neither
    bias, low, high, covered = shape_bias(predicted, shape, texture)
    assert (bias, covered) == (0.75, 0.8)
    assert 0 <= low < bias < high <= 1


def test_interval_is_over_the_decisions_for_either_cue():
    shape, texture = torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.long)
    predicted = torch.tensor([0, 0, 0, 0, 0, 2, 2, 2, 2, 2])  # five for the shape, five for neither
    bias, low, high, covered = shape_bias(predicted, shape, texture)
    assert (bias, covered) == (1.0, 0.5)
    z = 1.959964  # Wilson's, of 5 out of 5: 1 / (1 + z^2 / 5) and 1
    assert (low, high) == pytest.approx((1 / (1 + z**2 / 5), 1.0), abs=1e-6)


@pytest.mark.parametrize(("cue", "bias"), [("shape", 1.0), ("texture", 0.0)])
def test_probe_follows_the_cue_it_can_see(encoder, cue, bias):
    train, validation, conflict = (cue_source(n, seed, cue) for seed, n in enumerate((400, 100, 150)))
    frame = shape_bias_by_depth(encoder, train, validation, conflict, depths=[0, 2])
    trials = int((conflict.labels["shape"] != conflict.labels["texture"]).sum())
    value = frame.set_index(["depth", "metric"]).value
    for depth in (0, 2):
        assert value[depth, "shape_bias"] == bias and value[depth, "covered"] == 1
        assert value[depth, "shape_decisions"] == bias and value[depth, "texture_decisions"] == 1 - bias
    assert (frame.images == trials).all() and (frame.study == "toy").all()


def test_cues_that_are_numbered_otherwise_are_refused(encoder):
    train, validation, conflict = (cue_source(n, seed, "shape") for seed, n in enumerate((60, 30, 30)))
    with pytest.raises(ValueError, match=r"number shapes or textures differently: choose by select"):
        shape_bias_by_depth(encoder, train, validation, conflict.restrict(NAMES[::-1], "shape"))


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
    sources = [cue_source(n, seed, "shape") for seed, n in enumerate((400, 100, 150))]
    neither = Probe(lambda x: torch.full((len(x),), 9))
    monkeypatch.setitem(shape_bias_by_depth.__globals__, "fit_linear", lambda *data: neither)
    value = shape_bias_by_depth(encoder, *sources, depths=[0]).set_index("metric")["value"]
    assert math.isnan(value["shape_bias"]) and (value.drop("shape_bias") == 0).all()


def test_errors(encoder, colours):
    ones = torch.ones(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"must all be N; got \[\(3,\), \(2,\), \(3,\)\]"):
        shape_bias(ones, ones[:2], ones)
    with pytest.raises(ValueError, match="none of 3 trials"):
        shape_bias(ones, ones, ones)
    assert math.isnan(shape_bias(ones * 7, ones, ones * 2).bias)
    source = cue_source(9, 0, "shape")
    with pytest.raises(ValueError, match=r"no label 'class'; it has \['coin', 'colour'\]"):
        shape_bias_by_depth(encoder, colours(9, 0), source, source)
    same = source.select(torch.nonzero(source.labels["shape"] != source.labels["texture"]).flatten())
    with pytest.raises(ValueError, match="no image whose shape and texture"):
        shape_bias_by_depth(encoder, same, same, source)
    alike = source.select(torch.nonzero(source.labels["shape"] == source.labels["texture"]).flatten())
    with pytest.raises(ValueError, match="no trial whose shape differs"):
        shape_bias_by_depth(encoder, source, source, alike)
