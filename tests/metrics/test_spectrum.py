import math
from types import SimpleNamespace

import pytest
import torch

from nbhelpers.metrics import METRICS, ImageSpectrum, effective_rank, token_spectrum


def by_definition(tokens: torch.Tensor) -> torch.Tensor:
    """The author's definition for one image (N D): covariance over tokens, singular values, log."""
    covariance = torch.cov(tokens.double().T)
    return torch.linalg.svd(covariance).S.log()


@pytest.mark.parametrize(("tokens", "width"), [(9, 20), (20, 9), (9, 9)])
def test_spectrum_equals_the_definition(tokens, width):
    images = torch.randn(2, tokens, width) * torch.linspace(0.1, 3, width) + 5
    ranks = min(tokens - 1, width)
    spectrum = token_spectrum(images)
    assert spectrum.shape == (2, width)
    for image, values in zip(images, spectrum, strict=True):
        torch.testing.assert_close(values[:ranks], by_definition(image)[:ranks], rtol=0, atol=1e-4)
    assert spectrum[:, ranks:].isnan().all() and not spectrum[:, :ranks].isnan().any()
    assert (spectrum[:, :ranks].diff(dim=1) <= 0).all()


def test_tokens_of_rank_one_have_one_direction():
    tokens = torch.randn(1, 12, 1) * torch.randn(30)
    spectrum = token_spectrum(tokens)
    assert (spectrum[0, 1:11] - spectrum[0, 0] < -25).all()  # what is left is float32 rounding of the input
    assert effective_rank(spectrum).item() == pytest.approx(1, abs=1e-6)


def test_large_mean_loses_nothing():
    tokens = torch.randn(1, 12, 30, dtype=torch.float64)
    far, near = (token_spectrum(x)[:, :11] for x in (tokens + 1e6, tokens))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


def test_effective_rank_is_the_exponential_of_the_entropy():
    shares = [0.5, 0.3, 0.2]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.tensor([*shares, math.nan]).log() + 3).item() == pytest.approx(expected)


def image_spectrum(*batches: torch.Tensor) -> ImageSpectrum:
    accumulator = METRICS["image_spectrum"].of(SimpleNamespace(depth=0, width=6))
    for tokens in batches:
        accumulator.update(0, accumulator.measure(tokens))
    return accumulator


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_image_spectrum_is_that_of_all_images_together(offset):
    tokens = torch.randn(40, 3, 6, dtype=torch.float64) * torch.linspace(0.2, 2, 6) + offset
    tokens[:, :, 0] += torch.linspace(0, 9, 40)[:, None]  # batches differ in their means
    expected = by_definition(tokens.mean(1))
    accumulator = image_spectrum(*tokens.split([1, 17, 0, 2, 20]))
    values = torch.tensor(accumulator.compute()["value"].to_numpy())
    torch.testing.assert_close(values, expected - expected[0], rtol=0, atol=1e-6)
    covariance = accumulator.moments[0, 1:, 1:] / 39
    torch.testing.assert_close(covariance, torch.cov(tokens.mean(1).T), rtol=1e-7, atol=1e-7)


def test_few_wide_tokens_have_one_rank_less_than_there_are_tokens():
    metric = METRICS["token_spectrum"].of(SimpleNamespace(depth=0, width=9, grid=(2, 3)))
    metric.update(0, metric.measure(torch.randn(2, 6, 9)))
    assert metric.compute()["rank"].tolist() == [1, 2, 3, 4, 5]


def test_image_ranks_beyond_the_images_are_left_out():
    assert image_spectrum(torch.randn(4, 3, 6)).compute()["rank"].tolist() == [1, 2, 3]


def test_equal_tokens_and_equal_images_have_no_spectrum_whatever_their_rounding():
    equal = torch.randn(1, 1, 6, dtype=torch.float64).expand(7, 49, 6)
    spectrum = token_spectrum(torch.cat([equal[:1], torch.randn(1, 49, 6)]))
    assert spectrum[0].isnan().all() and spectrum[1].isfinite().all()
    assert effective_rank(spectrum).isnan().tolist() == [True, False]
    frame = image_spectrum(equal[:3], equal[3:]).compute()
    assert frame["rank"].tolist() == [1] and frame["value"].isna().all() and frame["images"].tolist() == [7]
