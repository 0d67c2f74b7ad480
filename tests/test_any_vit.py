"""Properties that hold for any small ViT that timm can build, whatever its tokens, positions and norms."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.capture import capture
from nbhelpers.images import ArraySource
from nbhelpers.measure import analyse
from nbhelpers.metrics import METRICS
from nbhelpers.models import wrap

COMMON = {"depth": 2, "num_heads": 2, "num_classes": 0, "embed_dim": 32}
SIZES = st.tuples(st.sampled_from([48, 64]), st.sampled_from([48, 80]))  # at least 3 x 3 patches
SCALE = {"init_values": st.sampled_from([None, 0.1])}


def models(name, switches, numbers, **fixed):
    """Pairs of a timm name and options: each switch on or off, each number as its strategy draws it."""
    options = {switch: st.booleans() for switch in switches.split()} | numbers | {"img_size": SIZES}
    return st.fixed_dictionaries(options).map(lambda drawn: (name, drawn | fixed))


VIT = models(
    "vit_tiny_patch16_224",
    "class_token no_embed_class qk_norm pre_norm qkv_bias",
    SCALE | {"reg_tokens": st.sampled_from([0, 4])},
    global_pool="avg",
)
EVA = models(
    "eva02_tiny_patch14_224",
    "class_token qk_norm scale_attn_inner use_abs_pos_emb use_rot_pos_emb",
    {"num_reg_tokens": st.sampled_from([0, 2])},
    patch_size=16,
    global_pool="avg",
)
BEIT = models("beit_base_patch16_224", "use_rel_pos_bias", SCALE)
MODELS = st.one_of(VIT, EVA, BEIT)
some = settings(max_examples=12, deadline=None, derandomize=True)


def build(model, fused=True):
    name, options = model
    torch.manual_seed(0)
    module = timm.create_model(name, **COMMON, **options)
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    encoder = wrap(module, name="any", mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.randint(256, (3, 3, *encoder.image_size), dtype=torch.uint8)
    return encoder, images


@some
@given(model=MODELS, fused=st.booleans())
def test_capture_changes_no_feature(model, fused):
    encoder, images = build(model, fused)
    expected, outputs = encoder.forward(images), []

    def attention(record):
        logits = record.scale * record.query @ record.key.mT
        maps = (logits if record.bias is None else logits + record.bias).softmax(-1)
        outputs.append((record.output, maps @ record.value))

    with capture(encoder, on_attention=attention, on_stream=lambda record: None):
        torch.testing.assert_close(encoder.forward(images), expected, rtol=0, atol=0)
    assert len(outputs) == 2
    for output, dense in outputs:
        torch.testing.assert_close(output, dense, rtol=1e-4, atol=1e-5)


@some
@given(model=MODELS, fused=st.booleans(), name=st.sampled_from(list(METRICS)))
def test_a_metric_does_not_depend_on_those_beside_it(model, fused, name):
    encoder, images = build(model, fused)
    source = ArraySource("any", images, {}, {})
    together = analyse(encoder, source, list(METRICS), cache=False)
    alone = analyse(encoder, source, [name], cache=False)
    beside = together[together["metric"] == name]
    assert alone["value"].to_numpy() == pytest.approx(beside["value"].to_numpy(), rel=1e-6, nan_ok=True)
    assert set(together["metric"]) == set(METRICS)


@some
@given(model=MODELS)
def test_fused_and_written_out_attention_are_measured_alike(model):
    frames = []
    for fused in (True, False):
        encoder, images = build(model, fused)
        names = ["nmi", "attention_distance", "attention_entropy", "prefix_attention"]
        names += ["head_map_cosine", "head_cosine"]
        frames.append(analyse(encoder, ArraySource("any", images, {}, {}), names, cache=False))
    assert frames[0]["value"].to_numpy() == pytest.approx(frames[1]["value"].to_numpy(), rel=1e-3, abs=1e-5)
