"""Captured attention and streams against dense float64 oracles and independent hooks."""

import gc
import weakref
from functools import partial
from types import SimpleNamespace

import einops
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

from nbhelpers.capture import Stream, capture
from nbhelpers.models import UnsupportedArchitecture, mini_vit, wrap

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
PIXELS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def _timm(name, size, **options):
    return lambda: timm.create_model(name, img_size=size, **(SMALL | options))


def _naflex(name, **options):
    overlay = {"input_size": (3, 48, 80)}
    return lambda: timm.create_model(name, **SMALL, **options, pretrained_cfg_overlay=overlay)


def _simmim():
    positions = {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True}
    return Beit(img_size=(48, 80), **SMALL, global_pool="token", init_values=0.1, **positions)


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
    "naflex": (_naflex("naflexvit_base_patch16_siglip"), 0, (3, 5)),
    "naflex-reg4": (_naflex("naflexvit_base_patch16_gap", reg_tokens=4), 4, (3, 5)),
}


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
    return wrap(module, name=name, **PIXELS)


def _images(encoder, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, *encoder.image_size), generator=generator, dtype=torch.uint8)


def _run(encoder):
    """Features of two images, and what was captured on the way: attention and streams."""
    attention, streams = [], []
    with capture(encoder, on_attention=attention.append, on_stream=streams.append):
        tokens = encoder.forward(_images(encoder))
    return tokens, attention, streams


def _ignore(record):
    """A callback that looks at nothing."""


def _probabilities(record):
    """Dense float64 softmax of a captured layer, `B H N N`."""
    logits = record.scale * record.query.double() @ record.key.double().transpose(-2, -1)
    return (logits if record.bias is None else logits + record.bias.double()).softmax(-1)


def _unfuse(encoder):
    for part in encoder.module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False


def _dropped_maps(encoder):
    """The maps that timm's explicit softmax hands to the attention dropout when the encoder runs."""
    maps = []
    for part in encoder.module.blocks.modules():
        if hasattr(part, "attn_drop"):
            part.attn_drop.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
    return maps


