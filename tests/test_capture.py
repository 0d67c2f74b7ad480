"""Captured attention and streams against dense float64 oracles and independent hooks."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.beit import Beit
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import nn

from nbhelpers.capture import capture
from nbhelpers.models import UnsupportedArchitecture, mini_vit, wrap

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
HALF = (0.5, 0.5, 0.5)


def _timm(name, size, **options):
    return lambda: timm.create_model(name, img_size=size, **(SMALL | options))


def _simmim():
    return Beit(
        img_size=(48, 80),
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        global_pool="token",
        init_values=0.1,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
    )


# name: (factory, prefix tokens, grid)
CASES = {
    "mini": (lambda: mini_vit(32, 2, 2), 1, (8, 8)),
    "vit": (_timm("vit_tiny_patch16_224", (48, 80)), 1, (3, 5)),
    "vit-qknorm": (_timm("vit_tiny_patch16_224", (48, 80), qk_norm=True, init_values=0.3), 1, (3, 5)),
    "vit-respost": (_timm("vit_tiny_patch16_224", 48, block_fn=ResPostBlock), 1, (3, 3)),
    "deit-distilled": (_timm("deit_tiny_distilled_patch16_224", (80, 48)), 2, (5, 3)),
    "dinov2-reg4": (_timm("vit_small_patch14_reg4_dinov2", (42, 56)), 5, (3, 4)),
    "dinov3": (_timm("vit_small_patch16_dinov3", (48, 64)), 5, (3, 4)),
    "eva02": (_timm("eva02_tiny_patch14_224", (42, 56)), 1, (3, 4)),
    "eva02-subnorm": (_timm("eva02_base_patch14_224", (42, 56)), 1, (3, 4)),
    "eva-postnorm": (_timm("eva02_enormous_patch14_clip_224", (42, 56)), 1, (3, 4)),
    "beit": (_timm("beit_base_patch16_224", 48), 1, (3, 3)),
    "simmim": (_simmim, 1, (3, 5)),
    "siglip": (_timm("vit_base_patch16_siglip_224", (48, 80)), 0, (3, 5)),
    "clip": (_timm("vit_base_patch16_clip_quickgelu_224", 48), 1, (3, 3)),
    "relpos": (_timm("vit_relpos_small_patch16_224", (48, 80)), 0, (3, 5)),
    "relpos-respost": (_timm("vit_relpos_base_patch16_rpn_224", 48), 0, (3, 3)),
    "srelpos": (_timm("vit_srelpos_small_patch16_224", 48), 0, (3, 3)),
    "rope-mixed": (_timm("vit_base_patch16_rope_mixed_224", 48), 1, (3, 3)),
    "aimv2": (_timm("aimv2_large_patch14_224", 42), 0, (3, 3)),
    "naflex": (
        lambda: timm.create_model("naflexvit_base_patch16_siglip", **SMALL, pretrained_cfg_overlay=NAFLEX),
        0,
        (3, 5),
    ),
    "naflex-reg4": (
        lambda: timm.create_model(
            "naflexvit_base_patch16_gap", **SMALL, reg_tokens=4, pretrained_cfg_overlay=NAFLEX
        ),
        4,
        (3, 5),
    ),
}
NAFLEX = {"input_size": (3, 48, 80)}
POOLING_HEADS = ("siglip", "naflex")


def _randomise(module):
    """Give every parameter a value that matters: zero biases and tables would hide faults."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def _encoder(name):
    torch.manual_seed(0)
    module = CASES[name][0]()
    _randomise(module)
    return wrap(module, name=name, mean=HALF, std=HALF)


def _images(encoder, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, *encoder.image_size), generator=generator, dtype=torch.uint8)


def _probabilities(record):
    """Dense float64 softmax of a captured layer, `B H N N`."""
    logits = record.scale * record.query.double() @ record.key.double().transpose(-2, -1)
    return (logits if record.bias is None else logits + record.bias.double()).softmax(-1)


