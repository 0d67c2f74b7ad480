"""Numbers that stand for a curve: its late mean and its peak."""

from __future__ import annotations

import pandas as pd

from nbhelpers.study import label


def _whole(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric that stand for a whole layer, averaged over seeds: columns label, depth, value."""
    rows = frame[frame["metric"] == metric]
    rows = rows[rows["head"] < 0] if "head" in rows else rows
    labels = [label(*names) for names in zip(rows["model"], rows["objective"], strict=True)]
    return rows.assign(label=labels).groupby(["label", "depth"], as_index=False, sort=False)["value"].mean()


def last_third(depth: pd.Series) -> pd.Series:
    """Which depths are late: those of the last third of the blocks.

    >>> last_third(pd.Series(range(9))).tolist()
    [False, False, False, False, False, False, True, True, True]
    """
    return depth > 2 / 3 * depth.max()


def late(frame: pd.DataFrame, metric: str) -> dict[str, float]:
    """Mean of a metric over the last third of each label's blocks.

    >>> rows = [("shapes.cl", "CL", depth, -1, "nmi", float(depth)) for depth in range(1, 7)]
    >>> late(pd.DataFrame(rows, columns=["model", "objective", "depth", "head", "metric", "value"]), "nmi")
    {'CL': 5.5}
    """
    rows = _whole(frame, metric)
    rows = rows[rows.groupby("label")["depth"].transform(last_third)]  # a decoder has fewer blocks
    return rows.groupby("label", sort=False)["value"].mean().to_dict()


def peak(frame: pd.DataFrame, metric: str) -> dict[str, int]:
    """Depth at which a metric is highest, per label.

    >>> rows = [("shapes.cl", "CL", depth, -1, "nmi", nmi) for depth, nmi in [(1, 0.2), (2, 0.3), (3, 0.1)]]
    >>> peak(pd.DataFrame(rows, columns=["model", "objective", "depth", "head", "metric", "value"]), "nmi")
    {'CL': 2}
    """
    rows = _whole(frame, metric)
    best = rows.loc[rows.groupby("label", sort=False)["value"].idxmax()]
    return {row.label: int(row.depth) for row in best.itertuples()}