@pytest.mark.parametrize("name", CASES)
def test_attention_equals_the_unfused_model(name):
    encoder = _encoder(name)
    assert (encoder.prefix, encoder.grid) == CASES[name][1:]
    tokens, records, _ = _run(encoder)
    assert [record.depth for record in records] == [1, 2]
    for record in records:
        probabilities = _probabilities(record)
        assert probabilities.shape == (2, encoder.heads, encoder.tokens, encoder.tokens)
        dense = probabilities @ record.value.double()
        torch.testing.assert_close(record.output.double(), dense, atol=2e-5, rtol=1e-4)
        assert (record.prefix, record.grid) == CASES[name][1:]

    _unfuse(encoder)
    maps = _dropped_maps(encoder)
    torch.testing.assert_close(encoder.forward(_images(encoder)), tokens, atol=1e-4, rtol=1e-3)
    for record, map_ in zip(records, maps, strict=True):
        torch.testing.assert_close(_probabilities(record).float(), map_, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_streams_equal_independent_hooks(name):
    encoder = _encoder(name)
    inputs, outputs, hooks = [], [], []
    for block in encoder.module.blocks:
        hooks.append(block.register_forward_pre_hook(lambda _, a, k: inputs.append((a, k)), with_kwargs=True))
        hooks.append(block.register_forward_hook(lambda _, __, out: outputs.append(out)))
    encoder.forward(_images(encoder))
    for hook in hooks:
        hook.remove()

    streams = {(stream.depth, stream.place): stream.tokens for stream in _run(encoder)[2]}
    assert list(streams) == [(0, "block"), (1, "+sa"), (1, "block"), (2, "+sa"), (2, "block")]
    torch.testing.assert_close(streams[0, "block"], inputs[0][0][0])
    for depth, output in enumerate(outputs, start=1):
        torch.testing.assert_close(streams[depth, "block"], output)

    # "+sa" is what the block gives if its MLP branch adds nothing.
    for depth, (block, (args, kwargs)) in enumerate(zip(encoder.blocks, inputs, strict=True), start=1):
        hook = block.drop_path2.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        torch.testing.assert_close(streams[depth, "+sa"], block(*args, **kwargs))
        hook.remove()


class PositionsInEachBlock(nn.Module):
    """Adds something to the tokens between its blocks, once `shift` is not 0."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.vit, self.shift = mini_vit(32, 2, 2), shift
        self.blocks = self.vit.blocks

    def forward(self, pixels):
        x = self.blocks[0](self.vit.pos_drop(self.vit._pos_embed(self.vit.patch_embed(pixels))))
        return self.blocks[1](x + self.shift)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_patches_are_all_but_the_prefix_in_full_precision(half):
    tokens = torch.arange(24.0).view(2, 6, 2)
    stream = Stream(0, "block", tokens.to(half), prefix=3, grid=(1, 3))
    torch.testing.assert_close(stream.patches, tokens[:, 3:], rtol=0, atol=0)


def test_where_tokens_change_between_blocks_no_step_to_the_attention_is_told():
    layout = {"prefix": 1, "grid": 8, "patch_size": 4, "heads": 2, "width": 32, "after_attention": "norm2"}
    still, moved = (
        wrap(PositionsInEachBlock(shift), **layout, **PIXELS, name="deep") for shift in (0.0, 1.0)
    )
    assert len(_run(still)[2]) == 5
    with pytest.raises(UnsupportedArchitecture, match="deep: tokens change between blocks 1 and 2"):
        _run(moved)
    with capture(moved, on_stream=lambda _: None, places=("block",)):
        moved.forward(_images(moved))


def test_only_attention_of_the_encoders_own_blocks_counts():
    """Not that of its pooling head, of another model, or of what looks at the records."""
    encoder, other, depths = _encoder("siglip"), _encoder("mini"), []
    assert encoder.module.attn_pool is not None

    def attend(stream):
        F.scaled_dot_product_attention(*[stream.tokens[:, None]] * 3)

    def attend_again(record):
        F.scaled_dot_product_attention(record.query, record.key, record.value)
        depths.append(record.depth)

    with capture(encoder, on_attention=attend_again, on_stream=attend):
        for _ in range(2):
            other.forward(_images(other))
            encoder.module(encoder.preprocess(_images(encoder)))
    assert depths == [1, 2, 1, 2]


def test_parallel_blocks_have_attention_but_no_place_after_it():
    module = timm.create_model("vit_tiny_patch16_224", img_size=48, block_fn=ParallelScalingBlock, **SMALL)
    encoder, attention, streams = wrap(module, heads=2), [], []
    with capture(encoder, attention.append, streams.append, places=("block",)):
        encoder.forward(_images(encoder))
    assert [[record.depth for record in records] for records in (attention, streams)] == [[1, 2], [0, 1, 2]]
    with pytest.raises(UnsupportedArchitecture, match=r"ParallelScalingBlock.*places=\('block',\)"):
        _run(encoder)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"block_fn": ParallelThingsBlock}, "ParallelThingsBlock.*side by side"),
        ({"block_fn": DiffParallelScalingBlock}, "DiffParallelScalingBlock.*subtracts"),
        ({"attn_layer": "diff"}, "DiffAttention.*subtracts"),
    ],
)
def test_blocks_with_more_than_one_map_are_refused(options, reason):
    with pytest.raises(UnsupportedArchitecture, match=reason):
        wrap(_timm("vit_tiny_patch16_224", 48, **options)())


def _state(encoder):
    """Everything that capture touches."""
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), getattr(m, "fused_attn", None))
        for m in encoder.module.modules()
    ]
    modes = torch.overrides._get_current_function_mode_stack()
    return hooks, modes, F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("broken", ["callback", "forward", "nothing"])
def test_nothing_is_left_behind(broken):
    encoder = _encoder("vit")
    _unfuse(encoder)
    before = _state(encoder)

    def stop(where):
        if where == broken:
            raise ArithmeticError

    def run():
        with capture(encoder, on_attention=lambda record: stop("callback"), on_stream=_ignore):
            assert not torch.backends.mha.get_fastpath_enabled()  # which makes no call that can be seen
            encoder.forward(_images(encoder))
            stop("forward")

    if broken == "nothing":
        run()
    else:
        with pytest.raises(ArithmeticError):
            run()
    assert _state(encoder) == before


def test_nothing_is_kept():
    encoder, references = _encoder("vit"), []

    def keep(record):
        tensors = [record.query, record.output] if hasattr(record, "query") else [record.tokens]
        references.extend(weakref.ref(tensor) for tensor in tensors)

    with capture(encoder, on_attention=keep, on_stream=keep):
        encoder.forward(_images(encoder))
        gc.collect()
        assert len(references) == 9
        assert not any(reference() is not None for reference in references)


def test_a_wrong_description_of_the_tokens_raises():
    encoder = _encoder("vit")
    encoder.prefix = 2
    with pytest.raises(RuntimeError, match=r"block 1 has query.*\(2, 2, 16, 16\).*H N = \(2, 17\)"):
        with capture(encoder, on_attention=_ignore):
            encoder.forward(_images(encoder))
    with pytest.raises(RuntimeError, match=r"depth 0 \(block\) is \(2, 16, 32\).*\(17, 32\)"):
        with capture(encoder, on_stream=_ignore):
            encoder.forward(_images(encoder))


@pytest.mark.parametrize(
    ("ran", "named"),
    [([], "0 of 2 blocks"), ([0], "1 of 2 blocks"), ([1], "block 2 started after block 0")],
)
def test_blocks_that_did_not_run_in_order_raise(ran, named):
    encoder = _encoder("vit")
    with pytest.raises(RuntimeError, match=named):
        with capture(encoder, on_attention=_ignore):
            for number in ran:
                encoder.blocks[number](torch.zeros(1, encoder.tokens, encoder.width))


def test_a_part_that_is_in_training_mode_is_refused():
    encoder = _encoder("vit")
    encoder.blocks[1].mlp.train()
    with pytest.raises(RuntimeError, match="training mode"):
        _run(encoder)


def test_arguments_are_checked():
    encoder = _encoder("vit")
    for arguments, named in (({}, "on_attention"), ({"on_stream": print, "places": ("+mlp",)}, r"\+mlp")):
        with pytest.raises(ValueError, match=named):
            with capture(encoder, **arguments):
                pass


# Models of other makes, each of width 8 with two heads on a grid of 2 x 3 and an image of 8 x 12 px.
DESCRIPTION = {"prefix": 0, "grid": (2, 3), "patch_size": 4, "heads": 2, "width": 8}


class Foreign(nn.Module):
    """A patch embedding and blocks, which give tensors, tuples or HuggingFace's output objects."""

    def __init__(self, *blocks):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.ModuleList(blocks)

    def forward(self, pixels):
        tokens = self.patch(pixels).flatten(2).transpose(1, 2)
        for block in self.blocks:
            output = block(tokens)
            tokens = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", output)
        return output if isinstance(output, SimpleNamespace) else tokens


class Own(nn.Module):
    """A block whose attention is written by hand, and whose output is packed by `pack`."""

    def __init__(self, attend, pack=lambda x: x):
        super().__init__()
        self.qkv, self.norm, self.mlp = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 8)
        self.attend, self.pack = attend, pack

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = x + self.attend(q, k, v).transpose(1, 2).flatten(2)
        return self.pack(x + self.mlp(self.norm(x)))


