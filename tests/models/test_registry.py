"""Files in the layout of the authors against forwards written from the published architecture."""

import argparse
import functools
import math
import re
import sys
import types

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms

from nbhelpers.capture import capture
from nbhelpers.models import (
    CHECKPOINTS,
    DamagedWeights,
    MaskedAutoencoder,
    MismatchedWeights,
    decoder_of,
    load,
)
from nbhelpers.models.encoder import REFUSED

WIDTH, DEPTH, HEADS, PATCH, SIDE = 24, 2, 3, 16, 48
SMALL = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": SIDE}
GRID = SIDE // PATCH
TOKENS = 1 + GRID * GRID
OBJECTIVES = {"CL", "MIM", "latent MIM", "hybrid", "supervised", "language"}


# --- files as the authors wrote them, with random tensors -------------------------------------------------


class Tensors:
    """Random tensors of given shapes, the same in every run."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, *shape):
        return 0.3 * torch.randn(shape, generator=self.generator)

    def linear(self, name, inputs, outputs, bias=True):
        weights = {f"{name}.weight": self(outputs, inputs)}
        return weights | ({f"{name}.bias": self(outputs)} if bias else {})

    def norm(self, name, width):
        return {f"{name}.weight": 1 + self(width), f"{name}.bias": self(width)}


def _vit(new, positions=TOKENS, prefix="", blocks="blocks", width=WIDTH):
    """A plain ViT: MoCo v3, DINO, iBOT, MSN, MAE."""
    weights = {}
    for i in range(DEPTH):
        at = f"{blocks}.{i}."
        weights |= new.norm(at + "norm1", width) | new.norm(at + "norm2", width)
        weights |= new.linear(at + "attn.qkv", width, 3 * width) | new.linear(at + "attn.proj", width, width)
        weights |= new.linear(at + "mlp.fc1", width, 4 * width) | new.linear(at + "mlp.fc2", 4 * width, width)
    if blocks == "blocks":
        weights |= {"cls_token": new(1, 1, width), "pos_embed": new(1, positions, width)}
        weights |= {
            "patch_embed.proj.weight": new(width, 3, PATCH, PATCH),
            "patch_embed.proj.bias": new(width),
        }
        weights |= new.norm("norm", width)
    return {prefix + key: value for key, value in weights.items()}


def _table_size():
    return (2 * GRID - 1) ** 2 + 3


def _beit(new):
    """BEiT, BEiT v2, SimMIM, data2vec: q and v biases only, layer scale, shared relative positions."""
    weights = _vit(new)
    del weights["pos_embed"]
    for i in range(DEPTH):
        del weights[f"blocks.{i}.attn.qkv.bias"]
        weights |= {f"blocks.{i}.attn.{x}_bias": new(WIDTH) for x in "qv"}
        weights |= {f"blocks.{i}.gamma_{x}": new(WIDTH) for x in (1, 2)}
    weights["rel_pos_bias.relative_position_bias_table"] = 3 * new(_table_size(), HEADS)
    weights["rel_pos_bias.relative_position_index"] = torch.zeros(TOKENS, TOKENS, dtype=torch.long)
    return weights | {"mask_token": new(1, 1, WIDTH)}


def _hugging_face(new, beit, prefix=""):
    """The same networks in the names of Hugging Face."""
    weights = {
        prefix + "embeddings.cls_token": new(1, 1, WIDTH),
        prefix + "embeddings.mask_token": new(1, 1, WIDTH),
        prefix + "embeddings.patch_embeddings.projection.weight": new(WIDTH, 3, PATCH, PATCH),
        prefix + "embeddings.patch_embeddings.projection.bias": new(WIDTH),
    } | new.norm("layernorm", WIDTH)
    for i in range(DEPTH):
        at = f"{prefix}encoder.layer.{i}."
        for part in ("query", "key", "value"):
            weights |= new.linear(
                f"{at}attention.attention.{part}", WIDTH, WIDTH, not (beit and part == "key")
            )
        weights |= new.linear(at + "attention.output.dense", WIDTH, WIDTH)
        weights |= new.linear(at + "intermediate.dense", WIDTH, 4 * WIDTH)
        weights |= new.linear(at + "output.dense", 4 * WIDTH, WIDTH)
        weights |= new.norm(at + "layernorm_before", WIDTH) | new.norm(at + "layernorm_after", WIDTH)
        if beit:
            weights |= {f"{at}lambda_{x}": new(WIDTH) for x in (1, 2)}
    if beit:
        bias = prefix + "encoder.relative_position_bias.relative_position_"
        weights[bias + "bias_table"] = 3 * new(_table_size(), HEADS)
        weights[bias + "index"] = torch.zeros(TOKENS, TOKENS, dtype=torch.long)
    else:
        weights[prefix + "embeddings.position_embeddings"] = new(1, TOKENS, WIDTH)
    return weights


# --- the published architectures, with explicit softmax and without timm ---------------------------------


def _norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def _linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _softmax_attention(q, k, v, heads, bias=0.0):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    attention = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    return (attention @ v).transpose(1, 2).flatten(2)


def _relative_bias(table):
    """Bias `H N N` of BEiT's table, looked up pair by pair."""
    bias = torch.zeros(table.shape[1], TOKENS, TOKENS)
    for i in range(TOKENS):
        for j in range(TOKENS):
            if i == 0 and j == 0:
                index = len(table) - 1
            elif i == 0:
                index = len(table) - 3
            elif j == 0:
                index = len(table) - 2
            else:
                (ri, ci), (rj, cj) = divmod(i - 1, GRID), divmod(j - 1, GRID)
                index = (ri - rj + GRID - 1) * (2 * GRID - 1) + ci - cj + GRID - 1
            bias[:, i, j] = table[index]
    return bias


