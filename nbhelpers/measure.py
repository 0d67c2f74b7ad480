"""Measure an encoder on images: every metric asked for, in one forward pass, at constant memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm  # not tqdm.auto: it draws widgets into executed pages

from nbhelpers.capture import Attention, Stream, capture
from nbhelpers.files import atomic_path, cache_dir
from nbhelpers.images import ImageSource
from nbhelpers.metrics import METRICS, AttentionMaps, DepthwiseMetric
from nbhelpers.models import Encoder
from nbhelpers.ranks import rank, world_size

IDENTITY = ("study", "model", "objective", "seed")
HALF_PRECISION = ("cuda",)  # devices on which the model computes in bfloat16


def analyse(
    encoder: Encoder,
    images: ImageSource,
    metrics: Sequence[str],
    batch_size: int = 64,
    cache: bool = True,
) -> pd.DataFrame:
    """Measure an encoder on images: every metric asked for, in one forward pass, at constant memory.

    Under `torchrun` (an initialised process group) each rank takes its share of the images and every rank
    gets the same frame.

    Args:
        encoder: from `nbhelpers.load` or `nbhelpers.models.wrap`; it runs where its weights are, in
            bfloat16 autocast on a GPU.
        images: all of them are used; `images.subset(n)` draws fewer.
        metrics: names in `nbhelpers.metrics.METRICS`.
        batch_size: images per forward pass; the result does not depend on it.
        cache: look each metric up in the cache folder and keep it there. The key covers weights,
            preprocessing, images and the code that computes it.

    Returns:
        A tidy frame with the columns `study model objective seed metric depth head value low high images`,
        and `rank` or `frequency` where a metric has more than one number per depth. `low` and `high` bound
        the 95 % interval of the mean over images.

    Raises:
        KeyError: for an unknown metric, with the nearest names.
    """
    places = {
        name: _place("analyses", encoder, [images], [name, code_version("metrics")]) for name in metrics
    }
    frames = {name: read_table(path) for name, path in places.items() if cache and path.exists()}
    if missing := [name for name in metrics if name not in frames]:
        accumulators = {name: METRICS[name].of(encoder).to(encoder.device) for name in missing}
        feed(encoder, images, list(accumulators.values()), batch_size)
        frames |= {name: accumulator.compute() for name, accumulator in accumulators.items()}
        for name in missing if cache else ():
            _keep(frames[name], places[name])
    return identified(pd.concat([frames[name] for name in metrics], ignore_index=True), encoder, images)


def _place(kind: str, encoder: Encoder, images: Sequence[ImageSource], key: Sequence[object]) -> Path:
    """Where in the cache folder a frame lies; arguments as of `cached`."""
    parts = [encoder.fingerprint, encoder.device.type, [source.fingerprint for source in images], *key]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    return cache_dir() / kind / f"{name}.csv"


def _keep(frame: pd.DataFrame, place: Path) -> None:
    if rank() == 0:
        with atomic_path(place) as temporary:
            frame.to_csv(temporary, index=False)
    if world_size() > 1:
        dist.barrier()  # a process that is ahead must find it too, or it would wait for the others' share


def cached(
    kind: str,
    encoder: Encoder,
    images: Sequence[ImageSource],
    key: Sequence[object],
    compute: Callable[[], pd.DataFrame],
) -> pd.DataFrame:
    """The frame of `compute`, from the cache folder where it was computed before from the same things.

    Args:
        kind: folder in the cache folder.
        encoder: what was measured; its weights, preprocessing and device are part of the key.
        images: what it was measured on; their fingerprints are part of the key.
        key: all else that the numbers depend on, code included (`code_version`), as JSON knows it.
        compute: makes the frame.
    """
    place = _place(kind, encoder, images, key)
    if place.exists():
        return read_table(place)
    frame = compute()
    _keep(frame, place)
    return frame


def feed(
    encoder: Encoder, images: ImageSource, accumulators: Sequence[DepthwiseMetric], batch_size: int
) -> None:
    """Run the images through the encoder once and hand every record to the accumulators that consume it."""
    device = encoder.device.type

    @torch.autocast(device, enabled=False)  # the model alone computes in half precision
    def attention(record: Attention) -> None:
        maps = AttentionMaps(record)
        for accumulator in accumulators:
            if "attention" in accumulator.consumes:
                accumulator.update(maps)

    @torch.autocast(device, enabled=False)
    def stream(record: Stream) -> None:
        for accumulator in accumulators:
            if record.place in accumulator.consumes:
                accumulator.update(record)

    consumed = frozenset().union(*(accumulator.consumes for accumulator in accumulators))
    places = tuple(place for place in ("block", "+sa") if place in consumed)
    share = torch.arange(rank(), len(images), world_size())
    with capture(
        encoder,
        on_attention=attention if "attention" in consumed else None,
        on_stream=stream if places else None,
        places=places,
    ):
        for indices in tqdm(share.split(batch_size), desc=encoder.name, unit="batch", disable=None):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device in HALF_PRECISION):
                encoder.forward(encoder.batch(images, indices))


def attention_maps(encoder: Encoder, images: Tensor) -> Tensor:
    """Attention among the patch tokens of a few images, every layer and head kept: for looking at.

    Args:
        encoder: from `nbhelpers.load`.
        images: uint8 `B C H W`.

    Returns:
        Probabilities `L B H N N`, on the CPU; rows (queries) sum to one.
    """
    kept: list[Tensor] = []
    with capture(
        encoder, on_attention=lambda record: kept.append(AttentionMaps(record).probabilities.float().cpu())
    ):
        encoder.forward(images)
    return torch.stack(kept)


def identified(frame: pd.DataFrame, encoder: Encoder, images: ImageSource) -> pd.DataFrame:
    """The frame with the columns that say what was measured, `study model objective seed`, in front."""
    name = images.name if ":" in images.name else images.name.split("/")[0]
    who = dict(zip(IDENTITY, (name, encoder.name, encoder.objective, encoder.seed), strict=True))
    return frame.assign(**who)[[*IDENTITY, *frame.columns.difference(IDENTITY, sort=False)]]


# What turns weights and images into the numbers of a frame, beside capture and the encoder itself.
CODE = {
    "metrics": ("measure.py", "metrics/*.py"),
    "probes": ("probes/*.py", "images/filters.py"),
    "pretrain": ("pretrain/*.py", "models/mini.py"),
}


@lru_cache
def code_version(kind: str) -> str:
    """Hash of the code that turns weights and images into a frame, by the keys of `CODE`."""
    package = Path(__file__).parent
    files = [path for pattern in CODE[kind] for path in package.glob(pattern)]
    digest = hashlib.sha256()
    for path in sorted([package / "capture.py", package / "models" / "encoder.py", *files]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_table(path: Path) -> pd.DataFrame:
    """A frame as `analyse` and the result tables write it."""
    return pd.read_csv(path)