class MultiHead(nn.Module):
    def __init__(self, mask=None, need_weights=True, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.call = {"attn_mask": mask, "need_weights": need_weights}
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.attn(x, x, x, **self.call)[0]
        return x + self.mlp(self.norm(x))


def _written_out(q, k, v):
    return ((q @ k.transpose(-2, -1)) * 0.7).softmax(-1) @ v


def _in_place(q, k, v):
    logits = torch.matmul(q, k.mT)
    logits *= 0.7
    return torch.matmul(F.softmax(logits, dim=-1), v)


def _biased(q, k, v):
    distance = torch.arange(6.0)
    bias = -(distance[:, None] - distance).abs()
    return torch.softmax(q @ k.mT + bias, dim=-1) @ v


def _one_call(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, scale=0.7)


def _einsum(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


def _einsum_otherwise(q, k, v):
    """Key first, and an output whose axes are in another order."""
    maps = einops.einsum(k, 0.7 * q, "b h k d, b h q d -> b h q k").softmax(-1)
    return einops.einsum(maps, v, "b h q k, b h k d -> b q h d").transpose(1, 2)


def _gated(q, k, v):
    """Another softmax, over features, between the one over keys and the values."""
    maps, gate = (q @ k.mT).softmax(-1), q.softmax(-1)
    return maps @ (gate * v)


def _bmm(q, k, v):
    maps = torch.bmm(q.flatten(0, 1), k.mT.flatten(0, 1)).softmax(-1)
    return torch.bmm(maps, v.flatten(0, 1)).view_as(v)


def _masked(q, k, v, low=-torch.inf):
    bias = torch.zeros(6, 6)
    bias[:, 0] = low
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _masked_by_truth(q, k, v):
    """A mask of truth values, handed over by its place."""
    return F.scaled_dot_product_attention(q, k, v, torch.ones(6, 6).tril().bool())


def _twice(q, k, v):
    return _one_call(q, k, v) + _one_call(q, v, k)


def _causal(q, k, v):
    return (q @ k.mT).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1) @ v


def _talking_heads(q, k, v):
    return torch.einsum("gh,bhqk->bgqk", torch.tensor([[0.9, 0.1], [0.3, 0.7]]), (q @ k.mT).softmax(-1)) @ v


def _layer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)


