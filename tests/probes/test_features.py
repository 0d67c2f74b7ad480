"""Pooled features against a hand-run of the blocks."""

import copy

import pytest
import timm
import torch
from torch import nn

from nbhelpers.images import shapes
from nbhelpers.measure import attention_maps
from nbhelpers.models import UnsupportedArchitecture, wrap
from nbhelpers.probes import attentive_by_depth, features, knn_by_depth, linear_by_depth


def stream(encoder, images):
    """Residual stream by running the blocks one by one."""
    module = encoder.module
    tokens = module._pos_embed(module.patch_embed(encoder.preprocess(images)))
    states = [tokens]
    for block in module.blocks:
        states.append(block(states[-1]))
    return torch.stack(states)


@torch.no_grad()
def test_pooling_and_norm(encoder, colours):
    images = colours(7, 0).images
    states = stream(encoder, images)
    close = dict(rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features(encoder, images, batch_size=3), states[:, :, 1:].mean(2), **close)
    torch.testing.assert_close(features(encoder, images, pool="class"), states[:, :, 0], **close)
    normed = encoder.module.norm(states)
    torch.testing.assert_close(features(encoder, images, norm=True), normed[:, :, 1:].mean(2), **close)
    torch.testing.assert_close(features(encoder, images, [2, 0]), states[[2, 0], :, 1:].mean(2), **close)


def test_source_equals_tensor_and_nothing_is_left_behind(encoder, colours):
    source = colours(5, 0)
    assert torch.equal(
        features(encoder, source, batch_size=2), features(encoder, source.images, batch_size=2)
    )
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in encoder.module.blocks)


@torch.no_grad()
def test_patch_tokens(encoder, colours):
    images = colours(5, 0).images
    tokens = features(encoder, images, [1], "none", batch_size=2, dtype=torch.float16)
    assert tokens.shape == (1, 5, 4, 8) and tokens.dtype == torch.float16
    torch.testing.assert_close(tokens[0].float(), stream(encoder, images)[1, :, 1:], rtol=1e-3, atol=1e-3)


def test_errors(encoder, colours):
    images = colours(3, 0).images
    with pytest.raises(ValueError, match=r"depths \[3\].*0\.\.2"):
        features(encoder, images, [3])
    with pytest.raises(ValueError, match="mean, class"):
        features(encoder, images, pool="max")
    with pytest.raises(ValueError, match="no images"):
        features(encoder, images[:0])
    encoder.prefix = 0
    with pytest.raises(ValueError, match="no class token"):
        features(encoder, images, pool="class")
    encoder.prefix = 1
    encoder.module.norm = torch.nn.Identity()
    with pytest.raises(ValueError, match="no final norm"):
        features(encoder, images, norm=True)


@pytest.mark.parametrize("pool", ["mean", "class", "none"])
def test_blocks_that_add_in_place_are_read_as_others(pool, encoder, colours, add_in_place):
    images = colours(5, 0)
    plain = features(encoder, images, pool=pool)
    add_in_place(encoder)
    torch.testing.assert_close(features(encoder, images, pool=pool), plain)


def test_a_class_token_is_not_kept_with_all_tokens(encoder, colours):
    kept = features(encoder, colours(5, 0), [1], pool="class")
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


class Shuffling(nn.Module):
    """Tokens of patches in an order that is drawn in each pass."""

    def __init__(self, module):
        super().__init__()
        self.inner = module
        self.blocks = module.blocks

    def forward(self, x):
        tokens = self.inner.patch_embed(x)
        tokens = tokens[:, torch.randperm(tokens.shape[1])]
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def test_a_model_that_is_random_is_refused(encoder, colours):
    half = (0.5,) * 3
    layout = {"prefix": 0, "grid": 2, "patch_size": 4, "heads": 2, "width": 8, "after_attention": "norm2"}
    shuffling = wrap(Shuffling(encoder.module), **layout, mean=half, std=half)
    images, refused = colours(64, 0), pytest.raises(UnsupportedArchitecture, match="random")
    torch.manual_seed(0)
    with refused:
        features(shuffling, images)
    with refused:
        attention_maps(shuffling, images.batch(range(2)))


class TokensFirst(nn.Module):
    """Its blocks take tokens `N B D`."""

    def __init__(self, module):
        super().__init__()
        self.inner = module
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, 0.0) for _ in range(2))

    def forward(self, x):
        tokens = self.inner.patch_embed(x).transpose(0, 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.transpose(0, 1)


@pytest.mark.parametrize("number", [4, 9])
def test_as_many_images_as_tokens_are_not_taken_for_them(number, encoder, colours):
    layout = {"prefix": 0, "grid": 2, "patch_size": 4, "heads": 2, "width": 8}
    turned = wrap(TokensFirst(encoder.module), **layout, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(RuntimeError, match="not B N D"):
        features(turned, colours(number, 0))


class Looped(nn.Module):
    """A single block that runs four times."""

    def __init__(self, module):
        super().__init__()
        self.inner, self.blocks = module, module.blocks

    def forward(self, x):
        tokens = self.inner.patch_embed(x)
        for _ in range(4):
            tokens = self.blocks[0](tokens)
        return tokens


def test_a_pass_that_runs_a_block_several_times_is_refused(encoder, colours):
    half, module = (0.5,) * 3, copy.deepcopy(encoder.module)
    module.blocks = module.blocks[:1]
    layout = {"prefix": 0, "grid": 2, "patch_size": 4, "heads": 2, "width": 8}
    with pytest.raises(UnsupportedArchitecture, match="several times an image"):
        features(wrap(Looped(module), **layout, mean=half, std=half), colours(8, 0))


def test_a_register_is_no_class_token():
    encoder = wrap(timm.create_model("vit_mediumd_patch16_reg4_gap_256", depth=1))
    assert encoder.prefix == 4 and not encoder.has_class_token
    with pytest.raises(ValueError, match="no class token"):
        features(encoder, shapes("test").subset(2), pool="class")
    assert wrap(timm.create_model("vit_small_patch14_reg4_dinov2", depth=1)).has_class_token


def test_a_norm_of_pooled_features_does_not_belong_to_tokens():
    encoder = wrap(timm.create_model("beit_base_patch16_224", depth=1))
    with pytest.raises(ValueError, match="no final norm"):
        features(encoder, shapes("test").subset(1), pool="none", norm=True)


def test_labels_are_compared_by_name(encoder, colours):
    train, validation, test = (colours(n, seed) for seed, n in enumerate((90, 60, 60)))
    few = test.restrict(("blue", "red"), "colour")  # numbered 0 and 1, where training has 2 and 0
    for frame in (
        knn_by_depth(encoder, train, few, "colour"),
        linear_by_depth(encoder, train, validation, few, "colour"),
    ):
        assert (frame["value"] > 0.9).all()


def test_a_single_class_is_no_perfect_probe(encoder, colours):
    train, validation, test = (
        colours(n, seed).restrict(["red"], "colour") for seed, n in enumerate((90, 60, 60))
    )
    for probe, images in (
        (knn_by_depth, ()),
        (linear_by_depth, (validation,)),
        (attentive_by_depth, (validation,)),
    ):
        with pytest.raises(ValueError, match="at least two classes"):
            probe(encoder, train, *images, test, "colour")


def test_images_that_are_learnt_from_and_tested_on_are_noted(encoder, colours):
    images = colours(40, 0)
    with pytest.warns(UserWarning, match="the same images are learnt from"):
        knn_by_depth(encoder, images, images, "colour")
