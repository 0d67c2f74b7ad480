"""`load`: an encoder by name, from the book's own, from timm, from a hub, or from a file."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import timm
import torch

from nbhelpers.models import store
from nbhelpers.models.encoder import REFUSED, Encoder, wrap
from nbhelpers.models.errors import MismatchedWeights, UnsupportedArchitecture, WeightsError
from nbhelpers.models.registry import BY_TAG, CHECKPOINTS
from nbhelpers.models.weights import read_weights

_SEEDED = re.compile(r"(?P<base>.+)\.s(?P<seed>[1-9]\d*)")
_RANDOM = "random:"


def available() -> list[str]:
    """Names that `load` knows beside timm's and a hub's, sorted."""
    rows = store.manifest()
    return sorted({*rows, *(f"{row['study']}.random" for row in rows.values()), *CHECKPOINTS})


def load(
    name: str | Path,
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
    - `"random:vit_base_patch16_224"`: the architecture of any of these, with random weights.
    - `"folder/encoder.safetensors"`: a file that `save_encoder` wrote.

    Args:
        name: see above.
        device: default the GPU where there is one.
        seed: of the random initialisation, or of the training run; default 0.
        from_file: local copy of the weights that belong to `name`.

    Raises:
        LookupError: nothing has that name; the nearest names are given.
        UnsupportedArchitecture: there is no N x N softmax attention over one patch grid.
        ChecksumError: a file is not the one that was recorded.
        WeightsError: weights cannot be fetched, read or used; one class for each reason.
    """
    encoder = _find(str(name), seed, Path(from_file) if from_file is not None else None)
    return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _find(name: str, seed: int | None, path: Path | None) -> Encoder:
    """The encoder, on the CPU."""
    if path is not None and not path.exists():
        raise FileNotFoundError(f"from_file={path} does not exist")
    if name.startswith(_RANDOM):
        if path is not None:
            raise ValueError(f"{name!r} asks for random weights, so from_file={path} cannot be used")
        return _random(name.removeprefix(_RANDOM), seed or 0)
    if name.endswith(".safetensors"):
        if not Path(name).exists():
            raise FileNotFoundError(f"{name} does not exist")
        return store.load_described(Path(name))
    if name.startswith("hf-hub:"):
        return _timm(name, path)
    base, number = _split_seed(name, seed)
    full = f"{base}.s{number}" if number else base
    rows = store.manifest()
    if full in rows:
        return store.load_trained(full, path=path)
    study, _, objective = base.partition(".")
    if objective == "random" and any(row["study"] == study for row in rows.values()):
        return store.random_like(study, number)
    if name in CHECKPOINTS:
        checkpoint = CHECKPOINTS[name]
        return _timm(name, path, checkpoint.tag) if checkpoint.tag else checkpoint.load(path)
    if timm.is_model(name.partition(".")[0]):
        return _timm(name, path)
    raise LookupError(f"no encoder is named {full!r}; {_nearest(full)}")


def _split_seed(name: str, seed: int | None) -> tuple[str, int]:
    """`"shapes.cl.s1"` -> `("shapes.cl", 1)`; a seed argument must not contradict the name."""
    match = _SEEDED.fullmatch(name)
    if match is None:
        return name, seed or 0
    number = int(match["seed"])
    if seed not in (None, number):
        raise ValueError(f"{name!r} names seed {number}, but seed={seed} was given")
    return match["base"], number


def _nearest(name: str) -> str:
    """Nearest names, for an error message."""
    names = {*available(), *timm.list_models(), *timm.list_pretrained()}
    near = sorted(each for each in names if name in each)[:5]  # a name cut short means those that it begins
    near = near or difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    return (
        f"nearest: {', '.join(near)}"
        if near
        else "nothing comes near; see available() and timm.list_models()"
    )


def _check_timm(name: str) -> None:
    """Raise if timm has no such model, or one that cannot be read (before anything is built or fetched)."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise LookupError(f"timm has no model {architecture!r}; {_nearest(name)}")
    file = timm.model_entrypoint(architecture).__module__.rpartition(".")[2]
    if file in REFUSED:
        raise UnsupportedArchitecture(f"{name} (timm {file}) cannot be read: {REFUSED[file]}")


def _random(name: str, seed: int) -> Encoder:
    """An architecture with random weights."""
    checkpoint = CHECKPOINTS.get(name)
    if checkpoint is None:
        _check_timm(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint is not None:
            module = checkpoint.build()
        else:
            module = timm.create_model(name, pretrained=False, num_classes=0)
    description = {"name": _RANDOM + name, "objective": "random", "seed": seed}
    if checkpoint is not None and not checkpoint.tag:
        return checkpoint.wrap(module, **description)
    return wrap(module, **description)


def _timm(name: str, path: Path | None, tag: str | None = None) -> Encoder:
    """A timm or hub model with its pre-trained weights, or those of a local file."""
    model = tag or name
    if not model.startswith("hf-hub:"):
        _check_timm(model)
        if path is None:
            _check_tag(model)
    overlay = {"state_dict": _state(read_weights(path))} if path is not None else None
    try:
        # timm loads strictly only if the number of classes stays that of the file, so the head stays too.
        module = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError, KeyError) as error:
        if path is not None:
            raise MismatchedWeights(f"{path} does not fit {name}: {error}") from error
        raise WeightsError(
            f"the weights of {name!r} could not be fetched: {error}. Offline, use from_file= with a local "
            f"copy, or '{_RANDOM}{model}' for random weights"
        ) from error
    config = module.pretrained_cfg
    known = BY_TAG.get(f"{config.get('architecture')}.{config.get('tag')}")
    return wrap(
        module,
        name=name,
        objective=known.objective if known else "unknown",
        provenance={
            "source": str(path) if path else config.get("hf_hub_id") or config.get("url"),
            "licence": config.get("license"),
            "tag": config.get("tag"),
            "paper": known.paper if known else None,
            "notes": known.notes if known else "",
        },
    )


def _check_tag(model: str) -> None:
    """Raise if timm has no such weights."""
    architecture, _, tag = model.partition(".")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if not tags or (tag and tag not in tags):
        known = f"known tags: {', '.join(tags)}" if tags else "it has none for this architecture"
        raise LookupError(f"timm has no weights {model!r} ({known}); use '{_RANDOM}{architecture}'")


def _state(content: dict[str, Any]) -> dict[str, Any]:
    """The table of tensors in a checkpoint: itself, or under one of the usual names."""
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), dict):
            return _state(content[name])
    return content