@pytest.mark.parametrize("name", CASES)
def test_attention_equals_the_unfused_model(name):
    encoder = _encoder(name)
    images = _images(encoder)
    assert (encoder.prefix, encoder.grid) == CASES[name][1:]

    records = []
    with capture(encoder, on_attention=records.append):
        tokens = encoder.forward(images)
    assert [record.depth for record in records] == [1, 2]
    for record in records:
        probabilities = _probabilities(record)
        assert probabilities.shape == (2, encoder.heads, encoder.tokens, encoder.tokens)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]).double())
        dense = probabilities @ record.value.double()
        torch.testing.assert_close(record.output.double(), dense, atol=2e-5, rtol=1e-4)
        assert (record.prefix, record.grid) == CASES[name][1:]

    # Independent path: timm's explicit softmax hands its probabilities to the attention dropout.
    maps, hooks = [], []
    for part in encoder.module.blocks.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
        if hasattr(part, "attn_drop"):
            hooks.append(part.attn_drop.register_forward_pre_hook(lambda _, args: maps.append(args[0])))
    torch.testing.assert_close(encoder.forward(images), tokens, atol=1e-4, rtol=1e-3)
    assert len(maps) == len(records)
    for record, map_ in zip(records, maps, strict=True):
        torch.testing.assert_close(_probabilities(record).float(), map_, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_streams_equal_independent_hooks(name):
    encoder = _encoder(name)
    images = _images(encoder)
    inputs, outputs, hooks = [], [], []
    for block in encoder.module.blocks:
        hooks.append(block.register_forward_pre_hook(lambda _, a, k: inputs.append((a, k)), with_kwargs=True))
        hooks.append(block.register_forward_hook(lambda _, __, out: outputs.append(out)))
    encoder.forward(images)
    for hook in hooks:
        hook.remove()

    streams = {}
    with capture(encoder, on_stream=lambda s: streams.__setitem__((s.depth, s.place), s.tokens)):
        encoder.forward(images)
    assert list(streams) == [(0, "block"), (1, "+sa"), (1, "block"), (2, "+sa"), (2, "block")]
    torch.testing.assert_close(streams[0, "block"], inputs[0][0][0])
    for depth, output in enumerate(outputs, start=1):
        torch.testing.assert_close(streams[depth, "block"], output)

    # "+sa" is what the block gives if its MLP branch adds nothing.
    for depth, (block, (args, kwargs)) in enumerate(zip(encoder.blocks, inputs, strict=True), start=1):
        hook = block.drop_path2.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        torch.testing.assert_close(streams[depth, "+sa"], block(*args, **kwargs))
        hook.remove()


@pytest.mark.parametrize("name", POOLING_HEADS)
def test_pooling_head_is_not_a_layer(name):
    encoder = _encoder(name)
    assert encoder.module.attn_pool is not None
    depths = []
    with capture(encoder, on_attention=lambda a: depths.append(a.depth)):
        encoder.module(encoder.preprocess(_images(encoder)))
    assert depths == [1, 2]


def test_embedding_is_what_enters_the_first_block():
    encoder = _encoder("mini")
    images = _images(encoder)
    module, pixels = encoder.module, encoder.preprocess(images)
    with torch.no_grad():
        patches = module.patch_embed(pixels)
        tokens = torch.cat([module.cls_token.expand(2, -1, -1), patches], 1) + module.pos_embed
    streams = []
    with capture(encoder, on_stream=streams.append, places=("block",)):
        encoder.forward(images)
    assert [stream.depth for stream in streams] == [0, 1, 2]
    torch.testing.assert_close(streams[0].tokens, tokens)


def test_parallel_blocks_have_attention_but_no_place_after_it():
    module = timm.create_model("vit_tiny_patch16_224", img_size=48, block_fn=ParallelScalingBlock, **SMALL)
    encoder = wrap(module, heads=2)
    depths = []
    with capture(encoder, on_attention=lambda a: depths.append(a.depth), on_stream=print, places=()):
        encoder.forward(_images(encoder))
    assert depths == [1, 2]
    with pytest.raises(UnsupportedArchitecture, match=r"ParallelScalingBlock.*places=\('block',\)"):
        with capture(encoder, on_stream=print):
            pass


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"block_fn": ParallelThingsBlock}, "ParallelThingsBlock.*side by side"),
        ({"block_fn": DiffParallelScalingBlock}, "DiffParallelScalingBlock.*subtracts"),
        ({"attn_layer": "diff"}, "DiffAttention.*subtracts"),
    ],
)
def test_blocks_with_more_than_one_map_are_refused(options, reason):
    module = timm.create_model("vit_tiny_patch16_224", img_size=48, **(SMALL | {"num_heads": 2} | options))
    with pytest.raises(UnsupportedArchitecture, match=reason):
        wrap(module)


