"""Read weight files safely, and bring their keys into the form of a model, strictly."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nbhelpers.models.errors import (
    MismatchedWeights,
    NotWeights,
    TruncatedWeights,
    UnsafeWeights,
    WeightsError,
)

Weights = dict[str, Tensor]


def check_container(path: Path, source: str | None = None) -> None:
    """Raise if a file is a web page, or a zip or safetensors container that ends too early.

    Raises:
        NotWeights: the file is empty or a web page.
        TruncatedWeights: the container is incomplete.
    """
    source = source or str(path)
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise NotWeights(f"{source} is empty")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise NotWeights(f"{source} is a web page, not weights")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise TruncatedWeights(
            f"{source} is cut off after {path.stat().st_size:,} bytes: it has no zip directory"
        )
    if head[8:9] == b"{":
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise TruncatedWeights(f"{source} is not a complete safetensors file: {error}") from error


def read_weights(path: Path) -> dict[str, Any]:
    """The content of a safetensors file or of a PyTorch checkpoint, without running any code in it.

    `torch.load(weights_only=True)` lets tensors and plain containers through; beside them only
    `argparse.Namespace` is allowed, in which the scripts of MAE, DINO, iBOT and BEiT keep their options.

    Raises:
        NotWeights: the file is empty, a web page, or nothing that PyTorch writes.
        TruncatedWeights: the file ends before it is complete.
        UnsafeWeights: the file holds code.
    """
    check_container(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        return load_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unpickling_error(path, str(error)) from error
    except (EOFError, RuntimeError) as error:
        size = path.stat().st_size
        raise TruncatedWeights(f"{path} is cut off or damaged ({size:,} bytes): {error}") from error
    if not isinstance(content, Mapping):
        raise NotWeights(f"{path} holds a {type(content).__name__}, not a table of tensors")
    return dict(content)


def _unpickling_error(path: Path, message: str) -> WeightsError:
    """What the refusal of the restricted unpickler means."""
    if code := re.search(r"GLOBAL ([\w.]+)", message):
        return UnsafeWeights(
            f"{path} holds code ({code[1]}), which is not run; get the weights as safetensors"
        )
    return NotWeights(f"{path} is not a PyTorch checkpoint")


def keep_all(weights: Weights) -> Weights:
    """The keys of timm, as they are."""
    return weights


@dataclass(frozen=True)
class Layout:
    """Where a file keeps a model's weights, and what its keys are called.

    Attributes:
        root: names of the sub-dictionary, in order of preference; empty: the file itself.
        prefix: what the wanted keys start with; it is cut off.
        drop: regular expressions of keys left out on purpose, after the prefix has been cut off.
        foreign: regular expressions of keys without the prefix that are left out on purpose.
        convert: renames and joins what is left.
    """

    root: tuple[str, ...] = ()
    prefix: str = ""
    drop: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    convert: Callable[[Weights], Weights] = keep_all

    def read(self, content: Mapping[str, Any]) -> tuple[Weights, list[str]]:
        """The weights in a file's content under the model's names, and the keys left out on purpose.

        Raises:
            MismatchedWeights: the file has another layout, or holds keys that nobody knows.

        >>> one = torch.ones(1)
        >>> layout = Layout(root=("model",), prefix="encoder.", drop=("mask_token",), foreign=("decoder.*",))
        >>> layout.read({"model": {"encoder.norm": one, "encoder.mask_token": one, "decoder.w": one}})
        ({'norm': tensor([1.])}, ['encoder.mask_token', 'decoder.w'])
        """
        table = self._table(content)
        kept, dropped, unknown = {}, [], []
        for key, value in table.items():
            name = key.removeprefix(self.prefix)
            known = key.startswith(self.prefix)
            if any(re.fullmatch(pattern, name) for pattern in (self.drop if known else self.foreign)):
                dropped.append(key)
            elif known and isinstance(value, Tensor):
                kept[name] = value
            else:
                unknown.append(key)
        if unknown:
            raise MismatchedWeights(f"unknown keys: {_some(unknown)}")
        if not kept:
            raise MismatchedWeights(f"no key starts with {self.prefix!r}; there are {_some(list(table))}")
        try:
            return self.convert(kept), dropped
        except KeyError as error:
            raise MismatchedWeights(f"missing key {error}") from error

    def _table(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The sub-dictionary that holds the weights."""
        if not self.root:
            return content
        for name in self.root:
            if isinstance(content.get(name), Mapping):
                return content[name]
        raise MismatchedWeights(f"no entry {' or '.join(self.root)}; there are {_some(list(content))}")


def load_strictly(module: nn.Module, weights: Weights) -> None:
    """Load weights that must fit the module, key by key.

    Raises:
        MismatchedWeights: keys are missing or left over, or shapes differ; all of them are listed.
    """
    own = module.state_dict()
    problems = []
    if missing := [key for key in own if key not in weights]:
        problems.append(f"missing {_some(missing)}")
    if unexpected := [key for key in weights if key not in own]:
        problems.append(f"unexpected {_some(unexpected)}")
    if wrong := [key for key in own if key in weights and own[key].shape != weights[key].shape]:
        shapes = [f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}" for key in wrong]
        problems.append(f"wrong shapes: {_some(shapes)}")
    if problems:
        raise MismatchedWeights("; ".join(problems))
    module.load_state_dict(weights)


def _some(names: list[str], most: int = 12) -> str:
    """A list for an error message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Hugging Face's names for the parts of a ViT block, and timm's.
_HF_BLOCK = {
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "attention.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
}
_HF_STEM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "encoder.relative_position_bias.": "rel_pos_bias.",
    "layernorm.": "norm.",
}
_HF_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.*)")


def from_hugging_face(weights: Weights) -> Weights:
    """Keys of Hugging Face's ViT, ViT-MSN, BEiT and data2vec -> timm's; q, k, v are joined.

    BEiT's attention has biases for query and value alone, timm keeps those as `q_bias` and `v_bias`; with a
    key bias there is one joined `qkv.bias`.
    """
    weights = dict(weights)
    result: Weights = {}
    for layer in sorted({match[1] for key in weights if (match := _HF_LAYER.match(key))}, key=int):
        inner, outer = f"encoder.layer.{layer}.attention.attention.", f"blocks.{layer}.attn."
        result[outer + "qkv.weight"] = torch.cat(
            [weights.pop(f"{inner}{x}.weight") for x in ("query", "key", "value")]
        )
        biases = {x: weights.pop(f"{inner}{x}.bias", None) for x in ("query", "key", "value")}
        if biases["key"] is not None:
            result[outer + "qkv.bias"] = torch.cat(list(biases.values()))
        else:
            result[outer + "q_bias"], result[outer + "v_bias"] = biases["query"], biases["value"]
    for key, value in weights.items():
        match = _HF_LAYER.match(key)
        head, name, names = (f"blocks.{match[1]}.", match[2], _HF_BLOCK) if match else ("", key, _HF_STEM)
        old = next((old for old in names if name.startswith(old)), None)
        result[head + (names[old] + name.removeprefix(old) if old else name)] = value
    return result
