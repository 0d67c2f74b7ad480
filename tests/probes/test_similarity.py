"""CKA between encoders: of one with itself, turned, and with strangers; against the pure function."""

import copy

import pytest
import torch

from nbhelpers.images import ArraySource
from nbhelpers.metrics import linear_cka
from nbhelpers.models import mini_vit, wrap
from nbhelpers.probes import cka_by_depth, features


def encoder(seed, name):
    torch.manual_seed(seed)
    return wrap(
        mini_vit(32, 2, 2, 16), mean=(0.5,) * 3, std=(0.25,) * 3, name=name, objective="CL", seed=seed
    )


def source(n=80):
    pixels = torch.randint(256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ArraySource("toy/test", pixels, {"class": torch.zeros(n).long()}, {"class": ("a",)})


def rotated(original):
    """The same encoder in a rotated residual stream, as far as its features at depth 0 go."""
    twin = copy.deepcopy(original.module)
    q = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    with torch.no_grad():
        weight = twin.patch_embed.proj.weight
        weight.copy_(torch.einsum("de,echw->dchw", q, weight))
        for parameter in (twin.pos_embed, twin.cls_token):
            parameter.copy_(parameter @ q.T)
    return wrap(twin, mean=original.mean, std=original.std, name="rotated")


def test_with_itself_and_rotated_is_one():
    one, images = encoder(0, "one"), source()
    frame = cka_by_depth(one, images, [one, rotated(one)])
    own = frame[(frame["other"] == "one") & (frame["depth"] == frame["other_depth"])]
    assert own[["value", "low", "high"]].to_numpy() == pytest.approx(1)
    turned = frame[(frame["other"] == "rotated") & (frame["depth"] == 0) & (frame["other_depth"] == 0)]
    assert turned["value"].item() == pytest.approx(1, abs=1e-4)


def test_is_the_mean_of_the_pure_function_over_parts():
    one, two, images = encoder(0, "one"), encoder(1, "two"), source()
    frame = cka_by_depth(one, images, [two]).set_index(["depth", "other_depth"])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    ours, theirs = features(one, images)[:, order], features(two, images)[:, order]
    for depth, other in [(0, 0), (1, 2), (2, 1)]:
        values = torch.stack([linear_cka(ours[depth, k::10], theirs[other, k::10]) for k in range(10)])
        row = frame.loc[(depth, other)]
        assert row["value"] == pytest.approx(float(values.mean()), rel=1e-6)
        assert row["high"] - row["value"] == pytest.approx(2.262157 * float(values.std()) / 10**0.5, rel=1e-4)


def test_classes_that_take_turns_are_in_every_part():
    images = source(200)
    colour = 20 * (torch.arange(200) % 10)[:, None, None, None].to(torch.uint8)
    images.images = images.images // 16 + colour
    one, two = encoder(0, "one"), encoder(1, "two")
    frame = cka_by_depth(one, images, [two]).set_index(["depth", "other_depth"])
    every = linear_cka(features(one, images, [0])[0], features(two, images, [0])[0])
    assert frame.loc[(0, 0), "value"] == pytest.approx(float(every), abs=0.05)


def test_features_that_do_not_vary_leave_the_other_depths():
    one, two, images = encoder(0, "one"), encoder(1, "two"), source()
    with torch.no_grad():
        two.module.patch_embed.proj.weight.zero_()
        two.module.patch_embed.proj.bias.zero_()
    frame = cka_by_depth(one, images, [one, two])
    assert frame[frame["other"] == "two"]["value"].isna().all()
    assert frame[frame["other"] == "one"]["value"].notna().all()


def test_frame_says_who_was_compared():
    frame = cka_by_depth(encoder(0, "one"), source(), [encoder(1, "two"), encoder(2, "three")])
    assert frame[["study", "model", "objective", "seed"]].drop_duplicates().to_numpy().tolist() == [
        ["toy", "one", "CL", 0]
    ]
    assert frame.groupby("other", sort=False).size().to_dict() == {"two": 9, "three": 9}


def test_few_images_are_refused():
    with pytest.raises(ValueError, match="at least 40 images, got 39"):
        cka_by_depth(encoder(0, "one"), source(39), [encoder(1, "two")])