def _unfuse(encoder):
    for part in encoder.module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False


def test_unfused_attention_is_captured_and_left_unfused():
    encoder = _encoder("vit")
    images = _images(encoder)
    expected, found = [], []
    with capture(encoder, on_attention=expected.append):
        encoder.forward(images)
    _unfuse(encoder)
    with capture(encoder, on_attention=found.append):
        encoder.forward(images)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one.scale * one.query, other.scale * other.query)
        torch.testing.assert_close(_probabilities(one).float(), _probabilities(other).float())
        torch.testing.assert_close(one.output, other.output)
    assert not any(block.attn.fused_attn for block in encoder.blocks)


def _state(encoder):
    """Everything that capture touches."""
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), getattr(m, "fused_attn", None))
        for m in encoder.module.modules()
    ]
    return hooks, torch.overrides._get_current_function_mode_stack(), F.scaled_dot_product_attention


@pytest.mark.parametrize("broken", ["callback", "forward", "nothing"])
def test_nothing_is_left_behind(broken):
    encoder = _encoder("vit")
    _unfuse(encoder)
    before = _state(encoder)

    class Stop(Exception):
        pass

    def on_attention(record):
        if broken == "callback":
            raise Stop

    def run():
        with capture(encoder, on_attention=on_attention, on_stream=lambda s: None):
            encoder.forward(_images(encoder))
            if broken == "forward":
                raise Stop

    if broken == "nothing":
        run()
    else:
        with pytest.raises(Stop):
            run()
    assert _state(encoder) == before


def test_nothing_is_kept():
    encoder = _encoder("vit")
    references = []

    def keep(record):
        tensors = [record.query, record.output] if hasattr(record, "query") else [record.tokens]
        references.extend(weakref.ref(tensor) for tensor in tensors)

    with capture(encoder, on_attention=keep, on_stream=keep):
        encoder.forward(_images(encoder))
        gc.collect()
        assert len(references) == 9
        assert not any(reference() is not None for reference in references)


def test_consumers_may_compute_attention_themselves():
    encoder, depths = _encoder("vit"), []

    def own_attention(stream):
        F.scaled_dot_product_attention(*[stream.tokens[:, None]] * 3)

    def again(record):
        F.scaled_dot_product_attention(record.query, record.key, record.value)
        depths.append(record.depth)

    with capture(encoder, on_attention=again, on_stream=own_attention):
        encoder.forward(_images(encoder))
    assert depths == list(range(1, encoder.depth + 1))  # the consumers' own calls are not captured


def test_another_model_inside_is_not_captured():
    encoder, other = _encoder("vit"), _encoder("mini")
    depths = []
    with capture(encoder, on_attention=lambda a: depths.append(a.depth)):
        other.forward(_images(other))
        encoder.forward(_images(encoder))
        other.forward(_images(other))
        encoder.forward(_images(encoder))
    assert depths == [1, 2, 1, 2]


class Silent(nn.Module):
    """Attention that never calls the fused function, as in hand-written ViTs."""

    num_heads = 2

    def __init__(self, inner):
        super().__init__()
        self.proj = inner.proj

    def forward(self, x, **_):
        return self.proj(x)


def test_wrong_number_of_layers_raises():
    encoder = _encoder("vit")
    encoder.module.blocks[1].attn = Silent(encoder.blocks[1].attn).eval()
    with pytest.raises(RuntimeError, match=r"block 2 .* gave attention 0 times instead of once"):
        with capture(encoder, on_attention=lambda a: None):
            encoder.forward(_images(encoder))


def test_wrong_shape_raises():
    encoder = _encoder("vit")
    encoder.prefix = 2
    with pytest.raises(RuntimeError, match=r"block 1 has query.*\(2, 2, 16, 16\).*H N = \(2, 17\)"):
        with capture(encoder, on_attention=lambda a: None):
            encoder.forward(_images(encoder))
    with pytest.raises(RuntimeError, match=r"depth 0 \(block\) is \(2, 16, 32\).*\(17, 32\)"):
        with capture(encoder, on_stream=lambda s: None):
            encoder.forward(_images(encoder))


