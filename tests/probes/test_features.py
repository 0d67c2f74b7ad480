"""Pooled features against a hand-run of the blocks."""

import pytest
import torch

from nbhelpers.probes import features


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
