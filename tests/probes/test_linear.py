"""Linear probes: optimality of the fit, choice of the penalty, the two extremes, errors."""

import numpy as np
import pytest
import torch

from nbhelpers.probes import fit_linear, linear_by_depth


def blobs(n, seed, classes=3, width=5, spread=1.0):
    """Gaussian clouds around fixed centres, on wildly different scales per feature."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)) * 3
    y = torch.randint(classes, (n,), generator=generator)
    x = centres[y] + spread * torch.randn(n, width, generator=generator)
    return x * 10.0 ** torch.arange(-2, 3) + 7, y


def test_gradient_of_the_loss_vanishes():
    x, y = blobs(80, 0)
    probe = fit_linear(x, y, x, y, strengths=[0.01])
    z = torch.from_numpy(probe.whitening.transform(x.double().numpy()))
    torch.testing.assert_close(z.T.cov(), torch.eye(5).double(), rtol=0, atol=1e-6)
    weight = torch.tensor(probe.classifier.coef_, requires_grad=True)
    bias = torch.tensor(probe.classifier.intercept_, requires_grad=True)
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
    assert fit_linear(x, y, x_test, y_test).accuracy(x_test, y_test) == 1
    coin = torch.randint(2, (500,), generator=torch.Generator().manual_seed(2))
    value = fit_linear(x, coin[:300], x_test, coin[300:], [1e-4]).accuracy(x_test, coin[300:])
    assert 0.39 < value < 0.61


def test_mixing_the_features_changes_nothing():
    x, y = blobs(200, 0)
    mix = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    x_test, _ = blobs(100, 1)
    plain, mixed = (
        fit_linear(x, y, x, y, [0.01]),
        fit_linear(x.double() @ mix.double(), y, x @ mix, y, [0.01]),
    )
    assert torch.equal(plain.predict(x_test), mixed.predict(x_test.double() @ mix.double()))
    doubled = torch.cat(
        [x, x[:, :1], torch.ones(200, 1)], 1
    )  # a copy and a constant: two directions without variance
    assert fit_linear(doubled, y, doubled, y, [0.01]).classifier.coef_.shape[1] == 5


def test_penalty_is_chosen_on_validation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 40, generator=generator)  # more noise features than 60 images can tell from signal
    x[:, 0] += 2 * (y := torch.randint(2, (60,), generator=generator))
    x_validation = torch.randn(500, 40, generator=generator)
    x_validation[:, 0] += 2 * (y_validation := torch.randint(2, (500,), generator=generator))
    probes = {c: fit_linear(x, y, x_validation, y_validation, [c]) for c in (1e-3, 10.0)}
    chosen = fit_linear(x, y, x_validation, y_validation, [10.0, 1e-3])
    assert (
        chosen.validation
        == max(p.validation for p in probes.values())
        > min(p.validation for p in probes.values())
    )
    assert chosen.strength == 1e-3
    np.testing.assert_allclose(
        chosen.classifier.coef_, probes[1e-3].classifier.coef_
    )  # not the last of the path


def test_by_depth(encoder, colours):
    splits = [colours(n, seed) for seed, n in enumerate((200, 100, 150))]
    frame = linear_by_depth(encoder, *splits, ["colour", "coin"], depths=[0, 2], pool="mean", norm=True)
    assert frame[["label", "depth"]].values.tolist() == [
        ["colour", 0],
        ["colour", 2],
        ["coin", 0],
        ["coin", 2],
    ]
    colour, coin = frame[frame.label == "colour"], frame[frame.label == "coin"]
    assert (colour.value == 1).all() and (colour.low > 0.97).all()
    assert ((coin.low < 0.5) & (coin.high > 0.5)).all()
    assert frame.norm.all() and (frame.pool == "mean").all() and (frame.images == 150).all()
    again = linear_by_depth(encoder, *splits, "coin", depths=[0, 2], norm=True)
    assert again.equals(coin.reset_index(drop=True))


def test_errors(encoder, colours):
    x, y = blobs(10, 0)
    with pytest.raises(ValueError, match=r"9 train_labels for train_features \(10, 5\)"):
        fit_linear(x, y[:9], x, y)
    with pytest.raises(ValueError, match="at least two classes"):
        fit_linear(x, y * 0, x, y)
    with pytest.raises(ValueError, match="non-finite train_features"):
        fit_linear(x / 0, y, x, y)
    with pytest.raises(ValueError, match="the same for every image"):
        fit_linear(x * 0, y, x, y)
    with pytest.raises(ValueError, match="no strengths"):
        fit_linear(x, y, x, y, [])
    source = colours(10, 0)
    with pytest.raises(ValueError, match=r"no label 'class'.*'coin', 'colour'"):
        linear_by_depth(encoder, source, source, source, "class")
