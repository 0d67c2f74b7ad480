"""`load`: an encoder by name, from the book's own, from public checkpoints, timm or a hub, or from a file."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download

from nbhelpers.files import DATA, cache_dir, sha256
from nbhelpers.models import store
from nbhelpers.models.download import fetch
from nbhelpers.models.encoder import Encoder, wrap
from nbhelpers.models.errors import DamagedWeights, DownloadError, MismatchedWeights, WeightsError
from nbhelpers.models.mae import MaskedAutoencoder
from nbhelpers.models.mini import WIDTH
from nbhelpers.models.weights import fit, read_weights
from nbhelpers.names import nearest

HUB = "hf-hub:"
RANDOM = "random:"
SEEDED = re.compile(r"([^/]+)\.s([1-9]\d*)")
# A path, or the name of a weight file; names on a hub and random ones may hold slashes too.
FILE = re.compile(rf"(?!{HUB}|{RANDOM}).*(/.*|\.(safetensors|pth|pt|bin|ckpt|tar))")
# How images are prepared: most evaluations on ImageNet resize the short side to 256 and cut out 224.
PREPROCESSING = json.loads((DATA / "preprocessing.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Checkpoint:
    """One published set of weights: a row of `data/checkpoints.json`, or any of timm or a hub.

    Attributes:
        name: `family.arch`, with timm's name for the architecture.
        objective: "CL", "MIM", "latent MIM", "hybrid", "supervised", "language" or "unknown".
        timm: name of the architecture in timm; with a tag behind the dot where timm has these weights.
        paper: arXiv number.
        licence: of the weights; None where timm's tag says it.
        options: arguments of the architecture.
        decoder: whether the file holds MAE's decoder too.
        addresses: of the file and its mirrors, in the order in which to try them. None of the authors' hosts
            publishes checksums.
        preprocessing: of images in the authors' evaluation, a key of `PREPROCESSING`.
        evaluation: repository, file and function of the authors that say so.
        notes: what a reader should know.
    """

    name: str
    objective: str
    timm: str
    paper: str | None = None
    licence: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    decoder: bool = False
    addresses: Sequence[str] = ()
    preprocessing: str = "timm"
    evaluation: str = ""
    notes: str = ""

    def build(self) -> Encoder:
        """The encoder with random weights.

        Raises:
            UnsupportedArchitecture: there is no N x N softmax attention over one patch grid.
            DownloadError: the architecture is described on a hub that could not be reached.
        """
        try:
            module = timm.create_model(self.timm, num_classes=0, **self.options)
        except (OSError, RuntimeError) as error:
            if not self.timm.startswith(HUB):
                raise
            raise DownloadError(f"{self.name} could not be fetched: {error}") from error
        blocks = "blocks"
        if self.decoder:  # those published predict pixels as they are
            module, blocks = MaskedAutoencoder(module, normalised=False), "encoder.blocks"
        seen = PREPROCESSING[self.preprocessing]
        return wrap(module, blocks=blocks, name=self.name, objective=self.objective, **seen)

    def load(self, path: Path | None = None) -> Encoder:
        """The encoder, from a local file or downloaded once into the cache.

        Raises:
            UnsupportedArchitecture: as `build`.
            WeightsError: the file cannot be fetched or read, or does not fit.
        """
        encoder = self.build()
        own = self.addresses or path  # of such a file timm knows nothing
        config = {} if own else encoder.module.pretrained_cfg
        path = path or self._fetch(config)
        content = read_weights(path)
        try:
            taken = fit(encoder.module, content)
        except (MismatchedWeights, DamagedWeights) as problem:
            raise type(problem)(f"{path} does not fit {self.name}: {problem}") from problem
        encoder.provenance = {
            "source": str(path),
            "sha256": sha256(path),
            "addresses": list(self.addresses) or config.get("hf_hub_id"),
            "licence": self.licence or config.get("license"),
            "paper": self.paper,
            "notes": self.notes,
            **taken,
        }
        return encoder

    def _fetch(self, config: Mapping[str, Any]) -> Path:
        """The weight file, downloaded if it is not in the cache: from timm's hub or from the authors."""
        addresses = self.addresses or [address for address in [config.get("url")] if address]
        try:
            if config.get("hf_hub_id"):
                return _from_hub(config["hf_hub_id"], config.get("hf_hub_filename"))
            if not addresses:
                raise DownloadError(f"timm has no weights for {self.timm}")
            return fetch(addresses, cache_dir() / "weights" / f"{self.name}.weights")
        except WeightsError as error:
            ways = f"load({self.name!r}, from_file=...), or random weights with load('random:{self.timm}')"
            raise type(error)(f"{error}\nUse a local copy with {ways}") from error


def _from_hub(repository: str, filename: str | None) -> Path:
    """The weight file of a repository of the Hugging Face hub, safetensors where there is one."""
    repository, _, revision = repository.partition("@")
    failures = []
    for name in [filename] if filename else ["model.safetensors", "pytorch_model.bin"]:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except Exception as error:  # the hub's client lets through what its transport raises
            failures.append(f"\n  {name}: {error}")
    raise DownloadError(f"{repository} could not be fetched:{''.join(failures)}")


_ROWS = json.loads((DATA / "checkpoints.json").read_text(encoding="utf-8"))
CHECKPOINTS: dict[str, Checkpoint] = {row["name"]: Checkpoint(**row) for row in _ROWS}
BY_TAG: dict[str, Checkpoint] = {each.timm: each for each in CHECKPOINTS.values() if "." in each.timm}


def find(name: str) -> Checkpoint | None:
    """The checkpoint of a name of `CHECKPOINTS`, of timm or of a hub; None where there is no such name.

    One of `CHECKPOINTS` is found under timm's name too, so that it is seen as its authors evaluate it.

    >>> find("vit_base_patch16_224.mae").objective, find("test_vit").objective, find("vit_bas")
    ('MIM', 'unknown', None)
    """
    if name in CHECKPOINTS:
        return CHECKPOINTS[name]
    architecture, _, tag = name.partition(".")
    if name.startswith(HUB):
        full = name.removeprefix(f"{HUB}timm/")
    elif timm.is_model(architecture) and (not tag or timm.is_model_pretrained(name)):
        full = name if tag else f"{name}.{getattr(timm.get_pretrained_cfg(name), 'tag', None)}"
    else:
        return None
    return replace(BY_TAG[full], name=name) if full in BY_TAG else Checkpoint(name, "unknown", name)


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
    - `"mocov3.vit_base_patch16_224"`, ...: the public checkpoints in `nbhelpers.models.CHECKPOINTS`.
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
    if not isinstance(name, str | Path):
        kind = type(name).__name__
        way = "nbhelpers.models.wrap makes an encoder of a module"
        raise TypeError(f"load takes a name or a file, not a {kind}; {way}")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on what was loaded
        if isinstance(name, Path) or FILE.fullmatch(name):
            _refuse(str(name), seed=seed, from_file=from_file)
            if not Path(name).exists():
                other = "name a timm model on a hub hf-hub:timm/NAME, and wrap a module of another library"
                raise FileNotFoundError(f"there is no file {name}; {other}")
            encoder = store.load_saved(Path(name))
        else:
            encoder = _by_name(name, seed, None if from_file is None else Path(from_file))
    return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _refuse(name: str, **given: object) -> None:
    """Raise if more was given than a name can use."""
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"{option}={value} cannot be used with {name!r}; leave it out")


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
