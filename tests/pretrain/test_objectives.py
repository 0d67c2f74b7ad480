"""Losses against naive float64 oracles written as loops; masks, momentum, frozen parts."""

import math

import pytest
import torch

from nbhelpers.models.mini import mini_vit
from nbhelpers.pretrain.augment import Augmentation
from nbhelpers.pretrain.moco import MoCo, cosine_momentum, info_nce
from nbhelpers.pretrain.simmim import SimMIM, block_mask, masked_l1, patches

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def tiny(objective=MoCo, **options):
    torch.manual_seed(0)
    colour = "jitter" if objective is MoCo else "none"
    return objective(mini_vit(32, 2, 2, 16), MEAN, STD, Augmentation(colour=colour), **options)


def images(batch=6, size=16):
    return torch.randint(256, (batch, 3, size, size), generator=torch.Generator().manual_seed(1)).to(
        torch.uint8
    )


def info_nce_by_loops(query, key, temperature):
    query, key = query.double(), key.double()
    total = 0.0
    for i in range(len(query)):
        similarity = []
        for j in range(len(key)):
            dot = sum(float(a) * float(b) for a, b in zip(query[i], key[j], strict=True))
            similarity.append(dot / float(query[i].norm()) / float(key[j].norm()) / temperature)
        total -= similarity[i] - math.log(sum(math.exp(s) for s in similarity))
    return 2 * temperature * total / len(query)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_info_nce_equals_its_definition(temperature):
    query, key = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = info_nce_by_loops(query, key, temperature)
    assert float(info_nce(query, key, temperature)) == pytest.approx(expected, rel=1e-5)


def test_info_nce_falls_when_positives_agree():
    key = torch.eye(4)
    assert info_nce(key, key, 0.2) < info_nce(key.roll(1, 0), key, 0.2)


def test_info_nce_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        info_nce(torch.ones(3, 4), torch.ones(2, 4), 0.2)


def test_moco_loss_is_symmetric_info_nce_of_its_parts():
    model, batch = tiny().train(), images()
    loss = model(batch, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    one, two = (model.normalise(model.augmentation(batch, generator)) for _ in range(2))

    def query(view):
        return model.predictor(model.projector(model.encoder(view)))

    def key(view):
        return model.momentum_projector(model.momentum_encoder(view))

    expected = info_nce_by_loops(query(one), key(two), 0.2) + info_nce_by_loops(query(two), key(one), 0.2)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_moco_trains_queries_only_and_freezes_the_patch_embedding():
    model = tiny()
    model(images(), torch.Generator().manual_seed(0)).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert without == frozen
    assert {"encoder.patch_embed.proj.weight", "encoder.pos_embed"} <= frozen
    assert all(name.startswith(("momentum_", "encoder.p")) for name in frozen)


def test_momentum_encoder_moves_by_the_cosine_schedule():
    model = tiny(momentum=0.9)
    before = model.momentum_encoder.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        model.encoder.blocks[0].mlp.fc1.weight.add_(1.0)
    model.after_step(0.5)
    moved = model.momentum_encoder.blocks[0].mlp.fc1.weight - before
    assert torch.allclose(moved, torch.full_like(moved, 1 - cosine_momentum(0.9, 0.5)), atol=1e-6)
    model.after_step(1.0)
    assert torch.allclose(model.momentum_encoder.blocks[0].mlp.fc1.weight - before, moved)


def test_masked_l1_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 5, 4, generator=generator)
    mask = torch.rand(3, 5, generator=generator) < 0.6
    errors = [
        abs(float(prediction[b, n, d]) - float(target[b, n, d]))
        for b in range(3)
        for n in range(5)
        for d in range(4)
        if mask[b, n]
    ]
    assert float(masked_l1(prediction, target, mask)) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_masked_l1_names_what_is_wrong():
    with pytest.raises(ValueError, match="no patch is masked"):
        masked_l1(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        masked_l1(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 3, dtype=torch.bool))


def test_masks_are_squares_of_the_right_share():
    mask = block_mask(50, (8, 12), 2, 0.6, torch.Generator().manual_seed(0))
    squares = mask.view(50, 4, 2, 6, 2)
    assert torch.equal(squares.any(4).any(2), squares.all(4).all(2))
    assert bool((mask.sum((1, 2)) == 4 * math.ceil(0.6 * 24)).all())
    assert 0.4 < mask.float().mean(0).min()
    with pytest.raises(ValueError, match="7 x 8"):
        block_mask(1, (7, 8), 2, 0.6, torch.Generator())


def test_patches_are_in_token_order():
    batch = images(2).float()
    cut = patches(batch, 4)
    assert torch.equal(cut[1, 6].view(4, 4, 3), batch[1, :, 4:8, 8:12].permute(1, 2, 0))


def test_simmim_does_not_see_masked_pixels():
    model = tiny(SimMIM)
    view = model.normalise(images().float() / 255)
    mask = block_mask(len(view), (4, 4), 2, 0.5, torch.Generator().manual_seed(0))
    hidden = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    changed = torch.where(hidden, torch.randn_like(view), view)
    same = model.reconstruct(changed, mask.flatten(1)), model.reconstruct(view, mask.flatten(1))
    assert torch.allclose(*same, atol=1e-6)
    seen = torch.where(hidden, view, torch.randn_like(view))
    assert not torch.allclose(model.reconstruct(seen, mask.flatten(1)), same[1], atol=1e-3)


def test_simmim_loss_is_masked_l1_of_its_reconstruction():
    model, batch = tiny(SimMIM), images()
    loss = model(batch, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    view = model.normalise(model.augmentation(batch, generator))
    mask = block_mask(len(batch), (4, 4), 2, 0.6, generator).flatten(1)
    expected = masked_l1(model.reconstruct(view, mask), patches(view, 4), mask)
    assert torch.equal(loss, expected)
    loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == {"encoder.pos_embed"}
