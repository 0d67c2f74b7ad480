"""Probes under changed images: a change that cannot matter, one that must, and the paired interval."""

import math

import pytest
import torch

from nbhelpers.probes import features, robustness_by_depth
from nbhelpers.probes.noise import ChangedEncoder, make_change, paired_drop


def test_changed_encoder_changes_pixels_on_the_unit_scale(encoder, colours):
    images = colours(4, 0).images
    squared = ChangedEncoder(**vars(encoder), change=lambda x: x**2)
    torch.testing.assert_close(squared.preprocess(images), ((images.float() / 255) ** 2 - 0.5) / 0.5)
    assert not torch.allclose(features(squared, images), features(encoder, images))
    same = ChangedEncoder(**vars(encoder), change=lambda x: x)
    torch.testing.assert_close(features(same, images), features(encoder, images))


def test_paired_drop_refuses_a_column_of_labels():
    with pytest.raises(ValueError, match=r"must all be N, got .*\(3, 1\)"):
        paired_drop(torch.arange(3), torch.arange(3), torch.arange(3)[:, None])


def test_paired_drop_by_loops():
    generator = torch.Generator().manual_seed(0)
    before, after, labels = (torch.randint(3, (50,), generator=generator) for _ in range(3))
    differences = [int(b == y) - int(a == y) for b, a, y in zip(before, after, labels, strict=True)]
    mean = sum(differences) / 50
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 50 / 50)
    result = paired_drop(before, after, labels)
    assert result["value"] == pytest.approx(mean)
    assert result["high"] - result["low"] == pytest.approx(2 * 1.96 * error)


def test_robustness(encoder, colours):
    splits = [colours(n, seed) for seed, n in enumerate((200, 100, 120))]
    changes = {"noise": [0.25, 1.0], "low-pass": [0.0, 2.0], "patch-shuffle": [4]}
    frame = robustness_by_depth(encoder, *splits, "colour", changes, epsilon=20, depths=[0, 2])
    value = frame.set_index(["metric", "change", "parameter", "depth"]).value
    for depth in (0, 2):
        assert frame[(frame.change == "none") & (frame.depth == depth)].value.item() == 1
        assert value["drop", "low-pass", 2.0, depth] == 0  # everything passes
        assert value["drop", "noise", 0.25, depth] > 0.2  # noise of low frequency drowns a colour
        assert value["accuracy", "noise", 0.25, depth] == pytest.approx(
            1 - value["drop", "noise", 0.25, depth]
        )
    assert value["drop", "low-pass", 0.0, 0] < 0.05  # the embedding's mean token sees the mean colour alone
    assert value["drop", "patch-shuffle", 4, 0] < 0.05  # and no order of patches but for the positions added
    assert len(frame) == 2 + 2 * 2 * 5
    again = robustness_by_depth(encoder, *splits, "colour", changes, epsilon=20, depths=[0, 2])
    assert frame.equals(again)


def test_versions_of_the_test_images_and_several_labels(encoder, colours):
    splits = [colours(n, seed) for seed, n in enumerate((200, 100, 120))]
    inverted = splits[2].select(range(120))
    inverted.images = 255 - inverted.images
    versions = {"same": splits[2], "inverted": inverted}
    frame = robustness_by_depth(encoder, *splits, ["colour", "coin"], {}, versions, depths=[2])
    drop = frame[frame.metric == "drop"].set_index(["change", "label"]).value
    assert set(drop.index) == {(c, name) for c in versions for name in ("colour", "coin")}
    assert drop["same", "colour"] == drop["same", "coin"] == 0
    accuracy = frame[(frame.metric == "accuracy") & (frame.change == "inverted")].set_index("label").value
    assert accuracy["colour"] == pytest.approx(1 - drop["inverted", "colour"])
    with pytest.raises(ValueError, match="version 'few' has 3 images for the 120"):
        robustness_by_depth(encoder, *splits, "colour", {}, {"few": splits[2].select(range(3))})


def test_same_seed_same_noise():
    images = torch.rand(2, 3, 8, 8)
    first, again, other = (make_change("noise", 0.5, 0.1, 0.6, seed)(images) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_errors(encoder, colours):
    source = colours(9, 0)
    with pytest.raises(ValueError, match="'lowpass'; nearest: low-pass"):
        robustness_by_depth(encoder, source, source, source, "colour", {"lowpass": [0.1]})
    with pytest.raises(ValueError, match="no label 'class'"):
        robustness_by_depth(encoder, source, source, source, "class")
