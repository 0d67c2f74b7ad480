"""A Vision Transformer ready to be looked at: module, token layout, preprocessing, provenance."""

import inspect
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from nbhelpers.files import DATA
from nbhelpers.images import ArraySource, ImageSource
from nbhelpers.models import identity
from nbhelpers.models.errors import UnsupportedArchitecture

# What has no N x N softmax attention over one patch grid: timm's file, or the class of a part -> the reason.
REFUSED: dict[str, str] = json.loads((DATA / "refused.json").read_text(encoding="utf-8"))

# The submodule of timm's blocks whose input is the residual stream after the attention residual ("+sa").
AFTER_ATTENTION = dict.fromkeys(("Block", "EvaBlock", "RelPosBlock", "DeepseekVitBlock"), "norm2")
AFTER_ATTENTION |= dict.fromkeys(("ResPostBlock", "ResPostRelPosBlock", "EvaBlockPostNorm"), "mlp")
KNOWN = {"interpolation": ("bilinear", "bicubic"), "crop_mode": ("center", "squash")}


@dataclass(kw_only=True)
class Encoder:
    """A ViT in evaluation mode with what is needed to read it.

    Attributes:
        module: the network; `module.forward_features` (or the module itself, if it has none) maps
            normalised images `B C H W` to tokens `B N D`.
        name: `"shapes.cl"`, `"vit_base_patch16_224.mae"`, ...
        objective: "CL", "MIM", "latent MIM", "hybrid", "supervised", "language", "random" or "unknown".
        seed: of the initialisation, where known.
        prefix: number of tokens before the patch tokens (class, distillation, registers).
        class_token: whether the first of them, if there are some, is a class token.
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
            residual; None where the block has no such place. Another part gives other numbers without an
            error: of `nn.TransformerEncoderLayer` it is "norm2" with `norm_first`, else "norm1".
        provenance: source, licence, sha256, images seen, ...
    """

    module: nn.Module
    name: str
    objective: str = "unknown"
    seed: int | None = None
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
    class_token: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks; the output of `blocks[i]` is depth `i + 1`."""
        return list(self.module.get_submodule(self.block_path)._modules.values())  # shared ones several times

    @property
    def depth(self) -> int:
        """Number of transformer blocks L."""
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """Number of tokens N, prefix included."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return self.prefix > 0 and self.class_token

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> "Encoder":
        """Move the weights; returns the same encoder."""
        self.module.to(device)
        return self

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of all that features depend on: equal for equal features.

        Weights and buffers, the settings and code of every module, token layout and preprocessing. What
        hooks do is not in it (see `hooked`). A setting that cannot be pickled, such as a lambda, equals no
        other.
        """
        layout = [self.prefix, self.class_token, self.grid, self.patch_size, self.image_size, self.heads]
        parts = [self.block_path, self.after_attention]
        preprocessing = [self.mean, self.std, self.interpolation, self.crop, self.crop_mode]
        return identity.fingerprint(self.module, [layout, parts, preprocessing])

    @property
    def hooked(self) -> bool:
        """Whether features may depend on what `fingerprint` cannot see: hooks, or methods of one's own."""
        own = type(self) is not Encoder or any(callable(getattr(Encoder, name, None)) for name in vars(self))
        return own or identity.hooked(self.module)

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
        return transforms.normalize(self.resize(images.to(self.device)).float() / 255, self.mean, self.std)

    def resize(self, images: Tensor) -> Tensor:
        """Resize and crop uint8 `B C H W` to the encoder's size; images of that size stay as they are."""
        if tuple(images.shape[-2:]) == self.image_size:
            return images
        sides = images.shape[-2:]
        size = [math.floor(wanted / self.crop) for wanted in self.image_size]
        if self.crop_mode == "center":
            scale = max(wanted / side for wanted, side in zip(size, sides, strict=True))
            size = [max(w, math.floor(side * scale + 1e-6)) for w, side in zip(size, sides, strict=True)]
        images = transforms.resize(images, size, InterpolationMode(self.interpolation), antialias=True)
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
        """Last-layer tokens `B N D`, after the final norm where there is one, of uint8 images `B C H W`.

        A module that has no `forward_features`, and whose `forward` ends in a head, gives what the head does.

        Raises:
            UnsupportedArchitecture: the module gives no tensor.
        """
        return self._tokens(self.preprocess(images))

    @torch.no_grad()
    def require_repeatable(self, images: Tensor) -> None:
        """Check on the first of uint8 images `B C H W` that a pass over it alone gives the same again.

        Raises:
            UnsupportedArchitecture: it does not.
        """
        pixels = Encoder.preprocess(self, images[:2])  # also of an encoder that changes its images at random
        expected, again = self._tokens(pixels)[:1], self._tokens(pixels[:1])
        if (again - expected).abs().max() > 5e-2 * expected.abs().max():
            why = "is the model random, or does it mix the images of a batch?"
            what = "a second pass over the first image gives different features"
            raise UnsupportedArchitecture(f"{self.name}: {what}; {why}")

    def _tokens(self, pixels: Tensor) -> Tensor:
        features = getattr(self.module, "forward_features", self.module)
        tokens = features(pixels)
        tokens = getattr(tokens, "last_hidden_state", tokens)  # HuggingFace's output objects
        if not isinstance(tokens, Tensor):
            raise UnsupportedArchitecture(
                f"{self.name}: its forward pass returns a {type(tokens).__name__}, not tokens B N D; wrap a "
                "module whose forward or forward_features returns them"
            )
        return tokens.flatten(1, 2) if tokens.ndim == 4 else tokens  # some of timm's give B H W D


