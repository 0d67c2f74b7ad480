"""Views: crops inside the image, colours as asked, reproducible, batched like single images."""

import colorsys

import pytest
import torch
from toy_runs import seeded

from nbhelpers.pretrain.augment import Augmentation, colour_jitter, orthogonal_colour, random_resized_crop


def test_crop_of_a_ramp_shows_the_share_of_the_area_it_was_asked_for():
    ramp = torch.linspace(0, 1, 64).expand(200, 1, 64, 64)
    views = random_resized_crop(ramp, Augmentation((0.25, 0.25), (1, 1), flip=False), seeded())
    span = views.amax((1, 2, 3)) - views.amin((1, 2, 3))
    assert span.mean() == pytest.approx(0.5, abs=0.02)  # half the side
    assert views.amin() >= 0
    assert views.amin((1, 2, 3)).std() > 0.1  # the place varies


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
