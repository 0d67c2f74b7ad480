"""Result tables: computed where the images are, and stored in `data/results` for readers without them."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

import pandas as pd
import timm
import torch

from nbhelpers.files import DATA, atomic_path
from nbhelpers.images import MissingDataError
from nbhelpers.images.source import content_fingerprint
from nbhelpers.measure import code_version, read_table
from nbhelpers.models import Encoder, load, manifest
from nbhelpers.results.gather import gather
from nbhelpers.results.published import (
    against_published,
    difference_to_published,
    published,
    published_maps,
    published_triples,
)
from nbhelpers.results.summary import at_end, by_label, early, highest, last_third, late, peak
from nbhelpers.results.tables import TABLES, Images, Table, redrawn
from nbhelpers.studies import Study, study

RESULTS = DATA / "results"
COMPUTED = "computed"

__all__ = [
    "COMPUTED",
    "TABLES",
    "NoTableError",
    "StaleTableError",
    "Table",
    "add",
    "already",
    "against_published",
    "at_end",
    "by_label",
    "early",
    "gather",
    "highest",
    "difference_to_published",
    "last_third",
    "late",
    "outdated",
    "peak",
    "published",
    "published_maps",
    "published_triples",
    "store",
    "stored",
    "table",
    "triples",
]


class StaleTableError(ValueError):
    """A stored table was computed from other weights than those that are there now."""


class NoTableError(KeyError):
    """A study has no such table; the message says why."""

    __str__ = Exception.__str__  # without the quotes of a KeyError


def table(
    study_name: str,
    name: str,
    models: Sequence[str | Path | Encoder] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    n_images: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """A result table of a study: computed here where all its images are, else as stored in `data/results`.

    A slow table is always the stored one, and so are those rows of a kept one that are stored. What is
    computed stays in the cache folder.

    Args:
        study_name: see `nbhelpers.studies`.
        name: one of `TABLES`.
        models: encoders, their names, or their files; default the study's own.
        metrics: those wanted; of "metrics" and "profile", no others are computed.
        n_images: how many test images to measure on, other than the study's sample: never the stored table.
        seed: which test images are drawn; other than 0: never the stored table.

    Returns:
        A tidy frame; its column `source` says which of the two it is: "computed", or "stored" and the date.

    Raises:
        NoTableError: for an unknown table, or one that the study does not have.
        MissingDataError: if images are lacking and there is no stored table of these models.
        StaleTableError: if the stored rows are of other weights than those that are there now.
        ValueError: for a metric that the table does not have, two encoders of one name, or images to be drawn
            for a table that is not computed here or has no sample.
    """
    chosen, made = _chosen(study_name, name)
    wanted = list(models or chosen.models)
    draw = n_images is not None or seed != 0
    if made.slow and draw:
        raise ValueError(
            f"{study_name}/{name} is too slow for a build of the book: there is the stored table alone, "
            f"not one of n_images={n_images}, seed={seed}"
        )
    before = []
    if made.kept and not draw:
        before, wanted = already(study_name, name, wanted)
        if not wanted:
            return _only(pd.concat(before, ignore_index=True), metrics, name)
    missing = "it is too slow for a build of the book"
    if not made.slow:
        try:
            images = made.images(chosen)
            if draw:
                images = redrawn(chosen, images, n_images, seed)
            frame = _computed(made, images, _distinct(wanted), metrics)
            return _only(pd.concat([*before, frame], ignore_index=True), metrics, name)
        except MissingDataError as error:
            if draw:
                raise
            missing = f"computing it needs the images: {error}"
    try:
        frame = pd.concat([*before, stored(study_name, name, wanted)], ignore_index=True)
    except MissingDataError as error:
        raise MissingDataError(f"{missing}. And {error}") from None
    return _only(frame, metrics, name)


def already(
    study_name: str, name: str, models: Sequence[str | Path | Encoder]
) -> tuple[list[pd.DataFrame], list[str | Path | Encoder]]:
    """Stored rows of those models that have some, and the other models."""
    frames, others = [], []
    for model in models:
        try:
            frames.append(stored(study_name, name, [model]))
        except (MissingDataError, StaleTableError):
            others.append(model)
    return frames, others


def _computed(
    made: Table, images: Images, encoders: Iterable[Encoder], metrics: Sequence[str] | None
) -> pd.DataFrame:
    limit = [tuple(metrics)] if metrics and set(metrics) <= set(made.metrics) else []
    frames = [made.measure(encoder, images, *limit) for encoder in encoders]
    return pd.concat(frames, ignore_index=True).assign(source=COMPUTED)


def _only(frame: pd.DataFrame, metrics: Sequence[str] | None, name: str) -> pd.DataFrame:
    if metrics is None:
        return frame
    known = frame["metric"].unique()
    if unknown := [metric for metric in metrics if metric not in known]:
        raise ValueError(f"the table {name!r} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return frame[frame["metric"].isin(metrics)].reset_index(drop=True)


def _distinct(models: Iterable[str | Path | Encoder]) -> list[Encoder]:
    """The encoders, each once; two of one name would be one line in every figure."""
    first: dict[str, Encoder] = {}
    for model in models:
        encoder = model if isinstance(model, Encoder) else load(model)
        other = first.setdefault(encoder.name, encoder)
        if other is not encoder and other.fingerprint != encoder.fingerprint:
            raise ValueError(
                f"two different encoders are named {encoder.name!r}; rename one, as by "
                f"dataclasses.replace(load(...), name='another name')"
            )
    return list(first.values())


def _chosen(study_name: str, name: str) -> tuple[Study, Table]:
    """A study and a table that it has."""
    if name not in TABLES:
        raise NoTableError(f"no result table is named {name!r}; there are {', '.join(TABLES)}")
    chosen, made = study(study_name), TABLES[name]
    if not made.belongs_to(chosen):
        reason = f", since {made.why}" if made.why else ""
        raise NoTableError(
            f"the study {study_name} has no table {name!r}: it is made of {', '.join(made.studies)}{reason}"
        )
    return chosen, made


def _paths(study_name: str, name: str, folder: Path | None) -> tuple[Path, Path]:
    base = (folder or RESULTS) / study_name
    return base / f"{name}.csv.gz", base / f"{name}.json"


def _read(study_name: str, name: str, folder: Path | None) -> tuple[pd.DataFrame, dict[str, dict]]:
    """A stored table and the record of each of its encoders.

    Raises:
        MissingDataError: if there is no table, or no description of it that can be read.
    """
    csv, about = _paths(study_name, name, folder)
    try:
        return read_table(csv), json.loads(about.read_text())["encoders"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        lack = "no stored table" if not csv.exists() else f"no description ({about.name}) of the stored table"
        raise MissingDataError(
            f"there is {lack} {study_name}/{name}; where the images are, "
            f"make it with `make results STUDY={study_name}`"
        ) from error


def _weights(model: str | Encoder, study_name: str) -> str | None:
    """What identifies an encoder's weights: the checksum of their file, or the recipe of random ones.

    Empty for one of the study's own that is no longer there; None where only a download could tell.
    """
    if isinstance(model, str):
        if row := manifest().get(model):
            return row["sha256"]
        own, _, rest = model.partition(".")
        if own != study_name:
            return None
        if rest.partition(".")[0] != "random":
            return ""
        model = load(model)
    recipe = [model.name, model.objective, model.provenance.get("architecture"), model.provenance.get("tag")]
    if model.objective != "random" and not recipe[-1]:
        recipe = [model.fingerprint]
    return model.provenance.get("sha256") or hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def stored(
    study_name: str,
    name: str,
    models: Sequence[str | Path | Encoder] | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """The rows of some encoders (default: all) in a stored table, if they are of the weights that are there.

    Raises:
        MissingDataError: if there is no such table, no description of it, or no row of an encoder.
        StaleTableError: if the weights of one of these encoders changed since.
    """
    frame, records = _read(study_name, name, folder)
    files = [
        load(m) if isinstance(m, Path) or str(m).endswith(".safetensors") else m for m in models or records
    ]
    wanted = {model.name if isinstance(model, Encoder) else model: model for model in files}
    refresh = f"`make results STUDY={study_name}`"
    if lacking := [model for model in wanted if model not in records]:
        raise MissingDataError(
            f"the stored table {study_name}/{name} has no {', '.join(lacking)}; it is made with {refresh}"
        )
    now = {key: _weights(model, study_name) for key, model in wanted.items()}
    if stale := [key for key, weights in now.items() if weights not in (None, records[key]["sha256"])]:
        raise StaleTableError(
            f"{study_name}/{name} was computed from other weights of {', '.join(stale)} than those that are "
            f"there now; refresh it with {refresh}"
        )
    dates = {key: f"stored {max(records[each]['date'] for each in wanted)}" for key in wanted}
    encoders = _encoder_of(frame)
    return frame.assign(source=encoders.map(dates))[encoders.isin(wanted)].reset_index(drop=True)


def _encoder_of(frame: pd.DataFrame) -> pd.Series:
    """The encoder of each row; the rows of a decoder belong to its encoder."""
    return frame["model"].where(
        frame["model"].str.startswith("random:"), frame["model"].str.partition(":")[0]
    )


def _fingerprint(images: Images) -> str:
    """Of the images of a table; of generated ones by their labels, as their pixels round on each machine."""
    parts = []
    for role, source in sorted(images.items()):
        labels = [source.labels[key] for key in sorted(source.labels)]
        own = content_fingerprint(*labels) if source.origin == "generated" else source.fingerprint
        parts.append((role, own))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def outdated(study_name: str, name: str, folder: Path | None = None) -> list[str]:
    """Encoders whose stored rows were made by another version of the code than this one."""
    _, records = _read(study_name, name, folder)
    code = code_version(TABLES[name].code)
    return [model for model, record in records.items() if record["code"] != code]


def store(study_name: str, name: str, folder: Path | None = None, *, fresh: bool = False) -> Path:
    """Compute what a stored table lacks from its images, and write it with its provenance; returns its path.

    Rows stay whose encoder has the same weights and was measured on the same images, by whatever version of
    the code (`outdated` names those of another one); `fresh` computes all of them. The table is written after
    each encoder.

    Raises:
        NoTableError: for an unknown table, or one that the study does not have.
        MissingDataError: if the images are not there.
    """
    chosen, made = _chosen(study_name, name)
    images = made.images(chosen)
    try:
        records = {} if fresh else _read(study_name, name, folder)[1]
    except MissingDataError:
        records = {}
    for model in made.models(chosen):
        record = records.get(model, {})
        weights = _weights(model, study_name) or _weights(load(model), study_name)
        if (record.get("sha256"), record.get("images")) != (weights, _fingerprint(images)):
            _merge(chosen, made, images, made.measure(load(model), images), folder, {})
    return _paths(study_name, name, folder)[0]


def add(study_name: str, name: str, frame: pd.DataFrame, folder: Path | None = None, **about: object) -> Path:
    """Put the rows of one or more encoders, measured before or elsewhere, into a stored table.

    Rows that the table has of these encoders are replaced. Weights and images are recorded as they are here;
    `about` says what was different when they were measured: `code` (`code_version`), `date`, `device`,
    `precision`, `versions`.

    Raises:
        MissingDataError: if the images are not there, to be recorded.
        ValueError: for an encoder that the table is not made of.
    """
    chosen, made = _chosen(study_name, name)
    return _merge(chosen, made, made.images(chosen), frame, folder, about)


def _merge(
    chosen: Study, made: Table, images: Images, frame: pd.DataFrame, folder: Path | None, about: Mapping
) -> Path:
    models = made.models(chosen)
    added = dict(iter(frame.drop(columns="source", errors="ignore").groupby(_encoder_of(frame), sort=False)))
    if foreign := [model for model in added if model not in models]:
        raise ValueError(
            f"{chosen.name}/{made.name} is not made of {', '.join(foreign)}: {', '.join(models)}"
        )
    csv, description = _paths(chosen.name, made.name, folder)
    try:
        old, records = _read(chosen.name, made.name, folder)
        parts = dict(iter(old.groupby(_encoder_of(old), sort=False)))
    except MissingDataError:
        parts, records = {}, {}
    record = {
        "images": _fingerprint(images),
        "code": code_version(made.code),
        "date": date.today().isoformat(),
        "device": "GPU" if torch.cuda.is_available() else "CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
    }
    for model in added:
        weights = _weights(model, chosen.name) or _weights(load(model), chosen.name)
        records[model] = {"sha256": weights} | record | about
    parts |= added
    present = [model for model in models if model in parts and model in records]
    whole = pd.concat([parts[model] for model in present], ignore_index=True)
    provenance = {
        "table": made.name,
        "about": made.about,
        "study": chosen.name,
        "command": f"make results STUDY={chosen.name}",
        "images": {
            role: {"name": source.name, "origin": source.origin, "number": len(source)}
            for role, source in images.items()
        },
        "encoders": {model: records[model] for model in present},
    }
    text = whole.to_csv(index=False, float_format="%.7g")
    # Without a description the table is computed again: a kill between the two files leaves no wrong record.
    description.unlink(missing_ok=True)
    with atomic_path(csv) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=1))  # the same numbers give the same bytes
    with atomic_path(description) as temporary:
        temporary.write_text(json.dumps(provenance, indent=2) + "\n")
    return csv


def triples(study_name: str, models: Sequence[str | Path | Encoder] | None = None) -> pd.DataFrame:
    """k-NN, linear and attentive accuracy of each encoder at its last depth, to be read side by side.

    The attentive probe learns from fewer images than the others: column `learnt`.

    Columns: those of a probe's frame, `learnt` and `source`; metric is "knn", "linear" or "attentive". Raises
    the errors of `table`; encoders default to the study's own.
    """
    frames = []
    for name, metrics in {"probes": ("knn", "linear"), "tokens": ("attentive",)}.items():
        frame = table(study_name, name, models, metrics=metrics)
        learnt = TABLES[name].learns
        frames += [at_end(frame, metric).assign(learnt=learnt) for metric in metrics]
    return pd.concat(frames, ignore_index=True)
