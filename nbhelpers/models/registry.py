"""Public checkpoints that the book compares: where they are, and how the authors' evaluations see images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from nbhelpers.files import DATA, cache_dir, sha256
from nbhelpers.models.download import Source, fetch
from nbhelpers.models.encoder import Encoder, wrap
from nbhelpers.models.errors import DamagedWeights, DownloadError, MismatchedWeights, WeightsError
from nbhelpers.models.mae import MaskedAutoencoder, describe
from nbhelpers.models.weights import fit, read_weights

# Resize the short side to 256, cut out 224 in the centre: most evaluations on ImageNet.
EVALUATION: Mapping[str, Any] = {
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bicubic",
    "crop": 224 / 256,
    "crop_mode": "center",
}
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
    """One published set of weights.

    Attributes:
        name: `family.arch`, with timm's name for the architecture.
        objective: "CL", "MIM", "hybrid", "supervised", "language" or "unknown".
        paper: arXiv number.
        timm: name of the architecture in timm; with a tag behind the dot where timm has these weights.
        licence: of the weights; None where timm's tag says it.
        options: arguments of the architecture.
        decoder: whether the file holds MAE's decoder too.
        sources: addresses of the file and its mirrors, in the order in which to try them.
        preprocessing: of images in the authors' evaluation, as fields of `wrap`; the rest as timm says.
        notes: what a reader should know.
    """

    name: str
    objective: str
    paper: str | None
    timm: str
    licence: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    decoder: bool = False
    sources: tuple[Source, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""

    def build(self, **changes: Any) -> nn.Module:
        """The architecture with random weights; `changes` go to timm (a smaller width, say)."""
        module = timm.create_model(self.timm, **{"num_classes": 0, **self.options, **changes})
        return MaskedAutoencoder(module) if self.decoder else module

    def load(self, path: Path | None = None, **changes: Any) -> Encoder:
        """The encoder, from a local file or downloaded once into the cache.

        Raises:
            WeightsError: the file cannot be fetched or read, or does not fit.
        """
        module = self.build(**changes)
        config = getattr(module, "pretrained_cfg", {}) if not self.sources else {}
        if path is None:
            path = self._fetch(config)
        content = read_weights(path)
        try:
            taken = fit(module, content)
        except (MismatchedWeights, DamagedWeights) as problem:
            raise type(problem)(f"{path} does not fit {self.name}: {problem}") from problem
        return self.wrap(
            module,
            provenance={
                "source": str(path),
                "sha256": sha256(path),
                "addresses": [source.url for source in self.sources] or config.get("hf_hub_id"),
                "licence": self.licence or config.get("license"),
                "paper": self.paper,
                "notes": self.notes,
                **taken,
            },
        )

    def _fetch(self, config: Mapping[str, Any]) -> Path:
        """The weight file, downloaded if it is not in the cache: from timm's hub or from the authors."""
        sources = self.sources or tuple(Source(url) for url in [config.get("url")] if url)
        try:
            if config.get("hf_hub_id"):
                return _from_hub(config["hf_hub_id"], config.get("hf_hub_filename"))
            return fetch(sources, cache_dir() / "weights" / f"{self.name}.weights")
        except WeightsError as error:
            raise type(error)(
                f"{error}\nA local copy is taken with load({self.name!r}, from_file=...), random weights "
                f"with load('random:{self.timm}')"
            ) from error

    def wrap(self, module: nn.Module, **description: Any) -> Encoder:
        """An encoder around a module that `build` made."""
        layout = describe(module) if isinstance(module, MaskedAutoencoder) else {}
        fields = {"name": self.name, "objective": self.objective, **self.preprocessing, **description}
        return wrap(module, **layout, **fields)


def _from_hub(repository: str, filename: str | None) -> Path:
    """The weight file of a repository of the Hugging Face hub, safetensors where there is one."""
    repository, _, revision = repository.partition("@")
    for name in [filename] if filename else ["model.safetensors", "pytorch_model.bin"]:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise DownloadError(f"{repository} is not reachable: {error}") from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's client lets through what its transport raises
            raise DownloadError(f"{repository} could not be fetched: {error}") from error
    raise DownloadError(f"{repository} has neither model.safetensors nor pytorch_model.bin")


def _read() -> dict[str, Checkpoint]:
    """The checkpoints of `data/checkpoints.json` by name."""
    rows = json.loads((DATA / "checkpoints.json").read_text(encoding="utf-8"))
    found = {}
    for row in rows:
        # None of the authors' hosts publishes checksums.
        sources = tuple(Source(address) for address in row.pop("addresses", ()))
        preprocessing = PREPROCESSING[row.pop("preprocessing")]
        found[row["name"]] = Checkpoint(**row, sources=sources, preprocessing=preprocessing)
    return found


CHECKPOINTS: dict[str, Checkpoint] = _read()
BY_TAG: dict[str, Checkpoint] = {each.timm: each for each in CHECKPOINTS.values() if "." in each.timm}