def _embed(w, pixels, name="patch_embed.proj", cls="cls_token"):
    patches = (
        F.conv2d(pixels, w[f"{name}.weight"], w[f"{name}.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    )
    return torch.cat([w[cls].expand(len(pixels), -1, -1), patches], 1)


def _run_blocks(w, x, heads, blocks="blocks", bias=0.0):
    for i in range(DEPTH):
        at = f"{blocks}.{i}."
        h = _norm(w, at + "norm1", x)
        q, k, v = F.linear(h, w[at + "attn.qkv.weight"]).chunk(3, -1)
        if at + "attn.q_bias" in w:
            q, v = q + w[at + "attn.q_bias"], v + w[at + "attn.v_bias"]
        else:
            biases = w[at + "attn.qkv.bias"].chunk(3)
            q, k, v = q + biases[0], k + biases[1], v + biases[2]
        h = _linear(w, at + "attn.proj", _softmax_attention(q, k, v, heads, bias))
        x = x + w.get(at + "gamma_1", w.get(at + "ls1.gamma", 1.0)) * h
        h = _linear(w, at + "mlp.fc2", F.gelu(_linear(w, at + "mlp.fc1", _norm(w, at + "norm2", x))))
        x = x + w.get(at + "gamma_2", w.get(at + "ls2.gamma", 1.0)) * h
    return x


def _run_vit(w, pixels, heads=HEADS):
    return _norm(w, "norm", _run_blocks(w, _embed(w, pixels) + w["pos_embed"], heads))


def _run_beit(w, pixels):
    bias = _relative_bias(w["rel_pos_bias.relative_position_bias_table"])
    return _norm(w, "norm", _run_blocks(w, _embed(w, pixels), HEADS, bias=bias))


def _run_hugging_face(w, pixels, beit):
    w = {key.removeprefix("beit."): value for key, value in w.items()}
    x = _embed(w, pixels, "embeddings.patch_embeddings.projection", "embeddings.cls_token")
    bias = 0.0
    if beit:
        bias = _relative_bias(w["encoder.relative_position_bias.relative_position_bias_table"])
    else:
        x = x + w["embeddings.position_embeddings"]
    for i in range(DEPTH):
        at = f"encoder.layer.{i}."
        h = _norm(w, at + "layernorm_before", x)
        q, k, v = (_linear(w, f"{at}attention.attention.{part}", h) for part in ("query", "key", "value"))
        h = _linear(w, at + "attention.output.dense", _softmax_attention(q, k, v, HEADS, bias))
        x = x + w.get(at + "lambda_1", 1.0) * h
        h = F.gelu(_linear(w, at + "intermediate.dense", _norm(w, at + "layernorm_after", x)))
        x = x + w.get(at + "lambda_2", 1.0) * _linear(w, at + "output.dense", h)
    return _norm(w, "layernorm", x)


# --- one case per layout: (checkpoint, file content, expected features of pixels) -------------------------


def _moco(new):
    w = _vit(new)
    head = new.linear("head.0", WIDTH, 8, bias=False)
    table = {f"module.base_encoder.{key}": value for key, value in (w | head).items()}
    table |= {f"module.momentum_encoder.{key}": value for key, value in (w | head).items()}
    table |= {f"module.predictor.{key}": value for key, value in new.linear("0", 8, 8).items()}
    return {"epoch": 300, "state_dict": table, "optimizer": {}}, lambda x: _run_vit(w, x)


def _simmim(new):
    w = _beit(new)
    table = {f"encoder.{key}": value for key, value in w.items()} | new.linear("decoder.0", WIDTH, 8)
    return {"model": table, "epoch": 799}, lambda x: _run_beit(w, x)


def _ibot(new):
    w = _vit(new)
    return {"state_dict": w | {"masked_embed": new(1, WIDTH)}}, lambda x: _run_vit(w, x)


def _ibot_full(new, prefix):
    w = _vit(new)
    table = {f"{prefix}backbone.{key}": value for key, value in w.items()}
    table |= {f"{prefix}head.{key}": value for key, value in new.linear("mlp.0", WIDTH, 8).items()}
    content = {"student": {}, "teacher": table, "args": argparse.Namespace(arch="vit_base")}
    return content, lambda x: _run_vit(w, x)


def _beit_original(new):
    w = _beit(new)
    return {"model": w | new.linear("lm_head", WIDTH, 8)}, lambda x: _run_beit(w, x)


def _beit_v2(new):
    w = _beit(new)
    extra = {f"cls_pt_layers.0.{key}": value for key, value in new.norm("norm1", WIDTH).items()}
    return {"model": w | extra | new.linear("lm_head", WIDTH, 8)}, lambda x: _run_beit(w, x)


def _beit_hf(new, prefix):
    w = _hugging_face(new, beit=True, prefix=prefix)
    return w | new.linear("lm_head", WIDTH, 8), lambda x: _run_hugging_face(w, x, beit=True)


def _msn(new):
    w = _vit(new)
    table = {f"module.{key}": value for key, value in (w | new.linear("fc.fc1", WIDTH, 8)).items()}
    return {"target_encoder": table, "prototypes": new(4, 8), "epoch": 600}, lambda x: _run_vit(w, x)


def _msn_hf(new):
    w = _hugging_face(new, beit=False)
    return w, lambda x: _run_hugging_face(w, x, beit=False)


def _plain(new, root=None):
    w = _vit(new)
    return ({root: w} if root else w), lambda x: _run_vit(w, x)


def _dinov2(new):
    w = _vit(new)
    w |= {f"blocks.{i}.ls{x}.gamma": new(WIDTH) for i in range(DEPTH) for x in (1, 2)}
    return w | {"mask_token": new(1, WIDTH)}, lambda x: _run_vit(w, x)


CASES = {
    "moco v3 B": ("mocov3.vit_base_patch16_224", _moco),
    "simmim": ("simmim.vit_base_patch16_224", _simmim),
    "ibot teacher": ("ibot.vit_base_patch16_224", _ibot),
    "ibot full": ("ibot.vit_small_patch16_224", lambda new: _ibot_full(new, "")),
    "ibot full, DDP": ("ibot.vit_large_patch16_224", lambda new: _ibot_full(new, "module.")),
    "beit": ("beit.beit_base_patch16_224", _beit_original),
    "beit, mirror": ("beit.beit_large_patch16_224", lambda new: _beit_hf(new, "beit.")),
    "beit v2": ("beitv2.beitv2_base_patch16_224", _beit_v2),
    "data2vec": ("data2vec.beit_base_patch16_224", _beit_original),
    "data2vec, mirror": ("data2vec.beit_large_patch16_224", lambda new: _beit_hf(new, "")),
    "msn": ("msn.vit_small_patch16_224", _msn),
    "msn, mirror": ("msn.vit_base_patch16_224", _msn_hf),
}
TAGGED = {
    "mae": ("mae.vit_base_patch16_224", lambda new: _plain(new, "model")),
    "dino": ("dino.vit_small_patch16_224", _plain),
    "dinov2": ("dinov2.vit_base_patch14_dinov2", _dinov2),
}


@pytest.fixture
def pixels():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def _features(encoder, pixels):
    with torch.no_grad():
        return encoder.module.forward_features(pixels)


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_published_architecture(case, tmp_path, pixels):
    name, make = CASES[case]
    content, published = make(Tensors())
    torch.save(content, tmp_path / "file.pth")
    encoder = CHECKPOINTS[name].load(tmp_path / "file.pth", **SMALL)
    torch.testing.assert_close(_features(encoder, pixels), published(pixels), atol=1e-5, rtol=1e-5)
    assert (encoder.name, encoder.prefix, encoder.grid) == (name, 1, (GRID, GRID))
    assert encoder.objective in OBJECTIVES
    depths = []
    with capture(encoder, on_attention=lambda a: depths.append((a.depth, a.bias is not None))):
        encoder.forward(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    beit_like = name.partition(".")[0] in ("simmim", "beit", "beitv2", "data2vec")
    assert depths == [(1, beit_like), (2, beit_like)]


@pytest.mark.parametrize("case", TAGGED)
def test_files_of_tagged_checkpoints_read_through_timm(case, tmp_path, pixels, monkeypatch):
    name, make = TAGGED[case]
    content, published = make(Tensors())
    torch.save(content, tmp_path / "file.pth")
    create, small = timm.create_model, SMALL | {"patch_size": PATCH}
    monkeypatch.setattr(timm, "create_model", lambda model, **k: create(model, **k, **small))
    encoder = load(name, from_file=tmp_path / "file.pth", device="cpu")
    torch.testing.assert_close(_features(encoder, pixels), published(pixels), atol=1e-5, rtol=1e-5)
    assert encoder.objective == CHECKPOINTS[name].objective


def _mae_file(new, width=16):
    w = _vit(new) | _vit(new, blocks="decoder_blocks", width=width)
    w |= {"mask_token": new(1, 1, width), "decoder_pos_embed": new(1, TOKENS, width)}
    w |= new.linear("decoder_embed", WIDTH, width) | new.norm("decoder_norm", width)
    return w | new.linear("decoder_pred", width, 3 * PATCH * PATCH)


def _run_mae(w, pixels, keep, heads):
    """Reconstruction by MAE as published: encoder on visible patches, mask tokens, decoder."""
    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"][:, 1:]
    x = torch.stack([row[list(kept)] for row, kept in zip(x, keep, strict=True)])
    cls = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = _norm(w, "norm", _run_blocks(w, torch.cat([cls, x], 1), HEADS))
    x = _linear(w, "decoder_embed", x)
    full = w["mask_token"].repeat(len(x), TOKENS, 1)
    full[:, 0] = x[:, 0]
    for b, kept in enumerate(keep):
        for place, patch in enumerate(kept):
            full[b, 1 + patch] = x[b, 1 + place]
    x = _run_blocks(w, full + w["decoder_pos_embed"], heads, "decoder_blocks")
    x = _norm(w, "decoder_norm", x)
    return x, _linear(w, "decoder_pred", x)[:, 1:]


@pytest.fixture
def mae(tmp_path, monkeypatch):
    """A small autoencoder read from a file in the layout of mae_visualize_*.pth."""
    weights = _mae_file(Tensors())
    torch.save({"model": weights}, tmp_path / "mae.pth")
    checkpoint = CHECKPOINTS["mae_visualize.vit_base_patch16_224"]
    monkeypatch.setattr(MaskedAutoencoder.__init__, "__defaults__", (16, DEPTH, 4))
    return weights, checkpoint.load(tmp_path / "mae.pth", **SMALL)


def test_mae_with_decoder(mae, pixels):
    weights, encoder = mae
    torch.testing.assert_close(_features(encoder, pixels), _run_vit(weights, pixels), atol=1e-5, rtol=1e-5)
    everything = [range(GRID * GRID)] * 2
    tokens, prediction = _run_mae(weights, pixels, everything, heads=4)
    decoder = decoder_of(encoder)
    torch.testing.assert_close(_features(decoder, pixels), tokens, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(encoder.module(pixels), prediction, atol=1e-5, rtol=1e-5)

    records, streams = [], []
    with capture(decoder, on_attention=records.append, on_stream=streams.append):
        decoder.forward(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    assert [(r.depth, tuple(r.query.shape)) for r in records] == [(1, (1, 4, 10, 4)), (2, (1, 4, 10, 4))]
    assert streams[0].tokens.shape == (1, TOKENS, 16)


def test_mae_reconstructs_from_visible_patches(mae, pixels):
    weights, encoder = mae
    keep = [(3, 0, 7), (8, 2, 1)]
    _, expected = _run_mae(weights, pixels, keep, heads=4)
    with torch.no_grad():
        prediction = encoder.module(pixels, torch.tensor(keep))
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-5)


def test_patches_and_images_are_inverse(mae, pixels):
    autoencoder = mae[1].module
    patches = autoencoder.patchify(pixels)
    assert patches.shape == (2, 9, 3 * PATCH * PATCH)
    # Row 1, column 2 of the grid; pixel row 3, column 4; green.
    assert patches[0, 1 * GRID + 2, (3 * PATCH + 4) * 3 + 1] == pixels[0, 1, PATCH + 3, 2 * PATCH + 4]
    assert torch.equal(autoencoder.unpatchify(patches), pixels)


def _broken(change, tmp_path):
    content, _ = _moco(Tensors())
    change(content)
    torch.save(content, tmp_path / "file.pth")
    return CHECKPOINTS["mocov3.vit_base_patch16_224"].load(tmp_path / "file.pth", **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["state_dict"].pop("module.base_encoder.norm.bias"), r"Missing.*norm\.bias"),
        (lambda c: c["state_dict"].update({"module.base_encoder.new": torch.ones(1)}), "Unexpected.*new"),
        (
            lambda c: c["state_dict"].update({"module.other.weight": torch.ones(1)}),
            r"unknown keys: module\.other",
        ),
        (
            lambda c: c["state_dict"].update({"module.base_encoder.norm.bias": torch.ones(7)}),
            r"norm\.bias.*\(7,\).*\(24,\)|norm\.bias.*\[7\].*\[24\]",
        ),
        (lambda c: c.pop("state_dict"), "Missing.*cls_token"),
    ],
)
def test_loading_is_strict(change, message, tmp_path):
    with pytest.raises(MismatchedWeights, match="(?s)" + message) as error:
        _broken(change, tmp_path)
    assert "file.pth" in str(error.value)
    assert "mocov3.vit_base_patch16_224" in str(error.value)


def test_timm_files_are_strict_too(tmp_path):
    weights = timm.create_model("test_vit").state_dict()
    del weights["norm.bias"]
    torch.save(weights, tmp_path / "file.pth")
    with pytest.raises(MismatchedWeights, match=r"(?s)file\.pth does not fit test_vit.*norm\.bias"):
        load("test_vit", from_file=tmp_path / "file.pth")


def test_what_was_left_out_is_recorded(tmp_path):
    encoder = _broken(lambda content: None, tmp_path)
    assert encoder.provenance["left out"][0] == "module.base_encoder.head.0.weight"
    assert len(encoder.provenance["sha256"]) == 64
    assert encoder.provenance["licence"] == "CC-BY-NC-4.0"


def test_every_checkpoint_is_well_described():
    for name, checkpoint in CHECKPOINTS.items():
        assert checkpoint.objective in OBJECTIVES, name
        file = timm.model_entrypoint(checkpoint.timm.partition(".")[0]).__module__.rpartition(".")[2]
        assert file not in REFUSED, name
        if "." in checkpoint.timm:
            assert timm.is_model_pretrained(checkpoint.timm), name
        else:
            assert checkpoint.licence and checkpoint.addresses, name
            assert all(address.startswith("https://") for address in checkpoint.addresses), name


# What the evaluations of the authors do with an image, as they write it; `evaluation` in checkpoints.json
# names the files. BICUBIC is their `interpolation=3`; torchvision's Resize is bilinear where nothing is said.
IMAGENET, HALF = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3)
BICUBIC = transforms.InterpolationMode.BICUBIC
AUTHORS = {
    "mocov3": (transforms.Resize(256), IMAGENET),
    "msn": (transforms.Resize(256), IMAGENET),
    "dino": (transforms.Resize(256, interpolation=BICUBIC), IMAGENET),
    "ibot": (transforms.Resize(256, interpolation=BICUBIC), IMAGENET),
    "ibot_rand_mask": (transforms.Resize(256, interpolation=BICUBIC), IMAGENET),
    "ibot_22k": (transforms.Resize(256, interpolation=BICUBIC), IMAGENET),
    "mae": (transforms.Resize(int(224 / (224 / 256)), interpolation=BICUBIC), IMAGENET),
    "mae_visualize": (transforms.Resize(int(224 / (224 / 256)), interpolation=BICUBIC), IMAGENET),
    "mae_visualize_ganloss": (transforms.Resize(int(224 / (224 / 256)), interpolation=BICUBIC), IMAGENET),
    "simmim": (transforms.Resize(int((256 / 224) * 224), interpolation=BICUBIC), IMAGENET),
    "beit": (transforms.Resize(256, interpolation=BICUBIC), HALF),  # of ImageNet-22k, their default
    "beitv2": (transforms.Resize(int(224 / (224 / 256)), interpolation=BICUBIC), IMAGENET),
    "data2vec": (transforms.Resize(int(224 / (224 / 256)), interpolation=BICUBIC), IMAGENET),
    "deit": (transforms.Resize(int(224 / 0.875), interpolation=BICUBIC), IMAGENET),
}


@pytest.mark.parametrize("family", AUTHORS)
def test_images_are_prepared_as_the_authors_evaluate(family, monkeypatch):
    monkeypatch.setattr(MaskedAutoencoder.__init__, "__defaults__", (16, DEPTH, 4))
    resize, normalize = AUTHORS[family]
    seen = transforms.Compose(
        [resize, transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(*normalize)]
    )
    # Fine stripes under smooth noise: another size, filter or crop moves them by far more than a grey level.
    noise = np.random.default_rng(0).integers(64, 192, (300, 401, 3), dtype=np.uint8)
    for name, checkpoint in CHECKPOINTS.items():
        if name.partition(".")[0] == family:
            assert checkpoint.evaluation, name
            patch = {"patch_size": 32, "img_size": 224} if checkpoint.decoder else {"img_size": 224}
            encoder = checkpoint.build(**SMALL | patch)
            found = encoder.preprocess(torch.from_numpy(noise).permute(2, 0, 1)[None])[0]
            gap = (found - seen(Image.fromarray(noise))).abs().max()
            assert gap <= 2.01 / 255 / min(encoder.std), name  # PIL and the tensor kernel round once per axis


# Widths, depths and heads as the authors' model files define them (vits.py, vision_transformer.py, deit.py,
# models_mae.py, modeling_pretrain.py, modeling_cyclical.py): all with q, k, v biases as in their files, exact
# GELU, LayerNorm eps 1e-6; MoCo v3's ViT-S alone has 12 heads.
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
LAYER_SCALE = {  # at initialisation: --layer_scale_init_value of the authors' commands; SimMIM's config.py
    "simmim.vit_base_patch16_224": 0.1,
    "beit.beit_base_patch16_224": 0.1,
    "beit.beit_large_patch16_224": 1e-5,
    "beitv2.beitv2_base_patch16_224": 0.1,
    "beitv2.beitv2_large_patch16_224": 1e-5,
    "data2vec.beit_base_patch16_224": 1e-4,
    "data2vec.beit_large_patch16_224": 1e-5,
}


@functools.cache
def _without_weights(architecture, options):
    with torch.device("meta"):
        return timm.create_model(architecture, num_classes=0, **dict(options))


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name.partition(".")[0] in AUTHORS])
def test_architectures_are_those_of_the_authors(name):
    checkpoint = CHECKPOINTS[name]
    module = _without_weights(checkpoint.timm.partition(".")[0], tuple(checkpoint.options.items()))
    width, depth, heads = SIZES[re.search("small|base|large|huge", name)[0]]
    heads = 12 if name == "mocov3.vit_small_patch16_224" else heads
    patch = int(re.search(r"patch(\d+)", name)[1])
    block = module.blocks[0]
    assert (module.embed_dim, len(module.blocks), block.attn.num_heads) == (width, depth, heads)
    assert (module.patch_embed.patch_size, module.patch_embed.img_size) == ((patch,) * 2, (224,) * 2)
    assert {part.eps for part in module.modules() if isinstance(part, nn.LayerNorm)} == {1e-6}
    assert block.mlp.fc1.out_features == 4 * width
    assert (type(block.mlp.act), block.mlp.act.approximate) == (nn.GELU, "none")
    beit = name in LAYER_SCALE
    assert (module.pos_embed is None, getattr(module, "rel_pos_bias", None) is not None) == (beit, beit)
    assert (block.attn.qkv.bias is None) == beit  # biases of q and v alone
    assert getattr(block.attn, "relative_position_bias_table", None) is None
    assert checkpoint.options.get("init_values") == LAYER_SCALE.get(name)


