"""Public checkpoints that the book compares: where they are, and how the authors' evaluations see images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from nbhelpers.files import DATA, cache_dir, sha256
from nbhelpers.models.download import fetch
from nbhelpers.models.encoder import Encoder, wrap
from nbhelpers.models.errors import DamagedWeights, DownloadError, MismatchedWeights, WeightsError
from nbhelpers.models.mae import MaskedAutoencoder
from nbhelpers.models.weights import fit, read_weights

HUB = "hf-hub:"
# Resize the short side to 256, cut out 224 in the centre: most evaluations on ImageNet.
EVALUATION = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
EVALUATION |= {"interpolation": "bicubic", "crop": 224 / 256, "crop_mode": "center"}
PREPROCESSING: Mapping[str, Mapping[str, Any]] = {
    "evaluation": EVALUATION,
    "bilinear": {**EVALUATION, "interpolation": "bilinear"},  # torchvision's default for Resize
    "half": {**EVALUATION, "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "whole": {"crop": 1.0, "crop_mode": "center"},
    "squashed": {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    "timm": {},
}


@dataclass(frozen=True)
class Checkpoint:
    """One published set of weights: a row of `data/checkpoints.json`, or any of timm or a hub.

    Attributes:
        name: `family.arch`, with timm's name for the architecture.
        objective: "CL", "MIM", "hybrid", "supervised", "language" or "unknown".
        timm: name of the architecture in timm; with a tag behind the dot where timm has these weights.
        paper: arXiv number.
        licence: of the weights; None where timm's tag says it.
        options: arguments of the architecture.
        decoder: whether the file holds MAE's decoder too.
        addresses: of the file and its mirrors, in the order in which to try them. None of the authors' hosts
            publishes checksums.
        preprocessing: of images in the authors' evaluation, a key of `PREPROCESSING`.
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
    notes: str = ""

    def build(self, **changes: Any) -> Encoder:
        """The encoder with random weights; `changes` go to timm (a smaller width, say).

        Raises:
            UnsupportedArchitecture: there is no N x N softmax attention over one patch grid.
            DownloadError: the architecture is described on a hub that could not be reached.
        """
        try:
            module = timm.create_model(self.timm, **{"num_classes": 0, **self.options, **changes})
        except (OSError, RuntimeError) as error:
            if not self.timm.startswith(HUB):
                raise
            raise DownloadError(f"{self.name} could not be fetched: {error}") from error
        module, blocks = (MaskedAutoencoder(module), "encoder.blocks") if self.decoder else (module, "blocks")
        seen = PREPROCESSING[self.preprocessing]
        return wrap(module, blocks=blocks, name=self.name, objective=self.objective, **seen)

    def load(self, path: Path | None = None, **changes: Any) -> Encoder:
        """The encoder, from a local file or downloaded once into the cache.

        Raises:
            UnsupportedArchitecture: as `build`.
            WeightsError: the file cannot be fetched or read, or does not fit.
        """
        encoder = self.build(**changes)
        config = {} if self.addresses else encoder.module.pretrained_cfg
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
                raise DownloadError(f"timm has no weights of {self.timm}")
            return fetch(addresses, cache_dir() / "weights" / f"{self.name}.weights")
        except WeightsError as error:
            raise type(error)(
                f"{error}\nA local copy is taken with load({self.name!r}, from_file=...), random weights "
                f"with load('random:{self.timm}')"
            ) from error


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


CHECKPOINTS: dict[str, Checkpoint] = {
    row["name"]: Checkpoint(**row)
    for row in json.loads((DATA / "checkpoints.json").read_text(encoding="utf-8"))
}
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
