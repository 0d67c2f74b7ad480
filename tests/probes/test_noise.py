"""Probes under changed images: a change that cannot matter, one that must, and the paired interval."""

import math

import pytest
import torch

from nbhelpers.probes import features, robustness_by_depth
from nbhelpers.probes.layers import Undefined
from nbhelpers.probes.noise import ChangedEncoder, make_change, paired_drop


def test_changed_encoder_changes_pixels_on_the_unit_scale(encoder, colours):
    images = colours(4, 0).images
    squared = ChangedEncoder(**vars(encoder), change=lambda x: x**2)
    torch.testing.assert_close(squared.preprocess(images), ((images.float() / 255) ** 2 - 0.5) / 0.5)
    assert not torch.allclose(features(squared, images), features(encoder, images))
    same = ChangedEncoder(**vars(encoder), change=lambda x: x)
    torch.testing.assert_close(features(same, images), features(encoder, images))


def test_paired_drop_by_loops():
    generator = torch.Generator().manual_seed(0)
    before, after, labels = (torch.randint(3, (50,), generator=generator) for _ in range(3))
    differences = [int(b == y) - int(a == y) for b, a, y in zip(before, after, labels, strict=True)]
    result = paired_drop(before, after, labels)
    assert result["value"] == pytest.approx(sum(differences) / 50)
    # Half an image in each cell: both right, neither, before alone, after alone.
    weighed = [(1.0, d) for d in differences] + [(0.5, d) for d in (0, 0, 1, -1)]
    centre = sum(weight * d for weight, d in weighed) / 52
    error = 1.96 * math.sqrt(sum(weight * (d - centre) ** 2 for weight, d in weighed) / 52 / 52)
    assert (result["low"], result["high"]) == pytest.approx((centre - error, centre + error))
    drop = paired_drop(labels, labels, labels)
    assert drop["value"] == 0 and -0.1 < drop["low"] < 0 < drop["high"] < 0.1  # it has a width all the same
    with pytest.raises(ValueError, match=r"must all be N, got .*\(50, 1\)"):
        paired_drop(before, after, labels[:, None])


def test_robustness(encoder, splits):
    images = splits(200, 100, 120)
    changes = {"noise": [0.25, 1.0], "low-pass": [0.0, 2.0], "patch-shuffle": [4]}
    frame = robustness_by_depth(encoder, *images, "colour", changes, epsilon=20, depths=[0, 2])
    value = frame.set_index(["metric", "change", "parameter", "depth"]).value
    for depth in (0, 2):
        assert frame[(frame.change == "none") & (frame.depth == depth)].value.item() == 1
        assert value["drop", "low-pass", 2.0, depth] == 0  # everything passes
        assert value["drop", "noise", 0.25, depth] > 0.2  # noise of low frequency drowns a colour
        whole = value["accuracy", "noise", 0.25, depth] + value["drop", "noise", 0.25, depth]
        assert whole == pytest.approx(1)
    assert value["drop", "low-pass", 0.0, 0] < 0.05  # the embedding's mean token sees the mean colour alone
    assert value["drop", "patch-shuffle", 4, 0] < 0.05  # and no order of patches but for the positions added
    assert len(frame) == 2 + 2 * 2 * 5
    again = robustness_by_depth(encoder, *images, "colour", changes, epsilon=20, depths=[0, 2])
    assert frame.equals(again)
    with pytest.raises(TypeError, match="preprocess of its own"):
        robustness_by_depth(ChangedEncoder(**vars(encoder), change=lambda x: x), *images, "colour")
    with pytest.raises(ValueError, match="'lowpass'; nearest: low-pass"):
        robustness_by_depth(encoder, *images, "colour", {"lowpass": [0.1]})


def test_patches_that_do_not_tile_the_images_leave_the_other_changes(encoder, splits):
    images = splits(60, 30, 30)
    changes = {"low-pass": [2.0], "patch-shuffle": [16, 4.5, 4]}
    with pytest.warns(UserWarning, match=r"patches of (16|4\.5) px do not tile images of 8 x 8 px") as noted:
        frame = robustness_by_depth(encoder, *images, "colour", changes)
    assert len(noted) == 2
    assert {*frame["parameter"][frame["value"].isna()]} == {16, 4.5}
    with pytest.raises(Undefined, match="6 x 8 px"):
        make_change("patch-shuffle", 4, 0.1)(torch.zeros(1, 3, 6, 8))
    fits = robustness_by_depth(encoder, *images, "colour", {"low-pass": [2.0], "patch-shuffle": [4]})
    assert frame.dropna(subset="value").reset_index(drop=True).equals(fits)
