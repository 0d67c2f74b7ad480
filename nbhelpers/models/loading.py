"""`load`: an encoder by name, from the book's own, from timm, from a hub, or from a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import timm
import torch

from nbhelpers.models import store
from nbhelpers.models.encoder import REFUSED, Encoder
from nbhelpers.models.errors import DownloadError, UnsupportedArchitecture, WeightsError
from nbhelpers.models.registry import BY_TAG, CHECKPOINTS, EVALUATION, Checkpoint
from nbhelpers.names import nearest

_SEEDED = re.compile(r"(?P<base>.+)\.s(?P<seed>[1-9]\d*)")
_RANDOM = "random:"
_HUB = "hf-hub:"
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
        UnsupportedArchitecture: there is no N x N softmax attention over one patch grid.
        ChecksumError: a file is not the one that was recorded.
        WeightsError: weights cannot be fetched, read or used; one class for each reason.
    """
    if isinstance(name, Encoder):
        _given_alone(name.name, seed, from_file)
        return name if device is None else name.to(device)
    encoder = _find(name, seed, Path(from_file) if from_file is not None else None)
    return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _given_alone(name: str, seed: int | None, path: str | Path | None) -> None:
    """Raise if more was given than an encoder or a file that says all about itself."""
    if seed is not None or path is not None:
        raise ValueError(f"{name} is already chosen, so seed={seed} and from_file={path} cannot be used")


def _find(name: str | Path, seed: int | None, path: Path | None) -> Encoder:
    """The encoder, on the CPU."""
    if path is not None and not path.exists():
        raise FileNotFoundError(f"from_file={path} does not exist")
    if _is_path(name):
        _given_alone(str(name), seed, path)
        return store.load_described(Path(name))
    if name.startswith(_RANDOM):
        _no_file(name, path)
        return _random(name.removeprefix(_RANDOM), seed or 0)
    if name.startswith(_HUB):
        return _timm(name, path)
    base, number = _split_seed(name, seed)
    full = f"{base}.s{number}" if number else base
    rows = store.manifest()
    if full in rows:
        return store.load_trained(full, path=path)
    study, _, objective = base.partition(".")
    if objective == "random" and any(row["study"] == study for row in rows.values()):
        _no_file(name, path)
        return store.random_like(study, number)
    if name in CHECKPOINTS or timm.is_model(name.partition(".")[0]):
        if number:
            raise ValueError(f"{name!r} was published once; there is no seed {number}")
        return CHECKPOINTS[name].load(path) if name in CHECKPOINTS else _timm(name, path)
    raise LookupError(f"no encoder is named {full!r}; {_nearest(full)}")


def _is_path(name: str | Path) -> bool:
    """Whether a name is that of a file."""
    if isinstance(name, Path):
        return True
    return not name.startswith((_HUB, _RANDOM)) and ("/" in name or Path(name).suffix in WEIGHT_FILES)


def _no_file(name: str, path: Path | None) -> None:
    """Raise if weights were given for a name that asks for random ones."""
    if path is not None:
        raise ValueError(f"{name!r} asks for random weights, so from_file={path} cannot be used")


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
    """The nearest of all names that can be loaded."""
    return nearest(name, [*available(), *timm.list_models(), *timm.list_pretrained()])


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
        checkpoint = Checkpoint(name, "random", None, name, preprocessing=EVALUATION)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = checkpoint.build()
    return checkpoint.wrap(module, name=_RANDOM + name, objective="random", seed=seed)


def _timm(name: str, path: Path | None) -> Encoder:
    """A timm or hub model with its pre-trained weights, or those of a local file."""
    if name.startswith(_HUB):
        full = name.removeprefix(f"{_HUB}timm/")
    else:
        _check_timm(name)
        full = _with_tag(name) or name
        if path is None:
            _check_tag(name)
    if full in BY_TAG:
        return replace(BY_TAG[full], name=name).load(path)
    try:
        return Checkpoint(name, "unknown", None, name).load(path)
    except WeightsError:
        raise
    except (OSError, RuntimeError) as error:
        if not name.startswith(_HUB):
            raise
        raise DownloadError(f"{name} could not be fetched: {error}") from error


def _with_tag(name: str) -> str | None:
    """A timm name with the tag that timm takes where none is given; None where there are no weights."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        return None
    return f"{config.architecture}.{config.tag}" if config is not None and config.tag else None


def _check_tag(model: str) -> None:
    """Raise if timm has no such weights."""
    architecture, _, tag = model.partition(".")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if not tags or (tag and tag not in tags):
        known = f"known tags: {', '.join(tags)}" if tags else "it has none for this architecture"
        raise LookupError(f"timm has no weights {model!r} ({known}); use '{_RANDOM}{architecture}'")
