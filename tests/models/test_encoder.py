"""Layout, preprocessing and refusals of encoders."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from nbhelpers.images import ArraySource, folder
from nbhelpers.models import UnsupportedArchitecture, mini_vit, wrap

HALF = (0.5, 0.5, 0.5)


def test_wrap_takes_the_module_over(mini):
    encoder = mini()
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    tokens = encoder.forward(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert tokens.shape == (2, encoder.tokens, encoder.width) == (2, 65, 32)


def test_photographs_of_different_sizes_form_a_batch(tmp_path, monkeypatch, mini):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cats").mkdir()
    for i, size in enumerate([(40, 50), (70, 36)]):
        Image.fromarray(np.random.default_rng(i).integers(256, size=(*size, 3), dtype=np.uint8)).save(
            tmp_path / "cats" / f"{i}.png"
        )
    encoder, images = mini(), folder(tmp_path / "cats")
    batch = encoder.batch(images, [1, 0])
    assert batch.shape == (2, 3, 32, 32) and batch.dtype == torch.uint8
    for row, index in enumerate([1, 0]):
        torch.testing.assert_close(
            encoder.preprocess(batch)[row : row + 1], encoder.preprocess(images[index][None])
        )
    pixels = torch.zeros(2, 3, 9, 9, dtype=torch.uint8)
    assert encoder.batch(ArraySource("toy", pixels, {}, {}), [0]).shape == (1, 3, 9, 9)


def test_layout_is_read_from_timm():
    module = timm.create_model("vit_base_patch16_clip_224", depth=1, embed_dim=32, num_heads=2, num_classes=0)
    encoder = wrap(module)
    assert (encoder.prefix, encoder.grid, encoder.patch_size, encoder.image_size) == (
        1,
        (14, 14),
        (16, 16),
        (224, 224),
    )
    assert (encoder.depth, encoder.heads, encoder.width) == (1, 2, 32)
    assert encoder.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert encoder.interpolation == "bicubic"


def test_layout_is_read_from_a_vit_inside_another_module():
    encoder = wrap(nn.ModuleDict({"vit": mini_vit(32, 2, 2)}), blocks="vit.blocks", mean=HALF, std=HALF)
    assert (encoder.prefix, encoder.grid, encoder.heads, encoder.width) == (1, (8, 8), 2, 32)


def test_patch_size_of_a_convolutional_stem_is_in_pixels():
    module = timm.create_model("vit_tiny_r_s16_p8_224", depth=1, num_classes=0)
    encoder = wrap(module)
    assert (encoder.grid, encoder.patch_size) == ((7, 7), (32, 32))


def test_image_size_need_not_be_a_multiple_of_the_patch():
    module = timm.create_model("vit_tiny_patch16_224", img_size=(40, 72), depth=1, num_classes=0)
    encoder = wrap(module)
    assert (encoder.grid, encoder.image_size) == ((2, 4), (40, 72))
    assert encoder.forward(torch.zeros(1, 3, 40, 72, dtype=torch.uint8)).shape[1] == encoder.tokens


def test_what_cannot_be_read_is_asked_for():
    with pytest.raises(ValueError, match=r"cannot read mean, std .* pass mean=, std="):
        wrap(mini_vit(32, 1, 2))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4))

    with pytest.raises(
        UnsupportedArchitecture, match=r"no transformer blocks under 'blocks'.*candidates: layers"
    ):
        wrap(Plain())
    with pytest.raises(ValueError, match="prefix, grid, patch_size, image_size, heads, width, mean, std"):
        wrap(Plain(), blocks="layers")


def test_crop_modes_and_interpolation():
    module = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=1, num_classes=0)
    module.pretrained_cfg = module.pretrained_cfg | {"crop_mode": "squash"}
    assert wrap(module).crop_mode == "squash"
    module.pretrained_cfg = module.pretrained_cfg | {"crop_mode": "border"}
    with pytest.raises(ValueError, match="'border' is not one of center, squash"):
        wrap(module)
    assert wrap(module, crop=0.5, crop_mode="center").crop == 0.5
    with pytest.raises(ValueError, match="'lanczos' is not one of bilinear, bicubic"):
        wrap(module, crop_mode="center", interpolation="lanczos")


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(60, 90), (97, 61), (30, 40)])
def test_preprocessing_is_timms(size, interpolation, mode):
    config = {"input_size": (3, 48, 48), "crop_pct": 0.9, "crop_mode": mode, "interpolation": interpolation}
    module = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=1, num_classes=0)
    module.pretrained_cfg = module.pretrained_cfg | config
    encoder = wrap(module)
    # Mid-grey noise: PIL saturates between its two passes, the tensor kernel does not.
    noise = np.random.default_rng(0).integers(64, 192, (*size, 3), dtype=np.uint8)
    expected = create_transform(**timm.data.resolve_model_data_config(module))(Image.fromarray(noise))
    found = encoder.preprocess(torch.from_numpy(noise).permute(2, 0, 1)[None])[0]
    assert found.shape == expected.shape
    # PIL and the tensor kernel round once per axis; a grey level is 1 / 255 / std.
    assert (found - expected).abs().max() <= 2.01 / 255 / min(encoder.std)


def test_images_of_the_right_size_are_only_normalised(mini):
    encoder = mini(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), crop=0.5)
    image = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    expected = torch.tensor([0.2, 0.0, -0.1])[None, :, None, None].expand(1, 3, 32, 32)
    torch.testing.assert_close(encoder.preprocess(image), expected)


def test_wrong_images_raise(mini):
    encoder = mini()
    with pytest.raises(TypeError, match=r"uint8.*float32"):
        encoder.preprocess(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"B 3 H W, got shape \(3, 32, 32\)"):
        encoder.preprocess(torch.zeros(3, 32, 32, dtype=torch.uint8))


def test_what_is_no_tensor_is_named(mini):
    encoder = mini()
    encoder.module.forward_features = lambda x: {"x_norm_patchtokens": x}
    with pytest.raises(UnsupportedArchitecture, match="gives a dict, not tokens B N D"):
        encoder.forward(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({"grid": (4, 4)}, r"4 x 4 .*32 x 32 .*4 x 4"),
        ({"image_size": (48, 32)}, r"8 x 8 .*48 x 32 .*4 x 4"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 channels .* 1 and 1"),
        ({"std": (0.5,)}, "3 channels .* 3 and 1"),
        ({"crop": 87.5}, r"crop 87\.5 is no share"),
        ({"crop": 0.0}, r"crop 0\.0 is no share"),
        ({"prefix": -1}, "prefix -1 is no number"),
        ({"after_attention": "ln_2"}, "'ln_2' is no part of a block, which has norm1, attn, "),
        ({"mean": (123.675, 116.28, 103.53), "std": (58.4, 57.1, 57.4)}, r"123\.675.* 0\.\.1"),
    ],
)
def test_wrap_refuses_contradictions(fields, numbers, mini):
    with pytest.raises(ValueError, match=numbers):
        mini(**fields)


def test_wrap_refuses_grey_images_with_three_means_and_half_precision():
    module = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=1, num_classes=0, in_chans=1)
    with pytest.raises(ValueError, match=r"1 channels .* 3 and 3"):
        wrap(module)
    assert wrap(module, mean=(0.5,), std=(0.5,)).mean == (0.5,)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=f"{kind}.*torch.float32"):
            wrap(mini_vit(32, 1, 2).to(kind), mean=HALF, std=HALF)


def test_wrap_refuses_a_single_patch():
    with pytest.raises(ValueError, match="one patch"):
        wrap(mini_vit(8, 1, 1, patch_size=16, image_size=16), mean=HALF, std=HALF)


def test_wrap_names_an_unknown_field(mini):
    with pytest.raises(TypeError, match="patch_sise"):
        mini(patch_sise=4)


TINY_STAGES = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("swin_tiny_patch4_window7_224", TINY_STAGES, "SwinTransformer .*shifted windows"),
        ("hiera_tiny_224", {"stages": (1, 1, 1, 1), "embed_dim": 16}, "Hiera .*mask units"),
        ("pit_ti_224", {"depth": (1, 1, 1)}, "PoolingVisionTransformer .*pooled between stages"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "Xcit .*D x D"),
        ("cait_xxs24_224", {"depth": 1}, "Cait .*talking heads"),
        ("test_maxvit", {}, "MaxxVit .*windows"),
        ("volo_d1_224", {}, "VOLO .*outlook"),
        (
            "samvit_base_patch16",
            {"depth": 1, "embed_dim": 32, "num_heads": 2},
            "VisionTransformerSAM .*windows",
        ),
    ],
)
def test_refused_architectures(name, options, reason):
    module = timm.create_model(name, num_classes=0, **options)
    with pytest.raises(UnsupportedArchitecture, match=reason):
        wrap(module)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("test_resnet", {}, "no transformer blocks"),
        ("gmixer_12_224", {}, r"cannot read prefix, grid, .* from MlpMixer"),
    ],
)
def test_networks_without_attention_are_refused(name, options, reason):
    with pytest.raises(UnsupportedArchitecture, match=reason):
        wrap(timm.create_model(name, num_classes=0, **options))


def test_feature_maps_become_tokens():
    module = timm.create_model("vit_tiny_patch16_224", img_size=(48, 80), depth=1, num_classes=0)
    encoder = wrap(module)
    images = torch.randint(0, 256, (2, 3, 48, 80), dtype=torch.uint8)
    tokens = encoder.forward(images)
    module.forward_features = lambda x: type(module).forward_features(module, x)[:, 1:].unflatten(1, (3, 5))
    torch.testing.assert_close(encoder.forward(images), tokens[:, 1:])
