"""Trained encoders on disk: half-precision safetensors and one manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from nbhelpers.files import DATA, atomic_path, sha256
from nbhelpers.models.encoder import Encoder, wrap
from nbhelpers.models.errors import ChecksumError
from nbhelpers.models.mae import MaskedAutoencoder
from nbhelpers.models.mini import mini_vit
from nbhelpers.models.weights import Weights, load_strictly, read_weights

ENCODERS = DATA / "encoders"
DESCRIPTION = ("study", "objective", "seed", "architecture", "mean", "std")  # what using the weights needs


def manifest(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The rows of `manifest.json` by encoder name; empty where nothing was trained yet."""
    path = (folder or ENCODERS) / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save_encoder(module: nn.Module, name: str, row: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write weights as `NAME.safetensors` and their row into the manifest.

    Floating-point weights are stored in half precision. The description (`study`, `objective`, `seed`,
    `architecture`, `mean`, `std`) is written into the file's header too, so that the file can be used alone.
    `file` and `sha256` are filled in here. Both files are written under a temporary name and moved;
    several training processes may save at once.

    Args:
        module: a `mini_vit`, or a `MaskedAutoencoder` around one.
        name: `"shapes.cl"`, `"shapes.cl.s1"`, ...
        row: the description, and whatever else is to be recorded (recipe, images_seen, val_loss, ...).
            `architecture` holds the arguments of `mini_vit`, for a `MaskedAutoencoder` also
            `decoder` {width, depth, heads}.
        folder: default `data/encoders`.

    Raises:
        KeyError: a part of the description is missing.
        ValueError: a weight is not finite in half precision, or the module is not what the row describes.
        MismatchedWeights: weights do not fit what the row describes.
    """
    header = {"name": name, **{key: row[key] for key in DESCRIPTION}}
    folder = folder or ENCODERS
    path = folder / f"{name}.safetensors"
    weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    if broken := [key for key, value in weights.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"{name}: not finite in half precision: {', '.join(broken)}")
    described = build(header, weights).module
    if _settings(module) != _settings(described):  # neither shows in the weights
        raise ValueError(f"{name}: the module has other heads or parts than the row describes")
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"encoder": json.dumps(header)})
        found = sha256(temporary)
        # A row whose file is about to be replaced goes first: killed in between, the name is trained again.
        _write_row(folder, name, None)
    _write_row(folder, name, {"file": path.name, "sha256": found, **row})
    return path


def _settings(module: nn.Module) -> list[tuple[type, int | None]]:
    """The kind of each part, and of attention the number of heads."""
    return [(type(part), getattr(part, "num_heads", None)) for part in module.modules()]


def _write_row(folder: Path, name: str, row: Mapping[str, Any] | None) -> None:
    """Write a row of the manifest, or remove it."""
    with FileLock(folder / ".lock"):
        others = {key: value for key, value in manifest(folder).items() if key != name}
        rows = others | ({name: row} if row else {})
        with atomic_path(folder / "manifest.json") as temporary:
            temporary.write_text(json.dumps(dict(sorted(rows.items())), indent=2) + "\n")


def load_saved(path: Path, row: Mapping[str, Any] | None = None) -> Encoder:
    """The encoder in a file written by `save_encoder`.

    Args:
        path: of the file.
        row: the encoder's `name` and row of the manifest, whose checksum must be the file's; None: the
            description in the file's header.

    Raises:
        DamagedWeights: there are no complete weights in the file.
        ChecksumError: the file is not the one that was recorded.
        ValueError: its header describes no encoder.
    """
    weights, found = read_weights(path), sha256(path)
    if row is None:
        header = None
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get("encoder")
        if header is None:
            use = f"name that one, load('ARCHITECTURE', from_file='{path}')"
            raise ValueError(f"{path} does not say which architecture it belongs to; {use}")
        row = json.loads(header) | {"file": path.name, "sha256": found}
    if found != row["sha256"]:
        raise ChecksumError(f"{path}: wrong checksum; expected sha256 {row['sha256']}, found {found}")
    return build(row, weights)


def build(row: Mapping[str, Any], weights: Weights | None = None) -> Encoder:
    """The encoder that a row describes, in single precision; without weights: random, and no decoder."""
    sizes = dict(row["architecture"])
    decoder = sizes.pop("decoder", None)
    module, blocks = mini_vit(**sizes), "blocks"
    if weights is not None:
        if decoder:
            module, blocks = MaskedAutoencoder(module, **decoder), "encoder.blocks"
        load_strictly(module, weights)  # copies half into single precision
    fields = {key: row[key] for key in ("name", "objective", "seed", "mean", "std")}
    provenance = {key: value for key, value in row.items() if key not in ("name", "mean", "std")}
    return wrap(module, blocks=blocks, provenance=provenance, **fields)
