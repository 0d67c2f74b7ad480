"""Sources in memory: what is checked, what a selection keeps, what the fingerprint follows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nbhelpers.images.source import ArraySource, content_fingerprint, in_turns


def make(n=12, **changes):
    generator = torch.Generator().manual_seed(3)
    arguments = {
        "name": "toy",
        "images": torch.randint(0, 256, (n, 3, 4, 5), dtype=torch.uint8, generator=generator),
        "labels": {"class": torch.arange(n) % 3},
        "classes": {"class": ("a", "b", "c")},
        "masks": torch.rand(n, 4, 5, generator=generator) > 0.5,
    }
    return ArraySource(**{**arguments, **changes})


def test_items_and_batches():
    source = make()
    assert len(source) == 12
    assert source[5].shape == (3, 4, 5) and source[5].dtype == torch.uint8
    for indices in ([7, 0], torch.tensor([7, 0]), np.array([7, 0])):
        assert torch.equal(source.batch(indices), torch.stack([source[7], source[0]]))


def test_statistics_equal_numpy_in_float64():
    source = make()
    values = source.images.numpy().astype(np.float64) / 255
    assert np.allclose(source.mean, values.mean((0, 2, 3)), atol=1e-12)
    assert np.allclose(source.std, values.std((0, 2, 3)), atol=1e-12)
    given = make(mean=(0.1, 0.2, 0.3))
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), source.std)


def test_selection_carries_labels_masks_and_statistics():
    source = make()
    part = source.select([4, 4, 1])
    assert torch.equal(part.images, source.images[[4, 4, 1]])
    assert part.labels["class"].tolist() == [1, 1, 1]
    assert torch.equal(part.masks, source.masks[[4, 4, 1]])
    assert (part.mean, part.std, part.name, part.origin) == (source.mean, source.std, "toy", "memory")


def test_subset_draws_without_replacement_by_seed():
    source = make()
    drawn = [tuple(image.flatten().tolist()) for image in source.subset(12, seed=1).images]
    assert len(set(drawn)) == 12
    five = source.subset(5, seed=1)
    assert torch.equal(five.images, source.subset(5, seed=1).images)
    assert not torch.equal(five.images, source.subset(5, seed=2).images)
    assert torch.equal(source.subset(3, seed=1).images, five.images[:3])
    assert torch.equal(source.at_most(99, seed=1).images, source.subset(12, seed=1).images)


def test_a_seed_draws_the_images_that_stored_tables_are_of():
    drawn = [make().subset(5, seed=seed).images for seed in range(2)]
    rows = [[8, 0, 5, 9, 7], [1, 4, 6, 8, 11]]
    assert all(torch.equal(images, make().images[each]) for images, each in zip(drawn, rows, strict=True))
    assert torch.equal(make().at_most(5).images, drawn[0])


def test_balanced_draws_by_seed():
    one, two, again = (make().balanced(2, seed=seed).images for seed in (0, 1, 0))
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_balanced_takes_turns():
    assert make().balanced(2).labels["class"].tolist() == [0, 1, 2, 0, 1, 2]


def test_classes_take_turns_from_the_first_to_the_last():
    labels = torch.arange(12) // 4
    assert in_turns(labels).tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def test_subset_by_label_takes_turns_while_classes_last():
    source = make(labels={"class": torch.tensor([0] * 8 + [1] * 3 + [2])})
    part = source.subset(9, label="class", seed=1)
    assert part.labels["class"].bincount().tolist() == [5, 3, 1]
    assert sorted(part.labels["class"][:3].tolist()) == [0, 1, 2]
    assert len({image.numpy().tobytes() for image in part.images}) == 9
    assert part.fingerprint == source.subset(9, label="class", seed=1).fingerprint
    assert part.fingerprint != source.subset(9, label="class", seed=2).fingerprint


def test_restrict_renumbers_in_the_order_asked():
    source = make()
    part = source.restrict(("c", "a"))
    assert part.classes == {"class": ("c", "a")}
    assert part.labels["class"].tolist() == [1, 0] * 4
    assert torch.equal(part.images, source.images[source.labels["class"] != 1])
    assert source.classes == {"class": ("a", "b", "c")} and source.labels["class"].max() == 2


@pytest.mark.parametrize(
    ("choose", "what"),
    [
        (lambda source: source.subset(0), "holds 12 images; cannot draw 0"),
        (lambda source: source.subset(13), "cannot draw 13"),
        (lambda source: source.at_most(-5), "cannot draw -5"),
        (lambda source: source.subset(1, label="shape"), r"no label 'shape'; it has \['class'\]"),
        (lambda source: source.balanced(5), "class 'a' has 4 images"),
        (lambda source: source.balanced(0), "cannot draw 0"),
        (lambda source: source.restrict(("d",)), "no class 'd'; it has a, b, c"),
        (lambda source: source.select([0, 1]).restrict(("a", "c")), "no image with class c"),
        (lambda source: source.restrict(("a",), "shape"), "no label 'shape'"),
        (lambda source: source.select([]), "no image is chosen"),
        (lambda source: source.select(source.labels["class"] > 2), "no image is chosen"),
    ],
)
def test_what_cannot_be_chosen_is_named(choose, what):
    with pytest.raises(ValueError, match=f"toy.*{what}"):
        choose(make())


def test_a_mask_chooses_where_it_is_true():
    images = make()
    mask = torch.arange(12) % 3 == 1
    for chosen in (mask, mask.numpy(), mask.tolist()):
        assert torch.equal(images.select(chosen).images, images.images[1::3])
        assert torch.equal(images.batch(chosen), images.images[1::3])
    for wrong in (mask[:5], [12], [0.5]):
        with pytest.raises(IndexError):
            images.select(wrong)


def test_pixels_identify_images_but_generated_ones():
    one = make()
    other = replace(one, images=255 - one.images)
    assert one.identity != other.identity
    one.known_by_labels = other.known_by_labels = True
    assert one.identity == other.identity
    assert one.select([0, 1]).identity == other.select([0, 1]).identity != one.identity


def test_generated_images_that_were_changed_are_known_by_their_pixels():
    one = make()
    one.known_by_labels = True
    grey = one.select(range(len(one)))
    assert grey.identity == one.identity
    grey.images = grey.images // 2
    assert grey.identity == grey.fingerprint
    assert replace(one, images=grey.images).identity == grey.fingerprint


def test_fingerprint_follows_content_and_changes():
    one = make()
    assert one.fingerprint == make().fingerprint
    prints = [one.fingerprint, make(masks=~one.masks).fingerprint, make(masks=None).fingerprint]
    prints += [one.select(rows).fingerprint for rows in ([0, 1], [1, 0], [0, 1, 2])]
    one.images[0, 0, 0, 0] ^= 1
    prints.append(one.fingerprint)
    one.labels["class"] = one.labels["class"].flip(0)
    prints.append(one.fingerprint)
    for _ in range(2):  # the second may have the address of what the first replaced
        one.images = one.images + 1
    prints.append(one.fingerprint)
    assert len(set(prints)) == len(prints)


def test_fingerprints_tell_equal_bytes_of_other_shapes_and_types_apart():
    zeros = torch.zeros(4, dtype=torch.int32)
    tensors = [zeros, zeros.view(2, 2), zeros.float(), zeros.long()[:2]]
    assert len({content_fingerprint(tensor) for tensor in tensors}) == 4


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images": torch.zeros(12, 3, 4, 5)}, "images must be torch.uint8.* got torch.float32"),
        ({"images": torch.zeros(0, 3, 4, 5, dtype=torch.uint8)}, r"N > 0, got torch.uint8 \(0, 3, 4, 5\)"),
        ({"images": torch.zeros(12, 1, 4, 5, dtype=torch.uint8)}, r"\(12, 1, 4, 5\)"),
        ({"labels": {}}, r"labels \[\] and classes \['class'\]"),
        ({"labels": {"class": torch.zeros(11, dtype=torch.long)}}, r"'class' must .*got torch.int64 \(11,\)"),
        ({"labels": {"class": torch.zeros(12)}}, "'class' must .*got torch.float32"),
        ({"labels": {"class": torch.full((12,), 3)}}, r"outside 0\.\.2"),
        ({"labels": {"class": torch.full((12,), -1)}}, r"outside 0\.\.2"),
        ({"masks": torch.zeros(12, 5, 4, dtype=torch.bool)}, r"masks must .* got .* \(12, 5, 4\)"),
        ({"masks": torch.zeros(12, 4, 5)}, "masks must .*got torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(changes, what):
    with pytest.raises(ValueError, match=what):
        make(**changes)