def test_encoder_that_did_not_run_raises():
    with pytest.raises(RuntimeError, match="0 of 2 blocks"):
        with capture(_encoder("vit"), on_attention=lambda a: None):
            pass


def test_skipped_blocks_raise():
    encoder = _encoder("vit")
    x = torch.zeros(1, encoder.tokens, encoder.width)
    with pytest.raises(RuntimeError, match="block 2 started after block 0"):
        with capture(encoder, on_attention=lambda a: None):
            encoder.blocks[1](x)
    with pytest.raises(RuntimeError, match="1 of 2 blocks"):
        with capture(encoder, on_attention=lambda a: None):
            encoder.blocks[0](x)


def test_masked_attention_is_refused():
    encoder = _encoder("vit")
    with pytest.raises(UnsupportedArchitecture, match="block 1 masks"):
        with capture(encoder, on_attention=lambda a: None):
            encoder.module.forward_features(encoder.preprocess(_images(encoder)), is_causal=True)


def test_a_mask_of_infinite_biases_is_refused():
    encoder = _foreign(Masked)
    with pytest.raises(UnsupportedArchitecture, match="block 1 masks"):
        with capture(encoder, on_attention=lambda a: None):
            encoder.forward(_images(encoder))


def test_arguments_are_checked():
    encoder = _encoder("vit")
    with pytest.raises(ValueError, match="on_attention, on_stream or both"):
        with capture(encoder):
            pass
    with pytest.raises(ValueError, match="unknown place"):
        with capture(encoder, on_stream=print, places=("+mlp",)):
            pass


def test_own_module_with_explicit_description():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.norm, self.mlp = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            x = x + F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2)
            return x + self.mlp(self.norm(x))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.layers = nn.Conv2d(3, 8, 4, 4), nn.ModuleList([Layer(), Layer(), Layer()])

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            for layer in self.layers:
                x = layer(x)
            return x

    description = {"prefix": 0, "grid": (2, 3), "patch_size": 4, "heads": 2, "width": 8}
    encoder = wrap(Own(), **description, mean=HALF, std=HALF, blocks="layers", after_attention="norm")
    attention, streams = [], []
    with capture(encoder, on_attention=attention.append, on_stream=streams.append):
        encoder.forward(_images(encoder))
    assert [(a.depth, a.scale) for a in attention] == [(1, 0.3), (2, 0.3), (3, 0.3)]
    assert len(streams) == 7
    torch.testing.assert_close(
        _probabilities(attention[0]) @ attention[0].value.double(),
        attention[0].output.double(),
        atol=1e-6,
        rtol=1e-5,
    )


# Models of other makes, each of width 8 with two heads on a grid of 2 x 3 and an image of 8 x 12 px.
DESCRIPTION = {
    "prefix": 0,
    "grid": (2, 3),
    "patch_size": 4,
    "heads": 2,
    "width": 8,
    "mean": HALF,
    "std": HALF,
}


class Foreign(nn.Module):
    """A patch embedding and two blocks."""

    def __init__(self, block):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.ModuleList([block(), block()])

    def forward(self, pixels):
        tokens = self.patch(pixels).flatten(2).transpose(1, 2)
        for block in self.blocks:
            output = block(tokens)
            tokens = output[0] if isinstance(output, tuple) else output
        return tokens


class Own(nn.Module):
    """A block whose attention is written by hand, in the way that a subclass says."""

    def __init__(self):
        super().__init__()
        self.qkv, self.norm, self.mlp = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = x + self.attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.mlp(self.norm(x))


class Scaled(Own):
    def attend(self, q, k, v):
        return ((q @ k.transpose(-2, -1)) * 0.7).softmax(-1) @ v


class InPlace(Own):
    def attend(self, q, k, v):
        logits = torch.matmul(q, k.mT)
        logits *= 0.7
        return torch.matmul(F.softmax(logits, dim=-1), v)


class Biased(Own):
    def attend(self, q, k, v):
        distance = torch.arange(6.0)
        bias = -(distance[:, None] - distance).abs()
        return torch.softmax(q @ k.mT + bias, dim=-1) @ v


class HuggingFace(Own):
    """SDPA, and a tuple as the output of a block."""

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, scale=0.7)

    def forward(self, hidden_states):
        return (super().forward(hidden_states),)


