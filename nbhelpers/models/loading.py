"""`load`: an encoder by name, from the book's own, from timm, from a hub, or from a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import timm
import torch

from nbhelpers.models import store
from nbhelpers.models.encoder import Encoder
from nbhelpers.models.mini import WIDTH
from nbhelpers.models.registry import CHECKPOINTS, HUB, find
from nbhelpers.names import nearest

RANDOM = "random:"
SEEDED = re.compile(r"([^/]+)\.s([1-9]\d*)")
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def available() -> list[str]:
    """Names that `load` knows beside timm's and a hub's, sorted."""
    rows = store.manifest()
    return sorted({*rows, *(f"{row['study']}.random" for row in rows.values()), *CHECKPOINTS})


def load(
    name: str | Path | Encoder,
    *,
    device: str | torch.device | None = None,
    seed: int | None = None,
    from_file: str | Path | None = None,
) -> Encoder:
    """An encoder by name.

    - `"shapes.cl"`, `"cifar10.mim"`, ...: trained for this book; `"shapes.cl.s1"` (or `seed=1`) is the run
      with another seed; `"shapes.random"` the same architecture, untrained.
    - `"mocov3.vit_base_patch16_224"`, ...: the public checkpoints of `nbhelpers.models.registry`.
    - `"vit_base_patch16_224.mae"`: any timm name, with its pre-trained weights; `"hf-hub:timm/..."` likewise.
    - `"random:vit_base_patch16_224"`: the architecture of any of these, with random weights; images are
      prepared as the authors of public checkpoints evaluate on ImageNet.
    - `"folder/encoder.safetensors"`: a file that `save_encoder` wrote.

    Args:
        name: see above; an encoder is returned as it is.
        device: default the GPU where there is one.
        seed: of the random initialisation, or of the training run; default 0.
        from_file: local copy of the weights that belong to `name`.

    Raises:
        LookupError: nothing has that name; the nearest names are given.
        ValueError: `seed` or `from_file` contradicts the name, or a file names no architecture.
        FileNotFoundError: a file is not there.
        UnsupportedArchitecture: there is no N x N softmax attention over one patch grid.
        ChecksumError: a file is not the one that was recorded.
        WeightsError: weights cannot be fetched, read or used; one class for each reason.
    """
    if isinstance(name, Encoder):
        _refuse(name.name, seed=seed, from_file=from_file)
        return name if device is None else name.to(device)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on what was loaded
        if _is_path(name):
            _refuse(str(name), seed=seed, from_file=from_file)
            encoder = store.load_saved(Path(name))
        else:
            encoder = _by_name(name, seed, None if from_file is None else Path(from_file))
    return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _refuse(name: str, **given: object) -> None:
    """Raise if more was given than a name can use."""
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"{name!r} says all about itself, so {option}={value} cannot be used")


def _is_path(name: str | Path) -> bool:
    """Whether a name is that of a file."""
    if isinstance(name, Path):
        return True
    return not name.startswith((HUB, RANDOM)) and ("/" in name or Path(name).suffix in WEIGHT_FILES)


def _by_name(name: str, seed: int | None, path: Path | None) -> Encoder:
    """The encoder of a name, on the CPU, with the weights in `path` if that is given."""
    base, number = name, seed or 0
    if match := SEEDED.fullmatch(name):
        base, number = match[1], int(match[2])
        if seed not in (None, number):
            raise ValueError(f"{name!r} names seed {number}, but seed={seed} was given")
    full = f"{base}.s{number}" if number else base
    torch.default_generator.manual_seed(number)
    rows = store.manifest()
    if full in rows:
        return store.load_saved(path or store.ENCODERS / rows[full]["file"], rows[full] | {"name": full})
    study, _, objective = base.partition(".")
    related = [row for row in rows.values() if row["study"] == study]
    if objective == "random" and related:
        _refuse(name, from_file=path)
        row = min(related, key=lambda row: row["architecture"]["width"] != WIDTH)  # the usual width first
        row = {key: row[key] for key in store.DESCRIPTION}
        return store.build(row | {"name": full, "objective": "random", "seed": number})
    architecture = base.removeprefix(RANDOM)
    checkpoint = find(architecture)
    if checkpoint is None:
        known = [*available(), *timm.list_models(), *timm.list_pretrained()]
        raise LookupError(f"no encoder is named {full!r}; {nearest(architecture, known)}")
    if base != architecture:
        _refuse(name, from_file=path)
        if architecture not in CHECKPOINTS:
            checkpoint = replace(checkpoint, preprocessing="evaluation")
        return replace(checkpoint.build(), name=full, objective="random", seed=number)
    _refuse(name, seed=number or None)
    return checkpoint.load(path)
