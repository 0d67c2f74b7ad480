"""Generated weight files and models: files are read rightly or refused by one type."""

import argparse
import copy
import io
import tempfile
from collections import OrderedDict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.models import CHECKPOINTS, DamagedWeights, WeightsError, mini_vit, wrap
from nbhelpers.models.weights import read_weights

quick = settings(max_examples=60, deadline=None, derandomize=True)
SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 3, "img_size": 32}


def _read(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        return read_weights(path)


@cache
def _file(kind: str) -> bytes:
    weights = {key: value.clone() for key, value in mini_vit(8, 1, 1).state_dict().items()}
    if kind == "safetensors":
        return safetensors.torch.save(weights)
    stream = io.BytesIO()
    content = {"state_dict": weights, "args": argparse.Namespace(name="ü", rate=0.1), "epoch": 3}
    torch.save(content, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


KINDS = ("safetensors", "zip", "legacy")


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_damaged(kind, share):
    content = _file(kind)
    with pytest.raises(DamagedWeights):
        _read(content[: int(len(content) * share)])


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(share=st.floats(0, 1, exclude_max=True), bytes_=st.binary(min_size=1, max_size=8), data=st.data())
def test_a_damaged_file_is_read_or_refused_by_one_type(kind, share, bytes_, data):
    content = bytearray(_file(kind))
    # The structure is at the beginning and at the end; tensors fill what lies between.
    reach = len(content) if data.draw(st.booleans()) else 1_500
    at = int(reach * share)
    content[at : at + len(bytes_)] = bytes_
    try:
        read = _read(bytes(content))
    except WeightsError as error:
        assert "file" in str(error)  # its name
    else:
        assert isinstance(read, dict)


CHECKPOINT = replace(CHECKPOINTS["ibot.vit_base_patch16_224"], options=SMALL)
WRAPPERS = ["module.", "backbone.", "_orig_mod.", "encoder."]
JUNK = st.dictionaries(
    st.sampled_from(["epoch", "best", "optimizer", "config", "args"]),
    st.one_of(st.none(), st.floats(), st.text(), st.builds(argparse.Namespace, a=st.integers())),
)


@settings(quick, max_examples=25)
@given(
    prefix=st.lists(st.sampled_from(WRAPPERS), max_size=3).map("".join),
    entry=st.sampled_from([None, "state_dict", "model_state_dict", "model", "teacher", "student"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    container=st.sampled_from([dict, OrderedDict]),
    zipped=st.booleans(),
    junk=JUNK,
)
def test_checkpoints_as_people_save_them(prefix, entry, dtype, container, zipped, junk):
    weights = CHECKPOINT.build().module.state_dict()
    table = container((prefix + key, value.to(dtype)) for key, value in weights.items())
    content = {**junk, entry: table} if entry else container({**table, **junk})
    with tempfile.TemporaryDirectory() as folder:
        torch.save(content, Path(folder) / "file", _use_new_zipfile_serialization=zipped)
        encoder = CHECKPOINT.load(Path(folder) / "file")
    for key, value in encoder.module.state_dict().items():
        assert torch.equal(value, table[prefix + key].float()), key
    about = encoder.provenance
    assert (about["entry"], about["prefix"]) == (entry or "", prefix)
    assert about["left out"] == ([] if entry else sorted(junk))


@cache
def _model(name: str):
    torch.manual_seed(0)
    return wrap(timm.create_model(name, num_classes=0, embed_dim=32, depth=1, num_heads=2))


def _scalars(module):
    """Every number that a part of the module keeps as an attribute."""
    return [
        (path, key)
        for path, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, bool | int | float) and not key.startswith("_")
    ]


@pytest.mark.parametrize(
    "name", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "vit_relpos_small_patch16_224"]
)
@settings(quick, max_examples=12)
@given(data=st.data())
def test_every_scalar_of_a_model_is_in_its_fingerprint(name, data):
    encoder = _model(name)
    other = copy.deepcopy(encoder)
    assert not encoder.hooked
    path, key = data.draw(st.sampled_from(_scalars(other.module)))
    part = other.module.get_submodule(path)
    value = getattr(part, key)
    setattr(part, key, not value if isinstance(value, bool) else value + 1)
    assert other.fingerprint != encoder.fingerprint, (path, key)
