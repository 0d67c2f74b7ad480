"""Result tables: computed where the images are, and stored in `data/results` for readers without them."""

from __future__ import annotations

import gzip
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import pandas as pd
import timm
import torch

from nbhelpers.analyse import analyse, cached, code_version, identified, read_table
from nbhelpers.files import DATA, atomic_path
from nbhelpers.images import ImageSource, MissingDataError, cue_conflict_cifar10
from nbhelpers.images.shapes import retextured
from nbhelpers.metrics import METRICS
from nbhelpers.models import Encoder, manifest
from nbhelpers.probes import knn_by_depth, linear_by_depth, robustness_by_depth, shape_bias_by_depth
from nbhelpers.probes.shape_bias import agreeing
from nbhelpers.study import Study, study

RESULTS = DATA / "results"
COMPUTED = "computed"


class StaleTableError(ValueError):
    """A stored table was computed from other weights than those that are there now."""


# How many images the probes see: learnt from, penalty chosen on, and (the noise, thirty times) tested on.
TRAIN, VALIDATION, NOISE = 3_000, 500, 500
AGREEING = 20_000  # drawn so that the tenth of `shapes` whose shape and texture agree is enough to learn from
CHANGES = {
    "noise": tuple(k / 10 for k in range(1, 11)),
    "low-pass": (0.1, 0.2, 0.3, 0.5, 0.7),
    "high-pass": (0.1, 0.2, 0.3, 0.5, 0.7),
    "patch-shuffle": (16, 8, 4),
}
CUE = "cue"  # label of images whose shape and texture have the same number: either cue names it

Images = dict[str, ImageSource]


@dataclass(frozen=True)
class Table:
    """How a result table is made.

    Attributes:
        name: what it is called.
        about: what is in it.
        images: the images of a study that it is computed from, by role.
        measure: the tidy frame of one encoder and those images.
        code: which code makes its numbers, a key of `nbhelpers.analyse.CODE`.
    """

    name: str
    about: str
    images: Callable[[Study], Images]
    measure: Callable[[Encoder, Images], pd.DataFrame]
    code: str


def _sample(study: Study) -> Images:
    return {"test": study.sample}


def _metrics(encoder: Encoder, images: Images) -> pd.DataFrame:
    return analyse(encoder, images["test"], list(METRICS))


def _probed(
    probe: Callable[..., pd.DataFrame], encoder: Encoder, *images: ImageSource, **options
) -> pd.DataFrame:
    """The frame of a function of `nbhelpers.probes`, kept in the cache folder."""
    sources = [*images, *options.get("versions", {}).values()]
    arguments = {key: list(value) if key == "versions" else value for key, value in options.items()}
    key = [probe.__name__, arguments, code_version("probes")]
    frame = cached("probes", encoder, sources, key, lambda: probe(encoder, *images, **options))
    return identified(frame, encoder, images[0])


