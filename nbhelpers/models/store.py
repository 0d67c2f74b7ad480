"""Trained encoders on disk: half-precision safetensors and one manifest."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from nbhelpers.files import DATA, atomic_path, sha256
from nbhelpers.models.encoder import Encoder, wrap
from nbhelpers.models.errors import ChecksumError
from nbhelpers.models.mae import MaskedAutoencoder, describe
from nbhelpers.models.mini import WIDTH, mini_vit
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
        ValueError: a part of the description is missing, or a weight is not finite in half precision.
    """
    if missing := [key for key in DESCRIPTION if key not in row]:
        raise ValueError(f"{name}: the manifest row lacks {', '.join(missing)}")
    folder = folder or ENCODERS
    path = folder / f"{name}.safetensors"
    weights = {
        key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in module.state_dict().items()
    }
    if broken := [key for key, value in weights.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"{name}: not finite in half precision: {', '.join(broken)}")
    header = {"name": name, **{key: row[key] for key in DESCRIPTION}}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"encoder": json.dumps(header)})
        found = sha256(temporary)
        # A row whose file is about to be replaced goes first: killed in between, the name is trained again.
        _write_row(folder, name, None)
    _write_row(folder, name, {"file": path.name, "sha256": found, **row})
    return path


def _write_row(folder: Path, name: str, row: Mapping[str, Any] | None) -> None:
    """Write a row of the manifest, or remove it."""
    with _locked(folder):
        rows = manifest(folder)
        if row is None and name not in rows:
            return
        kept = {key: value for key, value in rows.items() if key != name}
        rows = dict(sorted((kept | ({name: row} if row else {})).items()))
        with atomic_path(folder / "manifest.json") as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for the duration, against other processes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def load_trained(name: str, folder: Path | None = None, path: Path | None = None) -> Encoder:
    """The encoder of a manifest row, its checksum verified before use.

    Args:
        name: key of the manifest.
        folder: default `data/encoders`.
        path: a copy of the file elsewhere.

    Raises:
        FileNotFoundError: the file is not there.
        ChecksumError: the file is not the one that was recorded.
    """
    folder = folder or ENCODERS
    row = manifest(folder)[name]
    path = path or folder / row["file"]
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: {path} is missing; fetch it with git (or git lfs), or train it again"
        )
    weights, found = read_weights(path), sha256(path)
    if found != row["sha256"]:
        raise ChecksumError(f"{path}: wrong checksum; expected sha256 {row['sha256']}, found {found}")
    return _build(weights, row | {"name": name})


def load_described(path: Path) -> Encoder:
    """The encoder in a file written by `save_encoder`, from the description in its header.

    Raises:
        DamagedWeights: there are no complete weights in the file.
        ValueError: its header describes no encoder.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    weights, header = read_weights(path), None
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("encoder")
    if header is None:
        raise ValueError(
            f"{path} does not say which architecture it belongs to; name that one, "
            f"load('ARCHITECTURE', from_file='{path}')"
        )
    return _build(weights, json.loads(header) | {"file": path.name, "sha256": sha256(path)})


def random_like(study: str, seed: int, folder: Path | None = None) -> Encoder:
    """A random initialisation of the architecture that a study's trained encoders have.

    Raises:
        LookupError: the study has no trained encoder yet.
    """
    rows = {key: row for key, row in manifest(folder).items() if row["study"] == study}
    if not rows:
        raise LookupError(
            f"no trained encoder of study {study!r} in {folder or ENCODERS} whose architecture to copy"
        )
    row = min(rows.values(), key=lambda row: row["architecture"]["width"] != WIDTH)  # the usual width first
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = mini_vit(**{key: value for key, value in row["architecture"].items() if key != "decoder"})
    return wrap(
        module,
        mean=row["mean"],
        std=row["std"],
        name=f"{study}.random" + (f".s{seed}" if seed else ""),
        objective="random",
        seed=seed,
        provenance={"study": study, "architecture": row["architecture"]},
    )


def _build(weights: Weights, row: Mapping[str, Any]) -> Encoder:
    """Weights in the architecture of their row, in single precision."""
    sizes = dict(row["architecture"])
    decoder = sizes.pop("decoder", None)
    module: nn.Module = mini_vit(**sizes)
    layout = {}
    if decoder is not None:
        module = MaskedAutoencoder(module, **decoder)
        layout = describe(module)
    load_strictly(module, weights)  # copies half into single precision
    return wrap(
        module,
        mean=row["mean"],
        std=row["std"],
        name=row["name"],
        objective=row["objective"],
        seed=row["seed"],
        **layout,
        provenance={key: value for key, value in row.items() if key not in ("name", "mean", "std")},
    )
