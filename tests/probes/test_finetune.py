"""Fine-tuning: learns, repeats itself, leaves the encoder alone; layer decay and new blocks."""

from dataclasses import replace

import pytest
import timm
import torch

from nbhelpers.models import MaskedAutoencoder, wrap
from nbhelpers.probes import FineTuning, features, fine_tune, fine_tuning_by_share
from nbhelpers.probes.finetune import classify, reinitialise, shift_and_flip

SHORT = FineTuning(steps=25, batch_size=32, learning_rate=1e-2)


def weights(encoder):
    return {name: value.clone() for name, value in encoder.module.state_dict().items()}


def share_right(tuned, test):
    return (classify(tuned, test) == test.labels["colour"]).float().mean()


def same(one, other):
    """Whether two state dictionaries hold the same values."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_learns_repeats_and_leaves_the_encoder_alone_also_in_half_precision(encoder, colours):
    train, test = colours(200, 0), colours(100, 1)
    before = weights(encoder)
    tuned, again = (fine_tune(encoder, train, "colour", SHORT) for _ in range(2))
    half = fine_tune(encoder, train, "colour", replace(SHORT, half=True))
    assert share_right(tuned, test) > 0.97 and share_right(half, test) > 0.97
    assert same(before, weights(encoder)) and same(weights(tuned), weights(again))
    assert not encoder.module.training and not any(p.requires_grad for p in tuned.module.parameters())
    one, other = (fine_tune(encoder, train, "colour", replace(SHORT, steps=1), seed=n) for n in (0, 1))
    assert not torch.equal(one.module.head.weight, other.module.head.weight)
    ours, theirs = (torch.cat([v.flatten() for v in weights(each).values()]) for each in (half, tuned))
    assert 0 < (ours - theirs).abs().mean() < 0.2 * theirs.abs().mean()
    assert all(block.attn.fused_attn for block in half.blocks)  # the attention is as it was


def test_an_autoencoder_is_tuned_and_normed_without_its_decoder(encoder, colours):
    train = colours(32, 0)
    module = MaskedAutoencoder(encoder.module, width=8, depth=1, heads=1).eval()
    autoencoder = replace(encoder, module=module, block_path="encoder.blocks")
    once = FineTuning(steps=1, batch_size=8)
    alone, inside = (weights(fine_tune(each, train, "colour", once)) for each in (encoder, autoencoder))
    assert same(alone, inside)
    assert torch.equal(features(encoder, train, norm=True), features(autoencoder, train, norm=True))


def test_learns_although_all_images_look_alike_to_the_encoder(encoder, colours):
    train, test = colours(200, 0), colours(100, 1)
    direction = torch.randn(8, generator=torch.Generator().manual_seed(0))
    encoder.blocks[-1].mlp.fc2.bias.copy_(10 * direction)
    seen = features(encoder, test, [2], norm=True)[0]
    assert seen.std(0).norm() < 0.02 * seen.mean(0).norm()
    assert share_right(fine_tune(encoder, train, "colour", SHORT), test) > 0.9


def test_layer_decay_slows_the_lower_layers(encoder, colours):
    train = colours(64, 0)
    frozen = FineTuning(steps=3, batch_size=16, layer_decay=1e-9)
    before, after = weights(encoder), weights(fine_tune(encoder, train, "colour", frozen))
    moved = {name: not torch.allclose(before[name], after[name], atol=1e-7, rtol=0) for name in before}
    assert not any(value for name, value in moved.items() if not name.startswith(("norm", "head")))
    assert after["head.weight"].abs().max() > 1e-4


def test_reinitialise(encoder):
    before = weights(encoder)
    with torch.no_grad():
        for block in encoder.blocks:
            block.norm1.weight += 1
            block.attn.qkv.bias += 1
    trained = weights(encoder)
    reinitialise(encoder, last=1, seed=3)
    after = weights(encoder)
    assert all(torch.equal(trained[name], after[name]) for name in trained if not name.startswith("blocks.1"))
    assert (after["blocks.1.norm1.weight"] == 1).all() and not after["blocks.1.attn.qkv.bias"].any()
    assert not torch.equal(after["blocks.1.mlp.fc1.weight"], before["blocks.1.mlp.fc1.weight"])
    assert after["blocks.1.mlp.fc1.weight"].std() == pytest.approx(0.02, rel=0.15)
    for first, last in ((2, 1), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"first={first} and last={last} of 2 blocks"):
            reinitialise(encoder, first, last)
    encoder.blocks[0].extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="no known initialisation for Block"):
        reinitialise(encoder, 1)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch16_dinov3"])
def test_scales_that_lie_in_the_block_itself_are_made_new(name):
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 1}
    encoder = wrap(timm.create_model(name, **size), mean=(0.5,) * 3, std=(0.5,) * 3)
    scale = encoder.blocks[0].gamma_1
    fresh = scale.clone()
    scale += 5
    reinitialise(encoder, last=1)
    assert torch.equal(scale, fresh)


def test_shift_and_flip_by_loops():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 5, 7), generator=generator, dtype=torch.uint8)
    result = shift_and_flip(images, 2, generator)
    seen = set()
    for image, view in zip(images, result, strict=True):
        found = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                rows = [min(max(y + dy, 0), 4) for y in range(5)]
                columns = [min(max(x + dx, 0), 6) for x in range(7)]
                moved = image[:, rows][:, :, columns]
                found += [(dy, dx, m) for m, v in enumerate((moved, moved.flip(2))) if torch.equal(v, view)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 3


def test_all_shifts_are_as_frequent_and_half_of_the_views_are_mirrored():
    ramps = torch.stack(torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    views = shift_and_flip(ramps.expand(1000, 2, 9, 9), 2, torch.Generator().manual_seed(0))
    for centre in views[:, :, 4, 4].T:
        counts = centre.bincount().tolist()
        assert counts[:2] == [0, 0] and len(counts) == 7 and 150 < min(counts[2:])
    assert 0.45 < (views[:, 1, 0, 0] > views[:, 1, 0, 8]).float().mean() < 0.55


def test_by_share(encoder, colours):
    train, test = colours(300, 0), colours(100, 1)
    frame = fine_tuning_by_share(encoder, train, test, "colour", (0.02, 1.0), SHORT, last=1)
    assert frame.share.tolist() == [0.02, 1.0] and (frame["last"] == 1).all() and (frame.images == 100).all()
    assert frame.value[1] > 0.97
    noise = fine_tuning_by_share(encoder, train, test, "coin", (1.0,), replace(SHORT, steps=10))
    assert noise.low[0] < 0.5 < noise.high[0]
    for share, number in ((0, 0), (0.001, 0), (3, 300)):
        with pytest.raises(ValueError, match=f"cannot draw {number}"):
            fine_tuning_by_share(encoder, train, test, "colour", (share,))


def test_errors(encoder, colours):
    source = colours(30, 0)
    with pytest.raises(ValueError, match="no label 'class'"):
        fine_tune(encoder, source, "class", SHORT)
    with pytest.raises(ValueError, match="two classes"):
        fine_tune(encoder, source.restrict(["red"], "colour"), "colour", SHORT)
    with pytest.raises(FloatingPointError, match="not finite at step"):
        fine_tune(encoder, source, "colour", FineTuning(steps=30, batch_size=8, learning_rate=1e30, warmup=0))
    two_heads = timm.create_model("deit_tiny_distilled_patch16_224", img_size=8, patch_size=4, depth=1)
    for other in (wrap(two_heads), replace(encoder, module=torch.nn.Identity())):
        with pytest.raises(ValueError, match=f"one head .*, not {type(other.module).__name__}"):
            fine_tune(other, source, "colour")