def _drawn(study: Study, train: int) -> Images:
    """Images to learn from, to choose the penalty on, and to test on; a folder is cut into three."""
    if study.splits:
        draw = {"train": train, "validation": VALIDATION}
        splits = {"train": study.images("train"), "validation": study.images("val")}
        return {role: splits[role].subset(n) for role, n in draw.items()} | _sample(study)
    whole = study.images()
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    cut = {"train": order[: len(order) // 2], "validation": order[len(order) // 2 : len(order) * 3 // 5]}
    cut["test"] = order[len(order) * 3 // 5 :]
    most = {"train": train, "validation": VALIDATION, "test": len(study.sample)}
    return {role: whole.select(rows[: most[role]]) for role, rows in cut.items()}


def _probe_images(study: Study) -> Images:
    return _drawn(study, TRAIN)


def _probes(encoder: Encoder, images: Images) -> pd.DataFrame:
    train, validation, test = images["train"], images["validation"], images["test"]
    labels = sorted(test.labels)
    linear = _probed(linear_by_depth, encoder, train, validation, test, label=labels)
    return pd.concat([linear, _probed(knn_by_depth, encoder, train, test, label=labels)], ignore_index=True)


def _cues(study: Study) -> Images:
    """Images for the shape bias: on `shapes` its own, on photographs the cue-conflict stimuli."""
    if study.name == "shapes":
        images = _drawn(study, AGREEING)
        return {"train": images["train"], "validation": study.images("val"), "conflict": images["test"]}
    conflict = cue_conflict_cifar10()
    images = _drawn(study, TRAIN)
    return {"train": images["train"], "validation": images["validation"], "conflict": conflict}


def _shape_bias(encoder: Encoder, images: Images) -> pd.DataFrame:
    return _probed(shape_bias_by_depth, encoder, images["train"], images["validation"], images["conflict"])


def _noise_images(study: Study) -> Images:
    """Images for the noise; on `shapes` also those whose cues agree, as they are and painted anew."""
    images = _drawn(study, TRAIN)
    images["test"] = images["test"].subset(min(NOISE, len(images["test"])))
    if study.name != "shapes":
        return images
    splits = {"train": study.images("train").subset(AGREEING), "validation": study.images("val")}
    splits["test"] = study.images("test")
    for role, source in splits.items():
        part, cue = agreeing(source, source)
        part.labels[CUE], part.classes[CUE] = cue, part.classes["shape"]
        images[f"agreeing {role}"] = part
    images["agreeing test"] = images["agreeing test"].subset(NOISE)
    images["texture repainted"] = retextured(images["agreeing test"], replace=False)
    images["texture replaced"] = retextured(images["agreeing test"])
    return images


def _noise(encoder: Encoder, images: Images) -> pd.DataFrame:
    plain = [images[role] for role in ("train", "validation", "test")]
    labels = sorted(plain[0].labels)
    frames = [
        _probed(robustness_by_depth, encoder, *plain, label=labels, changes=CHANGES, depths=_all(encoder))
    ]
    if "agreeing test" in images:
        agree = [images[f"agreeing {role}"] for role in ("train", "validation", "test")]
        versions = {name: images[name] for name in ("texture repainted", "texture replaced")}
        options = {"label": CUE, "changes": {}, "versions": versions, "depths": _all(encoder)}
        frames.append(_probed(robustness_by_depth, encoder, *agree, **options))
    return pd.concat(frames, ignore_index=True)


def _all(encoder: Encoder) -> list[int]:
    return list(range(encoder.depth + 1))


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table("metrics", "every metric of attention and residual stream", _sample, _metrics, "metrics"),
        Table("probes", "linear and k-NN probes of every label", _probe_images, _probes, "probes"),
        Table(
            "shape_bias", "a probe's decisions where shape and texture disagree", _cues, _shape_bias, "probes"
        ),
        Table(
            "noise", "a probe under noise, filters, shuffling, new texture", _noise_images, _noise, "probes"
        ),
    )
}


@lru_cache
def _computed(study_name: str, name: str, models: tuple[str, ...]) -> pd.DataFrame:
    chosen, made = study(study_name), TABLES[name]
    images = made.images(chosen)
    frames = [made.measure(encoder, images) for encoder in chosen.encoders(models)]
    return pd.concat(frames, ignore_index=True).assign(source=COMPUTED)


def table(study_name: str, name: str, models: Sequence[str] | None = None) -> pd.DataFrame:
    """A result table of a study: computed here where all its images are, else as stored in `data/results`.

    Args:
        study_name: see `nbhelpers.study`.
        name: one of `TABLES`.
        models: encoders by name; default the study's own.

    Returns:
        A tidy frame; its column `source` says which of the two it is: "computed", or "stored" and the date.

    Raises:
        KeyError: for an unknown table.
        MissingDataError: if images are lacking and there is no stored table of these models.
        StaleTableError: if the stored table's weights are not those that are there now.
    """
    if name not in TABLES:
        raise KeyError(f"no result table is named {name!r}; there are {', '.join(TABLES)}")
    chosen = study(study_name)
    wanted = tuple(models or chosen.models)
    try:
        return _computed(study_name, name, wanted).copy()
    except MissingDataError as error:
        missing = str(error)
    try:
        frame = stored(study_name, name)
    except MissingDataError as error:
        raise MissingDataError(f"{missing}. There is {error}") from None
    lacking = [model for model in wanted if model not in set(frame["model"])]
    if lacking:
        raise MissingDataError(
            f"the stored table {study_name}/{name} has no {', '.join(lacking)}, "
            f"and computing it needs the images: {missing}"
        )
    return frame[frame["model"].isin(wanted)].reset_index(drop=True)


def _paths(study_name: str, name: str, folder: Path | None) -> tuple[Path, Path]:
    base = (folder or RESULTS) / study_name
    return base / f"{name}.csv.gz", base / f"{name}.json"


def stored(study_name: str, name: str, folder: Path | None = None) -> pd.DataFrame:
    """The stored table, after a check that it belongs to the weights that are there.

    Raises:
        MissingDataError: if there is no such file.
        StaleTableError: if the weights of a model changed since; the message says how to refresh it.
    """
    csv, about = _paths(study_name, name, folder)
    if not csv.exists():
        raise MissingDataError(
            f"no stored table {study_name}/{name}; where the images are, "
            f"make it with `make results STUDY={study_name}`"
        )
    provenance = json.loads(about.read_text())
    rows = manifest()
    stale = [
        model
        for model, checksum in provenance["weights"].items()
        if model not in rows or rows[model]["sha256"] != checksum
    ]
    if stale:
        raise StaleTableError(
            f"{csv} was computed from other weights of {', '.join(stale)} than those in data/encoders; "
            f"refresh it with `make results STUDY={study_name}`"
        )
    return read_table(csv).assign(source=f"stored {provenance['date']}")


def store(study_name: str, name: str, folder: Path | None = None) -> Path:
    """Compute a table from its images and write it with its provenance; returns the table's path.

    Raises:
        MissingDataError: if the images are not there.
    """
    chosen = study(study_name)
    frame = _computed(study_name, name, chosen.models).drop(columns="source")
    rows = manifest()
    provenance = {
        "table": name,
        "about": TABLES[name].about,
        "study": study_name,
        "date": date.today().isoformat(),
        "command": f"make results STUDY={study_name}",
        "code": code_version(TABLES[name].code),
        "weights": {model: rows[model]["sha256"] for model in chosen.models if model in rows},
        "images": {
            role: {
                "name": source.name,
                "origin": source.origin,
                "number": len(source),
                "fingerprint": source.fingerprint,
            }
            for role, source in TABLES[name].images(chosen).items()
        },
        "device": "GPU" if torch.cuda.is_available() else "CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
    }
    csv, about = _paths(study_name, name, folder)
    text = frame.to_csv(index=False, float_format="%.7g")
    with atomic_path(csv) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=1))  # the same numbers give the same bytes
    with atomic_path(about) as temporary:
        temporary.write_text(json.dumps(provenance, indent=2) + "\n")
    return csv


