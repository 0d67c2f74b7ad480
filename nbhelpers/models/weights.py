"""Read weight files without running code in them, and load what they hold into a module, strictly."""

import errno
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbhelpers.files import disguise
from nbhelpers.models.errors import DamagedWeights, MismatchedWeights, UnsafeWeights

Weights = dict[str, Tensor]


class _Ignored:
    """Stands for an object beside the weights that is of no use here, such as options or a path."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


IGNORED = """
argparse.Namespace numpy.dtype numpy.ndarray
numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct
pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
pathlib._local.PosixPath pathlib._local.WindowsPath
pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
""".split()
# Configurations are filled item by item, which torch allows for plain dictionaries only.
STAND_INS = [(OrderedDict, "yacs.config.CfgNode"), (OrderedDict, "easydict.EasyDict")]
STAND_INS += [(_Ignored, name) for name in IGNORED]


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
    with path.open("rb") as file:
        head = file.read(64)
    try:
        if head[8:9] == b"{":
            return load_file(path)
        with torch.serialization.safe_globals(STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file provokes: struct, index, key, Unicode errors, ...
        # Of the disk, not the file; PyTorch seeks to impossible places in a zip archive that was cut off.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        size = path.stat().st_size
        wanted = re.search(r"allocate\D*(\d+)", str(error))
        if isinstance(error, MemoryError) or (wanted and int(wanted[1]) <= size):
            raise MemoryError(f"{source} ({size:,} bytes) does not fit into memory") from error
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code and isinstance(error, pickle.UnpicklingError):
            what = f"code ({code[1]}), which is not run; get the weights as safetensors"
            raise UnsafeWeights(f"{source} holds {what}") from None
        # PyTorch's own files are zip archives too.
        what = (None if head.startswith(b"PK") else disguise(head)) or (
            "cut off, damaged or no weight file (nor is an archive or a TorchScript program); "
            "fetch it again, or save the module's state_dict() as safetensors"
        )
        raise DamagedWeights(f"{source} ({size:,} bytes) is {what}") from error
    if not isinstance(content, Mapping):
        raise DamagedWeights(f"{source} holds a {type(content).__name__}, not a table of tensors")
    return dict(content)


def load_strictly(module: nn.Module, weights: Weights) -> None:
    """Load weights that must fit the module, key by key.

    Raises:
        MismatchedWeights: keys are missing or left over, or shapes or kinds of number differ.
        DamagedWeights: weights are NaN or infinite.
    """
    own = module.state_dict()
    for key in weights.keys() & own.keys():
        # Copying would turn the whole numbers of quantised weights into real ones without a word.
        if weights[key].is_floating_point() != own[key].is_floating_point():
            raise MismatchedWeights(f"{key} is {weights[key].dtype} instead of {own[key].dtype}")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:  # names the keys that are missing or unexpected, and all wrong shapes
        raise MismatchedWeights(str(error)) from error
    if broken := [key for key, value in module.state_dict().items() if not torch.isfinite(value).all()]:
        raise DamagedWeights(f"not finite: {', '.join(broken)}")


# Entries of a checkpoint under which the weights are, the encoder that papers evaluate first: an average of
# weights, then those in training.
ENTRIES = ("teacher", "target_encoder", "state_dict_ema", "model_ema", "ema")
ENTRIES += ("state_dict", "model_state_dict", "model", "module", "student", "encoder")
# What training wraps around an encoder, and Hugging Face around its models.
WRAPPER = re.compile(r"((module|_orig_mod|backbone|(base_)?encoder|model|net|vit|beit|data2vec_vision)\.)+")
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
    >>> fit(module, {"model": {"encoder.norm": one, "encoder.mask_token": -one, "decoder.0.weight": one}})
    {'entry': 'model', 'prefix': 'encoder.', 'left out': ['decoder.0.weight', 'encoder.mask_token']}
    """
    entries, table = [], content
    while name := next(
        (each for each in ENTRIES if table.get(each) and isinstance(table[each], Mapping)), None
    ):
        entries.append(name)
        table = table[name]
    table, own = {str(key): value for key, value in table.items()}, module.state_dict()
    tensors = {key: value for key, value in table.items() if _usable(value)}
    wrappers = [match[0] for match in map(WRAPPER.match, tensors) if match]
    prefixes = {""} | {text[: i + 1] for text in wrappers for i, sign in enumerate(text) if sign == "."}
    readings = {prefix: _renamed(tensors, prefix, own) for prefix in sorted(prefixes, key=len)}
    prefix = max(readings, key=lambda each: len(readings[each].keys() & own.keys()))
    outside = {key for key in table if not _under(prefix, key) or key not in tensors}
    unknown = [k for k in outside & tensors.keys() if not NOT_ENCODER.fullmatch(WRAPPER.sub("", k, count=1))]
    if unknown:
        raise MismatchedWeights(f"unknown keys: {', '.join(sorted(unknown))}")
    read = readings[prefix]
    weights = _timm_names(module, read, own)
    weights = {key: value for key, value in weights.items() if key in own or not NOT_ENCODER.fullmatch(key)}
    if not weights.keys() & own.keys():
        begin = ", ".join([*table][:3]) or "none"
        raise MismatchedWeights(f"none of its keys is one of the encoder's; the first of them: {begin}")
    load_strictly(module, weights)
    used = {value.data_ptr() for value in weights.values()}
    unused = {prefix + k for k, value in read.items() if k not in weights and value.data_ptr() not in used}
    return {"entry": ".".join(entries), "prefix": prefix, "left out": sorted(outside | unused)}


