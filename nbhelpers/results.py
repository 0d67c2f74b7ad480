"""Result tables: computed where the images are, and stored in `data/results` for readers without them."""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import pandas as pd
import timm
import torch

from nbhelpers.files import DATA, atomic_path
from nbhelpers.images import MissingDataError
from nbhelpers.metrics import METRICS
from nbhelpers.models import Encoder, manifest
from nbhelpers.study import TITLES, Study, analyse, code_version, read_table, study

RESULTS = DATA / "results"
COMPUTED = "computed"


class StaleTableError(ValueError):
    """A stored table was computed from other weights than those that are there now."""


@dataclass(frozen=True)
class Table:
    """How a result table is made: `compute(study, encoders)` gives its tidy frame."""

    name: str
    compute: Callable[[Study, Sequence[Encoder]], pd.DataFrame]
    about: str


def _metrics(study: Study, encoders: Sequence[Encoder]) -> pd.DataFrame:
    frames = [analyse(encoder, study.sample, list(METRICS)) for encoder in encoders]
    return pd.concat(frames, ignore_index=True)


TABLES: dict[str, Table] = {
    table.name: table
    for table in (Table("metrics", _metrics, "every metric of attention and residual stream, by depth"),)
}


@lru_cache
def _computed(study_name: str, name: str, models: tuple[str, ...]) -> pd.DataFrame:
    chosen = study(study_name)
    frame = TABLES[name].compute(chosen, chosen.encoders(models))
    return frame.assign(source=COMPUTED)


def table(study_name: str, name: str, models: Sequence[str] | None = None) -> pd.DataFrame:
    """A result table of a study: computed here where its images are, else as stored in `data/results`.

    Args:
        study_name: see `nbhelpers.study`.
        name: one of `TABLES`.
        models: encoders by name; default the study's own.

    Returns:
        A tidy frame; its column `source` says which of the two it is: "computed", or "stored" and the date.

    Raises:
        KeyError: for an unknown table.
        MissingDataError: if there are no images and no stored table of these models.
        StaleTableError: if the stored table's weights are not those that are there now.
    """
    if name not in TABLES:
        raise KeyError(f"no result table is named {name!r}; there are {', '.join(TABLES)}")
    chosen = study(study_name)
    wanted = tuple(models or chosen.models)
    missing = chosen.missing
    if missing is None:
        return _computed(study_name, name, wanted).copy()
    frame = stored(study_name, name)
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
            f"no stored table {csv}; where the images are, make it with `make results STUDY={study_name}`"
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
    images = chosen.sample
    frame = _computed(study_name, name, chosen.models).drop(columns="source")
    rows = manifest()
    provenance = {
        "table": name,
        "about": TABLES[name].about,
        "study": study_name,
        "date": date.today().isoformat(),
        "command": f"make results STUDY={study_name}",
        "code": code_version(),
        "weights": {model: rows[model]["sha256"] for model in chosen.models if model in rows},
        "images": {
            "name": images.name,
            "origin": images.origin,
            "number": len(images),
            "fingerprint": images.fingerprint,
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


def main(arguments: list[str] | None = None) -> int:
    """Command line: refresh the stored tables of a study."""
    parser = argparse.ArgumentParser(prog="python -m nbhelpers.results", description=main.__doc__)
    parser.add_argument("--study", choices=sorted(TITLES), required=True)
    parser.add_argument("--table", choices=sorted(TABLES), action="append", help="default: all of them")
    options = parser.parse_args(arguments)
    for name in options.table or TABLES:
        print(store(options.study, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
