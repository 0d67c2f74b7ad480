"""Layout, preprocessing and refusals of encoders."""

from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from nbhelpers.images import ArraySource, folder
from nbhelpers.models import UnsupportedArchitecture, mini_vit, wrap

HALF = (0.5, 0.5, 0.5)
REGISTERS = {"class_token": False, "reg_tokens": 2, "global_pool": "avg", "img_size": (32, 48)}


def tiny(name="vit_tiny_patch16_224", **options):
    """One block of a model of timm."""
    return timm.create_model(name, **({"depth": 1, "num_classes": 0} | options))


def test_wrap_takes_the_module_over(mini):
    encoder = mini()
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    tokens = encoder.forward(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert tokens.shape == (2, encoder.tokens, encoder.width) == (2, 65, 32)


def test_photographs_of_different_sizes_form_a_batch(tmp_path, mini):
    (tmp_path / "cats").mkdir()
    for i, size in enumerate([(40, 50), (70, 36)]):
        noise = np.random.default_rng(i).integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "cats" / f"{i}.png")
    encoder, images = mini(), folder(tmp_path / "cats")
    batch = encoder.batch(images, [1, 0])
    assert batch.shape == (2, 3, 32, 32) and batch.dtype == torch.uint8
    for row, index in enumerate([1, 0]):
        alone = encoder.preprocess(images[index][None])
        torch.testing.assert_close(encoder.preprocess(batch)[row : row + 1], alone)
    pixels = torch.zeros(2, 3, 9, 9, dtype=torch.uint8)
    assert encoder.batch(ArraySource("toy", pixels, {}, {}), [0]).shape == (1, 3, 9, 9)


@pytest.mark.parametrize(
    ("name", "options", "layout"),
    [
        ("vit_base_patch16_clip_224", {"embed_dim": 32, "num_heads": 2}, (1, (14, 14), (16, 16), 2)),
        ("vit_tiny_r_s16_p8_224", {}, (1, (7, 7), (32, 32), 3)),  # a stem of convolutions
        ("vit_tiny_patch16_224", {"img_size": (40, 72)}, (1, (2, 4), (16, 16), 3)),  # no multiple of a patch
        ("vit_tiny_patch16_224", REGISTERS, (2, (2, 3), (16, 16), 3)),
        ("vit_tiny_patch16_224", REGISTERS | {"reg_tokens": 0}, (0, (2, 3), (16, 16), 3)),
    ],
)
def test_layout_is_read_from_the_module(name, options, layout):
    encoder = wrap(tiny(name, **options))
    assert (encoder.prefix, encoder.grid, encoder.patch_size, encoder.heads) == layout
    assert encoder.has_class_token == options.get("class_token", True)
    images = torch.zeros(1, 3, *encoder.image_size, dtype=torch.uint8)
    assert encoder.forward(images).shape == (1, encoder.tokens, encoder.width)


def test_layout_is_read_from_a_vit_inside_another_module():
    inside = nn.Sequential(OrderedDict(vit=mini_vit(32, 2, 2)))
    encoder = wrap(inside, blocks="vit.blocks", mean=HALF, std=HALF)
    assert (encoder.prefix, encoder.grid, encoder.heads, encoder.width) == (1, (8, 8), 2, 32)


@pytest.mark.parametrize("order", ["class token last", "column by column"])
@pytest.mark.parametrize("grid", [(8, 8), (8, 1), (1, 8)])
def test_tokens_in_another_order_are_refused(order, grid):
    size = tuple(4 * side for side in grid)
    vit = VisionTransformer(size, 4, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    wrap(vit, mean=HALF, std=HALF)
    embed = vit._pos_embed

    def reordered(patches):
        if order == "class token last":
            return embed(patches).roll(-1, 1)
        return embed(patches.unflatten(1, grid).transpose(1, 2).flatten(1, 2))

    vit._pos_embed = reordered
    if order == "column by column" and 1 in grid:
        wrap(vit, mean=HALF, std=HALF)
    else:
        with pytest.raises(ValueError, match="second patch, read row by row, changes token"):
            wrap(vit, mean=HALF, std=HALF)


def test_what_cannot_be_read_is_asked_for():
    with pytest.raises(ValueError, match=r"cannot read mean, std .* pass mean=, std="):
        wrap(mini_vit(32, 1, 2))
    with pytest.raises(TypeError, match="patch_sise"):
        wrap(mini_vit(32, 1, 2), mean=HALF, std=HALF, patch_sise=4)
    plain = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(4, 4))})
    with pytest.raises(UnsupportedArchitecture, match=r"under 'blocks'.*candidates: layers"):
        wrap(plain)
    with pytest.raises(ValueError, match="prefix, grid, patch_size, image_size, heads, width, mean, std"):
        wrap(plain, blocks="layers")


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(60, 90), (97, 61), (30, 40)])
def test_preprocessing_is_timms(size, interpolation, mode):
    config = {"input_size": (3, 48, 48), "crop_pct": 0.9, "crop_mode": mode, "interpolation": interpolation}
    module = tiny(img_size=48)
    module.pretrained_cfg = module.pretrained_cfg | config
    encoder = wrap(module)
    # Mid-grey noise: PIL saturates between its two passes, the tensor kernel does not.
    noise = np.random.default_rng(0).integers(64, 192, (*size, 3), dtype=np.uint8)
    expected = create_transform(**timm.data.resolve_model_data_config(module))(Image.fromarray(noise))
    found = encoder.preprocess(torch.from_numpy(noise).permute(2, 0, 1)[None])[0]
    assert found.shape == expected.shape
    # PIL and the tensor kernel round once per axis; a grey level is 1 / 255 / std.
    assert (found - expected).abs().max() <= 2.01 / 255 / min(encoder.std)


