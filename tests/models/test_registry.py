"""Files in the layout of the authors against forwards written from the published architecture."""

import argparse
import functools
import math
import re
import sys
import types
from dataclasses import replace

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
MOCO, SIMMIM = "mocov3.vit_base_patch16_224", "simmim.vit_base_patch16_224"
DINO, DINOV2 = "dino.vit_small_patch16_224", "dinov2.vit_base_patch14_dinov2"
assert_close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


# --- files as the authors wrote them, with random tensors -------------------------------------------------


class Tensors:
    """Random tensors of given shapes, the same in every run."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, *shape):
        return 0.3 * torch.randn(shape, generator=self.generator)

    def linear(self, name, inputs, outputs):
        return {f"{name}.weight": self(outputs, inputs), f"{name}.bias": self(outputs)}

    def norm(self, name, width):
        return {f"{name}.weight": 1 + self(width), f"{name}.bias": self(width)}


def _blocks(new, blocks, width):
    weights = {}
    for i in range(DEPTH):
        at = f"{blocks}.{i}."
        weights |= new.norm(at + "norm1", width) | new.norm(at + "norm2", width)
        weights |= new.linear(at + "attn.qkv", width, 3 * width) | new.linear(at + "attn.proj", width, width)
        weights |= new.linear(at + "mlp.fc1", width, 4 * width) | new.linear(at + "mlp.fc2", 4 * width, width)
    return weights


def _vit(new):
    """A plain ViT: MoCo v3, DINO, iBOT, MSN, MAE."""
    weights = {"cls_token": new(1, 1, WIDTH), "pos_embed": new(1, TOKENS, WIDTH)}
    weights |= {"patch_embed.proj.weight": new(WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": new(WIDTH)}
    return weights | _blocks(new, "blocks", WIDTH) | new.norm("norm", WIDTH)


def _beit(new):
    """BEiT, BEiT v2, SimMIM, data2vec: q and v biases only, layer scale, shared relative positions."""
    weights = _vit(new)
    del weights["pos_embed"]
    for i in range(DEPTH):
        del weights[f"blocks.{i}.attn.qkv.bias"]
        weights |= {f"blocks.{i}.attn.{x}_bias": new(WIDTH) for x in "qv"}
        weights |= {f"blocks.{i}.gamma_{x}": new(WIDTH) for x in (1, 2)}
    weights["rel_pos_bias.relative_position_bias_table"] = 3 * new((2 * GRID - 1) ** 2 + 3, HEADS)
    weights["rel_pos_bias.relative_position_index"] = torch.zeros(TOKENS, TOKENS, dtype=torch.long)
    return weights | {"mask_token": new(1, 1, WIDTH)}


# Hugging Face's names for the same parts; its norm at the end lies outside what has a prefix.
MIRROR = {
    r"blocks\.(\d+)\.": r"encoder.layer.\1.",
    r"norm1": "layernorm_before",
    r"norm2": "layernorm_after",
    r"attn\.proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
    r"gamma_": "lambda_",
    r"(cls_token|mask_token)": r"embeddings.\1",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"rel_pos_bias\.": "encoder.relative_position_bias.",
    r"^norm\.": "layernorm.",
}


def _mirrored(weights, prefix=""):
    """The weights as Hugging Face keeps them: q, k and v apart."""
    mirrored = {}
    for key, value in weights.items():
        at, part = re.fullmatch(r"(?:blocks\.(\d+)\.attn\.)?(.*)", key).groups()
        attention = f"encoder.layer.{at}.attention.attention."
        if part in ("qkv.weight", "qkv.bias"):
            for name, each in zip(("query", "key", "value"), value.chunk(3), strict=True):
                mirrored[f"{prefix}{attention}{name}.{part[4:]}"] = each
        elif part in ("q_bias", "v_bias"):
            mirrored[f"{prefix}{attention}{'query' if part[0] == 'q' else 'value'}.bias"] = value
        else:
            for old, new in MIRROR.items():
                key = re.sub(old, new, key)
            mirrored[key if key.startswith("layernorm.") else prefix + key] = value
    return mirrored


# --- the published architectures, with explicit softmax and without timm ---------------------------------


def _norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def _linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _softmax_attention(q, k, v, heads, bias):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    attention = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    return (attention @ v).transpose(1, 2).flatten(2)


def _relative_bias(table):
    """Bias `H N N` of BEiT's table, looked up pair by pair."""

    def place(i, j):
        if 0 in (i, j):
            return len(table) - (1 if i == j else 3 if i == 0 else 2)
        (ri, ci), (rj, cj) = divmod(i - 1, GRID), divmod(j - 1, GRID)
        return (ri - rj + GRID - 1) * (2 * GRID - 1) + ci - cj + GRID - 1

    pairs = [[place(i, j) for j in range(TOKENS)] for i in range(TOKENS)]
    return table[torch.tensor(pairs)].permute(2, 0, 1)