class Einsum(Own):
    def attend(self, q, k, v):
        return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


class MultiHead(nn.Module):
    def __init__(self, need_weights=True, bias=True):
        super().__init__()
        self.attn, self.need_weights = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True), need_weights
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.attn(x, x, x, need_weights=self.need_weights)[0]
        return x + self.mlp(self.norm(x))


def _layer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)


class Masked(Own):
    def attend(self, q, k, v):
        bias = torch.zeros(6, 6)
        bias[:, 0] = -torch.inf
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Dropout(Own):
    def attend(self, q, k, v):
        return F.dropout((q @ k.mT).softmax(-1), 0.3) @ v


class TalkingHeads(Own):
    def attend(self, q, k, v):
        mixed = torch.einsum("gh,bhqk->bgqk", torch.tensor([[0.9, 0.1], [0.3, 0.7]]), (q @ k.mT).softmax(-1))
        return mixed @ v


class OverQueries(Own):
    def attend(self, q, k, v):
        return (q @ k.mT).softmax(-2) @ v


class Causal(Own):
    def attend(self, q, k, v):
        return (q @ k.mT).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1) @ v


def test_a_mask_written_out_is_refused_by_name():
    encoder = _foreign(Causal)
    with pytest.raises(RuntimeError, match="block 1 masks some tokens"):
        with capture(encoder, on_attention=lambda a: None):
            encoder.forward(_images(encoder))


@pytest.mark.parametrize("block", [Dropout, TalkingHeads, OverQueries])
def test_attention_that_is_not_the_softmax_over_keys_is_refused(block):
    encoder = _foreign(block)
    with pytest.raises(RuntimeError, match="block 1 changes its attention"):
        with capture(encoder, on_attention=lambda a: None):
            encoder.forward(_images(encoder))


def test_a_block_that_is_used_several_times_has_as_many_depths():
    shared, once = HuggingFace(), Scaled()
    torch.manual_seed(0)
    module = Foreign(HuggingFace)
    module.blocks = nn.ModuleList([shared, once, shared, shared])
    encoder = wrap(module, **DESCRIPTION, after_attention="norm")
    attention, streams = [], []
    with capture(encoder, on_attention=attention.append, on_stream=streams.append):
        tokens = encoder.forward(_images(encoder))
    assert encoder.depth == 4 and [record.depth for record in attention] == [1, 2, 3, 4]
    assert [stream.depth for stream in streams] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    torch.testing.assert_close(streams[-1].tokens, tokens)


FOREIGN = {
    "scaled": Scaled,
    "in place": InPlace,
    "biased": Biased,
    "huggingface": HuggingFace,
    "multi-head, weights": MultiHead,
    "multi-head, no weights": lambda: MultiHead(False),
    "multi-head, no bias": lambda: MultiHead(bias=False),
    "TransformerEncoderLayer": _layer,
}


def _foreign(block):
    torch.manual_seed(0)
    module = Foreign(block)
    _randomise(module)
    place = "norm2" if block is _layer else "norm"
    return wrap(module, **DESCRIPTION, name="foreign", after_attention=place)


@pytest.mark.parametrize("name", FOREIGN)
def test_attention_of_other_makes(name):
    """Probabilities times values are the output that the block projects, and nothing changes."""
    encoder = _foreign(FOREIGN[name])
    images = _images(encoder)
    before = encoder.forward(images)
    attention, streams = [], []
    with capture(encoder, on_attention=attention.append, on_stream=streams.append):
        torch.testing.assert_close(encoder.forward(images), before)
    assert [record.depth for record in attention] == [1, 2] and len(streams) == 5
    torch.testing.assert_close(streams[-1].tokens, before)
    for record in attention:
        dense = _probabilities(record) @ record.value.double()
        torch.testing.assert_close(record.output.double(), dense, atol=1e-6, rtol=1e-5)
        assert record.query.shape == (2, 2, 6, 4)
    # The block's own way from this output to the stream after attention.
    block, record = encoder.blocks[1], attention[1]
    projection = getattr(getattr(block, "attn", getattr(block, "self_attn", None)), "out_proj", nn.Identity())
    merged = record.output.transpose(1, 2).flatten(2)
    torch.testing.assert_close(streams[3].tokens, streams[2].tokens + projection(merged))