def _foreign(block):
    torch.manual_seed(0)
    module = Foreign(block(), block())
    _randomise(module)
    place = "norm2" if block is _layer else "norm"
    return wrap(module, **DESCRIPTION, **PIXELS, name="foreign", after_attention=place)


FOREIGN = {
    "written out": lambda: Own(_written_out),
    "in place": lambda: Own(_in_place),
    "biased": lambda: Own(_biased),
    "gated": lambda: Own(_gated),
    "einsum": lambda: Own(_einsum),
    "einsum in another order": lambda: Own(_einsum_otherwise),
    "tuples": lambda: Own(_one_call, lambda x: (x,)),
    "output objects": lambda: Own(_one_call, lambda x: SimpleNamespace(last_hidden_state=x)),
    "multi-head": MultiHead,
    "multi-head, no weights": lambda: MultiHead(need_weights=False),
    "multi-head, no bias": lambda: MultiHead(bias=False),
    "multi-head, one mask for all": lambda: MultiHead(torch.arange(36.0).view(6, 6).sin()),
    "multi-head, a mask each": lambda: MultiHead(torch.arange(144.0).view(4, 6, 6).sin()),
    "TransformerEncoderLayer": _layer,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_attention_of_other_makes(name):
    """Probabilities times values are the output that the block projects, and nothing changes."""
    encoder = _foreign(FOREIGN[name])
    before = encoder.forward(_images(encoder))
    tokens, attention, streams = _run(encoder)
    torch.testing.assert_close(tokens, before)
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


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (_masked, "block 1 masks some tokens"),
        (partial(_masked, low=torch.finfo(torch.float32).min), "block 1 masks some tokens"),
        (partial(_masked, low=torch.finfo(torch.float16).min), "block 1 masks some tokens"),
        (_masked_by_truth, "block 1 masks some tokens"),
        (_causal, "block 1 masks some tokens"),
        (lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), "block 1 masks some tokens"),
        (lambda *qkv: F.scaled_dot_product_attention(*qkv, dropout_p=0.3), "dropout is on in block 1"),
        (lambda q, k, v: F.dropout((q @ k.mT).softmax(-1), 0.3) @ v, "block 1 changes its attention"),
        (_talking_heads, "block 1 changes its attention"),
        (lambda q, k, v: (0.98 * (q @ k.mT).softmax(-1) + 0.02 / 6) @ v, "block 1 changes its attention"),
        (lambda q, k, v: (q @ k.mT).softmax(-2) @ v, "block 1 changes its attention"),
        (_twice, r"block 1 \(Own\) gave attention 2 times instead of once"),
        (_bmm, r"block 1 \(Own\) gave attention 0 times(.|\n)*scaled_dot_product_attention\(q"),
    ],
)
def test_attention_that_is_not_the_softmax_over_keys_or_cannot_be_seen_is_refused(attend, reason):
    with pytest.raises((RuntimeError, UnsupportedArchitecture), match=f"foreign: .*{reason}"):
        _run(_foreign(lambda: Own(attend)))