def _patches(w, pixels):
    patches = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    return patches.flatten(2).transpose(1, 2)


def _run_blocks(w, x, heads, blocks="blocks", bias=0.0):
    for i in range(DEPTH):
        at = f"{blocks}.{i}."
        q, k, v = F.linear(_norm(w, at + "norm1", x), w[at + "attn.qkv.weight"]).chunk(3, -1)
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


def _run(w, pixels):
    """Features of a plain ViT, or of BEiT where there are relative positions."""
    table = w.get("rel_pos_bias.relative_position_bias_table")
    bias = 0.0 if table is None else _relative_bias(table)
    x = torch.cat([w["cls_token"].expand(len(pixels), -1, -1), _patches(w, pixels)], 1)
    return _norm(w, "norm", _run_blocks(w, x + w.get("pos_embed", 0.0), HEADS, bias=bias))


# --- one case per layout: the tensors of the encoder, and the file around them ----------------------------


def _moco(new, w):
    table = w | new.linear("head.0", WIDTH, 8)
    table = {f"{of}_encoder.{key}": value for of in ("base", "momentum") for key, value in table.items()}
    table |= new.linear("predictor.0", 8, 8)
    return {"epoch": 300, "state_dict": {f"module.{k}": v for k, v in table.items()}, "optimizer": {}}


def _simmim(new, w):
    table = {f"encoder.{key}": value for key, value in w.items()} | new.linear("decoder.0", WIDTH, 8)
    return {"model": table, "epoch": 799}


def _msn(new, w):
    table = {f"module.{key}": value for key, value in (w | new.linear("fc.fc1", WIDTH, 8)).items()}
    return {"target_encoder": table, "prototypes": new(4, 8), "epoch": 600}


def _dinov2(new):
    return _vit(new) | {f"blocks.{i}.ls{x}.gamma": new(WIDTH) for i in range(DEPTH) for x in (1, 2)}


def _with_head(new, w):
    return {"model": w | new.linear("lm_head", WIDTH, 8)}


CASES = {
    MOCO: (_vit, _moco),
    SIMMIM: (_beit, _simmim),
    "ibot.vit_base_patch16_224": (_vit, lambda new, w: {"state_dict": w | {"masked_embed": new(1, WIDTH)}}),
    "beit.beit_base_patch16_224": (_beit, _with_head),
    "beit.beit_large_patch16_224": (_beit, lambda new, w: _with_head(new, _mirrored(w, "beit."))["model"]),
    "beitv2.beitv2_base_patch16_224": (_beit, lambda new, w: {"model": w | new.norm("cls_pt_layers.0", 8)}),
    "data2vec.beit_base_patch16_224": (_beit, _with_head),
    "data2vec.beit_large_patch16_224": (_beit, lambda new, w: _mirrored(w)),
    "msn.vit_small_patch16_224": (_vit, _msn),
    "msn.vit_base_patch16_224": (_vit, lambda new, w: _mirrored(w)),
    "mae.vit_base_patch16_224": (_vit, lambda new, w: {"model": w}),
    DINO: (_vit, lambda new, w: w),
    DINOV2: (_dinov2, lambda new, w: w | {"mask_token": new(1, WIDTH)}),
}


@pytest.fixture
def pixels():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def small(monkeypatch):
    """Makes all of timm's models, and MAE's decoder, small."""
    create, sizes = timm.create_model, SMALL | {"patch_size": PATCH}
    monkeypatch.setattr(timm, "create_model", lambda model, **k: create(model, **{**k, **sizes}))
    monkeypatch.setattr(MaskedAutoencoder.__init__, "__defaults__", (16, DEPTH, 4))