def _whole(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric that stand for a whole layer, averaged over seeds: columns objective, depth, value."""
    rows = frame[frame["metric"] == metric]
    rows = rows[rows["head"] < 0] if "head" in rows else rows
    return rows.groupby(["objective", "depth"], as_index=False, sort=False)["value"].mean()


def late(frame: pd.DataFrame, metric: str) -> dict[str, float]:
    """Mean of a metric over the last third of the depths, per objective.

    >>> rows = [("CL", depth, -1, "nmi", float(depth)) for depth in range(1, 7)]
    >>> late(pd.DataFrame(rows, columns=["objective", "depth", "head", "metric", "value"]), "nmi")
    {'CL': 5.5}
    """
    rows = _whole(frame, metric)
    rows = rows[rows["depth"] > 2 / 3 * rows["depth"].max()]
    return rows.groupby("objective", sort=False)["value"].mean().to_dict()


def peak(frame: pd.DataFrame, metric: str) -> dict[str, int]:
    """Depth at which a metric is highest, per objective.

    >>> rows = [("CL", 1, -1, "nmi", 0.2), ("CL", 2, -1, "nmi", 0.3), ("CL", 3, -1, "nmi", 0.1)]
    >>> peak(pd.DataFrame(rows, columns=["objective", "depth", "head", "metric", "value"]), "nmi")
    {'CL': 2}
    """
    rows = _whole(frame, metric)
    best = rows.loc[rows.groupby("objective", sort=False)["value"].idxmax()]
    return {row.objective: int(row.depth) for row in best.itertuples()}


@lru_cache
def published() -> pd.DataFrame:
    """Numbers published by others, digitised: `metric model objective depth value error source`.

    `depth` is NaN where a number belongs to no depth.
    """
    return pd.read_csv(DATA / "published.csv")


@lru_cache
def published_maps() -> pd.DataFrame:
    """The paper's four attention maps (figure 2), decoded: `objective query row column value`.

    Two queries on one photograph, 14 x 14 patches, MoCo v3 (CL) and SimMIM (MIM); each map is scaled to 0..1.
    """
    return pd.read_csv(DATA / "published_maps.csv")
