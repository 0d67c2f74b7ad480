"""Linear probes: optimality of the fit, choice of the penalty, more images are no worse."""

import numpy as np
import pytest
import torch

from nbhelpers.probes import fit_linear
from nbhelpers.probes.layers import accuracy


@pytest.mark.parametrize("classes", [2, 3])
def test_gradient_of_the_loss_vanishes(classes):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (80,), generator=generator)
    x = 3 * torch.randn(classes, 5, generator=generator)[y] + torch.randn(80, 5, generator=generator)
    x = x * 10.0 ** torch.arange(-2, 3) + 7  # clouds, on wildly different scales per feature
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
    for n in (16, 32, 60, 64, 68, 128, 256):
        predicted = fit_linear(x[:n], y[:n], *validation).predict(x_test)
        row = accuracy(predicted, y_test)
        assert row["high"] > best, n
        best = max(best, row["value"])
    assert best > 0.5


def test_penalty_is_chosen_on_validation():
    def noisy(n):  # more noise features than 60 images can tell from signal
        x, y = torch.randn(n, 40, generator=generator), torch.randint(2, (n,), generator=generator)
        x[:, 0] += 2 * y
        return x, y

    generator = torch.Generator().manual_seed(0)
    train, validation = noisy(60), noisy(500)
    strong, weak = (fit_linear(*train, *validation, [strength]) for strength in (1e-1, 100.0))
    reached = [accuracy(probe.predict(validation[0]), validation[1])["value"] for probe in (strong, weak)]
    assert reached[0] > reached[1]
    chosen = fit_linear(*train, *validation, [100.0, 1e-1])
    assert chosen.strength == 1e-1
    np.testing.assert_allclose(chosen.weight, strong.weight)  # not the last of the path
