"""`load`: an encoder by name, from the book's own, from timm, from a hub, or from a file."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import timm
import torch

from nbhelpers.models import store
from nbhelpers.models.encoder import REFUSED, Encoder, UnsupportedArchitecture, wrap

_SEEDED = re.compile(r"(?P<base>.+)\.s(?P<seed>[1-9]\d*)")
_RANDOM = "random:"


def available() -> list[str]:
    """Names that `load` knows beside timm's and a hub's, sorted."""
    rows = store.manifest()
    return sorted({*rows, *(f"{row['study']}.random" for row in rows.values())})


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
    - `"vit_base_patch16_224.mae"`: any timm name, with its pre-trained weights; `"hf-hub:timm/..."` likewise.
    - `"random:vit_base_patch16_224"`: the same, with random weights.
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
        OSError: weights are not reachable.
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
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    own = f"the book's own are {', '.join(available()) or 'not trained yet'}"
    return f"nearest: {', '.join(near)}; {own}" if near else own


def _check_timm(name: str) -> None:
    """Raise if timm has no such model, or one that cannot be read (before anything is built or fetched)."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise LookupError(f"timm has no model {architecture!r}; {_nearest(name)}")
    file = timm.model_entrypoint(architecture).__module__.rpartition(".")[2]
    if file in REFUSED:
        raise UnsupportedArchitecture(f"{name} (timm {file}) cannot be read: {REFUSED[file]}")


def _random(name: str, seed: int) -> Encoder:
    """A timm architecture with random weights."""
    _check_timm(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = timm.create_model(name, pretrained=False, num_classes=0)
    return wrap(module, name=_RANDOM + name, objective="random", seed=seed, provenance={"source": "timm"})


def _timm(name: str, path: Path | None) -> Encoder:
    """A timm or hub model with its pre-trained weights, or those of a local file."""
    overlay = None
    if not name.startswith("hf-hub:"):
        _check_timm(name)
        architecture, _, tag = name.partition(".")
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
        if path is None and (not tags or (tag and tag not in tags)):
            known = f"known tags: {', '.join(tags)}" if tags else "it has none for this architecture"
            raise LookupError(
                f"timm has no weights {name!r} ({known}); use '{_RANDOM}{architecture}' or from_file="
            )
    if path is not None:
        overlay = {"file": str(path), "custom_load": False}
    try:
        module = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError) as error:
        where = f"from {path}" if path else "from the network"
        raise OSError(
            f"the weights of {name!r} could not be loaded {where}: {error}. Offline, use from_file= with "
            f"a local copy, or '{_RANDOM}{name}' for random weights"
        ) from error
    config = module.pretrained_cfg
    source = str(path) if path else config.get("hf_hub_id") or config.get("url")
    return wrap(
        module,
        name=name,
        provenance={"source": source, "licence": config.get("license"), "tag": config.get("tag")},
    )
