"""95 % intervals of means and of shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit
from scipy.stats import binomtest


def t_quantile(n: int) -> float:
    """How many standard errors the interval of a mean of `n` values reaches to either side (Student's t).

    >>> round(t_quantile(10), 4)
    2.2622
    """
    return float(stdtrit(n - 1, 0.975))


def mean_interval(values: ArrayLike, axis: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Mean of values along an axis and the ends of its interval; NaN ends for a single value.

    $\bar x \pm t_{0.975, n - 1}\, s / \sqrt{n}$

    >>> [round(float(x), 2) for x in mean_interval([1.0, 3.0])]  # 2 -+ 12.71 * sqrt(2) / sqrt(2)
    [2.0, -10.71, 14.71]
    """
    values = np.asarray(values, dtype=float)
    n, mean = values.shape[axis], values.mean(axis)
    half = t_quantile(n) * values.std(axis, ddof=1) / n**0.5 if n > 1 else np.nan
    return mean, mean - half, mean + half


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's interval of a share of `trials` (E. B. Wilson, JASA 1927).

    >>> [round(bound, 4) for bound in wilson(50, 100)]
    [0.4038, 0.5962]
    """
    interval = binomtest(int(hits), int(trials)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
