"""The hash that tells encoders apart, and what it says it cannot see."""

import copy
import importlib
import importlib.util
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from nbhelpers.models import mini_vit, wrap

HALF = (0.5, 0.5, 0.5)


def test_fingerprint_follows_weights_and_preprocessing(mini):
    encoder = mini()
    assert encoder.fingerprint == mini(name="another name", objective="CL").fingerprint
    assert encoder.fingerprint != mini(std=(0.5, 0.5, 0.4)).fingerprint
    changed = copy.deepcopy(encoder)
    changed.module.cls_token[0, 0, 0] += 1e-3
    assert encoder.fingerprint != changed.fingerprint
    fewer_heads = wrap(copy.deepcopy(encoder.module), mean=HALF, std=HALF, heads=1)
    assert encoder.fingerprint != fewer_heads.fingerprint
    changed = copy.deepcopy(encoder)
    changed.module.blocks[0].mlp.act = nn.SiLU()
    assert encoder.fingerprint != changed.fingerprint


def _eps(module):
    module.blocks[1].norm1.eps = 1e-3


def _scale(module):
    module.blocks[0].attn.scale *= 2


def _buffer(module):
    module.register_buffer("shift", torch.ones(1), persistent=False)


def _setting(module):
    module.blocks[0].attn.anything = (1, {"a": 0.5})


def _closure(factor):
    def change(module):
        module.blocks[0].mlp.scale = lambda x: x * factor

    return change


class Options:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


@pytest.mark.parametrize(
    "values", [(np.float32(1), np.float32(2)), (np.zeros(2), np.ones(2)), (Options(1), Options(2))]
)
def test_fingerprint_follows_numpy_values_and_slots(values, mini):
    prints = set()
    for value in values:
        encoder = mini()
        encoder.module.blocks[0].anything = value
        prints.add(encoder.fingerprint)
    assert len(prints) == 2


def test_fingerprint_follows_the_place_after_attention_and_the_number_of_uses_of_a_block(mini):
    assert mini().fingerprint != mini(after_attention="mlp").fingerprint
    prints = set()
    for uses in (2, 3):
        module = mini_vit(32, 1, 2)
        with torch.no_grad():
            module.load_state_dict(
                {key: torch.ones_like(value) for key, value in module.state_dict().items()}
            )
        module.blocks = nn.Sequential(*[module.blocks[0]] * uses)
        prints.add(wrap(module, mean=HALF, std=HALF).fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize("change", [_eps, _scale, _buffer, _setting, _closure(2.0)])
def test_fingerprint_follows_settings(change, mini):
    encoder = mini()
    changed = copy.deepcopy(encoder)
    assert changed.fingerprint == encoder.fingerprint
    change(changed.module)
    assert changed.fingerprint != encoder.fingerprint


def test_a_function_of_a_notebook_is_seen_and_one_that_cannot_be_pickled_equals_no_other(mini):
    encoder = mini()
    for setting in (_scale, [_scale], {"of": (_scale,)}, partial(len, _scale), SimpleNamespace(of=_scale)):
        encoder.module.blocks[0].mlp.scale = setting
        assert encoder.hooked and encoder.fingerprint == encoder.fingerprint
    encoder.module.blocks[0].mlp.scale = torch.nn.functional.gelu
    assert not encoder.hooked
    _closure(2.0)(encoder.module)
    assert encoder.hooked and encoder.fingerprint != encoder.fingerprint


def test_fingerprint_follows_rotary_positions_and_code(mini):
    def eva(temperature):
        torch.manual_seed(0)
        sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2, "rope_temperature": temperature}
        return wrap(timm.create_model("vit_small_patch16_dinov3", num_classes=0, **sizes))

    assert eva(100.0).fingerprint == eva(100.0).fingerprint != eva(50.0).fingerprint

    class Gelu(nn.GELU):
        def forward(self, x):
            return x

    mine, other = mini(), mini()
    mine.module.blocks[0].mlp.act = nn.GELU()
    other.module.blocks[0].mlp.act = Gelu()
    assert mine.fingerprint != other.fingerprint


def test_fingerprint_tells_code_of_one_name_apart(tmp_path, monkeypatch, mini):
    def changed(factor):
        path = tmp_path / f"{factor}.py"
        path.write_text(
            "from torch import nn\n\n\nclass Act(nn.Module):\n"
            f"    def forward(self, x):\n        return {factor} * x\n"
        )
        found = importlib.util.spec_from_file_location("mine", path)
        module = importlib.util.module_from_spec(found)
        monkeypatch.setitem(sys.modules, "mine", module)
        found.loader.exec_module(module)
        encoder = mini()
        encoder.module.blocks[0].mlp.act = module.Act()
        return encoder.fingerprint

    assert changed(1) == changed(1) != changed(2)


def test_a_pass_leaves_the_fingerprint(mini):
    encoder = mini()
    before = encoder.fingerprint
    encoder.forward(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert encoder.fingerprint == before


def test_hooks_and_replaced_methods_are_seen(mini):
    encoder = mini()
    assert not encoder.hooked
    for attach in ("register_forward_hook", "register_forward_pre_hook"):
        handle = getattr(encoder.module.blocks[1].attn, attach)(lambda *args: None)
        assert encoder.hooked
        handle.remove()
        assert not encoder.hooked
    everywhere = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert encoder.hooked
    everywhere.remove()
    encoder.module.blocks[0].forward = lambda x: x
    assert encoder.hooked


def test_code_that_is_not_installed_is_seen(tmp_path, monkeypatch, mini):
    (tmp_path / "mine.py").write_text("from torch import nn\n\n\nclass Act(nn.GELU):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = mini()
    encoder.module.blocks[0].mlp.act = importlib.import_module("mine").Act()
    assert encoder.hooked  # it could call what it imports
