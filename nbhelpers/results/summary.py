"""Numbers that summarise a curve: early and late mean, peak, end."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from nbhelpers.intervals import Interval, difference, widened
from nbhelpers.studies import labels


def whole_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that stand for a whole layer: those of single heads left out.

    >>> whole_layers(pd.DataFrame({"head": [-1, 0, float("nan")], "value": [1, 2, 3]}))["value"].tolist()
    [1, 3]
    """
    return frame[~(frame["head"] >= 0)] if "head" in frame else frame


def one_value_each(rows: pd.DataFrame, column: str = "depth") -> None:
    """Raise a ValueError where a model has several values at one depth: mixed, or one zig-zag line."""
    twice = rows[rows.duplicated(["model", column], keep=False)]
    if twice.empty:
        return
    same = {"model", "objective", "seed", column, "head", "value", "low", "high", "images", "source"}
    vary = [each for each in twice if each not in same and twice[each].nunique() > 1]
    why = f"choose one {' and '.join(vary)}" if vary else "two encoders share the name: give each its own"
    raise ValueError(f"{twice['model'].iloc[0]} has several values at one {column}; {why}")


def rows_of_metric(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a metric; a ValueError that names those of the frame where there are none."""
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise ValueError(f"no rows of {metric!r}; there are {', '.join(frame['metric'].unique()) or 'none'}")
    return rows


def _whole(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric that stand for a whole layer, averaged over seeds: columns label, depth, value."""
    rows = rows_of_metric(whole_layers(frame), metric)
    one_value_each(rows)
    rows = rows.assign(label=rows["model"].map(labels(rows["model"])))
    return rows.groupby(["label", "depth"], as_index=False, sort=False)["value"].mean()


def first_third(depth: pd.Series) -> pd.Series:
    """Which depths are early: those of the first third of the blocks, at least one; the embedding left out.

    >>> first_third(pd.Series(range(9))).tolist()
    [False, True, True, False, False, False, False, False, False]
    """
    return (depth >= 1) & (depth <= max(1, depth.max() / 3))


def last_third(depth: pd.Series) -> pd.Series:
    """Which depths are late: those of the last third of the blocks.

    >>> last_third(pd.Series(range(9))).tolist()
    [False, False, False, False, False, False, True, True, True]
    """
    return depth > 2 / 3 * depth.max()


def _mean(frame: pd.DataFrame, metric: str, third: Callable[[pd.Series], pd.Series]) -> dict[str, float]:
    rows = _whole(frame, metric)
    rows = rows[rows.groupby("label")["depth"].transform(third)]  # of each label: a decoder has fewer blocks
    return rows.groupby("label", sort=False)["value"].mean().to_dict()


def late(frame: pd.DataFrame, metric: str) -> dict[str, float]:
    """Mean of a metric over the last third of each label's blocks.

    >>> rows = [("shapes.cl", "CL", depth, -1, "nmi", float(depth)) for depth in range(1, 7)]
    >>> late(pd.DataFrame(rows, columns=["model", "objective", "depth", "head", "metric", "value"]), "nmi")
    {'CL': 5.5}
    """
    return _mean(frame, metric, last_third)


def early(frame: pd.DataFrame, metric: str) -> dict[str, float]:
    """Mean of a metric over the first third of each label's blocks.

    >>> rows = [("shapes.cl", "CL", depth, -1, "nmi", float(depth)) for depth in range(7)]
    >>> early(pd.DataFrame(rows, columns=["model", "objective", "depth", "head", "metric", "value"]), "nmi")
    {'CL': 1.5}
    """
    return _mean(frame, metric, first_third)


def peak(frame: pd.DataFrame, metric: str) -> dict[str, int]:
    """Depth at which a metric is highest, per label.

    >>> rows = [("shapes.cl", "CL", depth, -1, "nmi", nmi) for depth, nmi in [(1, 0.2), (2, 0.3), (3, 0.1)]]
    >>> peak(pd.DataFrame(rows, columns=["model", "objective", "depth", "head", "metric", "value"]), "nmi")
    {'CL': 2}
    """
    rows = _whole(frame, metric).set_index("depth")
    return rows.groupby("label", sort=False)["value"].idxmax().to_dict()


def highest(frame: pd.DataFrame, metric: str) -> dict[str, float]:
    """Highest value of a metric over the depths, per label.

    >>> rows = [("shapes.cl", "CL", depth, -1, "nmi", nmi) for depth, nmi in [(1, 0.2), (2, 0.3), (3, 0.1)]]
    >>> highest(pd.DataFrame(rows, columns=["model", "objective", "depth", "head", "metric", "value"]), "nmi")
    {'CL': 0.3}
    """
    return _whole(frame, metric).groupby("label", sort=False)["value"].max().to_dict()


def by_label(frame: pd.DataFrame) -> dict[str, float]:
    """Mean value of each label's rows: over seeds, in a frame that has one row per model.

    >>> rows = [("shapes.cl", "CL", 0.2), ("shapes.cl.s1", "CL", 0.4), ("shapes.mae", "MIM", 0.5)]
    >>> by_label(pd.DataFrame(rows, columns=["model", "objective", "value"])).keys()
    dict_keys(['CL', 'MAE'])
    """
    return frame["value"].groupby(frame["model"].map(labels(frame["model"])), sort=False).mean().to_dict()


def at_end(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric at each model's last depth.

    >>> rows = [("cl", 1, "linear", 0.2), ("cl", 2, "linear", 0.3), ("mim", 1, "linear", 0.4)]
    >>> at_end(pd.DataFrame(rows, columns=["model", "depth", "metric", "value"]), "linear")["value"].tolist()
    [0.3, 0.4]
    """
    rows = frame[frame["metric"] == metric]
    return rows[rows["depth"] == rows.groupby("model")["depth"].transform("max")]


def difference_by_depth(frame: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    r"""How far one model's curves lie above another's, at each depth of the first.

    $d_l = a_l - b_{l'}$ with margins $\sqrt{m_a^2 + m_b^2}$, as of two independent samples: where both saw
    the same images the difference is surer than that. Where the two have different numbers of blocks, $l'$ is
    the same share of the second's depth, between two of its blocks by linear interpolation; depths before the
    second's first are left out. The deepest row of each is taken for its last block.

    Args:
        frame: rows of both models as `analyse` gives them; rows of single heads are left out.
        first: name of a model in the column `model`.
        second: of another.

    Returns:
        Tidy frame `metric depth value low high apart`: the 95 % interval of the difference at each depth, and
        whether an interval that holds for all depths of the metric together (Bonferroni) leaves out 0.

    Raises:
        ValueError: a model has no rows, lacks a depth between two, or has several values of a metric at one
            (of several labels, say), or the two have no metric in common.

    >>> ends = {"metric": "nmi", "depth": [1, 2], "low": [0.1, 0.5], "high": [0.3, 0.7]}
    >>> one = pd.DataFrame({"model": "a", "value": [0.2, 0.6]} | ends)
    >>> frame = pd.concat([one, one.assign(model="b", value=0.2)])
    >>> difference_by_depth(frame, "a", "b")["value"].round(3).tolist()
    [0.0, 0.4]
    """
    whole = whole_layers(frame)
    sides = [whole[whole["model"] == name] for name in (first, second)]
    for name, side in zip((first, second), sides, strict=True):
        if side.empty:
            raise ValueError(f"no rows of {name!r}; the frame has {sorted(set(frame['model']))}")
    common = [metric for metric in sides[0]["metric"].unique() if metric in set(sides[1]["metric"])]
    if not common:
        raise ValueError(f"{first!r} and {second!r} have no metric in common")
    parts = {metric: _difference(*(side[side["metric"] == metric] for side in sides)) for metric in common}
    rows = pd.concat([part.assign(metric=metric) for metric, part in parts.items()])
    return rows[["metric", "depth", "value", "low", "high", "apart"]]


def _difference(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    for side in (one, other):
        one_value_each(side)
        depths = {*side["depth"]}
        if lacking := {*range(min(depths), max(depths) + 1)} - depths:
            raise ValueError(f"{side['model'].iloc[0]} lacks depths {sorted(lacking)}: measure all of them")
    one, other = one.sort_values("depth"), other.sort_values("depth")
    share, there = (side["depth"] / max(side["depth"].max(), 1) for side in (one, other))
    one, share = one[share >= there.min()], share[share >= there.min()]
    columns = ["value", "low", "high"]
    matched = np.stack([np.interp(share, there, other[name]) for name in columns], axis=1)
    pairs = zip(one[columns].to_numpy(), matched, strict=True)
    gaps = [difference(Interval(*ours), Interval(*theirs)) for ours, theirs in pairs]
    together = [widened(gap, comparisons=len(gaps)) for gap in gaps]
    apart = [gap.low > 0 or gap.high < 0 for gap in together]
    return pd.DataFrame(gaps).assign(depth=one["depth"].to_numpy(), apart=apart)
