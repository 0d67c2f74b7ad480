"""What all probes share: labels that can be read and such that cannot, labels by name, what is refused."""

import pytest
import torch

from nbhelpers.probes import (
    attentive_by_depth,
    fit_attentive,
    fit_linear,
    knn_by_depth,
    knn_predict,
    linear_by_depth,
)

OPTIONS = {"linear": {"norm": True}, "knn": {}, "attentive": {"epochs": 10}}


def probe(metric, encoder, images, label, **options):
    """The frame of a probe, which gets the images that it takes."""
    by_depth = {"linear": linear_by_depth, "knn": knn_by_depth, "attentive": attentive_by_depth}[metric]
    return by_depth(encoder, *(images[::2] if metric == "knn" else images), label, **options)


@pytest.mark.parametrize(("metric", "pool"), [("linear", "mean"), ("knn", "mean"), ("attentive", "query")])
def test_a_colour_is_read_and_a_coin_is_not(metric, pool, encoder, splits):
    images = splits(400, 100, 150)
    frame = probe(metric, encoder, images, ["colour", "coin"], depths=[0, 2], **OPTIONS[metric])
    assert frame[["label", "depth"]].values.tolist() == [[k, d] for k in ("colour", "coin") for d in (0, 2)]
    colour, coin = frame[frame["label"] == "colour"], frame[frame["label"] == "coin"]
    assert (colour["value"] > 0.98).all() and (colour["low"] > 0.95).all()
    assert ((coin["low"] < 0.5) & (coin["high"] > 0.5)).all()
    who = dict(study="toy", model="toy.cl", objective="CL", seed=0, metric=metric, pool=pool, images=150)
    assert frame[[*who]].drop_duplicates().to_dict("records") == [who]
    assert (frame["norm"] == (metric == "linear")).all()
    alone = probe(metric, encoder, images, "coin", depths=[0, 2], **OPTIONS[metric])
    assert alone.equals(coin.reset_index(drop=True))


@pytest.mark.parametrize("metric", ["linear", "knn"])
def test_labels_are_compared_by_name(metric, encoder, splits):
    train, validation, test = splits(90, 60, 60)
    few = test.restrict(("blue", "red"), "colour")  # numbered 0 and 1, where training has 2 and 0
    assert (probe(metric, encoder, [train, validation, few], "colour")["value"] > 0.9).all()


@pytest.mark.parametrize("metric", ["linear", "knn"])
def test_a_depth_that_is_not_finite_leaves_the_others(metric, encoder, splits):
    encoder.module.blocks[1].mlp.fc2.bias.data[0] = torch.nan
    with pytest.warns(UserWarning, match="depth 2, colour.*non-finite"):
        frame = probe(metric, encoder, splits(60, 30, 40), "colour").set_index("depth")
    assert frame.loc[2, ["value", "low", "high"]].isna().all() and frame.loc[2, "images"] == 40
    assert frame.loc[[0, 1], "value"].notna().all()


def test_images_that_do_not_vary_have_no_value(encoder, splits):
    images = splits(60, 30, 40)
    for source in images[:2]:
        source.images = torch.full_like(source.images, 7)
    with pytest.warns(UserWarning, match="the same for every image"):
        frames = [probe(metric, encoder, images, "coin") for metric in ("linear", "knn")]
    assert all(frame["value"].isna().all() for frame in frames)


def test_what_can_be_no_test_is_noted_or_refused(encoder, colours):
    images, test = colours(60, 0), colours(30, 1)
    for many in (30, 10):
        both = images.select([*range(many), *range(50, 60)])
        with pytest.warns(UserWarning, match=f"{many} of {many + 10} test images are learnt from"):
            knn_by_depth(encoder, images.select(range(50)), both, "colour")
    with pytest.raises(ValueError, match=r"no label 'class'.*'coin', 'colour'"):
        knn_by_depth(encoder, images, test, "class")
    with pytest.raises(ValueError, match="green"):
        knn_by_depth(encoder, images.restrict(["red", "blue"], "colour"), test, "colour")


X, Y, TOKENS = torch.randn(30, 5), torch.arange(30) % 2, torch.randn(30, 4, 5)


@pytest.mark.parametrize(
    ("fit", "arguments", "told"),
    [
        (fit_linear, (X, Y[:9], X, Y), r"9 train_labels.*\(30, 5\)"),
        (fit_linear, (X, Y * 0, X, Y), "at least two classes"),
        (fit_linear, (X / 0, Y, X, Y), "non-finite train"),
        (fit_attentive, (X, Y, TOKENS, Y), r"train features must be N P D.*\(30, 5\)"),
        (fit_attentive, (TOKENS, Y * 0, TOKENS, Y), "at least two classes"),
        (fit_attentive, (TOKENS, Y, TOKENS / 0, Y), "non-finite validation"),
        (knn_predict, (X, Y[:9], X), "9 train_labels"),
        (knn_predict, (X, Y * 0, X), "at least two classes"),
        (knn_predict, (X, Y, X / 0), "non-finite test"),
        (knn_predict, (X, Y, X, 31), "k=31"),
    ],
)
def test_what_cannot_be_fitted_is_named(fit, arguments, told):
    with pytest.raises(ValueError, match=told):
        fit(*arguments)
