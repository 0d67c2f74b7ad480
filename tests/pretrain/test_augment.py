"""Views: crops inside the image, colours as asked, reproducible, batched like single images."""

import colorsys
import math

import pytest
import torch
from toy_runs import seeded

from nbhelpers.pretrain.augment import (
    Augmentation,
    View,
    colour_jitter,
    orthogonal_colour,
    random_resized_crop,
)


@pytest.mark.parametrize(
    ("share", "aspect", "expected"),
    [(0.25, 1, [0.5, 0.5]), (0.25, 2, [0.125**0.5, 0.5**0.5]), (0.36, 4, [0.3, 1.0])],  # height, width
)
def test_crops_lie_inside_and_have_the_area_and_the_aspect_they_were_asked_for(share, aspect, expected):
    ramp = torch.linspace(0, 1, 64)
    ramps = torch.stack([ramp[:, None].expand(64, 64), ramp.expand(64, 64)]).expand(200, 2, 64, 64)
    views = random_resized_crop(ramps, Augmentation((share, share), (aspect, aspect), flip=False), seeded())
    low, high = views.amin((2, 3)), views.amax((2, 3))
    assert torch.allclose(high - low, torch.tensor(expected), atol=0.02)  # one reflected would be narrower
    for start, side in zip(low.T, expected, strict=True):
        assert start.min() < 0.02 and start.max() > 1 - side - 0.02  # the place varies as far as it can


def test_areas_are_uniform_and_no_side_is_the_longer_one_more_often():
    ramp = torch.linspace(0, 1, 32)
    ramps = torch.stack([ramp[:, None].expand(32, 32), ramp.expand(32, 32)]).expand(1000, 2, 32, 32)
    views = random_resized_crop(ramps, Augmentation((0.1, 0.4), (1 / 2, 2), flip=False), seeded())
    height, width = (views.amax((2, 3)) - views.amin((2, 3))).unbind(1)
    assert float((height * width).mean()) == pytest.approx(0.25, abs=0.01)
    assert float((width / height).log().mean()) == pytest.approx(0.0, abs=0.05)
    assert float((width / height).log().abs().max()) == pytest.approx(math.log(2), abs=0.1)


def test_a_view_is_normalised_on_the_scale_of_black_to_white():
    how, mean, std = Augmentation((1, 1), (1, 1), flip=False), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    views = View(how, mean, std)(images, seeded())
    for image, white in zip(views, (0, 1), strict=True):
        expected = [(white - m) / s for m, s in zip(mean, std, strict=True)]
        torch.testing.assert_close(image, torch.tensor(expected)[:, None, None].expand(3, 4, 4))


def test_flip_mirrors_half_of_the_views():
    ramp = torch.linspace(0, 1, 16).expand(400, 1, 16, 16)
    views = random_resized_crop(ramp, Augmentation((1, 1), (1, 1)), seeded())
    mirrored = views[:, 0, 0, 0] > views[:, 0, 0, -1]
    assert 0.4 < mirrored.float().mean() < 0.6
    assert torch.allclose(views[mirrored][0], ramp[0].flip(-1), atol=1e-5)


def always(*jitter):
    return Augmentation(jitter=jitter, jitter_probability=1.0, grey_probability=0.0)


def test_jitter_of_strength_zero_changes_nothing():
    image = torch.rand(3, 3, 5, 5, generator=seeded())
    assert torch.allclose(colour_jitter(image, always(0, 0, 0, 0), seeded()), image, atol=1e-3)


@pytest.mark.parametrize("which", ["brightness", "contrast", "saturation"])
def test_jitter_scales_the_distance_from_black_from_the_mean_luma_or_from_the_own(which):
    image = 0.4 + 0.2 * torch.rand(3, 4, 4, generator=seeded())
    luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    rest = {"brightness": torch.zeros(()), "contrast": luma.mean(), "saturation": luma}
    jitter = [0.4 * (name == which) for name in rest]
    views = colour_jitter(image.expand(64, 3, 4, 4), always(*jitter, 0), seeded()) - rest[which]
    there = image - rest[which]
    factor = (views * there).sum((1, 2, 3)) / there.square().sum()
    assert torch.allclose(views, factor.view(-1, 1, 1, 1) * there, atol=1e-3)
    assert 0.59 < factor.min() < 0.65 and 1.35 < factor.max() < 1.41


