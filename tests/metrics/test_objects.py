"""Attention on objects: every query by loops, masks as the encoder sees images, sources that have none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nbhelpers.capture import capture
from nbhelpers.images.source import ArraySource
from nbhelpers.measure import object_attention_by_depth
from nbhelpers.metrics import object_tokens, patch_attention
from nbhelpers.models import UnsupportedArchitecture, mini_vit, wrap

KINDS = ["class token", "object patches", "background patches"]
PLACES = ("", ", other images", ", beyond place")
LABELS = [*(kind + place for place in PLACES for kind in KINDS), "uniform attention"]
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return wrap(mini_vit(width=8, depth=2, heads=2, image_size=8, patch_size=4), mean=HALF, std=HALF)


@pytest.fixture
def scenes():
    """Noise of 8 px with objects of whole quarters: one, three, none, all."""
    generator = torch.Generator().manual_seed(0)
    quarters = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    masks = quarters.view(4, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ArraySource("toy/test", images, {}, {}, masks)


def test_the_share_of_every_kind_of_query_by_loops(encoder, scenes):
    quarters = scenes.masks[:, ::4, ::4].flatten(1).tolist()
    found = object_attention_by_depth(encoder, scenes, batch_size=3)  # the last batch is another size
    frame = found.set_index(["label", "depth", "head"]).sort_index()
    assert [*found["label"].unique()] == LABELS
    blocks = []
    with capture(encoder, on_attention=blocks.append):
        encoder.forward(encoder.batch(scenes, range(4)))

    def due_to_place(row, query, image):
        """Mean share of a map, beyond their area, on other objects with the query on the same side."""
        kind, area = query > 0 and quarters[image][query - 1], [sum(inside) / 5 for inside in quarters]
        others = [other for other in range(4) if other != image]
        alike = [other for other in others if (query > 0 and quarters[other][query - 1]) == kind]
        on = [row[1:][torch.tensor(quarters[each])].sum().item() - area[each] for each in alike]
        return area[image] + np.mean(on) if on else None

    for block in blocks:
        maps = patch_attention(block.query, block.key, 0, block.bias, block.scale)
        for head in range(2):
            shares = {label: [] for label in LABELS}
            for image, inside in enumerate(quarters):
                keys = [1 + patch for patch in range(4) if inside[patch]]
                on = maps[image, head][:, keys].sum(-1).tolist()
                queries = ([0], keys, {1, 2, 3, 4} - {*keys})
                for kind, chosen in zip(KINDS, queries, strict=True):
                    if chosen:
                        shares[kind].append(np.mean([on[query] for query in chosen]))
                    place = {q: due_to_place(maps[image, head, q], q, image) for q in chosen}
                    if place := {q: share for q, share in place.items() if share is not None}:
                        shares[f"{kind}, other images"].append(np.mean([*place.values()]))
                        beyond = [on[q] - share for q, share in place.items()]
                        shares[f"{kind}, beyond place"].append(np.mean(beyond))
            for label in LABELS[:-1]:
                row = frame.loc[(label, block.depth, head)]
                assert row["value"] == pytest.approx(np.mean(shares[label]), abs=1e-5)
                assert row["images"] == len(shares[label])
        both = frame.loc[("object patches", block.depth)]["value"]
        assert both[-1] == pytest.approx(both.loc[[0, 1]].mean(), abs=1e-6)
        # Of the five tokens 1, 3, 0 and 4 are on the object.
        assert frame.loc[("uniform attention", block.depth, -1)]["value"] == pytest.approx(0.4)


def test_without_a_class_token_there_is_no_share_of_it(scenes):
    from timm.models import VisionTransformer

    sizes = {"embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 0, "img_size": 8, "patch_size": 4}
    module = VisionTransformer(**sizes, class_token=False, reg_tokens=2, global_pool="avg")
    registers = wrap(module.eval(), mean=HALF, std=HALF)
    assert registers.prefix == 2
    frame = object_attention_by_depth(registers, scenes).query("head < 0").set_index("label")["value"]
    assert np.isnan(frame["class token"]) and frame["background patches"] > 0
    assert frame["uniform attention"] == pytest.approx(2 / 6)  # registers are no object


def test_masks_are_seen_as_the_encoder_sees_images():
    module = mini_vit(width=8, depth=1, heads=2, image_size=16, patch_size=4)
    whole = wrap(module, mean=HALF, std=HALF)
    middle = replace(whole, crop=0.5)  # resizes to 32 px and sees the middle
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, :16, 16:] = True  # the upper right quarter
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, 2:] = True  # which is a quarter of the middle, too
    for encoder in (whole, middle):
        assert object_tokens(encoder, masks).tolist() == [[False, *expected.flatten().tolist()]]
    masks[:, 8:, :] = False  # what is left lies outside the middle
    assert object_tokens(whole, masks).sum() == 2
    assert object_tokens(middle, masks).sum() == 0


def test_masks_by_the_hundred_are_those_of_each(encoder):
    masks = torch.rand(600, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    each = [object_tokens(encoder, mask[None]) for mask in masks]
    assert torch.equal(object_tokens(encoder, masks), torch.cat(each))


def test_what_cannot_be_measured_is_refused(encoder, scenes):
    with pytest.raises(ValueError, match="toy/test has no object masks"):
        object_attention_by_depth(encoder, ArraySource("toy/test", scenes.images, {}, {}))

    class Twice(type(encoder.module)):
        def forward_features(self, x):
            super().forward_features(x)
            return super().forward_features(x)

    encoder.module.__class__ = Twice
    with pytest.raises(UnsupportedArchitecture, match=r"several times|several passes|twice"):
        object_attention_by_depth(encoder, scenes)
