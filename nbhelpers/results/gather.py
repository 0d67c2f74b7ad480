"""What a chapter draws: metrics of a study's models, computed here or as stored."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from nbhelpers import results
from nbhelpers.images import MissingDataError
from nbhelpers.measure import analyse
from nbhelpers.models import Encoder
from nbhelpers.studies import IMAGES, Study, study

STORED_METRICS = ("metrics", "profile")  # stored tables of metrics: the study's own models, all objectives


def gather(
    studies: Sequence[str],
    metrics: Sequence[str],
    models: Sequence[str | Encoder] | None = None,
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
        objectives: instead of the study's own models, all of those objectives, such as "mae".

    Returns:
        A frame as of `nbhelpers.analyse` for each study that has one, with the column `source`; and for each
        of the others what is missing.
    """
    frames, missing = {}, {}
    for name in studies:
        chosen = study(name)
        wanted = list(models or (chosen.trained(*objectives) if objectives else chosen.models))
        try:
            frames[name] = _computed(chosen, metrics, wanted, n_images, seed)
        except MissingDataError as reason:
            try:
                frames[name] = _stored(name, metrics, wanted)
            except MissingDataError:
                missing[name] = str(reason)
    return frames, missing


def _computed(
    chosen: Study, metrics: Sequence[str], models: Sequence[str | Encoder], n_images: int, seed: int
) -> pd.DataFrame:
    images = chosen.images("test")
    # Photographs without splits are drawn class by class, so that few images are of many classes.
    label = None if chosen.splits else next(iter(images.labels))
    drawn = images.subset(min(n_images, len(images)), seed, label)
    frames = [analyse(encoder, drawn, metrics) for encoder in chosen.encoders(models)]
    return pd.concat(frames, ignore_index=True).assign(source=results.COMPUTED)


def _stored(name: str, metrics: Sequence[str], models: Sequence[str | Encoder]) -> pd.DataFrame:
    """Rows of the first stored table that holds all of these metrics and models."""
    names = [model.name if isinstance(model, Encoder) else str(model) for model in models]
    for table in STORED_METRICS:
        frame = results.stored(name, table)
        rows = frame[frame["model"].isin(names) & frame["metric"].isin(metrics)]
        if set(names) <= set(rows["model"]) and set(metrics) <= set(rows["metric"]):
            return rows.reset_index(drop=True)
    raise MissingDataError(f"no stored table of {name} has {', '.join(metrics)} of {', '.join(names)}")