def test_preprocessing_is_that_of_the_authors_whatever_the_name(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda model, **k: create(model, **k, **SMALL))

    def seen(name):
        encoder = load(f"random:{name}", device="cpu") if ":" not in name else load(name, device="cpu")
        return encoder.mean, encoder.std, encoder.interpolation, encoder.crop, encoder.crop_mode

    usual = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.875, "center")
    for name in (
        "dino.vit_base_patch16_224",
        "mae.vit_base_patch16_224",
        "ibot.vit_base_patch16_224",
        "vit_base_patch16_224",  # untrained in a study of the ones above
        "dinov2.vit_base_patch14_dinov2",
        "deit.deit_small_patch16_224",
    ):
        assert seen(name) == usual, name
    assert seen("clip.vit_base_patch16_clip_quickgelu_224")[2:] == ("bicubic", 1.0, "center")
    assert seen("siglip2.vit_base_patch16_siglip_224")[2:] == ("bilinear", 1.0, "squash")


def test_one_encoder_has_one_preprocessing(tmp_path, monkeypatch, mae):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda model, **k: create(model, **k, **SMALL))
    torch.save(_vit(Tensors()), tmp_path / "file.pth")
    names = ("mae.vit_base_patch16_224", "vit_base_patch16_224.mae")
    prints = {load(name, from_file=tmp_path / "file.pth", device="cpu").fingerprint for name in names}
    assert len(prints) == 1
    one, other = load(names[0], from_file=tmp_path / "file.pth", device="cpu"), mae[1]
    for field in ("mean", "std", "interpolation", "crop", "crop_mode"):
        assert getattr(one, field) == getattr(other, field)


