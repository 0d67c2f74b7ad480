"""Result tables: computed where the images are, and stored in `data/results` for readers without them."""

import gzip
import hashlib
import json
import platform
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path

import pandas as pd
import timm
import torch

from nbhelpers.files import DATA, atomic_path
from nbhelpers.images import MissingDataError
from nbhelpers.measure import code_version, read_table
from nbhelpers.metrics import METRICS, SHIPPED
from nbhelpers.models import DECODER, Encoder, load, manifest
from nbhelpers.models.mini import WIDTH
from nbhelpers.results import trainings  # declares its tables
from nbhelpers.results.published import difference_to_published, published, published_maps, published_triples
from nbhelpers.results.summary import at_end, by_label, difference_by_depth, early, highest, late, peak
from nbhelpers.results.tables import TABLES, Images, Table, redrawn
from nbhelpers.studies import IMAGES, OWN, Study, listed, study

RESULTS = DATA / "results"
COMPUTED = "computed"
Model = str | Path | Encoder  # a name, a file of weights, or what was loaded


class StaleTableError(ValueError):
    """A stored table was computed from other encoders or images than those that are there now."""


class NoTableError(KeyError):
    """A study has no such table; the message says why."""

    __str__ = Exception.__str__  # without the quotes of a KeyError


def table(
    study_name: str,
    name: str,
    models: Sequence[Model] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    n_images: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """A result table of a study: computed here where all its images are, else as stored in `data/results`.

    A slow table is always read as stored. Of a kept one, stored rows are read and the others computed, or
    all, if one of the metrics was replaced by one's own. What is computed stays in the cache folder.

    Args:
        study_name: see `nbhelpers.studies`.
        name: one of `TABLES`.
        models: encoders, their names, or their files; default the study's own, or the table's trainings.
        metrics: those wanted; of "metrics" and "profile", no others are computed.
        n_images: how many test images to measure on, other than the study's sample, and as many fewer to
            learn from: never the stored table.
        seed: which images are drawn; other than 0: never the stored table.

    Returns:
        A tidy frame; its column `source` says which of the two it is: "computed", or "stored" and the date.

    Raises:
        NoTableError: for an unknown table, or one that the study does not have.
        MissingDataError: if images are lacking and there is no stored table of these models.
        StaleTableError: if the stored rows are of other encoders or images than those that are there now.
        TypeError: for a name in place of a list of models.
        ValueError: for a metric that the table does not have, or none, two encoders of one name, or images to
            be drawn for a table that is not computed here.
    """
    chosen, made = _chosen(study_name, name)
    if metrics is not None and (isinstance(metrics, str) or not metrics):
        raise ValueError(f"metrics are a list of one at least, not {metrics!r}; None are all")
    default = made.models(chosen) if made.runs else chosen.models
    wanted = [*_by_name(listed(models) or default).values()]
    draw = n_images not in (None, IMAGES) or seed != 0
    own = any(METRICS[each] not in SHIPPED for each in metrics or made.metrics if each in METRICS)
    if made.slow and draw:
        alone = f"not one of n_images={n_images}, seed={seed}"
        raise ValueError(f"{study_name}/{name} is too slow to be made here: it is stored, {alone}")
    frames, wanted = already(study_name, name, wanted) if made.kept and not (draw or own) else ([], wanted)
    if wanted:
        try:
            if made.slow:
                raise MissingDataError("it is too slow for a build of the book")
            images = made.images(chosen)
            images = redrawn(chosen, images, n_images, seed) if draw else images
            limit = [tuple(metrics)] if metrics and set(metrics) <= set(made.metrics) else []
            computed = [made.measure(load(model), images, *limit) for model in wanted]
            frames += [frame.assign(source=COMPUTED) for frame in computed]
        except MissingDataError as lack:
            if draw or own:  # no stored row is of these
                raise
            try:
                frames.append(stored(study_name, name, wanted))
            except MissingDataError as error:
                raise MissingDataError(f"{lack}. And {error}") from None
    frame = pd.concat(frames, ignore_index=True)
    if metrics is None:
        return frame
    known = frame["metric"].unique()
    if unknown := [metric for metric in metrics if metric not in known]:
        raise ValueError(f"the table {name!r} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return frame[frame["metric"].isin(metrics)].reset_index(drop=True)


def already(study_name: str, name: str, models: Sequence[Model]) -> tuple[list[pd.DataFrame], list[Model]]:
    """Stored rows of those models that have some, and the other models."""
    frames, others = [], []
    for model in models:
        try:
            frames.append(stored(study_name, name, [model]))
        except (MissingDataError, StaleTableError):
            others.append(model)
    return frames, others


def rows_of(study_name: str, name: str, models: Iterable[Model]) -> pd.DataFrame:
    """The rows of a table for those models that have some; without any, an empty frame.

    >>> set(rows_of("shapes", "fine_tuning", ["shapes.cl", "shapes.cl.w8"])["model"])
    {'shapes.cl'}
    """
    frames = [pd.DataFrame()]
    for model in models:
        with suppress(MissingDataError, NoTableError, StaleTableError):
            frames.append(table(study_name, name, [model]))
    return pd.concat(frames, ignore_index=True)


def frozen_and_tuned(study_name: str, models: Iterable[Model]) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Linear probes of the last block, and fine-tuning, of those models that have both: a row per model each.

    With every label, if some were tuned so, else with few; which of the two is the last part of the answer.

    >>> linear, tuned, every = frozen_and_tuned("shapes", ["shapes.cl"])
    >>> linear["label"].item(), tuned["label"].item(), every
    ('shape', 'shape', False)
    """
    tuned, frozen = rows_of(study_name, "all_labels_tuned", models), "all_labels"
    if tuned.empty:
        tuned, frozen = rows_of(study_name, "fine_tuning", models), "probes"
    if tuned.empty:
        return tuned, tuned, False
    linear = at_end(rows_of(study_name, frozen, tuned["model"].unique()), "linear")
    return linear[linear["label"].isin(tuned["label"])], tuned.query("share == 1"), frozen == "all_labels"


def untrained(study_name: str, name: str) -> tuple[float, str]:
    """Accuracy on shape or class of the book's untrained encoder, and its name, as a reference to be drawn.

    Of "probes", that of the linear one at the last block; of "fine_tuning", with all of its labels.

    >>> untrained("shapes", "fine_tuning")[1]
    'untrained, width 128'
    """
    rows = rows_of(study_name, name, study(study_name).models[-1:])
    rows = rows.query("share == 1") if "share" in rows else at_end(rows, "linear")
    return rows.query("label in ('shape', 'class')")["value"].item(), f"untrained, width {WIDTH}"


def _by_name(models: Iterable[Model]) -> dict[str, str | Encoder]:
    """The models, each once, by name; files are read. Two of one name would be one line in every figure."""
    found: dict[str, str | Encoder] = {}
    for model in models:
        if isinstance(model, Path) or (isinstance(model, str) and model.endswith(".safetensors")):
            model = load(model)
        name = model.name if isinstance(model, Encoder) else model
        other = found.setdefault(name, model)
        if other != model and load(other).fingerprint != load(model).fingerprint:
            use = "rename one, by dataclasses.replace(load(...), name='another name')"
            raise ValueError(f"two different encoders are named {name!r}; {use}")
    return found


def _chosen(study_name: str, name: str) -> tuple[Study, Table]:
    """A study and a table that it has."""
    if name not in TABLES:
        raise NoTableError(f"no result table is named {name!r}; there are {', '.join(TABLES)}")
    chosen, made = study(study_name), TABLES[name]
    if not made.belongs_to(chosen):
        why = f"it is made of {', '.join(made.studies)}, since {made.why}"
        raise NoTableError(f"the study {study_name} has no table {name!r}: {why}")
    return chosen, made


def _paths(study_name: str, name: str) -> tuple[Path, Path]:
    """Of a stored table, and of its provenance."""
    return RESULTS / study_name / f"{name}.csv.gz", RESULTS / study_name / f"{name}.json"


def _read(study_name: str, name: str) -> tuple[pd.DataFrame, dict[str, dict]]:
    """A stored table and the record of each of its encoders.

    Raises:
        MissingDataError: if there is no table, or no description of it that can be read.
    """
    csv, about = _paths(study_name, name)
    try:
        return read_table(csv), json.loads(about.read_text())["encoders"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        lack = "no stored table" if not csv.exists() else f"no description ({about.name}) of the stored table"
        make = f"where the images are, `make results STUDY={study_name}` makes it"
        raise MissingDataError(f"there is {lack} {study_name}/{name}; {make}") from error


def _identity(made: Table, chosen: Study, model: str | Encoder) -> str | None:
    """What identifies the weights that rows are of: their file's checksum, or a training's recipe.

    Empty for a training or an encoder of the study that is gone; None where only a download could tell.
    """
    if isinstance(model, str):
        if made.runs:
            run = made.runs(chosen).get(model)
            return "" if run is None else _digest(asdict(run))
        if row := manifest().get(model):
            return row["sha256"]
        own, _, rest = model.partition(".")
        if own != chosen.name:
            return None
        if rest.partition(".")[0] != "random":
            return ""
        model = load(model)
    recipe = [model.fingerprint]
    if model.objective == "random":  # None, once a field, keeps the checksums that are stored
        recipe = [model.name, model.objective, model.provenance.get("architecture"), None]
    return model.provenance.get("sha256") or _digest(recipe)


def _edited(encoder: Encoder) -> bool:
    """Whether an encoder is not what its name loads: weights, hooks, preprocessing or code of its own."""
    return encoder.hooked or encoder.fingerprint != load(encoder.name).fingerprint


def _images_digest(images: Images) -> str:
    """What identifies the images of a table."""
    return _digest([(role, source.identity) for role, source in sorted(images.items())])[:16]


def _settings(made: Table, chosen: Study) -> str | None:
    """What identifies the settings of a table, if it has some."""
    return None if made.settings is None else _digest(made.settings(chosen))[:16]


def _digest(thing: object) -> str:
    """Hash of what JSON knows."""
    return hashlib.sha256(json.dumps(thing).encode()).hexdigest()


def stored(study_name: str, name: str, models: Sequence[Model] | None = None) -> pd.DataFrame:
    """The rows of some encoders (default: all) in a stored table, if they are of what is there now.

    Raises:
        MissingDataError: if there is no such table, no description of it, or no row of an encoder.
        StaleTableError: if one of these encoders changed since, in its weights or since it was loaded, or if
            the images of a folder did, or the settings of the table.
    """
    frame, records = _read(study_name, name)
    wanted, refresh = _by_name(listed(models) or records), f"`make results STUDY={study_name}`"
    if lacking := [model for model in wanted if model not in records]:
        raise MissingDataError(f"stored {study_name}/{name} has no {', '.join(lacking)}; {refresh} makes it")
    made, chosen = TABLES[name], study(study_name)
    now = {key: _identity(made, chosen, model) for key, model in wanted.items()}
    stale = [key for key, weights in now.items() if weights not in (None, records[key]["sha256"])]
    stale += [key for key, model in wanted.items() if isinstance(model, Encoder) and _edited(model)]
    settings = _settings(made, chosen)
    stale += [f"the settings for {key}" for key in wanted if records[key].get("settings") != settings]
    if not chosen.splits and not chosen.missing:  # a folder's content may change
        here = _images_digest(made.images(chosen))
        stale += [f"images of {key}" for key in wanted if records[key]["images"] != here]
    if stale:
        whose = f"another state of {', '.join(stale)} than is there now"
        raise StaleTableError(f"{study_name}/{name} was computed from {whose}; {refresh} refreshes it")
    rows = frame[frame["model"].str.removesuffix(DECODER).isin(wanted)]
    return rows.assign(source=f"stored {max(records[key]['date'] for key in wanted)}").reset_index(drop=True)


def outdated(study_name: str, name: str) -> list[str]:
    """Encoders whose stored rows were made by another version of the code than this one."""
    code = code_version(TABLES[name].code)
    return [model for model, record in _read(study_name, name)[1].items() if record["code"] != code]


def store(study_name: str, name: str, *, fresh: bool = False) -> Path:
    """Compute what a stored table lacks from its images, and write it with its provenance; returns its path.

    Rows stay whose encoder has the same weights and was measured on the same images with the same settings,
    by whatever version of the code (`outdated` names those of another one); `fresh` computes all of them. The
    table is written after each encoder.

    Raises:
        NoTableError: for an unknown table, or one that the study does not have.
        MissingDataError: if the images are not there.
    """
    chosen, made = _chosen(study_name, name)
    images = made.images(chosen)
    try:
        frame, records = _read(study_name, name)
        parts = dict(iter(frame.groupby(frame["model"].str.removesuffix(DECODER), sort=False)))
    except MissingDataError:
        parts, records = {}, {}
    for model in made.models(chosen):
        old, new = records.get(model, {}), _record(chosen, made, model, images)
        if fresh or any(old.get(what) != new[what] for what in ("sha256", "images", "settings")):
            subject = made.runs(chosen)[model] if made.runs else load(model)
            parts[model], records[model] = made.measure(subject, images), new
            _write(chosen, made, images, parts, records)
    return _paths(study_name, name)[0]


def _record(chosen: Study, made: Table, model: str, images: Images) -> dict[str, object]:
    """The record of an encoder whose rows are computed now: of what, when, and by which code."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    return {
        "sha256": _identity(made, chosen, model) or _identity(made, chosen, load(model)),
        "images": _images_digest(images),
        "settings": _settings(made, chosen),
        "code": code_version(made.code),
        "date": date.today().isoformat(),
        "device": "GPU" if torch.cuda.is_available() else "CPU",
        "versions": versions,
    }


def _write(
    chosen: Study, made: Table, images: Images, parts: dict[str, pd.DataFrame], records: dict[str, dict]
) -> None:
    """Write a table, of the rows of each encoder, and its description."""
    present = [model for model in made.models(chosen) if model in parts and model in records]
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
    whole = pd.concat([parts[model] for model in present], ignore_index=True)
    text = whole.to_csv(index=False, float_format="%.7g")
    csv, description = _paths(chosen.name, made.name)
    # Without a description the table is computed again: a kill between the two files leaves no wrong record.
    description.unlink(missing_ok=True)
    with atomic_path(csv) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=1))  # the same numbers give the same bytes
    with atomic_path(description) as temporary:
        temporary.write_text(json.dumps(provenance, indent=2) + "\n")