def wrap(module: nn.Module, *, blocks: str = "blocks", **fields: Any) -> Encoder:
    """Make an `Encoder` of a timm ViT or of any module with an explicit description.

    What is left out is read from the module, the way timm's ViTs carry it; what can be read neither
    here nor there is an error that names it. The module is taken over: it is put into evaluation mode
    and its parameters stop asking for gradients (pass a `copy.deepcopy` to go on training it).

    Args:
        module: the network, as `Encoder.module`.
        blocks: name of the submodule that holds the transformer blocks.
        fields: attributes of `Encoder` that are not to be read from the module: `prefix`, `grid`,
            `patch_size`, `image_size`, `heads`, `width`, `mean`, `std`, `interpolation`, `crop`, `crop_mode`,
            `after_attention`, `class_token`, `name`, `objective`, `seed`, `provenance`.

    Raises:
        UnsupportedArchitecture: there is no N x N softmax attention over one patch grid.
        TypeError: an unknown field.
        ValueError: something about the module is missing or contradictory.

    >>> from nbhelpers.models.mini import mini_vit
    >>> encoder = wrap(mini_vit(width=64, depth=2), mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> encoder.prefix, encoder.grid, encoder.patch_size, encoder.depth, encoder.heads
    (1, (8, 8), (4, 4), 2, 4)
    """
    _refuse(module)
    known = {"module": module, "block_path": blocks, **_read(module, blocks), **fields}
    for key in {"grid", "patch_size", "image_size"} & known.keys():
        known[key] = to_2tuple(known[key])
    if "image_size" not in known and {"grid", "patch_size"} <= known.keys():
        known["image_size"] = tuple(n * p for n, p in zip(known["grid"], known["patch_size"], strict=True))
    parameters = inspect.signature(Encoder).parameters.values()
    required = [each.name for each in parameters if each.default is each.empty]
    if missing := [key for key in required if key not in known]:
        # A plain ViT of timm's tells all but mean and deviation; one that tells less is of another kind.
        plain = {"mean", "std"}.issuperset(missing) or not type(module).__module__.startswith("timm.")
        raise (ValueError if plain else UnsupportedArchitecture)(
            f"{known['name']}: cannot read {', '.join(missing)} from {type(module).__name__}; "
            f"pass {', '.join(f'{key}=' for key in missing)} to wrap()"
        )
    for each in ("mean", "std"):  # a single number is one channel's
        known[each] = tuple(known[each]) if isinstance(known[each], Iterable) else (known[each],)
    module.eval().requires_grad_(False)
    encoder = Encoder(**known)
    if contradiction := _contradiction(encoder):
        raise ValueError(f"{encoder.name}: {contradiction}; correct the module or what is passed to wrap()")
    return encoder


