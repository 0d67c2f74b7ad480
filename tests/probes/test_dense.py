"""Dense prediction: patches by hand, mIoU against scikit-learn, visible and invisible masks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from nbhelpers.images.source import ArraySource
from nbhelpers.models import mini_vit, wrap
from nbhelpers.probes import dense_by_depth, mean_iou
from nbhelpers.probes.dense import patch_targets


def scenes(n, seed):
    """8 px images; each 4 px quarter is object at random, and bright where it is; texture = its colour."""
    generator = torch.Generator().manual_seed(seed)
    quarters = torch.rand(n, 2, 2, generator=generator) < 0.5
    masks = quarters.repeat_interleave(4, 1).repeat_interleave(4, 2)
    texture = torch.randint(3, (n,), generator=generator)
    images = torch.randint(0, 60, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(n), texture] += 150 * masks.to(torch.uint8)
    return ArraySource("toy/test", images, {"texture": texture}, {"texture": ("r", "g", "b")}, masks)


@pytest.mark.parametrize(("image", "patch", "pixels"), [(10, 4, 10), (10, 3, 10), (12, 4, 8), (12, 5, 36)])
def test_patches_that_do_not_tile_the_masks_by_loops(image, patch, pixels):
    module = mini_vit(width=8, depth=1, heads=2, image_size=image, patch_size=patch)
    encoder = wrap(module, mean=(0.5,) * 3, std=(0.5,) * 3)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(9, pixels, pixels, generator=generator) < 0.5
    blank = torch.zeros(9, 3, pixels, pixels, dtype=torch.uint8)
    found = patch_targets(encoder, ArraySource("toy", blank, {}, {}, masks), "mask")
    # Masks and patches on common pixels, so fine that both tile them.
    fine = masks.repeat_interleave(image, 1).repeat_interleave(image, 2)
    side, (rows, columns) = patch * pixels, encoder.grid
    for row in range(rows):
        for column in range(columns):
            part = fine[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            shown = part.double().mean((1, 2)) >= 0.5
            assert torch.equal(found[:, row * columns + column].bool(), shown)


def test_mean_iou_against_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    target, predicted = (torch.randint(5, (40, 16), generator=generator) for _ in range(2))
    sure = torch.rand(40, 1, generator=generator)  # some images are read well and some badly
    predicted = torch.where(torch.rand(40, 16, generator=generator) < sure, target, predicted)
    target[target == 2] = 3  # a class that is predicted only
    value, low, high = mean_iou(predicted, target)
    np.testing.assert_allclose(value, jaccard_score(target.flatten(), predicted.flatten(), average="macro"))
    rng, redrawn = np.random.default_rng(5), []
    for _ in range(60):
        rows = rng.integers(40, size=40)
        redrawn.append(jaccard_score(target[rows].flatten(), predicted[rows].flatten(), average="macro"))
    np.testing.assert_allclose([low, high], np.quantile(redrawn, [0.025, 0.975]), atol=0.03)
    assert high - low > 0.1
    # Numbers that no patch has are no classes.
    np.testing.assert_allclose(mean_iou(2 * predicted, 2 * target), (value, low, high))


def test_objects_and_textures_are_read(encoder):
    train, validation, test = images = [scenes(n, seed) for seed, n in enumerate((150, 50, 80))]
    texture = patch_targets(encoder, test, "texture")
    assert torch.equal(texture > 0, patch_targets(encoder, test, "mask").bool())
    assert torch.equal(texture, (texture > 0) * (1 + test.labels["texture"][:, None]))
    frame = dense_by_depth(encoder, *images, depths=[0, 1])
    assert frame[["label", "depth"]].values.tolist() == [[k, d] for k in ("mask", "texture") for d in (0, 1)]
    assert (frame.value > 0.98).all() and (frame.images == 80).all()
    # Numbered 0, 1 and 2, where training has 2, 1 and 0: classes are compared by name.
    turned = test.restrict(("b", "g", "r"), "texture")
    assert dense_by_depth(encoder, train, validation, turned, "texture", depths=[0])["value"][0] > 0.98
    blind = [ArraySource("b", s.images.roll(1, 0), s.labels, s.classes, s.masks) for s in images]
    frame = dense_by_depth(encoder, *blind, "mask", depths=[0])
    assert frame.value[0] < 0.45  # half of the patches are object; one constant guess has an mIoU of 1/4


def test_tokens_that_are_not_finite_have_no_value(encoder):
    encoder.module.blocks[1].mlp.fc2.bias.data[0] = torch.nan
    with pytest.warns(UserWarning, match="depth 2, mask.*non-finite"):
        frame = dense_by_depth(encoder, *(scenes(20, seed) for seed in range(3)), "mask", depths=[2])
    assert frame[["value", "low", "high"]].isna().all(axis=None) and frame["images"].tolist() == [20]


def test_errors(encoder, colours):
    for source, label, told in (
        (colours(3, 0), "mask", "no object masks"),
        (scenes(3, 0), "shape", r"no label 'shape'; it has \['texture'\]"),
    ):
        with pytest.raises(ValueError, match=told):
            patch_targets(encoder, source, label)
    for predicted, target, told in (
        (torch.zeros(2, 3), torch.zeros(3, 2), r"predicted \(2, 3\) and target \(3, 2\)"),
        (torch.tensor([[0, 1]]), torch.tensor([[0, -1]]), "numbered from 0"),
    ):
        with pytest.raises(ValueError, match=told):
            mean_iou(predicted, target)
    encoder.crop, encoder.image_size = 0.875, (16, 16)
    with pytest.raises(ValueError, match="crops images"):
        patch_targets(encoder, scenes(3, 0), "mask")
