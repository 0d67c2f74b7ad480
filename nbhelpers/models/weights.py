"""Read weight files without running code in them, and load what they hold into a module, strictly."""

from __future__ import annotations

import pickle
import re
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbhelpers.models.errors import DamagedWeights, MismatchedWeights, UnsafeWeights

Weights = dict[str, Tensor]


class _Aside:
    """Stands for an object beside the weights that is of no use here, such as options or a path."""

    def __new__(cls, *args: Any) -> _Aside:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Configurations fill themselves item by item, for which torch takes plain dictionaries only.
STAND_INS = [(OrderedDict, name) for name in ("yacs.config.CfgNode", "easydict.EasyDict")] + [
    (_Aside, name)
    for name in (
        "argparse.Namespace",
        *(
            f"{module}.{path}"
            for module in ("pathlib", "pathlib._local")
            for path in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        ),
        *(
            f"numpy.{core}.multiarray.{function}"
            for core in ("core", "_core")
            for function in ("scalar", "_reconstruct")
        ),
        "numpy.dtype",
        "numpy.ndarray",
    )
]


def read_weights(path: Path, source: str | None = None) -> dict[str, Any]:
    """The content of a safetensors file or of a PyTorch checkpoint, without running any code in it.

    `torch.load(weights_only=True)` lets tensors and plain containers through; `STAND_INS` take the place of
    the options, paths and NumPy scalars that training scripts store beside the weights.

    Args:
        path: of the file.
        source: what errors call it; default the path.

    Raises:
        DamagedWeights: there are no complete weights in it.
        UnsafeWeights: the file holds code.
        MemoryError: the file is larger than the memory that is left.
    """
    source = source or str(path)
    head = _kind(path, source)
    size = path.stat().st_size
    try:
        if head[8:9] == b"{":
            return load_file(path)
        with torch.serialization.safe_globals(STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file provokes: struct, index, key, Unicode errors, ...
        wanted = re.search(r"allocate\D*(\d+)", str(error))
        if isinstance(error, MemoryError) or (wanted and int(wanted[1]) <= size):
            raise MemoryError(f"{source} ({size:,} bytes) does not fit into memory") from error
        if isinstance(error, OSError) and error.errno:  # the disk, not the file
            raise
        code = (
            re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        )
        if code:
            raise UnsafeWeights(
                f"{source} holds code ({code[1]}), which is not run; get the weights as safetensors"
            ) from None
        raise DamagedWeights(
            f"{source} ({size:,} bytes) is cut off, damaged or no weight file; fetch it again"
        ) from error
    if not isinstance(content, Mapping):
        raise DamagedWeights(f"{source} holds a {type(content).__name__}, not a table of tensors")
    return dict(content)


def _kind(path: Path, source: str) -> bytes:
    """The first bytes of a file, unless they or its structure show that it is no weight file."""

    def refuse(reason: str) -> DamagedWeights:
        return DamagedWeights(f"{source} {reason}")

    if path.is_dir():
        raise refuse("is a folder; name the weight file in it")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise refuse("is empty")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise refuse("is a web page, not weights")
    if head.startswith(b"version https://git-lfs"):
        raise refuse("is a git-lfs pointer, not the file itself; run: git lfs pull")
    if head[257:262] == b"ustar":
        old = tarfile.is_tarfile(path) and {"pickle", "storages"} <= set(tarfile.open(path).getnames())
        raise refuse(
            "is in PyTorch's format of 2016, which cannot be read without running code; get it as safetensors"
            if old
            else "is a tar archive; unpack it and name the weight file in it"
        )
    if head.startswith(b"PK"):
        try:
            names = {name.rpartition("/")[2] for name in zipfile.ZipFile(path).namelist()}
        except Exception:  # a damaged directory makes zipfile raise about anything
            raise refuse(f"is cut off or damaged ({path.stat().st_size:,} bytes)") from None
        if "constants.pkl" in names:
            raise refuse("is a TorchScript program, not weights; save its state_dict() as safetensors")
        if "data.pkl" not in names:
            raise refuse("is a zip archive, not weights; unpack it and name the weight file in it")
    return head


def load_strictly(module: nn.Module, weights: Weights) -> None:
    """Load weights that must fit the module, key by key.

    Raises:
        MismatchedWeights: keys are missing or left over, or shapes or kinds of number differ; all are listed.
        DamagedWeights: weights are NaN or infinite.
    """
    own = module.state_dict()
    problems = []
    if missing := [key for key in own if key not in weights]:
        problems.append(f"missing {_some(missing)}")
    if unexpected := [key for key in weights if key not in own]:
        problems.append(f"unexpected {_some(unexpected)}")
    both = [key for key in own if key in weights]
    if wrong := [key for key in both if own[key].shape != weights[key].shape]:
        problems.append(f"wrong shapes: {_shapes(wrong, weights, own)}")
    if kinds := [key for key in both if _numbers(own[key]) != _numbers(weights[key])]:
        found = [f"{key} {weights[key].dtype} instead of {own[key].dtype}" for key in kinds]
        problems.append(f"other kinds of number: {_some(found)}")
    if problems:
        raise MismatchedWeights("; ".join(problems))
    if broken := [key for key in both if not torch.isfinite(weights[key].float()).all()]:
        raise DamagedWeights(f"not finite: {_some(broken)}")
    module.load_state_dict(weights)


def _numbers(value: Tensor) -> tuple[bool, bool]:
    """Whether numbers are real or complex; a copy would turn whole ones into real ones silently."""
    return value.is_floating_point(), value.is_complex()


def _shapes(keys: Iterable[str], weights: Weights, own: Weights) -> str:
    """Both shapes of every key, for an error message."""
    return _some([f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}" for key in keys])


def _some(names: list[str], most: int = 12) -> str:
    """A list for an error message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Entries of a checkpoint under which the weights are, the encoder that papers evaluate first.
ENTRIES = ("teacher", "target_encoder", "state_dict", "model", "module", "student", "encoder", "model_ema")
# What training wraps around an encoder, and Hugging Face around its models.
WRAPPER = re.compile(r"((module|_orig_mod|backbone|encoder|base_encoder|model|vit|beit|data2vec_vision)\.)+")
# What pre-training and classification have beside the encoder.
NOT_ENCODER = re.compile(
    r"(head|head_dist|fc|classifier|lm_head|decoder|predictor|projector|momentum_encoder)\..*"
    r"|decoder_.*|cls_pt_.*|(.*\.)?mask_token|masked_embed|.*relative_position_index"
)


def fit(module: nn.Module, content: Mapping[str, Any]) -> dict[str, Any]:
    """Load the content of a checkpoint into an encoder; everything of the encoder must be in it.

    The weights may lie under one of `ENTRIES`, their keys may have a `WRAPPER` in front and be those of the
    authors, of Hugging Face or of timm. Nothing is resampled to another patch or image size.

    Returns:
        What was chosen and what was left out: `entry`, `prefix`, `left out` (keys as the file has them).

    Raises:
        MismatchedWeights: keys are missing, or unknown, or shapes differ.
        DamagedWeights: weights are NaN or infinite.

    >>> module, one = nn.Module(), torch.ones(1)
    >>> module.norm = nn.Parameter(one)
    >>> fit(module, {"model": {"encoder.norm": one, "encoder.mask_token": one, "decoder.0.weight": one}})
    {'entry': 'model', 'prefix': 'encoder.', 'left out': ['decoder.0.weight', 'encoder.mask_token']}
    """
    entry, table = _table(content)
    own = module.state_dict()
    tensors = {key: value for key, value in table.items() if _usable(value)}
    readings = {prefix: _renamed(tensors, prefix, own) for prefix in _prefixes(tensors)}
    prefix = max(readings, key=lambda each: len(readings[each].keys() & own.keys()))
    read = readings[prefix]
    # timm adapts other sizes without a word, so shapes are compared before its turn. Positions may have a
    # place for prefix tokens that timm moves elsewhere; _NoResampling watches over those.
    if wrong := [k for k in read if k in own and k != "pos_embed" and read[k].numel() != own[k].numel()]:
        raise MismatchedWeights(f"wrong shapes: {_shapes(wrong, read, own)}")
    weights = _timm_names(module, read, own)
    foreign = [key for key in table if not _under(prefix, key) or key not in tensors]
    unknown = [k for k in foreign if k in tensors and not NOT_ENCODER.fullmatch(WRAPPER.sub("", k, count=1))]
    if unknown:
        raise MismatchedWeights(f"unknown keys: {_some(unknown)}")
    taken = {value.data_ptr() for value in weights.values()}
    dropped = {key for key in weights if key not in own and NOT_ENCODER.fullmatch(key)}
    dropped |= {key for key, value in read.items() if key not in weights and value.data_ptr() not in taken}
    load_strictly(module, {key: value for key, value in weights.items() if key not in dropped})
    left_out = {*foreign, *(prefix + key for key in dropped)}
    return {"entry": entry, "prefix": prefix, "left out": sorted(left_out)}


def _usable(value: Any) -> bool:
    """Whether something in a checkpoint is a tensor that can be copied: dense, and with its numbers."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _table(content: Mapping[str, Any], entry: str = "") -> tuple[str, Mapping[str, Any]]:
    """The table of weights in a checkpoint, and the name of the entry under which it is."""
    for name in ENTRIES:
        if isinstance(content.get(name), Mapping) and content[name]:
            return _table(content[name], f"{entry}.{name}" if entry else name)
    return entry, {str(key): value for key, value in content.items()}


def _prefixes(keys: Iterable[str]) -> list[str]:
    """All that could be cut off in front of keys, shortest first."""
    found = {""}
    for match in filter(None, map(WRAPPER.match, keys)):
        parts = match[0].split(".")[:-1]
        found |= {".".join(parts[:n]) + "." for n in range(1, len(parts) + 1)}
    return sorted(found, key=len)


def _under(prefix: str, key: str) -> bool:
    """Whether a key belongs to the encoder; Hugging Face's BEiT keeps its last norm outside."""
    return key.startswith((prefix, "layernorm.")) if prefix == "beit." else key.startswith(prefix)


def _renamed(tensors: Weights, prefix: str, own: Weights) -> Weights:
    """What is under a prefix, in timm's names."""
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if _under(prefix, key)}
    if "embeddings.cls_token" in weights:
        try:
            return from_hugging_face(weights)
        except KeyError as error:
            raise MismatchedWeights(f"missing {prefix}{error.args[0]}") from error
    if "decoder.predict.weight" in own and "decoder_pred.weight" in weights:
        return from_published_mae(weights)
    return weights


class _NoResampling(TorchFunctionMode):
    """Refuses interpolation, by which timm fits weights to other sizes than they were trained for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.interpolate:
            raise MismatchedWeights("wrong sizes")
        return func(*args, **(kwargs or {}))


def _timm_names(module: nn.Module, weights: Weights, own: Weights) -> Weights:
    """What timm makes of the names in a file before it loads it."""
    architecture = (getattr(module, "pretrained_cfg", None) or {}).get("architecture")
    home = timm.model_entrypoint(architecture).__module__ if timm.is_model(architecture or "") else ""
    rename = getattr(sys.modules.get(home), "checkpoint_filter_fn", None)
    if rename is None:
        return weights
    try:
        with _NoResampling():
            return rename(dict(weights), module)  # some take keys out of what they are given
    except Exception as error:
        wrong = [key for key in weights if key in own and weights[key].shape != own[key].shape]
        reason = f"wrong shapes: {_shapes(wrong, weights, own)}" if wrong else f"timm cannot read it: {error}"
        raise MismatchedWeights(reason) from error


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
_MAE = {"decoder_pred.": "decoder.predict.", "mask_token": "decoder.mask_token", "decoder_": "decoder."}


def _rename(name: str, names: Mapping[str, str]) -> str | None:
    """A name whose beginning is replaced by the first entry that it begins with; None where none does."""
    old = next((old for old in names if name.startswith(old)), None)
    return names[old] + name.removeprefix(old) if old else None


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
        query, value = weights.pop(f"{inner}query.bias"), weights.pop(f"{inner}value.bias")
        if f"{inner}key.bias" in weights:
            result[outer + "qkv.bias"] = torch.cat([query, weights.pop(f"{inner}key.bias"), value])
        else:
            result[outer + "q_bias"], result[outer + "v_bias"] = query, value
    for key, value in weights.items():
        match = _HF_LAYER.match(key)
        head, name, names = (f"blocks.{match[1]}.", match[2], _HF_BLOCK) if match else ("", key, _HF_STEM)
        result[head + (_rename(name, names) or name)] = value
    return result


def from_published_mae(weights: Weights) -> Weights:
    """Keys of the published autoencoders (`decoder_blocks.0.*`, ...) -> those of `MaskedAutoencoder`."""
    return {_rename(key, _MAE) or f"encoder.{key}": value for key, value in weights.items()}
