"""Silhouettes against explicit loops, a map of tokens, and CKA against the pure function."""

import numpy as np
import pytest
import torch

from nbhelpers.metrics import linear_cka
from nbhelpers.models import mini_vit, wrap
from nbhelpers.probes import cka_by_depth, features, silhouette_by_depth, token_map


def silhouettes(points, groups):
    """One value per point, by the words of the definition."""
    apart, values = torch.cdist(points.double(), points.double()), []
    for i, group in enumerate(groups):
        others = torch.arange(len(groups)) != i
        means = {int(each): apart[i, others & (groups == each)].mean() for each in groups.unique()}
        own, nearest = means.pop(int(group)), min(means.values())
        values.append((nearest - own) / max(nearest, own))
    return torch.stack(values)


def test_silhouettes_equal_their_definition(encoder, colours):
    images = colours(6, seed=0)
    frame = silhouette_by_depth(encoder, images, "coin").set_index(["metric", "depth"])
    layers = features(encoder, images, pool="none")
    groups = {"silhouette_image": torch.arange(6), "silhouette_label": images.labels["coin"]}
    for metric, group in groups.items():
        for depth, layer in enumerate(layers):
            values = silhouettes(layer.flatten(0, 1), group.repeat_interleave(4)).view(6, 4).mean(1)
            row = frame.loc[metric, depth]
            assert row["value"] == pytest.approx(values.mean().item(), abs=1e-6)
            half = 2.5705818 * values.std().item() / 6**0.5  # Student's t, 5 degrees of freedom
            assert row["high"] - row["value"] == pytest.approx(half, rel=1e-5)
    assert set(frame["study"]) == {"toy"} and set(frame["model"]) == {"toy.cl"}


def test_one_class_or_one_image_leaves_the_other_numbers(encoder, colours):
    images = colours(20, seed=0).restrict(["red"], "colour")
    with pytest.warns(UserWarning, match="silhouette_label is NaN"):
        values = silhouette_by_depth(encoder, images, "colour").set_index("metric")["value"]
    assert values["silhouette_label"].isna().all() and values["silhouette_image"].notna().all()
    with pytest.warns(UserWarning, match="silhouette_image is NaN"):
        assert silhouette_by_depth(encoder, images.select([0]), "colour")["value"].isna().all()


def test_a_map_keeps_the_labels_of_its_tokens(encoder, colours):
    images = colours(8, seed=1)
    frame, again = (token_map(encoder, images, depth=0, perplexity=5) for _ in range(2))
    assert frame["image"].tolist() == [i for i in range(8) for _ in range(4)]
    names = [images.classes["colour"][i] for i in images.labels["colour"]]
    assert frame["colour"].tolist() == [name for name in names for _ in range(4)]
    assert np.isfinite(frame[["x", "y"]]).all(axis=None) and frame.equals(again)


@pytest.fixture
def other():
    torch.manual_seed(1)
    return wrap(mini_vit(16, 2, 2, 8, patch_size=4), mean=(0.5,) * 3, std=(0.25,) * 3, name="other")


def test_cka_with_itself_is_one_and_the_frame_says_who_was_compared(encoder, other, colours):
    frame = cka_by_depth(encoder, colours(80, 0), [encoder, other])
    own = frame[(frame["other"] == "toy.cl") & (frame["depth"] == frame["other_depth"])]
    assert own[["value", "low", "high"]].to_numpy() == pytest.approx(1)
    who = frame[["study", "model", "objective", "seed"]].drop_duplicates()
    assert who.to_numpy().tolist() == [["toy", "toy.cl", "CL", 0]]
    assert frame.groupby("other", sort=False).size().to_dict() == {"toy.cl": 9, "other": 9}


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_cka_is_the_mean_of_the_pure_function_over_parts(pool, encoder, other, colours):
    images = colours(80, 0)
    frame = cka_by_depth(encoder, images, [other], pool).set_index(["depth", "other_depth"])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    ours, theirs = (features(each, images, pool=pool)[:, order] for each in (encoder, other))
    for pair in [(1, 1), (1, 2), (2, 1)]:
        values = [linear_cka(ours[pair[0], k::10], theirs[pair[1], k::10]) for k in range(10)]
        value, row = torch.stack(values).mean().item(), frame.loc[pair]
        assert row["value"] == pytest.approx(value, rel=1e-6)
        half = 2.262157 * torch.stack(values).std().item() / 10**0.5
        assert row["high"] - row["value"] == pytest.approx(half, rel=1e-4)


def test_classes_that_take_turns_are_in_every_part_of_the_images_of_cka(encoder, other, colours):
    images = colours(200, 0)
    shade = 20 * (torch.arange(200) % 10)[:, None, None, None].to(torch.uint8)
    images.images = images.images // 16 + shade
    value = cka_by_depth(encoder, images, [other])["value"][0]
    every = linear_cka(features(encoder, images, [0])[0], features(other, images, [0])[0])
    assert value == pytest.approx(float(every), abs=0.05)


def test_features_that_do_not_vary_leave_the_other_depths_and_few_images_are_refused(encoder, other, colours):
    for parameter in other.module.patch_embed.proj.parameters():
        parameter.data.zero_()
    frame = cka_by_depth(encoder, colours(80, 0), [encoder, other])
    assert frame[frame["other"] == "other"]["value"].isna().all()
    assert frame[frame["other"] == "toy.cl"]["value"].notna().all()
    with pytest.raises(ValueError, match="at least 40 images, got 39"):
        cka_by_depth(encoder, colours(39, 0), [other])