def _warn_of_strangers(frame: pd.DataFrame, study_name: str) -> None:
    """Warn of encoders of the book on images of another study: their labels, such as CL, do not tell."""
    own = {model: row["study"] for model, row in manifest().items()}
    others = [model for model in frame["model"].unique() if own.get(model, study_name) != study_name]
    if others and study_name in OWN:
        what = f"{', '.join(others)}, on {study_name}: trained on images of another study"
        warnings.warn(what, stacklevel=3)


def gather(
    studies: Sequence[str],
    metrics: Sequence[str],
    models: Sequence[Model] | None = None,
    n_images: int = IMAGES,
    seed: int = 0,
    objectives: Collection[str] = (),
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Metrics of some models on the test images of each study, computed where the images are, else as stored.

    Args:
        studies: names of studies, see `nbhelpers.study`.
        metrics: names in `nbhelpers.metrics.METRICS`; no others are computed.
        models: names, paths of weight files or encoders; default the study's own.
        n_images: drawn from the test images, or all of them if there are fewer.
        seed: of the draw.
        objectives: instead of the study's own models, all of those objectives, such as "mae". Of the
            imagenet study, whose models are public ones, all come.

    Returns:
        A frame as of `nbhelpers.analyse` for each study that has one, with the column `source`; and for each
        of the others what is missing. Decoders are left out.

    Raises:
        KeyError: for an unknown metric, with the nearest names.
    """
    draw = {"n_images": n_images, "seed": seed}
    for metric in metrics:
        METRICS[metric]  # a KeyError for one that is not there
    frames, missing, given = {}, {}, listed(models) or None
    for name in studies:
        wanted = given or (objectives and study(name).trained(*objectives)) or None
        if objectives and not wanted and study(name).trained():
            missing[name] = f"no encoder of {name} was trained by {' or '.join(objectives)}"
            continue  # rather than the study's own models, which are others
        # Stored, "metrics" is of the study's own models alone, "profile" of all, with fewer metrics.
        for kind in ("metrics", "profile"):
            if set(metrics) <= set(TABLES[kind].metrics):
                try:
                    frame = table(name, kind, wanted, metrics=metrics, **draw)
                    frames[name] = frame[~frame["model"].str.endswith(DECODER)]
                    _warn_of_strangers(frames[name], name)
                    break
                except MissingDataError as reason:
                    missing.setdefault(name, str(reason))
    return frames, {name: reason for name, reason in missing.items() if name not in frames}