def _usable(value: Any) -> bool:
    """Whether something in a checkpoint is a tensor that can be copied: dense, and with its numbers."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _under(prefix: str, key: str) -> bool:
    """Whether a key belongs to the encoder; Hugging Face's BEiT keeps its last norm outside."""
    return key.startswith((prefix, "layernorm.")) if prefix == "beit." else key.startswith(prefix)


def _renamed(tensors: Weights, prefix: str, own: Weights) -> Weights:
    """What is under a prefix, in timm's names."""
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if _under(prefix, key)}
    if "embeddings.cls_token" in weights:
        return from_hugging_face(weights)
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
    """What timm makes of the names in a file before it loads it; tensors may be reshaped, not resampled."""
    architecture = (getattr(module, "pretrained_cfg", None) or {}).get("architecture") or ""
    home = timm.model_entrypoint(architecture).__module__ if timm.is_model(architecture) else ""
    rename = getattr(sys.modules.get(home), "checkpoint_filter_fn", None)
    if rename is None:
        return weights
    wrong = [key for key in weights if key in own and weights[key].shape != own[key].shape]
    shapes = [f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}" for key in wrong]
    # timm adapts other sizes without a word, and not always by F.interpolate. Positions may lack, or have too
    # many, places for prefix tokens, which timm sees to; those _NoResampling watches over.
    if any(key != "pos_embed" and weights[key].numel() != own[key].numel() for key in wrong):
        raise MismatchedWeights(f"wrong shapes: {', '.join(shapes)}")
    try:
        with _NoResampling():
            return rename(dict(weights), module)  # some take keys out of what they are given
    except Exception as error:
        reason = f"wrong shapes: {', '.join(shapes)}" if wrong else f"timm cannot read it: {error}"
        if wrong == ["pos_embed"]:
            way = "build the network with timm's img_size=..., load the file into it, and `wrap` it"
            reason += f"; if the images of its training had another size, {way}"
        raise MismatchedWeights(reason) from error


# Hugging Face's names for the parts of a ViT and timm's, replaced in this order.
HUGGING_FACE = {
    "encoder.layer.": "blocks.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "lambda_": "gamma_",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.relative_position_bias": "rel_pos_bias",
    "layernorm.": "norm.",
}


def from_hugging_face(weights: Weights) -> Weights:
    """Keys of Hugging Face's ViT, ViT-MSN, BEiT and data2vec -> timm's; q, k, v are joined.

    BEiT's attention has biases for query and value alone, timm keeps those as `q_bias` and `v_bias`; with a
    key bias there is one joined `qkv.bias`.
    """
    for old, new in HUGGING_FACE.items():
        weights = {key.replace(old, new): value for key, value in weights.items()}
    for first in [key for key in weights if key.endswith("attention.attention.query.weight")]:
        inner = first.removesuffix("query.weight")
        outer = inner.replace("attention.attention.", "attn.")
        for kind in ("weight", "bias"):
            names = [f"{inner}{part}.{kind}" for part in ("query", "key", "value")]
            parts = [weights.pop(name) for name in names if name in weights]
            if len(parts) == 3:
                weights[f"{outer}qkv.{kind}"] = torch.cat(parts)
            else:
                weights |= zip((f"{outer}q_{kind}", f"{outer}v_{kind}"), parts, strict=False)
    return weights


def from_published_mae(weights: Weights) -> Weights:
    """Keys of the published autoencoders (`decoder_blocks.0.*`, ...) -> those of `MaskedAutoencoder`."""
    return {
        f"decoder.{key.removeprefix('decoder_').replace('pred.', 'predict.')}"
        if key.startswith(("decoder_", "mask_token"))
        else f"encoder.{key}": value
        for key, value in weights.items()
    }
