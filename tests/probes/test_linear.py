"""Linear probes: optimality of the fit, choice of the penalty, the two extremes, errors."""

import numpy as np
import pytest
import torch

from nbhelpers.probes import fit_linear, knn_by_depth, linear_by_depth
from nbhelpers.probes.layers import accuracy


def blobs(n, seed, classes=3, width=5, spread=1.0):
    """Gaussian clouds around fixed centres, on wildly different scales per feature."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)) * 3
    y = torch.randint(classes, (n,), generator=generator)
    x = centres[y] + spread * torch.randn(n, width, generator=generator)
    return x * 10.0 ** torch.arange(-2, 3) + 7, y


def share_right(probe, x, y):
    return accuracy(probe.predict(x), y)["value"]


@pytest.mark.parametrize("classes", [2, 3])
def test_gradient_of_the_loss_vanishes(classes):
    x, y = blobs(80, 0, classes)
    probe = fit_linear(x, y, x, y, strengths=[0.01])
    z = (x - x.mean(0)).double() / x.double().std(0, correction=0)
    weight = torch.tensor(probe.weight, requires_grad=True)
    bias = torch.tensor(probe.bias, requires_grad=True)
    loss = weight.square().sum() / 2
    for row, label in zip(z, y, strict=True):
        logits = weight @ row + bias
        loss = loss - 0.01 * (logits[label] - logits.logsumexp(0))
    loss.backward()
    assert weight.grad.abs().max() < 1e-2 and bias.grad.abs().max() < 1e-2
    assert weight.detach().abs().max() > 0.1  # so that a vanishing gradient is not that of zero weights


def test_separable_and_noise():
    x, y = blobs(300, 0, spread=0.1)
    x_test, y_test = blobs(200, 1, spread=0.1)
    assert share_right(fit_linear(x, y, x_test, y_test), x_test, y_test) == 1
    coin = torch.randint(2, (500,), generator=torch.Generator().manual_seed(2))
    value = share_right(fit_linear(x, coin[:300], x_test, coin[300:], [1e-4]), x_test, coin[300:])
    assert 0.39 < value < 0.61


def nearly_collinear(n, seed, width=64):
    """Features like those of an encoder: variances over six decades, the classes in none of the largest."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    centres, mix = torch.randn(10, width, generator=fixed), torch.randn(width, width, generator=fixed)
    y = torch.arange(n) % 10
    x = centres[y] * 0.6 + torch.randn(n, width, generator=generator)
    return (x * torch.logspace(-3, 0, width)) @ mix, y


def test_accuracy_rises_with_the_number_of_images_through_that_of_the_features():
    """From D / 4 to 4 D images: nowhere lower than before by more than the interval."""
    (x, y), validation, (x_test, y_test) = (nearly_collinear(n, i) for i, n in enumerate((256, 2000, 4000)))
    best = 0.0
    for n in (16, 32, 48, 60, 64, 65, 68, 80, 128, 256):
        predicted = fit_linear(x[:n], y[:n], *validation).predict(x_test)
        row = accuracy(predicted, y_test)
        assert row["high"] > best, n
        best = max(best, row["value"])
    assert best > 0.5


def test_a_depth_that_is_not_finite_or_does_not_vary_leaves_the_others(encoder, colours):
    splits = [colours(n, seed) for seed, n in enumerate((60, 30, 40))]
    with torch.no_grad():
        encoder.module.blocks[1].mlp.fc2.bias[0] = torch.nan
    with pytest.warns(UserWarning, match="depth 2, colour.*non-finite"):
        frame = linear_by_depth(encoder, *splits, "colour").set_index("depth")
    assert frame.loc[2, ["value", "low", "high"]].isna().all() and frame.loc[2, "images"] == 40
    assert frame.loc[[0, 1], "value"].notna().all()
    with pytest.warns(UserWarning, match="depth 2, colour.*non-finite"):
        assert knn_by_depth(encoder, splits[0], splits[2], "colour")["value"].isna().tolist() == [0, 0, 1]
    grey = [source.select(range(len(source))) for source in splits]
    for source in grey[:2]:
        source.images = torch.full_like(source.images, 7)
    with pytest.warns(UserWarning, match="the same for every image"):
        assert linear_by_depth(encoder, *grey, "coin", depths=[0])["value"].isna().all()


def test_a_class_that_is_not_learnt_from_is_named(encoder, colours):
    train, test = colours(60, 0), colours(30, 1)
    train = train.select(torch.nonzero(train.labels["colour"] != 1).flatten())
    with pytest.raises(ValueError, match="green"):
        knn_by_depth(encoder, train, test, "colour")


def test_penalty_is_chosen_on_validation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 40, generator=generator)  # more noise features than 60 images can tell from signal
    x[:, 0] += 2 * (y := torch.randint(2, (60,), generator=generator))
    x_validation = torch.randn(500, 40, generator=generator)
    x_validation[:, 0] += 2 * (y_validation := torch.randint(2, (500,), generator=generator))
    probes = {c: fit_linear(x, y, x_validation, y_validation, [c]) for c in (1e-1, 100.0)}
    strong, weak = (share_right(probe, x_validation, y_validation) for probe in probes.values())
    assert strong > weak
    chosen = fit_linear(x, y, x_validation, y_validation, [100.0, 1e-1])
    assert chosen.strength == 1e-1
    np.testing.assert_allclose(chosen.weight, probes[1e-1].weight)  # not the last of the path


def test_by_depth(encoder, colours):
    splits = [colours(n, seed) for seed, n in enumerate((200, 100, 150))]
    frame = linear_by_depth(encoder, *splits, ["colour", "coin"], depths=[0, 2], pool="mean", norm=True)
    assert frame[["label", "depth"]].values.tolist() == [[k, d] for k in ("colour", "coin") for d in (0, 2)]
    colour, coin = frame[frame.label == "colour"], frame[frame.label == "coin"]
    assert (colour.value == 1).all() and (colour.low > 0.97).all()
    assert ((coin.low < 0.5) & (coin.high > 0.5)).all()
    assert frame.norm.all() and (frame.pool == "mean").all() and (frame.images == 150).all()
    again = linear_by_depth(encoder, *splits, "coin", depths=[0, 2], norm=True)
    assert again.equals(coin.reset_index(drop=True))


def test_errors(encoder, colours):
    x, y = blobs(10, 0)
    with pytest.raises(ValueError, match=r"9 train_labels.*\(10, 5\)"):
        fit_linear(x, y[:9], x, y)
    with pytest.raises(ValueError, match="at least two classes"):
        fit_linear(x, y * 0, x, y)
    with pytest.raises(ValueError, match="non-finite train"):
        fit_linear(x / 0, y, x, y)
    with pytest.raises(ValueError, match="the same for every image"):
        fit_linear(x * 0, y, x, y)
    source = colours(10, 0)
    with pytest.raises(ValueError, match=r"no label 'class'.*'coin', 'colour'"):
        linear_by_depth(encoder, source, source, source, "class")
