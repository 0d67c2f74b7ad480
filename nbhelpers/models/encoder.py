"""A Vision Transformer ready to be looked at: module, token layout, preprocessing, provenance."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from nbhelpers.images import ArraySource, ImageSource
from nbhelpers.models.errors import UnsupportedArchitecture

# Architectures without one N x N softmax attention over one patch grid, by the timm file that defines them.
REFUSED = {
    "cait": "its talking heads mix the attention maps of all heads before and after the softmax",
    "coat": "its attention is factorised over channels",
    "convit": "its gated positional attention mixes two softmax maps",
    "crossvit": "it runs two branches with two patch grids",
    "davit": "it alternates windows with channel attention",
    "edgenext": "its attention is over channels",
    "efficientformer": "only its last stage has attention",
    "efficientformer_v2": "its attention mixes heads (talking heads) and changes grid between stages",
    "fastvit": "only its last stages have attention",
    "gcvit": "its attention is confined to windows",
    "gemma4_vit": "its encoder pads to a token budget, which leaves no fixed patch grid",
    "hiera": "its attention is confined to mask units, and queries are pooled between stages",
    "hieradet_sam2": "its attention is confined to windows, and queries are pooled between stages",
    "levit": "its patch grid shrinks between stages",
    "maxxvit": "its attention is confined to windows and dilated grids",
    "mobilevit": "its attention runs over pixels that share a place within their patches",
    "mvitv2": "keys and values are pooled, so its attention is not square",
    "nest": "its attention is confined to blocks of the image",
    "nextvit": "keys and values are pooled, so its attention is not square",
    "pit": "its patch grid is pooled between stages",
    "pvt_v2": "keys and values are pooled, so its attention is not square",
    "swin_transformer": "its attention is confined to shifted windows",
    "swin_transformer_v2": "its attention is confined to shifted windows",
    "swin_transformer_v2_cr": "its attention is confined to shifted windows",
    "tiny_vit": "its attention is confined to windows",
    "tnt": "it nests a second transformer over the pixels of each patch",
    "twins": "it alternates windows with pooled keys",
    "visformer": "its patch grid shrinks between stages",
    "vision_transformer_sam": "its attention is confined to windows in most blocks",
    "volo": "its outlook attention predicts local weights without keys",
    "xcit": "its cross-covariance attention is over channels, D x D, not over tokens",
}

REFUSED_PARTS = {
    "DiffAttention": "its differential attention subtracts two softmax maps",
    "DiffParallelScalingBlock": "its differential attention subtracts two softmax maps",
    "ParallelThingsBlock": "it runs several attention layers side by side in one block",
}

# The submodule whose input is the residual stream after the attention residual ("+sa"); None: there is none.
AFTER_ATTENTION = {
    "Block": "norm2",
    "EvaBlock": "norm2",
    "RelPosBlock": "norm2",
    "DeepseekVitBlock": "norm2",
    "ResPostBlock": "mlp",
    "ResPostRelPosBlock": "mlp",
    "EvaBlockPostNorm": "mlp",
    "ParallelScalingBlock": None,
}

INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
CROP_MODES = ("center", "squash")


@dataclass
class Encoder:
    """A ViT in evaluation mode with what is needed to read it.

    Attributes:
        module: the network; `module.forward_features` (or the module itself, if it has none) maps
            normalised images `B C H W` to tokens `B N D`.
        name: `"shapes.cl"`, `"vit_base_patch16_224.mae"`, ...
        objective: "CL", "MIM", "hybrid", "supervised", "language", "random" or "unknown".
        seed: of the initialisation, where known.
        prefix: number of tokens before the patch tokens (class, distillation, registers).
        grid: rows and columns of the patch grid; tokens run row by row.
        patch_size: height and width of a patch in px.
        image_size: height and width of the input in px.
        heads: number of attention heads.
        width: dimension of the residual stream.
        mean: per channel, for pixel values in 0..1.
        std: per channel.
        interpolation: "bicubic" or "bilinear".
        crop: the centre crop's share of the resized image's side.
        crop_mode: "center" keeps the aspect ratio when resizing, "squash" does not.
        block_path: name of the submodule that holds the blocks.
        after_attention: name of the block's submodule whose input is the stream after the attention
            residual; None where the block has no such place.
        provenance: source, licence, sha256, images seen, ...
    """

    module: nn.Module
    name: str
    objective: str
    seed: int | None
    prefix: int
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    image_size: tuple[int, int]
    heads: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop: float = 1.0
    crop_mode: str = "center"
    block_path: str = "blocks"
    after_attention: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks; the output of `blocks[i]` is depth `i + 1`."""
        return list(self.module.get_submodule(self.block_path).children())

    @property
    def depth(self) -> int:
        """Number of transformer blocks L."""
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """Number of tokens N, prefix included."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> Encoder:
        """Move the weights; returns the same encoder."""
        self.module.to(device)
        return self

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of weights, token layout and preprocessing: equal for equal features."""
        layout = [self.prefix, self.grid, self.patch_size, self.image_size, self.heads]
        preprocessing = [self.mean, self.std, self.interpolation, self.crop, self.crop_mode]
        # Activations and the like leave no trace in the weights, their classes do.
        kinds = sorted({type(part).__name__ for part in self.module.modules()})
        digest = hashlib.sha256(json.dumps([kinds, layout, preprocessing]).encode())
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize, crop and normalise uint8 images `B C H W` as the weights were trained to see them.

        Images that already have the encoder's size are only normalised. Otherwise the short side is
        resized (antialiased) to size / crop and the centre cut out, as timm evaluates.

        Raises:
            TypeError: the images are not uint8.
            ValueError: the images are not `B C H W` with as many channels as `mean`.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}")
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(f"images must be B {len(self.mean)} H W, got shape {tuple(images.shape)}")
        images = self.resize(images.to(self.device))
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images.float() / 255 - mean) / std

    def resize(self, images: Tensor) -> Tensor:
        """Resize and crop uint8 `B C H W` to the encoder's size; images of that size stay as they are."""
        if tuple(images.shape[-2:]) == self.image_size:
            return images
        sides = images.shape[-2:]
        size = [math.floor(wanted / self.crop) for wanted in self.image_size]
        if self.crop_mode == "center":
            scale = max(wanted / side for wanted, side in zip(size, sides, strict=True))
            size = [max(w, math.floor(side * scale + 1e-6)) for w, side in zip(size, sides, strict=True)]
        mode = INTERPOLATIONS[self.interpolation]
        images = transforms.resize(images, size, interpolation=mode, antialias=True)
        return transforms.center_crop(images, list(self.image_size))

    def batch(self, images: ImageSource, indices: Sequence[int] | Tensor) -> Tensor:
        """Images of a source as uint8 `B C H W`, to be run or changed together.

        Photographs of a folder differ in size, so each is resized and cropped before they are stacked; a
        source that holds one tensor gives its images as they are.
        """
        if isinstance(images, ArraySource):
            return images.batch(indices)
        return torch.cat([self.resize(images[int(index)][None]) for index in indices])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Last-layer tokens `B N D`, after the final norm where there is one, of uint8 images `B C H W`."""
        features = getattr(self.module, "forward_features", self.module)
        tokens = features(self.preprocess(images))
        tokens = getattr(tokens, "last_hidden_state", tokens)  # HuggingFace's output objects
        return tokens.flatten(1, 2) if tokens.ndim == 4 else tokens  # some of timm's give B H W D


def wrap(
    module: nn.Module,
    *,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
    patch_size: tuple[int, int] | int | None = None,
    image_size: tuple[int, int] | None = None,
    heads: int | None = None,
    width: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop: float | None = None,
    crop_mode: str | None = None,
    blocks: str = "blocks",
    after_attention: str | None = None,
    name: str | None = None,
    objective: str = "unknown",
    seed: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Encoder:
    """Make an `Encoder` of a timm ViT or of any module with an explicit description.

    What is left out is read from the module, the way timm's ViTs carry it; what can be read neither
    here nor there is an error that names it. The module is taken over: it is put into evaluation mode
    and its parameters stop asking for gradients (pass a `copy.deepcopy` to go on training it).

    Raises:
        UnsupportedArchitecture: there is no N x N softmax attention over one patch grid.
        ValueError: something about the module is missing or contradictory.

    >>> from nbhelpers.models.mini import mini_vit
    >>> encoder = wrap(mini_vit(width=64, depth=2), mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> encoder.prefix, encoder.grid, encoder.patch_size, encoder.depth, encoder.heads
    (1, (8, 8), (4, 4), 2, 4)
    """
    _refuse(module)
    config = getattr(module, "pretrained_cfg", None) or {}
    label = name or config.get("architecture") or type(module).__name__
    layers = _blocks(module, blocks, label)
    read = _read_layout(module, config)
    read["heads"] = getattr(getattr(layers[0], "attn", None), "num_heads", None)
    read["width"] = getattr(module, "embed_dim", None)
    given = {
        "prefix": prefix,
        "grid": grid,
        "patch_size": (patch_size, patch_size) if isinstance(patch_size, int) else patch_size,
        "image_size": image_size,
        "heads": heads,
        "width": width,
        "mean": mean if mean is not None else config.get("mean"),
        "std": std if std is not None else config.get("std"),
    }
    known = {key: read.get(key) if value is None else value for key, value in given.items()}
    if known["image_size"] is None and known["grid"] and known["patch_size"]:
        known["image_size"] = tuple(n * p for n, p in zip(known["grid"], known["patch_size"], strict=True))
    if missing := [key for key, value in known.items() if value is None]:
        # timm's own modules carry all that a plain ViT has.
        plain = {"mean", "std"}.issuperset(missing) or not type(module).__module__.startswith("timm.")
        raise (ValueError if plain else UnsupportedArchitecture)(
            f"{label}: cannot read {', '.join(missing)} from {type(module).__name__}; "
            f"pass {', '.join(f'{key}=' for key in missing)} to wrap()"
        )
    module.eval().requires_grad_(False)
    return Encoder(
        module=module,
        name=label,
        objective=objective,
        seed=seed,
        prefix=known["prefix"],
        grid=_pair(known["grid"]),
        patch_size=_pair(known["patch_size"]),
        image_size=_pair(known["image_size"]),
        heads=known["heads"],
        width=known["width"],
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        interpolation=_one_of(INTERPOLATIONS, interpolation or config.get("interpolation", "bicubic"), label),
        crop=float(crop if crop is not None else config.get("crop_pct", 1.0)),
        crop_mode=_one_of(CROP_MODES, crop_mode or config.get("crop_mode", "center"), label),
        block_path=blocks,
        after_attention=after_attention or _after_attention(layers[0]),
        provenance=dict(provenance or {}),
    )


def _refuse(module: nn.Module) -> None:
    """Raise if the architecture is known to have no N x N attention over one patch grid."""
    kind = type(module).__name__
    for ancestor in type(module).__mro__:
        package, _, file = ancestor.__module__.rpartition(".")
        if package == "timm.models" and file in REFUSED:
            raise UnsupportedArchitecture(f"{kind} (timm {file}) cannot be read: {REFUSED[file]}")
    for part in module.modules():
        if reason := REFUSED_PARTS.get(type(part).__name__):
            raise UnsupportedArchitecture(f"{kind} with {type(part).__name__} cannot be read: {reason}")


def _blocks(module: nn.Module, path: str, label: str) -> list[nn.Module]:
    """The children of the submodule `path`."""
    try:
        layers = list(module.get_submodule(path).children())
    except AttributeError:
        layers = []
    if not layers:
        holders = [
            key for key, part in module.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential)
        ]
        raise UnsupportedArchitecture(
            f"{label}: {type(module).__name__} has no transformer blocks under {path!r}; if it is a "
            f"plain ViT, name them with wrap(blocks=...), candidates: {', '.join(holders[:5])}"
        )
    return layers


def _after_attention(block: nn.Module) -> str | None:
    """Where a timm block takes up the stream after the attention residual."""
    return AFTER_ATTENTION.get(type(block).__name__) if type(block).__module__.startswith("timm.") else None


def _read_layout(module: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """Prefix tokens, patch grid, patch size and image size as timm's ViTs carry them."""
    layout: dict[str, Any] = {"prefix": getattr(module, "num_prefix_tokens", None)}
    if (embeds := getattr(module, "embeds", None)) is not None and "input_size" in config:  # NaFlex: any size
        layout["patch_size"] = _pair(embeds.patch_size)
        layout["image_size"] = tuple(config["input_size"][-2:])
        layout["grid"] = tuple(embeds.dynamic_feat_size(layout["image_size"]))
    elif (embed := getattr(module, "patch_embed", None)) is not None and getattr(embed, "grid_size", None):
        layout["grid"] = tuple(embed.grid_size)
        layout["image_size"] = _pair(embed.img_size)
        if hasattr(
            embed, "backbone"
        ):  # a convolutional stem: its own patch_size counts feature cells, not px
            layout["patch_size"] = tuple(
                s // n for s, n in zip(layout["image_size"], embed.grid_size, strict=True)
            )
        else:
            layout["patch_size"] = _pair(embed.patch_size)
    return layout


def _pair(value: Any) -> tuple[int, int]:
    """Two integers, rows first."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _one_of(known: Collection[str], name: str, label: str) -> str:
    """The name, if it is known."""
    if name not in known:
        raise ValueError(f"{label}: {name!r} is not one of {', '.join(known)}; pass another to wrap()")
    return name
