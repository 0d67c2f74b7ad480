"""Result tables: computed where the images are, and stored in `data/results` for readers without them."""

from __future__ import annotations

import gzip
import json
import platform
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path

import pandas as pd
import timm
import torch

from nbhelpers.files import DATA, atomic_path
from nbhelpers.images import MissingDataError
from nbhelpers.measure import code_version, read_table
from nbhelpers.models import CHECKPOINTS, load, manifest
from nbhelpers.results.gather import gather
from nbhelpers.results.published import against_published, difference_to_published, published, published_maps
from nbhelpers.results.summary import at_end, by_label, early, highest, last_third, late, peak
from nbhelpers.results.tables import TABLES, Table
from nbhelpers.studies import Study, study

RESULTS = DATA / "results"
COMPUTED = "computed"

__all__ = [
    "COMPUTED",
    "TABLES",
    "NoTableError",
    "StaleTableError",
    "Table",
    "against_published",
    "at_end",
    "by_label",
    "early",
    "gather",
    "highest",
    "difference_to_published",
    "last_third",
    "late",
    "peak",
    "published",
    "published_maps",
    "store",
    "stored",
    "table",
]


class StaleTableError(ValueError):
    """A stored table was computed from other weights than those that are there now."""


class NoTableError(KeyError):
    """A study has no such table; the message says why."""

    __str__ = Exception.__str__  # without the quotes of a KeyError


@lru_cache
def _computed(study_name: str, name: str, models: tuple[str, ...]) -> pd.DataFrame:
    chosen, made = study(study_name), TABLES[name]
    images = made.images(chosen)
    frames = [made.measure(encoder, images) for encoder in chosen.encoders(models)]
    return pd.concat(frames, ignore_index=True).assign(source=COMPUTED)


def table(study_name: str, name: str, models: Sequence[str] | None = None) -> pd.DataFrame:
    """A result table of a study: computed here where all its images are, else as stored in `data/results`.

    A slow table is always the stored one.

    Args:
        study_name: see `nbhelpers.studies`.
        name: one of `TABLES`.
        models: encoders by name; default the study's own.

    Returns:
        A tidy frame; its column `source` says which of the two it is: "computed", or "stored" and the date.

    Raises:
        NoTableError: for an unknown table, or one that the study does not have.
        MissingDataError: if images are lacking and there is no stored table of these models.
        StaleTableError: if the stored table's weights are not those that are there now.
    """
    chosen, made = _chosen(study_name, name)
    wanted = tuple(models or chosen.models)
    if made.slow:
        missing = "it is too slow for a build of the book"
    else:
        try:
            return _computed(study_name, name, wanted).copy()
        except MissingDataError as error:
            missing = f"computing it needs the images: {error}"
    try:
        frame = stored(study_name, name)
    except MissingDataError as error:
        raise MissingDataError(f"{missing}. There is {error}") from None
    encoders = _encoder_of(frame)
    if lacking := [model for model in wanted if model not in set(encoders)]:
        raise MissingDataError(
            f"the stored table {study_name}/{name} has no {', '.join(lacking)}, and {missing}"
        )
    return frame[encoders.isin(wanted)].reset_index(drop=True)


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


def _encoder_of(frame: pd.DataFrame) -> pd.Series:
    """The encoder of each row; the rows of a decoder belong to its encoder."""
    return frame["model"].str.partition(":")[0]


def _by_encoder(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return dict(iter(frame.groupby(_encoder_of(frame))))


def _kept(csv: Path, about: Path, now: dict) -> dict[str, pd.DataFrame]:
    """Rows by encoder of a table that was computed as `now` describes, from weights that are still there."""
    if not csv.exists():
        return {}
    then, weights = json.loads(about.read_text()), now["weights"]
    same = all(then[key] == now[key] for key in ("code", "images", "device", "versions"))
    if not same or any(weights.get(model) != checksum for model, checksum in then["weights"].items()):
        return {}
    return _by_encoder(read_table(csv))


def store(study_name: str, name: str, folder: Path | None = None) -> Path:
    """Compute a table from its images and write it with its provenance; returns the table's path.

    What a slow table says of an encoder is kept if neither code, images, versions nor any weights changed
    since, so that one more encoder costs its own time alone. Delete the table to have all of it computed.

    Raises:
        NoTableError: for an unknown table, or one that the study does not have.
        MissingDataError: if the images are not there.
    """
    chosen, made = _chosen(study_name, name)
    models = made.models(chosen)
    rows = manifest()
    provenance = {
        "table": name,
        "about": made.about,
        "study": study_name,
        "date": date.today().isoformat(),
        "command": f"make results STUDY={study_name}",
        "code": code_version(made.code),
        "weights": {model: rows[model]["sha256"] for model in models if model in rows},
        "public": {
            encoder.name: {key: encoder.provenance.get(key) for key in ("sha256", "tag", "licence")}
            for encoder in map(load, [model for model in models if model in CHECKPOINTS])
        },
        "images": {
            role: {
                "name": source.name,
                "origin": source.origin,
                "number": len(source),
                "fingerprint": source.fingerprint,
            }
            for role, source in made.images(chosen).items()
        },
        "device": "GPU" if torch.cuda.is_available() else "CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
    }
    csv, about = _paths(study_name, name, folder)
    kept = _kept(csv, about, provenance) if made.slow else {}
    if missing := tuple(model for model in models if model not in kept):
        kept |= _by_encoder(_computed(study_name, name, missing).drop(columns="source"))
    frame = pd.concat([kept[model] for model in models], ignore_index=True)
    text = frame.to_csv(index=False, float_format="%.7g")
    with atomic_path(csv) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=1))  # the same numbers give the same bytes
    with atomic_path(about) as temporary:
        temporary.write_text(json.dumps(provenance, indent=2) + "\n")
    return csv
