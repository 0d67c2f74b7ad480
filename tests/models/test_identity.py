"""The hash that tells encoders apart, and what it says it cannot see."""

import importlib.util
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nbhelpers.models import identity


class Options:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


class Gelu(nn.GELU):
    def forward(self, x):
        return x


def _closure(module):
    module.blocks[0].mlp.scale = lambda x: 2 * x


def _thrice(module):
    module.blocks = nn.Sequential(*[module.blocks[0]] * 3)


def _part(path, **settings):
    """A change of some attributes of a part."""
    return lambda module: vars(module.get_submodule(path)).update(settings)


def _act(act):
    return lambda module: setattr(module.blocks[0].mlp, "act", act)


# Settings of a module, in pairs that must not be taken for each other.
DIFFERENT = {
    "weights": (lambda module: None, lambda module: module.cls_token[0, 0, 0].add_(1e-3)),
    "a buffer": (
        lambda module: module.register_buffer("shift", torch.zeros(1), persistent=False),
        lambda module: module.register_buffer("shift", torch.ones(1), persistent=False),
    ),
    "a number": (_part("blocks.0.attn", scale=0.25), _part("blocks.0.attn", scale=0.5)),
    "a container": (_part("norm", any=(1, {"a": 0.5})), _part("norm", any=(1, {"a": 1.5}))),
    "a NumPy number": (_part("norm", any=np.float32(1)), _part("norm", any=np.float32(2))),
    "a NumPy array": (_part("norm", any=np.zeros(2)), _part("norm", any=np.ones(2))),
    "an object with slots": (_part("norm", any=Options(1)), _part("norm", any=Options(2))),
    "a class of parts": (_act(nn.GELU()), _act(Gelu())),
    "uses of a block": (lambda module: None, _thrice),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_fingerprint_follows_what_features_depend_on(case, mini):
    prints = []
    for change in DIFFERENT[case] * 2:
        encoder = mini()
        encoder.module.blocks = nn.Sequential(*[encoder.module.blocks[0]] * 2)
        change(encoder.module)
        prints.append(encoder.fingerprint)
    assert prints[0] == prints[2] != prints[1] == prints[3]


def test_fingerprint_follows_reading_and_neither_names_nor_passes(mini):
    encoder = mini()
    before = encoder.fingerprint
    encoder.forward(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert encoder.fingerprint == before == mini(name="another name", objective="CL").fingerprint
    reading = [{"std": (0.5, 0.5, 0.4)}, {"heads": 1}, {"after_attention": "mlp"}, {"class_token": False}]
    for fields in reading:
        assert mini(**fields).fingerprint != before, fields


def test_fingerprint_tells_code_of_one_name_apart_and_code_that_is_not_installed_is_seen(
    tmp_path, monkeypatch, mini
):
    def with_act(factor):
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
        assert encoder.hooked  # it could call what it imports
        return encoder.fingerprint

    assert with_act(1) == with_act(1) != with_act(2)


def test_a_function_of_a_notebook_is_seen_and_one_that_cannot_be_pickled_equals_no_other(mini):
    encoder = mini()
    for setting in (_act, [_act], {"of": (_act,)}, partial(len, _act), SimpleNamespace(of=_act)):
        encoder.module.blocks[0].mlp.scale = setting
        assert encoder.hooked and encoder.fingerprint == encoder.fingerprint
    encoder.module.blocks[0].mlp.scale = torch.nn.functional.gelu
    assert not encoder.hooked
    _closure(encoder.module)
    assert encoder.hooked and encoder.fingerprint != encoder.fingerprint


def test_hooks_and_replaced_methods_are_seen(mini):
    encoder = mini()
    block = encoder.module.blocks[1]
    for attach in (
        block.register_forward_hook,
        block.attn.register_forward_pre_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        assert not encoder.hooked
        handle = attach(lambda *args: None)
        assert encoder.hooked
        handle.remove()
    block.forward = lambda x: x
    assert encoder.hooked


def test_a_method_that_a_notebook_puts_into_an_installed_class_is_seen(mini, monkeypatch):
    encoder = mini()
    monkeypatch.setattr(type(encoder.module.blocks[1].attn), "forward", lambda self, x: x)
    assert encoder.hooked


def test_fingerprint_follows_all_files_of_an_installed_package(mini, tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "myvit"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "act.py").write_text(
        "from torch import nn\n\nfrom myvit.ops import scale\n\n\nclass Act(nn.Module):\n"
        "    def forward(self, x):\n        return scale(x)\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    prints = []
    for factor in (1, 2, 1):
        (package / "ops.py").write_text(f"def scale(x):\n    return {factor} * x\n")
        for cache in (identity.code_of, identity._code_of_package):  # as of a new process
            cache.cache_clear()
        encoder = mini()
        encoder.module.blocks[0].mlp.act = importlib.import_module("myvit.act").Act()
        assert not encoder.hooked
        prints.append(encoder.fingerprint)
    assert prints[0] == prints[2] != prints[1]
