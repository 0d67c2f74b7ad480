"""Two models side by side: how far apart their curves are at each depth."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import ndtri

COLUMNS = ["metric", "depth", "value", "low", "high", "apart"]


def difference_by_depth(frame: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    r"""How far one model's curves lie above another's, at each depth of the first.

    $d_l = a_l - b_{l'}$ with margins $\sqrt{m_a^2 + m_b^2}$, as of two independent samples: where both saw
    the same images the difference is surer than that. Where the two have different numbers of blocks, $l'$ is
    the same share of the second's depth, between two of its blocks by linear interpolation.

    Args:
        frame: rows of both models as `analyse` gives them; rows of single heads are left out.
        first: name of a model in the column `model`.
        second: of another.

    Returns:
        Tidy frame `metric depth value low high apart`: the 95 % interval of the difference at each depth, and
        whether an interval that holds for all depths of the metric together (Bonferroni) leaves out 0.

    Raises:
        ValueError: a model has no rows, or the two have no metric in common.

    >>> ends = {"metric": "nmi", "depth": [1, 2], "low": [0.1, 0.5], "high": [0.3, 0.7]}
    >>> one = pd.DataFrame({"model": "a", "value": [0.2, 0.6]} | ends)
    >>> frame = pd.concat([one, one.assign(model="b", value=0.2)])
    >>> difference_by_depth(frame, "a", "b")["value"].round(3).tolist()
    [0.0, 0.4]
    """
    whole = frame[frame["head"] < 0] if "head" in frame else frame
    sides = [whole[whole["model"] == name] for name in (first, second)]
    for name, side in zip((first, second), sides, strict=True):
        if side.empty:
            raise ValueError(f"no rows of {name!r}; the frame has {sorted(set(frame['model']))}")
    common = [metric for metric in sides[0]["metric"].unique() if metric in set(sides[1]["metric"])]
    parts = [_difference(*(side[side["metric"] == metric] for side in sides)) for metric in common]
    if not parts:
        raise ValueError(f"{first!r} and {second!r} have no metric in common")
    return pd.concat([part.assign(metric=metric) for metric, part in zip(common, parts, strict=True)])[
        COLUMNS
    ]


def _difference(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    one, other = one.sort_values("depth"), other.sort_values("depth")
    share, there = (side["depth"] / max(side["depth"].max(), 1) for side in (one, other))
    matched = {name: np.interp(share, there, other[name]) for name in ("value", "low", "high")}
    value = one["value"].to_numpy() - matched["value"]
    below = np.hypot(one["value"] - one["low"], matched["high"] - matched["value"])
    above = np.hypot(one["high"] - one["value"], matched["value"] - matched["low"])
    together = ndtri(1 - 0.025 / len(one)) / ndtri(0.975)
    apart = (value - together * below > 0) | (value + together * above < 0)
    columns = {"depth": one["depth"], "value": value, "low": value - below, "high": value + above}
    return pd.DataFrame(columns | {"apart": apart}).reset_index(drop=True)