def test_a_place_after_attention_that_comes_before_it_is_refused():
    torch.manual_seed(0)
    layout = DESCRIPTION | PIXELS | {"after_attention": "qkv"}
    with pytest.raises(UnsupportedArchitecture, match="qkv of block 1 runs before its attention"):
        _run(wrap(Foreign(Own(_one_call)), **layout, name="foreign"))


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_multi_head_attention_with_keys_of_its_own_is_refused(option):
    with pytest.raises(UnsupportedArchitecture, match="foreign: block 1 adds keys"):
        _run(_foreign(lambda: MultiHead(**{option: True})))


def test_multi_head_attention_that_leaves_keys_out_is_refused():
    encoder = _foreign(MultiHead)
    encoder.blocks[0].call["key_padding_mask"] = torch.arange(6).expand(2, 6) > 4
    with pytest.raises(UnsupportedArchitecture, match="foreign: block 1 adds keys, masks some of them"):
        _run(encoder)


def test_a_block_that_is_used_several_times_has_as_many_depths():
    torch.manual_seed(0)
    shared, once = Own(_one_call), Own(_written_out)
    encoder = wrap(Foreign(shared, once, shared, shared), **DESCRIPTION, **PIXELS, after_attention="norm")
    tokens, attention, streams = _run(encoder)
    assert encoder.depth == 4 and [record.depth for record in attention] == [1, 2, 3, 4]
    assert [stream.depth for stream in streams] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    torch.testing.assert_close(streams[-1].tokens, tokens)


def test_what_a_block_computes_beside_its_attention_is_none_of_the_next_ones():
    queries = []

    def with_spare_maps(q, k, v):
        (q @ k.mT).softmax(-1)
        return _one_call(q, k, v)

    def written_out(q, k, v):
        queries.append(q)
        return _written_out(q, k, v)

    torch.manual_seed(0)
    encoder = wrap(
        Foreign(Own(with_spare_maps), Own(written_out)), **DESCRIPTION, **PIXELS, after_attention="norm"
    )
    _, attention, _ = _run(encoder)
    torch.testing.assert_close(attention[1].query, queries[-1], rtol=0, atol=0)


def test_torchvision_is_captured():
    torch.manual_seed(0)
    module = torchvision.models.VisionTransformer(24, 8, 2, 2, 16, 32)
    _randomise(module)
    layout = {"prefix": 1, "grid": (3, 3), "patch_size": 8, "heads": 2, "width": 16}
    encoder = wrap(module, **layout, **PIXELS, blocks="encoder.layers", after_attention="ln_2")
    before = encoder.forward(_images(encoder))
    tokens, attention, _ = _run(encoder)
    torch.testing.assert_close(tokens, before)
    weights, every_head = [], {"need_weights": True, "average_attn_weights": False}
    for block in encoder.blocks:
        block.self_attention.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | every_head), with_kwargs=True
        )
        block.self_attention.register_forward_hook(lambda _, __, output: weights.append(output[1]))
    encoder.forward(_images(encoder))
    for record, expected in zip(attention, weights, strict=True):
        torch.testing.assert_close(_probabilities(record).float(), expected)


def test_a_head_that_is_switched_off_shows_in_the_output():
    encoder = _encoder("vit")
    _unfuse(encoder)
    for block in encoder.blocks:
        block.attn.attn_drop.register_forward_hook(
            lambda _, __, maps: maps * torch.tensor([0.0, 1.0])[:, None, None]
        )
    maps = _dropped_maps(encoder)
    expected = encoder.forward(_images(encoder))
    tokens, records, _ = _run(encoder)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)
    for record, map_ in zip(records, maps[:2], strict=True):
        torch.testing.assert_close(_probabilities(record).float(), map_)
        assert not record.output[:, 0].any() and record.output[:, 1].any()
