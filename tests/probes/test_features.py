"""Pooled features against a hand-run of the blocks, and the models that have none."""

import copy

import pytest
import timm
import torch
from torch import nn

from nbhelpers.measure import attention_maps
from nbhelpers.models import UnsupportedArchitecture, wrap
from nbhelpers.probes import features

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def stream(encoder, images):
    """Residual stream by running the blocks one by one."""
    module = encoder.module
    states = [module._pos_embed(module.patch_embed(encoder.preprocess(images)))]
    for block in module.blocks:
        states.append(block(states[-1]))
    return torch.stack(states)


@torch.no_grad()
def test_pooling_norm_depths_and_precision(encoder, colours):
    source = colours(7, 0)
    states, close = stream(encoder, source.images), dict(rtol=1e-5, atol=1e-6)
    plain, normed = features(encoder, source, batch_size=3), encoder.module.norm(states)
    torch.testing.assert_close(plain, states[:, :, 1:].mean(2), **close)
    torch.testing.assert_close(features(encoder, source.images, pool="class"), states[:, :, 0], **close)
    torch.testing.assert_close(features(encoder, source, norm=True), normed[:, :, 1:].mean(2), **close)
    assert torch.equal(features(encoder, source.images, [2, 0], batch_size=3), plain[[2, 0]])
    tokens = features(encoder, source, [1], "none", batch_size=2, dtype=torch.float16)
    assert tokens.shape == (1, 7, 4, 8) and tokens.dtype == torch.float16
    torch.testing.assert_close(tokens[0].float(), states[1, :, 1:], rtol=1e-3, atol=1e-3)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in encoder.module.blocks)


def test_a_class_token_is_not_kept_with_all_tokens(encoder, colours):
    kept = features(encoder, colours(5, 0), [1], pool="class")
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


@pytest.mark.parametrize(
    ("images", "options", "told"),
    [
        (3, {"depths": [3]}, r"\[3\].*0\.\.2"),
        (3, {"pool": "max"}, "mean, class"),
        (0, {}, "no images"),
    ],
)
def test_what_an_encoder_does_not_have_is_named(images, options, told, encoder, colours):
    with pytest.raises(ValueError, match=told):
        features(encoder, colours(3, 0).images[:images], **options)


@pytest.mark.parametrize(
    ("name", "pool", "norm", "told"),
    [
        ("vit_mediumd_patch16_reg4_gap_256", "class", False, "no class token"),  # but registers
        ("beit_base_patch16_224", "none", True, "no final norm"),  # but one of pooled features
    ],
)
def test_a_model_without_class_token_or_norm_of_tokens_is_named(name, pool, norm, told, colours):
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 1}
    encoder = wrap(timm.create_model(name, **sizes), **HALF)
    with pytest.raises(ValueError, match=told):
        features(encoder, colours(2, 0), pool=pool, norm=norm)
    assert features(encoder, colours(2, 0), norm=norm).isfinite().all()
    encoder.module.norm = encoder.module.fc_norm = nn.Identity()
    with pytest.raises(ValueError, match="no final norm"):
        features(encoder, colours(2, 0), norm=True)


class Odd(nn.Module):
    """Patches, and blocks that are run in an order of their own."""

    def __init__(self, module, run):
        super().__init__()
        self.inner, self.blocks, self.run = module.patch_embed, module.blocks, run

    def forward(self, x):
        return self.run(self.inner(x), self.blocks)


def shuffled(tokens, blocks):
    return blocks(tokens)[:, torch.randperm(tokens.shape[1])]


def turned(tokens, blocks):
    return blocks(tokens.transpose(0, 1)).transpose(0, 1)


def looped(tokens, blocks):
    return blocks(blocks(tokens))


@pytest.mark.parametrize(
    ("run", "images", "told"),
    [
        (shuffled, 64, "random"),
        (turned, 4, "not B N D"),  # as many images as tokens
        (turned, 9, "not B N D"),
        (looped, 8, "several times an image"),
    ],
)
def test_a_model_whose_passes_cannot_be_read_is_refused(run, images, told, encoder, colours):
    module, kind = copy.deepcopy(encoder.module), RuntimeError if run is turned else UnsupportedArchitecture
    if run is turned:
        module.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 8, 0.0) for _ in range(2)))
    layout = {"prefix": 0, "grid": 2, "patch_size": 4, "heads": 2, "width": 8}
    odd, source = wrap(Odd(module, run), **layout, **HALF), colours(images, 0)
    torch.manual_seed(0)
    with pytest.raises(kind, match=told):
        features(odd, source)
    if run is shuffled:
        with pytest.raises(kind, match=told):
            attention_maps(odd, source.batch(range(2)))