def test_torchvision_is_captured():
    torch.manual_seed(0)
    module = torchvision.models.VisionTransformer(24, 8, 2, 2, 16, 32)
    _randomise(module)
    layout = {"prefix": 1, "grid": (3, 3), "patch_size": 8, "heads": 2, "width": 16}
    encoder = wrap(
        module,
        **layout,
        mean=HALF,
        std=HALF,
        blocks="encoder.layers",
        after_attention="ln_2",
        name="torchvision",
    )
    images, attention = _images(encoder), []
    before = encoder.forward(images)
    with capture(encoder, on_attention=attention.append, on_stream=lambda s: None):
        torch.testing.assert_close(encoder.forward(images), before)
    weights = []
    for block in encoder.blocks:
        block.self_attention.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"need_weights": True, "average_attn_weights": False}),
            with_kwargs=True,
        )
        block.self_attention.register_forward_hook(lambda _, __, output: weights.append(output[1]))
    encoder.forward(images)
    for record, expected in zip(attention, weights, strict=True):
        torch.testing.assert_close(_probabilities(record).float(), expected)


def test_attention_that_cannot_be_seen_shows_the_two_lines_to_change():
    with pytest.raises(RuntimeError, match=r"foreign: block 1 \(Einsum\)") as error:
        encoder = _foreign(Einsum)
        with capture(encoder, on_attention=lambda a: None):
            encoder.forward(_images(encoder))
    assert "scaled_dot_product_attention(q, k, v, scale=scale)" in str(error.value)


def test_output_objects_of_blocks_are_read():
    class Output(Own):
        attend = HuggingFace.attend

        def forward(self, x):
            return SimpleNamespace(last_hidden_state=super().forward(x))

    class Model(Foreign):
        def forward(self, pixels):
            tokens = self.patch(pixels).flatten(2).transpose(1, 2)
            for block in self.blocks:
                tokens = block(tokens).last_hidden_state
            return SimpleNamespace(last_hidden_state=tokens)

    encoder, streams = wrap(Model(Output), **DESCRIPTION, after_attention="norm"), []
    with capture(encoder, on_stream=streams.append):
        tokens = encoder.forward(_images(encoder))
    torch.testing.assert_close(streams[-1].tokens, tokens)


@pytest.mark.parametrize("change", ["ablated head", "scale"])
def test_what_is_changed_in_an_unfused_model_is_what_is_measured(change):
    encoder = _encoder("vit")
    _unfuse(encoder)
    for block in encoder.blocks:
        if change == "scale":
            block.attn.scale *= 4
        else:
            block.attn.attn_drop.register_forward_hook(
                lambda _, __, maps: maps * torch.tensor([0.0, 1.0])[:, None, None]
            )
    images, maps, records = _images(encoder), [], []
    hooks = [
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
        for block in encoder.blocks
    ]
    expected = encoder.forward(images)
    for hook in hooks:
        hook.remove()
    with capture(encoder, on_attention=records.append):
        torch.testing.assert_close(encoder.forward(images), expected, rtol=0, atol=0)
    for record, map_ in zip(records, maps, strict=True):
        torch.testing.assert_close(_probabilities(record).float(), map_)
        assert (record.output[:, 0] == 0).all() == (change == "ablated head")


def test_dropout_that_is_on_is_refused():
    for fused in (True, False):
        encoder = wrap(timm.create_model("vit_tiny_patch16_224", img_size=48, **SMALL, attn_drop_rate=0.5))
        if not fused:
            _unfuse(encoder)
        encoder.module.train()
        with pytest.raises(RuntimeError, match="dropout is on"):
            with capture(encoder, on_attention=lambda a: None):
                encoder.forward(_images(encoder))


def test_a_part_that_is_in_training_mode_is_refused():
    encoder = _encoder("vit")
    encoder.blocks[1].mlp.train()
    with pytest.raises(RuntimeError, match="training mode"):
        with capture(encoder, on_attention=lambda a: None):
            pass


def test_the_fast_path_is_off_for_the_duration():
    encoder = _foreign(_layer)
    with capture(encoder, on_stream=lambda s: None):
        assert not torch.backends.mha.get_fastpath_enabled()
        encoder.forward(_images(encoder))
    assert torch.backends.mha.get_fastpath_enabled()
