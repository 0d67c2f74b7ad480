"""Measure an encoder on images: every metric asked for, in one forward pass, at constant memory."""

import ast
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm  # not tqdm.auto: it draws widgets into executed pages

from nbhelpers.capture import Attention, OnAttention, OnStream, capture
from nbhelpers.files import atomic_path, cache_dir
from nbhelpers.images import ImageSource
from nbhelpers.metrics import METRICS, SHIPPED, Accumulator, Metric, patch_attention
from nbhelpers.metrics.objects import object_attention, object_prior, object_tokens, queries_by_kind
from nbhelpers.metrics.streams import Streams
from nbhelpers.models import Encoder, UnsupportedArchitecture
from nbhelpers.ranks import rank, world_size

IMPORTED = time.time()
IDENTITY = ("study", "model", "objective", "seed")
LIBRARIES = ("torch", "timm", "torchvision", "scikit-learn")  # whose code makes numbers, too
HALF_PRECISION = ("cuda",)  # devices on which the model computes in bfloat16
# Without this option pandas before 3.1 can read the last digit wrong; later ones are exact and warn of it.
EXACT = {"float_precision": "round_trip"} if pd.__version__ < "3.1" else {}
# Of a label: the same maps on the objects of other images, and what a map has beyond that, image by image.
OTHER_IMAGES, BEYOND_PLACE = ", other images", ", beyond place"
MEMORY = 2**31  # bytes that a forward pass may take beside the weights: large images come in small batches


def analyse(
    encoder: Encoder,
    images: ImageSource,
    metrics: Sequence[str | Metric],
    batch_size: int = 64,
    cache: bool = True,
) -> pd.DataFrame:
    """Measure an encoder on images: every metric asked for, in one forward pass, at constant memory.

    Under `torchrun` (an initialised process group) each rank takes its share of the images and every rank
    gets the same frame. Where a value is undefined for some images (a blank one, say), it is the mean over
    the others; where it is for all (a single image has no spectrum over images), NaN. A warning says so.

    Args:
        encoder: from `nbhelpers.load` or `nbhelpers.models.wrap`; it runs where its weights are, in
            bfloat16 autocast on a GPU.
        images: all of them are used; `images.subset(n)` draws fewer.
        metrics: names in `nbhelpers.metrics.METRICS`, or rows of one's own.
        batch_size: images per forward pass, or as many as fit 2 GiB if that is fewer; the result does
            not depend on it.
        cache: look each metric up in the cache folder and keep it there. The key covers weights,
            preprocessing, images and the code that computes it. Of a model with hooks, or of a class that a
            notebook defines, or with a metric of one's own, nothing is kept: no key can cover what these
            depend on.

    Returns:
        A tidy frame with the columns `study model objective seed metric depth head value low high images`,
        and `rank` or `frequency` where a metric has more than one number per depth. `low` and `high` bound
        the 95 % interval of the mean over images.

    Raises:
        KeyError: for an unknown metric, with the nearest names.
        TypeError: names in place of an encoder or images, or of a list of metrics.
        ValueError: no metric, or features that are not finite.
        UnsupportedArchitecture: attention or features that cannot be seen as the model computes them, or a
            pass that sees an image more than once.
    """
    if not (isinstance(encoder, Encoder) and isinstance(images, ImageSource)) or isinstance(metrics, str):
        kinds = ", ".join(type(each).__name__ for each in (encoder, images, metrics))
        raise TypeError(
            f"analyse takes an Encoder, an ImageSource and a list of metrics, not {kinds}; of a uint8 tensor "
            "N 3 H W make nbhelpers.images.ArraySource(name, tensor, {}, {}), of a study take its images()"
        )
    asked = [each if isinstance(each, Metric) else METRICS[each] for each in metrics]
    if not asked:
        raise ValueError(f"analyse: name at least one metric; there are {', '.join(METRICS)}")
    rows = {each.name: each for each in asked}
    if twice := [each.name for each in asked if rows[each.name] != each]:
        raise ValueError(f"two metrics are named {twice[0]!r}: rename one, by dataclasses.replace")

    def compute(missing: Sequence[str]) -> dict[str, pd.DataFrame]:
        accumulators = {name: rows[name].of(encoder).to(encoder.device) for name in missing}
        feed(encoder, images, list(accumulators.values()), batch_size)
        computed = {name: accumulator.compute() for name, accumulator in accumulators.items()}
        require_one_pass(encoder, max(frame["images"].max() for frame in computed.values()), images)
        return computed

    keys = {name: [name, code_version("metrics")] for name in rows}
    keep = cache and all(row in SHIPPED for row in rows.values())
    frames = cached(encoder, [images], keys, compute) if keep else compute(list(rows))
    frame = pd.concat([frames[name] for name in rows], ignore_index=True)
    _note_undefined(frame, len(images))
    return identified(frame, encoder, images)