def _contradiction(encoder: Encoder) -> str | None:
    """What an encoder says of itself that cannot be, if anything."""
    for name, known in KNOWN.items():
        if (value := getattr(encoder, name)) not in known:
            return f"{name} {value!r} is not one of {', '.join(known)}"
    if not 0 < encoder.crop <= 1:
        return f"crop {encoder.crop} is not a share of a side, above 0 and at most 1 (divide by 100?)"
    if encoder.prefix < 0:
        return f"prefix {encoder.prefix} is not a number of tokens"
    parts = dict(encoder.blocks[0].named_modules())
    if encoder.after_attention is not None and encoder.after_attention not in parts:
        names = ", ".join(name for name, _ in encoder.blocks[0].named_children())
        return f"after_attention {encoder.after_attention!r} is not a part of a block; its parts are {names}"
    sides = (encoder.grid, encoder.image_size, encoder.patch_size)
    if any(n not in (s // p, -(-s // p)) for n, s, p in zip(*sides, strict=True)):
        grid, image, patch = (f"{rows} x {columns}" for rows, columns in sides)
        return f"a grid of {grid} patches contradicts images of {image} px in patches of {patch} px"
    if math.prod(encoder.grid) < 2:
        lack = "only one patch, so there is no attention between patches"
        return f"images of {encoder.image_size} px hold {lack}"
    # A patch embedding without convolution says nothing of channels.
    convolution = next((part for part in encoder.module.modules() if isinstance(part, nn.Conv2d)), None)
    means, deviations = len(encoder.mean), len(encoder.std)
    channels = means if convolution is None else convolution.in_channels
    if not channels == means == deviations:
        return f"{channels} channels need as many entries in mean and std, not {means} and {deviations}"
    if not all(0 <= m <= 1 and 0 < d <= 1 for m, d in zip(encoder.mean, encoder.std, strict=True)):
        return f"mean {encoder.mean} and std {encoder.std} do not fit pixel values in 0..1 (divide by 255?)"
    kinds = {value.dtype for value in encoder.module.parameters() if value.is_floating_point()}
    if encoder.device.type == "cpu" and (other := kinds - {torch.float32}):
        names = ", ".join(sorted(map(str, other)))
        return f"weights are {names}, but images on a CPU are torch.float32: call module.float()"
    if encoder.device.type != "meta" and (found := _second_patch(encoder)) not in (None, encoder.prefix + 1):
        return (
            f"the second patch, read row by row, changes token {found} (of 0..{encoder.tokens - 1}), not "
            f"{encoder.prefix + 1}: blocks must receive the {encoder.prefix} prefix tokens first, then the "
            "patches row by row"
        )
    return None


class _Embedded(Exception):
    """Ends a pass before its first block, with the tokens that the block was to get."""


@torch.no_grad()
def _second_patch(encoder: Encoder) -> int | None:
    """The token that changes most with an image's second patch, read row by row; None where none is found."""

    def stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Embedded(*args, *kwargs.values())

    rows, columns = encoder.patch_size
    top, left = (0, columns) if encoder.grid[1] > 1 else (rows, 0)
    shape = (2, len(encoder.mean), *encoder.image_size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(encoder.device)
    pixels = noise[:1].repeat(2, 1, 1, 1)
    pixels[1, :, top : top + rows, left : left + columns] = noise[1, :, :rows, :columns]
    hook = encoder.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        encoder._tokens(pixels)
    except _Embedded as reached:
        tokens = reached.args[0]
        if getattr(tokens, "shape", None) == (2, encoder.tokens, encoder.width):
            change = (tokens[1] - tokens[0]).float().norm(dim=-1)  # N
            return int(change.argmax()) if change.max() > 0 else None
    finally:
        hook.remove()
    return None


def _refuse(module: nn.Module) -> None:
    """Raise if the architecture is known to have no N x N attention over one patch grid."""
    homes = [kind.__module__.partition("timm.models.")[2] for kind in type(module).__mro__]
    parts = [type(part).__name__ for part in module.modules()]
    for name in (*homes, *parts):
        if reason := REFUSED.get(name):
            raise UnsupportedArchitecture(f"{type(module).__name__} (timm {name}) cannot be read: {reason}")


def _read(module: nn.Module, path: str) -> dict[str, Any]:
    """The fields of `Encoder` that a module tells of itself, the way timm's ViTs carry them.

    Raises:
        UnsupportedArchitecture: the submodule `path` has no blocks.
    """
    try:
        block = next(module.get_submodule(path).children())
    except (AttributeError, StopIteration):
        kinds = nn.ModuleList | nn.Sequential
        lists = [key for key, part in module.named_modules() if isinstance(part, kinds)]
        raise UnsupportedArchitecture(
            f"{type(module).__name__} has no transformer blocks under {path!r}; if it is a plain ViT, name "
            f"them with wrap(blocks=...), candidates: {', '.join(lists[:5])}"
        ) from None
    # A ViT may be wrapped into something else: the part that holds the blocks comes first.
    holders = (module.get_submodule(path.rpartition(".")[0]), module)

    def read(name: str) -> Any:
        return next((value for each in holders if (value := getattr(each, name, None)) is not None), None)

    config = read("pretrained_cfg") or {}
    known = {key: config.get(key) for key in ("mean", "std", "interpolation", "crop_mode")}
    known["crop"] = config.get("crop_pct")
    known["name"] = config.get("architecture") or type(module).__name__.lstrip("_")  # legends omit "_..."
    known["prefix"], known["width"] = read("num_prefix_tokens"), read("embed_dim")
    if known["prefix"] is not None:  # counted as timm does, whose prefix may be registers alone
        places = (*holders, read("embeds"))
        known["class_token"] = any(getattr(each, "cls_token", None) is not None for each in places)
    known["heads"] = getattr(getattr(block, "attn", None), "num_heads", None)
    if type(block).__module__.startswith("timm."):
        known["after_attention"] = AFTER_ATTENTION.get(type(block).__name__)
    embed = read("patch_embed")
    if (naflex := read("embeds")) is not None and "input_size" in config:  # takes images of any size
        known["image_size"] = config["input_size"][-2:]
        known["patch_size"] = naflex.patch_size
        known["grid"] = naflex.dynamic_feat_size(known["image_size"])
    elif getattr(embed, "grid_size", None):
        known["grid"], known["image_size"] = embed.grid_size, embed.img_size
        known["patch_size"] = embed.patch_size
        if hasattr(embed, "backbone"):  # the patch size behind a convolutional stem counts its cells, not px
            sides = zip(to_2tuple(embed.img_size), embed.grid_size, strict=True)
            known["patch_size"] = tuple(side // number for side, number in sides)
    return {key: value for key, value in known.items() if value is not None}