@pytest.fixture
def read(small, tmp_path):
    """Writes a file and loads it as the small checkpoint of a name."""

    def write_and_load(name, content):
        torch.save(content, tmp_path / "file.pth")
        return load(name, from_file=tmp_path / "file.pth", device="cpu")

    return write_and_load


def _features(encoder, pixels):
    with torch.no_grad():
        return encoder.module.forward_features(pixels)


@pytest.mark.parametrize("name", CASES)
def test_features_are_those_of_the_published_architecture(name, read, pixels):
    make, wrapped = CASES[name]
    new = Tensors()
    weights = make(new)
    encoder = read(name, wrapped(new, weights))
    assert_close(_features(encoder, pixels), _run(weights, pixels))
    assert (encoder.name, encoder.prefix, encoder.grid) == (name, 1, (GRID, GRID))
    assert encoder.objective == CHECKPOINTS[name].objective
    depths = []
    with capture(encoder, on_attention=lambda a: depths.append((a.depth, a.bias is not None))):
        encoder.forward(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    assert depths == [(1, make is _beit), (2, make is _beit)]


def test_where_weights_came_from_and_what_was_left_out_is_recorded(read):
    new = Tensors()
    about = read(MOCO, _moco(new, _vit(new))).provenance
    assert about["left out"][0] == "module.base_encoder.head.0.bias" and len(about["sha256"]) == 64
    assert (about["entry"], about["licence"]) == ("state_dict", "CC-BY-NC-4.0")
    about = read(DINOV2, _dinov2(new) | {"mask_token": new(1, WIDTH)}).provenance  # which timm drops
    assert about["left out"] == ["mask_token"]


def test_a_name_that_looks_like_a_file_is_told_from_one_of_a_hub():
    with pytest.raises(FileNotFoundError, match=r"no file facebook/dinov2-base; .*hf-hub:timm/"):
        load("facebook/dinov2-base")


def test_of_a_module_it_is_said_how_to_make_an_encoder():
    with pytest.raises(TypeError, match=r"not a Linear; nbhelpers\.models\.wrap"):
        load(torch.nn.Linear(1, 1))


def test_dinos_own_training_files_give_the_teacher(read, pixels):
    new = Tensors()
    student, teacher = _vit(new), _vit(new)
    content = {
        "student": {f"module.backbone.{key}": value for key, value in student.items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.items()}
        | new.linear("head.mlp", 8, 8),
        "epoch": 100,
    }
    encoder = read(DINO, content)
    assert_close(_features(encoder, pixels), _run(teacher, pixels))
    assert encoder.provenance["entry"] == "teacher"
    assert encoder.provenance["left out"] == ["head.mlp.bias", "head.mlp.weight"]
    average = {"state_dict_ema": content["teacher"], "state_dict": content["student"]}
    assert_close(_features(read(DINO, average), pixels), _run(teacher, pixels))
    del content["teacher"]
    assert_close(_features(read(DINO, content), pixels), _run(student, pixels))


# --- MAE with its decoder ---------------------------------------------------------------------------------


def _mae_file(new, width=16):
    w = _vit(new) | _blocks(new, "decoder_blocks", width)
    w |= {"mask_token": new(1, 1, width), "decoder_pos_embed": new(1, TOKENS, width)}
    w |= new.linear("decoder_embed", WIDTH, width) | new.norm("decoder_norm", width)
    return w | new.linear("decoder_pred", width, 3 * PATCH * PATCH)


def _run_mae(w, pixels, keep, heads):
    """Reconstruction by MAE as published: encoder on visible patches, mask tokens, decoder."""
    x = _patches(w, pixels) + w["pos_embed"][:, 1:]
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
def mae(read):
    """A small autoencoder read from a file in the layout of mae_visualize_*.pth."""
    weights = _mae_file(Tensors())
    return weights, read("mae_visualize.vit_base_patch16_224", {"model": weights})


def test_mae_with_decoder(mae, pixels):
    weights, encoder = mae
    assert_close(_features(encoder, pixels), _run(weights, pixels))
    tokens, prediction = _run_mae(weights, pixels, [range(GRID * GRID)] * 2, heads=4)
    decoder = decoder_of(encoder)
    assert_close(_features(decoder, pixels), tokens)
    keep = [(3, 0, 7), (8, 2, 1)]
    with torch.no_grad():
        assert_close(encoder.module(pixels), prediction)
        assert_close(encoder.module(pixels, torch.tensor(keep)), _run_mae(weights, pixels, keep, heads=4)[1])

    records, streams = [], []
    with capture(decoder, on_attention=records.append, on_stream=streams.append):
        decoder.forward(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    assert [(r.depth, tuple(r.query.shape)) for r in records] == [(1, (1, 4, 10, 4)), (2, (1, 4, 10, 4))]
    assert streams[0].tokens.shape == (1, TOKENS, 16)


def test_patches_and_images_are_inverse(mae, pixels):
    autoencoder = mae[1].module
    patches = autoencoder.patchify(pixels)
    # Row 1, column 2 of the grid; pixel row 3, column 4; green.
    assert patches[0, 1 * GRID + 2, (3 * PATCH + 4) * 3 + 1] == pixels[0, 1, PATCH + 3, 2 * PATCH + 4]
    assert torch.equal(autoencoder.unpatchify(patches), pixels)


# --- what does not fit, and what may lie beside -----------------------------------------------------------

MISFITS = {
    "a weight is missing": (lambda w: w.pop("norm.bias"), "norm.bias"),
    "one too many": (lambda w: w.update(new=torch.ones(1)), "new"),
    "all have another prefix": (
        lambda w: [w.update({f"other.{k}": w.pop(k)}) for k in list(w)],
        "the first of them: other.",
    ),
    "some have another prefix": (
        lambda w: [w.update({f"module.{k}": w.pop(k)}) for k in list(w)] + [w.update(other=torch.ones(1))],
        "unknown keys: other",
    ),
    "another shape": (lambda w: w.update({"norm.bias": torch.ones(7)}), "norm.bias"),
    "other patches": (  # which timm would resample
        lambda w: w.update({"patch_embed.proj.weight": torch.ones(WIDTH, 3, 8, 8)}),
        "(24, 3, 8, 8) instead of (24, 3, 16, 16)",
    ),
    "another grid": (lambda w: w.update(pos_embed=torch.ones(1, 37, WIDTH)), "(1, 37, 24) instead of"),
    "another image size": (lambda w: w.update(pos_embed=torch.ones(1, 37, WIDTH)), "img_size"),
    "whole numbers": (lambda w: w.update({"norm.weight": torch.ones(WIDTH).char()}), "is torch.int8"),
    "not a number": (lambda w: w["norm.bias"][3].fill_(math.nan), "norm.bias"),
    "infinite": (lambda w: w["norm.bias"][3].fill_(math.inf), "norm.bias"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit_are_refused_by_name(case, read):
    change, part = MISFITS[case]
    weights = _vit(Tensors())
    change(weights)
    kind = DamagedWeights if case in ("not a number", "infinite") else MismatchedWeights
    with pytest.raises(kind, match=rf"(?s)file\.pth does not fit {DINO}.*{re.escape(part)}"):
        read(DINO, weights)


def test_timm_knows_no_address_and_no_licence_of_a_file_of_ones_own(tmp_path):
    name, path = "vit_tiny_patch16_224", tmp_path / "mine.pth"
    torch.save({"model_state_dict": timm.create_model(name).state_dict()}, path)
    provenance = load(name, from_file=path, device="cpu").provenance
    assert provenance["addresses"] is None is provenance["licence"] and provenance["source"] == str(path)


def test_relative_positions_are_not_resampled(read):
    weights = _beit(Tensors())
    weights["rel_pos_bias.relative_position_bias_table"] = torch.ones(27**2 + 3, HEADS)
    with pytest.raises(MismatchedWeights, match=r"bias_table \(732, 3\) instead of \(28, 3\)"):
        read("beit.beit_base_patch16_224", weights)


def test_simmims_own_file_with_its_configuration(small, tmp_path, pixels, monkeypatch):
    """A stand-in for yacs, gone when the file is read."""

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package = types.ModuleType("yacs.config")
    package.CfgNode = CfgNode
    config = CfgNode(DATA=CfgNode(MASK_RATIO=0.6))
    config.frozen = True  # yacs keeps attributes beside the items
    new = Tensors()
    weights = _beit(new)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", package)
        torch.save(_simmim(new, weights) | {"config": config}, tmp_path / "file.pth")
    encoder = load(SIMMIM, from_file=tmp_path / "file.pth", device="cpu")
    assert_close(_features(encoder, pixels), _run(weights, pixels))


def test_numbers_and_paths_beside_weights_are_no_code(read, tmp_path):
    beside = {"best": np.float64(0.5), "step": np.int64(3), "curve": np.arange(3.0), "at": tmp_path}
    content = {"state_dict": _vit(Tensors()), **beside, "args": argparse.Namespace(**beside)}
    assert read(DINO, content).depth == DEPTH


# --- descriptions against the authors' code ---------------------------------------------------------------


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
    "mocov3 msn": (transforms.Resize(256), IMAGENET),
    "dino ibot ibot_rand_mask ibot_22k": (transforms.Resize(256, interpolation=BICUBIC), IMAGENET),
    "mae mae_visualize mae_visualize_ganloss simmim beitv2 data2vec": (
        transforms.Resize(int(224 / (224 / 256)), interpolation=BICUBIC),
        IMAGENET,
    ),
    "beit": (transforms.Resize(256, interpolation=BICUBIC), HALF),  # of ImageNet-22k, their default
    "deit": (transforms.Resize(int(224 / 0.875), interpolation=BICUBIC), IMAGENET),
}
EVALUATED = [name for name in CHECKPOINTS if name.partition(".")[0] in " ".join(AUTHORS).split()]


@pytest.mark.parametrize("families", AUTHORS)
def test_images_are_prepared_as_the_authors_evaluate(families, monkeypatch):
    monkeypatch.setattr(MaskedAutoencoder.__init__, "__defaults__", (16, DEPTH, 4))
    resize, normalize = AUTHORS[families]
    seen = transforms.Compose(
        [resize, transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(*normalize)]
    )
    # Fine stripes under smooth noise: another size, filter or crop moves them by far more than a grey level.
    noise = np.random.default_rng(0).integers(64, 192, (300, 401, 3), dtype=np.uint8)
    for name in EVALUATED:
        if name.partition(".")[0] in families.split():
            checkpoint = CHECKPOINTS[name]
            assert checkpoint.evaluation, name
            patch = {"patch_size": 32, "img_size": 224} if checkpoint.decoder else {"img_size": 224}
            encoder = replace(checkpoint, options=checkpoint.options | SMALL | patch).build()
            found = encoder.preprocess(torch.from_numpy(noise).permute(2, 0, 1)[None])[0]
            gap = (found - seen(Image.fromarray(noise))).abs().max()
            assert gap <= 2.01 / 255 / min(encoder.std), name  # PIL and the tensor kernel round once per axis


def test_preprocessing_is_that_of_the_weights_whatever_the_name(small, read):
    def seen(encoder):
        return encoder.mean, encoder.std, encoder.interpolation, encoder.crop, encoder.crop_mode

    usual = (*IMAGENET, "bicubic", 0.875, "center")
    for name in ("vit_base_patch16_224", DINOV2, DINO):
        assert seen(load(f"random:{name}", device="cpu")) == usual, name
    for name, expected in {
        "clip.vit_base_patch16_clip_quickgelu_224": ("bicubic", 1.0, "center"),
        "siglip2.vit_base_patch16_siglip_224": ("bilinear", 1.0, "squash"),
    }.items():
        assert seen(load(f"random:{name}", device="cpu"))[2:] == expected
    names = ("mae.vit_base_patch16_224", "vit_base_patch16_224.mae")
    assert len({read(name, _vit(Tensors())).fingerprint for name in names}) == 1


# Widths, depths and heads as the authors' model files define them (vits.py, vision_transformer.py, deit.py,
# models_mae.py, modeling_pretrain.py, modeling_cyclical.py): all with q, k, v biases as in their files, exact
# GELU, LayerNorm eps 1e-6; MoCo v3's ViT-S alone has 12 heads.
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
LAYER_SCALE = {  # at initialisation: --layer_scale_init_value of the authors' commands; SimMIM's config.py
    SIMMIM: 0.1,
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


@pytest.mark.parametrize("name", EVALUATED)
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