def feed(encoder: Encoder, images: ImageSource, accumulators: Sequence[Accumulator], batch_size: int) -> None:
    """Run the images through the encoder once and hand each accumulator the stream that its metric takes.

    Raises the errors of `observe`.
    """
    streams = Streams(accumulators)
    attend = streams.on_attention if streams.attention else None
    observe(
        encoder, images, batch_size, on_attention=attend, on_stream=streams.on_stream, places=streams.places
    )


def observe(
    encoder: Encoder,
    images: ImageSource,
    batch_size: int,
    before: Callable[[Tensor], None] = lambda indices: None,
    *,
    on_attention: OnAttention = None,
    on_stream: OnStream = None,
    places: Sequence[str] = (),
) -> None:
    """Run this rank's share of the images through the encoder once, under `capture` with these callbacks.

    `before` is told of each pass which images it is of.

    Raises:
        UnsupportedArchitecture: the encoder gives the first image other features with capture than without.
    """
    device = encoder.device.type
    share = torch.arange(rank(), len(images), world_size())
    if not len(share):
        return
    half = torch.autocast(device, dtype=torch.bfloat16, enabled=device in HALF_PRECISION)
    tolerance = 5e-2 if device in HALF_PRECISION else 1e-3
    # Of an image: about 24 copies of its tokens, and 4 of one block's attention maps.
    numbers = encoder.tokens * (24 * encoder.width + 4 * encoder.heads * encoder.tokens)
    size = min(batch_size, max(1, MEMORY // (4 * numbers)))
    with half:
        expected = encoder.forward(encoder.batch(images, share[: min(2, size)]))[:1]
    plainly = torch.autocast(device, enabled=False)  # the model alone computes in half precision
    with (
        tqdm(total=len(share), desc=encoder.name, unit="image", disable=None) as bar,
        capture(
            encoder,
            on_attention=on_attention and plainly(on_attention),
            on_stream=on_stream and plainly(on_stream),
            places=places,
        ),
    ):
        # The first image comes alone: no other axis can be taken for a batch of length 1, and features that
        # depend on the other images of a batch show.
        for indices in filter(len, (share[:1], *share[1:].split(size))):
            before(indices)
            with half:
                tokens = encoder.forward(encoder.batch(images, indices))
            first = indices[0] == share[0]
            if first and (tokens - expected).abs().max() > tolerance * expected.abs().max():
                raise UnsupportedArchitecture(
                    f"{encoder.name}: the first image has other features while its blocks are observed than "
                    "without (is it random, not in evaluation mode, looking at its hooks, or mixing images?)"
                )
            bar.update(len(indices))


def require_one_pass(encoder: Encoder, seen: int, images: ImageSource) -> None:
    """Raise `UnsupportedArchitecture` if more images were seen than there are."""
    if seen > len(images):
        raise UnsupportedArchitecture(f"{encoder.name}: a pass runs its blocks several times an image")


def attention_maps(encoder: Encoder, images: Tensor) -> Tensor:
    """Attention among the patch tokens of a few images, every layer and head kept: for looking at.

    Args:
        encoder: from `nbhelpers.load`.
        images: uint8 `B C H W`.

    Returns:
        Probabilities `L B H N N`, on the CPU; rows (queries) sum to one.

    Raises:
        UnsupportedArchitecture: attention that cannot be seen, or that differs from pass to pass.
    """
    encoder.require_repeatable(images)
    layers: list[Tensor] = []

    def keep(record: Attention) -> None:
        maps = patch_attention(record.query, record.key, record.prefix, record.bias, record.scale)
        layers.append(maps.float().cpu())

    with capture(encoder, on_attention=keep):
        encoder.forward(images)
    return torch.stack(layers)


def object_attention_by_depth(encoder: Encoder, images: ImageSource, batch_size: int = 64) -> pd.DataFrame:
    r"""Mean share of attention on the object, of the queries of each kind, in every block and head.

    .. math:: \bar m = \frac{1}{|Q|} \sum_{q \in Q} \sum_{k \in \mathrm{object}} A_{qk}

    The softmax is over all tokens, prefix tokens included. The same maps are laid over the objects of other
    images, too (`object_prior`): what they have there is owed to where objects lie. Under `torchrun` ranks
    share the images, as in `analyse`.

    Args:
        encoder: any that `capture` takes.
        images: with masks of their objects.
        batch_size: images per forward pass, or as many as fit in memory.

    Returns:
        Rows `study model objective seed metric depth head value low high images label`, metric
        "object_attention" in 0..1, with the 95 % interval over images. The label is the kind of query; the
        same with ", other images": what these maps have on the objects of other images; with ", beyond
        place": the difference of the two, taken per image, in -1..1; or "uniform attention": the object's
        share of all tokens, which attention to all alike would give.
        An image without queries of a kind is left out of its mean; without any it is NaN.

    Raises:
        ValueError: for a source without masks.
        UnsupportedArchitecture: as of `analyse`.
    """
    if images.masks is None:
        raise ValueError(f"{images.name} has no object masks")
    share_of = Metric("object_attention", object_attention, "", per_head=True)
    every = object_tokens(encoder, images.masks)
    on, elsewhere = every[:1], Tensor()
    kinds = [*queries_by_kind(encoder, on)]
    places = ("", OTHER_IMAGES, BEYOND_PLACE)
    sums = {kind + where: share_of.of(encoder) for where in places for kind in kinds}
    sums["uniform attention"] = replace(share_of, per_head=False).of(encoder)

    def add(record: Attention) -> None:
        maps = patch_attention(record.query, record.key, 0, record.bias, record.scale)  # B H N N, all tokens
        here, there = object_attention(maps, on), torch.einsum("bhqk,bqk->bhq", maps, elsewhere)  # B H N
        for kind, chosen in queries_by_kind(encoder, on).items():
            for where, shares in zip(places, (here, there, here - there), strict=True):
                mean = shares.masked_fill(~chosen[:, None], torch.nan).nanmean(-1)  # B H
                sums[kind + where].update(record.depth, mean)
        sums["uniform attention"].update(record.depth, on.float().mean(1))

    def look_at(indices: Tensor) -> None:
        nonlocal on, elsewhere
        on = every[indices.to(every.device)]
        elsewhere = object_prior(on, every)

    observe(encoder, images, batch_size, look_at, on_attention=add)
    frames = [each.compute().assign(label=kind) for kind, each in sums.items()]
    frame = identified(pd.concat(frames, ignore_index=True), encoder, images)
    require_one_pass(encoder, frame["images"].max(), images)
    return frame


def cached(
    encoder: Encoder,
    images: Sequence[ImageSource],
    keys: Mapping[str, Sequence[object]],
    compute: Callable[[list[str]], Mapping[str, pd.DataFrame]],
) -> dict[str, pd.DataFrame]:
    """Frames by name: those that were computed before from the cache folder, the others by `compute`.

    Of an encoder that is `hooked` nothing is kept. A warning says so of a cache folder that cannot be used,
    and where the code was edited after it was imported: then no key tells which of the two has run.

    Args:
        encoder: what was measured; its weights, preprocessing and device are part of each key.
        images: what it was measured on; their fingerprints are part of each key.
        keys: by name, all else that the numbers depend on, code included (`code_version`): what JSON knows,
            encoders, images and dataclasses.
        compute: makes the frames of the names that it is given.
    """
    places: dict[str, Path] = {}
    if edited := _edited_files():
        what = f"{', '.join(edited)} changed since nbhelpers was imported"
        warnings.warn(f"{what}: nothing is read from the cache or kept; restart Python", stacklevel=3)
    elif not encoder.hooked:
        who = [encoder.fingerprint, encoder.device.type, [source.fingerprint for source in images]]
        who.append([version(library) for library in LIBRARIES])
        try:
            for name, key in keys.items():
                digest = hashlib.sha256(json.dumps([*who, *key], default=_as_json).encode()).hexdigest()
                places[name] = cache_dir() / "frames" / f"{digest[:24]}.csv"
        except OSError as error:
            warnings.warn(f"nothing is kept, the cache folder cannot be used: {error}", stacklevel=3)
    frames = [{name: read_table(place) for name, place in places.items() if place.exists()}]
    if world_size() > 1:  # ranks that disagreed on what is missing would wait for each other forever
        dist.broadcast_object_list(frames)
    missing = [name for name in keys if name not in frames[0]]
    computed = compute(missing) if missing else {}
    for name in missing if places and rank() == 0 else ():
        try:
            with atomic_path(places[name]) as temporary:
                computed[name].to_csv(temporary, index=False)
        except OSError as error:
            warnings.warn(f"{places[name]} could not be written, so it is not kept: {error}", stacklevel=3)
    return frames[0] | computed


def _as_json(thing: Any) -> object:
    """What a key holds of an encoder or images, or of a recipe."""
    return [thing.name, thing.fingerprint] if hasattr(thing, "fingerprint") else asdict(thing)


def _note_undefined(frame: pd.DataFrame, images: int) -> None:
    """Warn of metrics that have no value for some of the images."""
    undefined = frame[(frame["images"] < images) | frame["value"].isna()]
    for metric, rows in undefined.groupby("metric", sort=False):
        depths = ", ".join(map(str, sorted(rows["depth"].unique())))
        lost = images if rows["value"].isna().any() else images - rows["images"].min()
        warnings.warn(
            f"{metric} has no value for {lost} of {images} images at depth {depths}: too few images, heads "
            "or patches, no class token, or images or tokens that are all equal; without any value it is NaN",
            stacklevel=3,
        )


def identified(frame: pd.DataFrame, encoder: Encoder, images: ImageSource) -> pd.DataFrame:
    """The frame with columns in front that say which model was measured on which study.

    `shapes/test` belongs to study `shapes`; a folder is a study of its own.
    """
    study = images.name if ":" in images.name else images.name.split("/")[0]
    who = dict(zip(IDENTITY, (study, encoder.name, encoder.objective, encoder.seed), strict=True))
    return frame.assign(**who)[[*IDENTITY, *frame.columns.difference(IDENTITY, sort=False)]]


# Files whose code turns weights and images into the numbers of a frame, beside those of every kind.
CODE = {
    "metrics": ("measure.py", "metrics/*.py"),
    "probes": ("probes/*.py", "images/filters.py", "metrics/cka.py", "metrics/base.py", "metrics/objects.py"),
    "pretrain": ("pretrain/*.py", "models/mini.py", "measure.py", "metrics/*.py", "probes/*.py"),
}


def _hashed_files(kind: str) -> list[Path]:
    package = Path(__file__).parent
    always = map(package.joinpath, ("capture.py", "intervals.py", "models/encoder.py"))
    return sorted([*always, *(path for pattern in CODE[kind] for path in package.glob(pattern))])


def _edited_files() -> list[str]:
    """Names of the files behind the numbers of frames that were written after they were imported."""
    paths = {path for kind in ("metrics", "probes") for path in _hashed_files(kind)}
    return sorted(path.name for path in paths if path.stat().st_mtime > IMPORTED)


@lru_cache
def code_version(kind: str) -> str:
    """Hash of the code that turns weights and images into a frame, by the keys of `CODE`.

    Docstrings and comments do not count: they change no number.
    """
    digest = hashlib.sha256()
    for path in _hashed_files(kind):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body[0].value.value = ""
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def read_table(path: Path) -> pd.DataFrame:
    """A frame as `analyse` and the result tables write it."""
    return pd.read_csv(path, **EXACT)