def test_brightness_scales_what_contrast_has_left():
    """A view is b (c x + (1 - c) m), m the mean luma: b and c follow from its slope and its value at 0."""
    image = 0.2 + 0.1 * torch.rand(3, 4, 4, generator=seeded())
    mean = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * image).sum(0).mean()
    views = colour_jitter(image.expand(200, 3, 4, 4), always(0.4, 0.4, 0, 0), seeded())
    there = image - image.mean()
    slope = ((views - views.mean((1, 2, 3), keepdim=True)) * there).sum((1, 2, 3)) / there.square().sum()
    brightness = slope + (views.mean((1, 2, 3)) - slope * image.mean()) / mean
    for factor in (brightness, slope / brightness):
        assert 0.59 < factor.min() < 0.65 and 1.35 < factor.max() < 1.41


def test_as_many_views_are_jittered_or_grey_as_asked_for():
    image = torch.rand(3, 4, 4, generator=seeded())
    for jitter, grey in ((0.25, 0.0), (0.0, 0.25)):
        how = Augmentation(jitter_probability=jitter, grey_probability=grey)
        views = colour_jitter(image.expand(600, 3, 4, 4), how, seeded())
        changed = (views - image).abs().amax((1, 2, 3)) > 1e-3
        assert changed.float().mean() == pytest.approx(0.25, abs=0.05)
        assert torch.equal(changed, (views[:, 0] - views[:, 2]).abs().amax((1, 2)) < 1e-3) == bool(grey)


def test_hue_turns_the_hue_of_a_colour():
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1).expand(64, 3, 2, 2)
    turned = colour_jitter(red, always(0, 0, 0, 0.1), seeded())[:, :, 0, 0]
    hues = torch.tensor([colorsys.rgb_to_hsv(*colour)[0] for colour in turned.tolist()])
    hues = torch.where(hues > 0.5, hues - 1, hues)
    assert 0.03 < hues.abs().max() < 0.15
    assert (hues > 0).any()
    assert (hues < 0).any()


def test_orthogonal_colour_keeps_distances_between_colours_up_to_contrast():
    image = torch.rand(4, 3, 6, 6, generator=seeded())
    view = orthogonal_colour(image, seeded(1))

    def distances(x):
        flat = x.flatten(2).transpose(1, 2)
        return torch.cdist(flat, flat)

    ratio = distances(view) / distances(image).clamp(min=1e-6)
    off = ~torch.eye(36, dtype=torch.bool)
    for r in ratio:
        assert r[off].std() < 1e-3 * r[off].mean()


def test_orthogonal_colour_rotates_and_mirrors():
    image = torch.rand(1, 3, 6, 6, generator=seeded()).expand(60, 3, 6, 6)
    deviations = [
        (x - x.mean((2, 3), keepdim=True)).flatten(2) for x in (image, orthogonal_colour(image, seeded()))
    ]
    mirrored = torch.linalg.det(deviations[1] @ torch.linalg.pinv(deviations[0])) < 0
    assert 0.3 < mirrored.float().mean() < 0.7


@pytest.mark.parametrize("colour", ["none", "jitter", "orthogonal"])
def test_views_are_reproducible_and_differ_between_draws(colour):
    image = torch.randint(256, (4, 3, 32, 32), generator=seeded()).to(torch.uint8)
    augmentation = Augmentation(colour=colour)
    generator = seeded()
    first, second = augmentation(image, generator), augmentation(image, generator)
    assert torch.equal(first, augmentation(image, seeded()))
    assert not torch.allclose(first, second)
    assert first.shape == image.shape
    assert first.dtype == torch.float32
