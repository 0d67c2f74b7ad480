"""One published set of weights: what it was trained for, where it is, how it is built and filled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from nbhelpers.files import cache_dir, sha256
from nbhelpers.models.download import Source, fetch
from nbhelpers.models.encoder import Encoder, wrap
from nbhelpers.models.errors import MismatchedWeights, WeightsError
from nbhelpers.models.mae import MaskedAutoencoder, describe
from nbhelpers.models.weights import Layout, load_strictly, read_weights


@dataclass(frozen=True)
class Checkpoint:
    """One published set of weights.

    Attributes:
        name: `family.arch`, with timm's name for the architecture.
        objective: "CL", "MIM", "hybrid", "supervised" or "language".
        licence: of the weights; None where timm's tag says it.
        paper: arXiv number.
        tag: timm's name, where timm has these weights; what follows is then left to timm.
        architecture: what `timm.create_model` builds.
        options: its arguments.
        decoder: whether the file holds MAE's decoder too.
        sources: addresses of the file and its mirrors, in the order in which to try them.
        layouts: how the keys read; the first that fits a file is used.
        mean: per channel, for pixel values in 0..1.
        std: per channel.
        interpolation: of the published evaluation.
        crop: share of the side that the published evaluation cuts out.
        notes: what a reader should know.
    """

    name: str
    objective: str
    paper: str
    licence: str | None = None
    tag: str | None = None
    architecture: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    decoder: bool = False
    sources: tuple[Source, ...] = ()
    layouts: tuple[Layout, ...] = ()
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop: float = 224 / 256
    notes: str = ""

    def build(self, **changes: Any) -> nn.Module:
        """The architecture with random weights; `changes` go to timm (a smaller width, say)."""
        architecture = self.architecture or str(self.tag).partition(".")[0]
        module = timm.create_model(architecture, **{"num_classes": 0, **self.options, **changes})
        return MaskedAutoencoder(module) if self.decoder else module

    def load(self, path: Path | None = None, **changes: Any) -> Encoder:
        """The encoder, from a local file or downloaded once into the cache.

        Raises:
            WeightsError: the file cannot be fetched or read, or does not fit.
        """
        if path is not None:
            content = read_weights(path)
        else:
            try:
                path = fetch(self.sources, cache_dir() / "weights" / f"{self.name}.weights")
            except WeightsError as error:
                raise type(error)(
                    f"{error}\nA local copy is taken with load({self.name!r}, from_file=...)"
                ) from error
            try:
                content = read_weights(path)
            except WeightsError:
                path.unlink()  # or it would be found again the next time
                raise
        module = self.build(**changes)
        dropped = self._fill(module, content, path)
        return self.wrap(
            module,
            provenance={
                "source": str(path),
                "sha256": sha256(path),
                "addresses": [source.url for source in self.sources],
                "licence": self.licence,
                "paper": self.paper,
                "notes": self.notes,
                "left out on purpose": dropped,
            },
        )

    def wrap(self, module: nn.Module, **description: Any) -> Encoder:
        """An encoder around a module that `build` made."""
        layout = describe(module) if isinstance(module, MaskedAutoencoder) else {}
        return wrap(
            module,
            **layout,
            name=self.name,
            **{"objective": self.objective, **description},
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop=self.crop,
            crop_mode="center",
        )

    def _fill(self, module: nn.Module, content: Mapping[str, Any], path: Path) -> list[str]:
        """Load a file's content by the first layout that reads it; returns the keys left out on purpose."""
        problems = []
        for layout in self.layouts:
            try:
                weights, dropped = layout.read(content)
            except MismatchedWeights as problem:
                problems.append(str(problem))
                continue
            try:
                load_strictly(module, weights)
            except MismatchedWeights as problem:
                raise MismatchedWeights(f"{path} does not fit {self.name}: {problem}") from problem
            return dropped
        raise MismatchedWeights(f"{path} is not laid out like {self.name}: {'; or '.join(problems)}")