@pytest.fixture
def small_dino(monkeypatch, tmp_path):
    """Load `content` as DINO's ViT-S/16, at a small size."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda model, **k: create(model, **k, **SMALL))

    def read(content):
        torch.save(content, tmp_path / "file.pth")
        return load("dino.vit_small_patch16_224", from_file=tmp_path / "file.pth", device="cpu")

    return read


@pytest.mark.parametrize("change", ["patch", "positions", "both"])
def test_nothing_is_resampled(small_dino, change):
    weights = _vit(Tensors())
    if change in ("patch", "both"):
        weights["patch_embed.proj.weight"] = torch.randn(WIDTH, 3, 8, 8)
    if change in ("positions", "both"):
        weights["pos_embed"] = torch.randn(1, 1 + (2 * GRID) ** 2, WIDTH)
    with pytest.raises(MismatchedWeights, match=r"file\.pth does not fit dino.*wrong shapes: .* instead of "):
        small_dino(weights)


def test_relative_positions_are_not_resampled(tmp_path):
    content, _ = _beit_original(Tensors())
    content["model"]["rel_pos_bias.relative_position_bias_table"] = torch.randn(27**2 + 3, HEADS)
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(MismatchedWeights, match=r"bias_table \(732, 3\) instead of \(28, 3\)"):
        CHECKPOINTS["beit.beit_base_patch16_224"].load(tmp_path / "file.pth", **SMALL)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "_orig_mod.", "encoder.", "module._orig_mod.backbone."]
)
def test_wrappers_in_front_are_cut_off_and_said(small_dino, prefix, pixels):
    weights = _vit(Tensors())
    encoder = small_dino({"model": {prefix + key: value for key, value in weights.items()}})
    torch.testing.assert_close(_features(encoder, pixels), _run_vit(weights, pixels), atol=1e-5, rtol=1e-5)
    about = encoder.provenance
    assert (about["entry"], about["prefix"], about["left out"]) == ("model", prefix, [])
    assert len(about["sha256"]) == 64


def test_foreign_prefixes_are_refused(small_dino):
    with pytest.raises(MismatchedWeights, match=r"(?s)Unexpected.*other\."):
        small_dino({f"other.{key}": value for key, value in _vit(Tensors()).items()})


def test_dinos_own_training_files_give_the_teacher(small_dino, pixels):
    new = Tensors()
    student, teacher = _vit(new), _vit(new)
    head = {f"head.{key}": value for key, value in new.linear("last_layer", WIDTH, 8).items()}
    content = {
        "student": {f"module.backbone.{key}": value for key, value in student.items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.items()} | head,
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small"),
    }
    encoder = small_dino(content)
    torch.testing.assert_close(_features(encoder, pixels), _run_vit(teacher, pixels), atol=1e-5, rtol=1e-5)
    assert encoder.provenance["entry"] == "teacher"
    assert encoder.provenance["left out"] == ["head.last_layer.bias", "head.last_layer.weight"]
    del content["teacher"]
    encoder = small_dino(content)
    torch.testing.assert_close(_features(encoder, pixels), _run_vit(student, pixels), atol=1e-5, rtol=1e-5)


def test_a_mask_token_that_timm_drops_is_said(tmp_path, monkeypatch):
    create = timm.create_model
    small = SMALL | {"patch_size": PATCH}
    monkeypatch.setattr(timm, "create_model", lambda model, **k: create(model, **k, **small))
    torch.save(_dinov2(Tensors())[0], tmp_path / "file.pth")
    encoder = load("dinov2.vit_base_patch14_dinov2", from_file=tmp_path / "file.pth", device="cpu")
    assert encoder.provenance["left out"] == ["mask_token"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(small_dino, value):
    weights = _vit(Tensors())
    weights["blocks.1.norm1.bias"][3] = value
    with pytest.raises(DamagedWeights, match=r"file\.pth .*not finite: blocks\.1\.norm1\.bias"):
        small_dino(weights)


def test_whole_numbers_are_no_weights(small_dino):
    weights = _vit(Tensors())
    weights["norm.weight"] = torch.ones(WIDTH, dtype=torch.int8)
    with pytest.raises(MismatchedWeights, match=r"norm\.weight is torch\.int8 instead of torch\.float32"):
        small_dino(weights)


def test_simmims_own_file_with_its_configuration(tmp_path, pixels, monkeypatch):
    """A stand-in for yacs, gone when the file is read."""

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package = types.ModuleType("yacs.config")
    package.CfgNode = CfgNode
    content, published = _simmim(Tensors())
    config = CfgNode(DATA=CfgNode(MASK_RATIO=0.6))
    config.frozen = True  # yacs keeps attributes beside the items
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", package)
        torch.save(content | {"config": config}, tmp_path / "file.pth")
    encoder = CHECKPOINTS["simmim.vit_base_patch16_224"].load(tmp_path / "file.pth", **SMALL)
    torch.testing.assert_close(_features(encoder, pixels), published(pixels), atol=1e-5, rtol=1e-5)


def test_numbers_and_paths_beside_weights_are_no_code(small_dino, tmp_path):
    beside = {"best": np.float64(0.5), "step": np.int64(3), "curve": np.arange(3.0), "at": tmp_path}
    assert (
        small_dino({"state_dict": _vit(Tensors()), **beside, "args": argparse.Namespace(**beside)}).depth == 2
    )
