"""What a chapter draws: metrics of a study's models, computed here or as stored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from nbhelpers import results
from nbhelpers.images import MissingDataError
from nbhelpers.models import Encoder
from nbhelpers.results.tables import TABLES
from nbhelpers.studies import IMAGES, study


def gather(
    studies: Sequence[str],
    metrics: Sequence[str],
    models: Sequence[str | Path | Encoder] | None = None,
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
        of the others what is missing. Decoders are left out.
    """
    draw = {"n_images": None if n_images == IMAGES else n_images, "seed": seed}
    frames, missing = {}, {}
    for name in studies:
        wanted = models or (study(name).trained(*objectives) if objectives else None)
        # Stored, "metrics" is of the study's own models alone, "profile" of all, with fewer metrics.
        for kind in ("metrics", "profile"):
            if set(metrics) <= set(TABLES[kind].metrics):
                try:
                    frame = results.table(name, kind, wanted, metrics=metrics, **draw)
                    frames[name] = frame[~frame["model"].str.endswith(":decoder")]
                    break
                except MissingDataError as reason:
                    missing.setdefault(name, str(reason))
    return frames, {name: reason for name, reason in missing.items() if name not in frames}