def test_images_of_the_right_size_are_only_normalised_and_others_refused(mini):
    encoder = mini(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), crop=0.5)
    image = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    expected = torch.tensor([0.2, 0.0, -0.1])[None, :, None, None].expand(1, 3, 32, 32)
    torch.testing.assert_close(encoder.preprocess(image), expected)
    with pytest.raises(TypeError, match="float32"):
        encoder.preprocess(image.float())
    with pytest.raises(ValueError, match=r"\(3, 32, 32\)"):
        encoder.preprocess(image[0])


def test_feature_maps_become_tokens_and_what_is_no_tensor_is_named(mini):
    encoder = mini()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tokens, forward = encoder.forward(images), encoder.module.forward_features
    encoder.module.forward_features = lambda x: forward(x)[:, 1:].unflatten(1, (8, 8))
    torch.testing.assert_close(encoder.forward(images), tokens[:, 1:])
    encoder.module.forward_features = lambda x: {"x_norm_patchtokens": x}
    with pytest.raises(UnsupportedArchitecture, match="dict"):
        encoder.forward(images)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"grid": (4, 4)}, "4 x 4 .*32 x 32 .*4 x 4"),
        ({"image_size": (48, 32)}, "8 x 8 .*48 x 32 .*4 x 4"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 channels .* 1 and 1"),
        ({"mean": 0.5, "std": 0.5}, "3 channels .* 1 and 1"),
        ({"std": (0.5, 0.5, 1.5)}, "std"),
        ({"std": (0.5,)}, "3 channels .* 3 and 1"),
        ({"crop": 87.5}, r"crop 87\.5"),
        ({"crop": 0.0}, r"crop 0\.0"),
        ({"crop_mode": "border"}, "'border' is not one of center"),
        ({"interpolation": "lanczos"}, "'lanczos' is not one of bilinear"),
        ({"prefix": -1}, "prefix -1"),
        ({"after_attention": "ln_2"}, "'ln_2' .* norm1, attn, "),
        ({"mean": (123.675, 116.28, 103.53), "std": (58.4, 57.1, 57.4)}, r"123\.675"),
    ],
)
def test_wrap_refuses_contradictions(fields, word, mini):
    with pytest.raises(ValueError, match=word):
        mini(**fields)


def test_wrap_refuses_other_channels_half_precision_and_a_single_patch():
    grey = tiny(img_size=48, in_chans=1)
    with pytest.raises(ValueError, match=r"1 channels .* 3 and 3"):
        wrap(grey)
    assert wrap(grey, mean=(0.5,), std=(0.5,)).mean == (0.5,)
    with pytest.raises(ValueError, match=r"torch.bfloat16.*torch.float32"):
        wrap(mini_vit(32, 1, 2).bfloat16(), mean=HALF, std=HALF)
    with pytest.raises(ValueError, match="one patch"):
        wrap(mini_vit(8, 1, 1, patch_size=16, image_size=16), mean=HALF, std=HALF)


TINY = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("swin_tiny_patch4_window7_224", TINY, "SwinTransformer .*shifted windows"),
        ("hiera_tiny_224", {"stages": (1, 1, 1, 1), "embed_dim": 16}, "Hiera .*mask units"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "Xcit .*D x D"),
        ("test_resnet", {}, "no transformer blocks"),
        ("gmixer_12_224", {}, "cannot read prefix, grid, .* from MlpMixer"),
    ],
)
def test_what_has_no_such_attention_is_refused(name, options, reason):
    with pytest.raises(UnsupportedArchitecture, match=reason):
        wrap(timm.create_model(name, num_classes=0, **options))
