"""95 % intervals of means and of shares, and how the interval of a contrast follows from those of its parts.

The result tables hold means over images with their intervals, not the images' own values. So a contrast is
given the interval that its parts' intervals imply:

- Parts that one encoder has on the same images (its depths) may vary together in any way. The margin of a
  weighted sum is then at most the weighted sum of the margins, and that is what it is given.
- Parts of two encoders are combined as if independent: the squares of the margins add. On the same images two
  encoders may err together, which would make their difference surer than that, or against each other; the
  tables cannot tell. For two accuracies with Wilson's interval this is Newcombe's method 10, for two means
  the usual standard error of a difference; the general rule, for margins that differ below and above, is Zou
  and Donner's (Statistics in Medicine 2008).
- Encoders trained from several seeds give a t interval over seeds, whose squared margin is added to that over
  images. Of several such sides the variances over seeds add, with Welch's degrees of freedom. One seed has no
  such part: its interval says nothing about another training run.
- The largest or smallest of several contrasts is bounded by bounds that hold for all of them (Bonferroni) on
  the side where the choice helps, and by plain bounds on the other.

A real bootstrap over images would need the metrics to accumulate their sums under random weights per image
(Poisson weights drawn from the image's number). It would replace the first two rules by narrower intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

TAIL = 0.025  # outside a 95 % interval, on either side


def t_quantile(n: ArrayLike) -> np.ndarray:
    """How many standard errors the interval of a mean of `n` values reaches to either side (Student's t).

    >>> t_quantile([10, 2]).round(4).tolist()
    [2.2622, 12.7062]
    """
    return stdtrit(np.asarray(n) - 1, 1 - TAIL)


def mean_interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Mean of values along the first axis and the ends of its interval; NaN ends for a single value.

    $\bar x \pm t_{0.975, n - 1}\, s / \sqrt{n}$

    >>> [round(float(x), 2) for x in mean_interval([1.0, 3.0])]  # 2 -+ 12.71 * sqrt(2) / sqrt(2)
    [2.0, -10.71, 14.71]
    """
    values = np.asarray(values, dtype=float)
    n, mean = len(values), values.mean(0)
    half = t_quantile(n) * values.std(0, ddof=1) / n**0.5 if n > 1 else np.nan
    return mean, mean - half, mean + half


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's interval of a share of `trials`, a number that need not be whole (E. B. Wilson, JASA 1927).

    >>> [round(bound, 4) for bound in wilson(0.5, 100)]
    [0.4038, 0.5962]
    """
    z = ndtri(1 - TAIL)
    half = z * (share * (1 - share) / trials + (z / trials / 2) ** 2) ** 0.5
    ends = np.array([-half, half]) + share + z**2 / trials / 2
    low, high = (ends / (1 + z**2 / trials)).clip(0, 1).tolist()
    return low, high


def independent_trials(hits: ArrayLike, groups: Sequence[ArrayLike] = ()) -> float:
    r"""How many independent trials tell a share as well as these do, of which some have a cause in common.

    With residuals :math:`r_i` of the hits, and the trials grouped in K ways into :math:`G_k` groups g:

    .. math:: n = \frac{N \sum_i r_i^2}{\sum_k \frac{G_k}{G_k - 1} \sum_g (\sum_{i \in g} r_i)^2
        - (K - 1) \sum_i r_i^2}

    divided by the squared ratio of Student's t with :math:`\min_k G_k - 1` degrees of freedom to the normal
    quantile. N at most; where all or none hit, the smallest :math:`G_k`; NaN if that is 1.

    Args:
        hits: bool `N`.
        groups: for each of the K ways, the number of every trial's group, `N`. No two trials share more than
            one group.

    Source: Cameron, Gelbach and Miller (JBES 2011) for the variance; Korn and Graubard (Survey Methodology
    1998) for the number of trials.

    >>> hits = [True, True, False, False] * 50
    >>> independent_trials(hits), round(independent_trials(hits, [np.arange(200) // 2]))  # every one twice
    (200.0, 97)
    """
    hits = np.asarray(hits, dtype=float)
    residuals = hits - hits.mean()
    sums = [np.bincount(np.unique(group, return_inverse=True)[1], residuals) for group in groups]
    fewest = min(map(len, sums), default=np.inf)
    if fewest < 2:
        return np.nan
    alone = residuals @ residuals
    if alone == 0:
        return float(min(fewest, len(residuals)))
    together = sum(len(each) / (len(each) - 1) * (each @ each) for each in sums) - (len(sums) - 1) * alone
    wider = (t_quantile(fewest) / ndtri(1 - TAIL)) ** 2
    return float(len(residuals) / max(1, wider * together / alone))


class Spread(NamedTuple):
    """Standard error over seeds, its degrees of freedom, and what its margin leaves out on either side."""

    error: float = 0.0
    degrees: float = np.inf
    tail: float = TAIL

    @property
    def margin(self) -> float:
        """Student's t times the error."""
        return float(stdtrit(self.degrees, 1 - self.tail)) * self.error


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; `whose` holds the labels of the encoders that it rests on.

    The interval covers images and, where there are several, seeds; `spread` is the latter part.

    >>> 100 * Interval(0.5, 0.25, 1.0)
    Interval(value=50.0, low=25.0, high=100.0, whose=())
    """

    value: float
    low: float
    high: float
    whose: tuple[str, ...] = ()
    spread: Spread = field(default=Spread(), repr=False)

    def __rmul__(self, scale: float) -> Interval:
        """The same times a number."""
        low, high = sorted((scale * self.low, scale * self.high))
        spread = self.spread._replace(error=abs(scale) * self.spread.error)
        return replace(self, value=scale * self.value, low=low, high=high, spread=spread)

    @property
    def margins(self) -> np.ndarray:
        """How far the interval reaches below and above the value."""
        return np.array([self.value - self.low, self.high - self.value])


def combined(terms: Sequence[tuple[float, Interval]], same_encoder: bool) -> Interval:
    r"""Weighted sum of intervals: margins add up within an encoder, their squares do between encoders.

    Variances over seeds :math:`s_i^2` with :math:`\nu_i` degrees of freedom add up to one with
    :math:`\nu = (\sum_i s_i^2)^2 / \sum_i (s_i^4 / \nu_i)` (Welch, Biometrika 1947).

    >>> parts = [(1, Interval(5, 2, 8)), (-1, Interval(1, -3, 5))]
    >>> combined(parts, same_encoder=True)
    Interval(value=4, low=-3.0, high=11.0, whose=())
    >>> combined(parts, same_encoder=False)
    Interval(value=4, low=-1.0, high=9.0, whose=())
    """
    parts = [weight * part for weight, part in terms]
    value = sum(part.value for part in parts)
    whose = tuple(dict.fromkeys(name for part in parts for name in part.whose))
    margins, spread = np.array([part.margins for part in parts]), Spread()
    if same_encoder:
        below, above = margins.sum(0)
    else:
        spreads = [part.spread for part in parts if part.spread.error]
        if spreads:
            variances = np.array([each.error**2 for each in spreads])
            degrees = variances.sum() ** 2 / sum(variances**2 / [each.degrees for each in spreads])
            spread = Spread(variances.sum() ** 0.5, degrees, spreads[0].tail)
        over_images = (margins**2).sum(0) - sum(each.margin**2 for each in spreads)
        below, above = np.sqrt(over_images + spread.margin**2)
    return Interval(value, float(value - below), float(value + above), whose, spread)


def average(parts: Sequence[Interval]) -> Interval:
    """Mean of what one encoder, or the encoders of one objective, have on the same images.

    >>> average([Interval(1, 0, 2), Interval(3, 1, 5)])
    Interval(value=2.0, low=0.5, high=3.5, whose=())
    """
    return combined([(1 / len(parts), part) for part in parts], same_encoder=True)


def difference(more: Interval, less: Interval, same_encoder: bool = False) -> Interval:
    """How far one lies above the other.

    Example: 56 of 70 against 48 of 80, Wilson's intervals (Newcombe, Statistics in Medicine 1998, table II).
        >>> first, second = Interval(56 / 70, 0.6918, 0.8770), Interval(48 / 80, 0.4904, 0.7004)
        >>> both = difference(first, second)
        >>> round(both.low, 4), round(both.high, 4)
        (0.0524, 0.3339)
    """
    return combined([(1, more), (-1, less)], same_encoder)


def widened(part: Interval, comparisons: int) -> Interval:
    """The interval made to hold together with those of `comparisons` in all (Bonferroni, normal quantiles).

    >>> widened(Interval(0, -1.96, 1.96), 2).high.__round__(2)
    2.24
    """
    factor = ndtri(1 - TAIL / comparisons) / ndtri(1 - TAIL)
    below, above = factor * part.margins
    return replace(part, low=float(part.value - below), high=float(part.value + above))


def over_seeds(parts: Sequence[Interval], comparisons: int = 1) -> Interval:
    """Mean over the encoders of one objective, over images and, where there are several, over their seeds.

    >>> over_seeds([Interval(1, 1, 1), Interval(3, 3, 3)]).high.__round__(2)  # 2 + 12.71 * sqrt(2 / 2)
    14.71
    """
    mean = widened(average(parts), comparisons)
    if len(parts) < 2:
        return mean
    error = float(np.std([part.value for part in parts], ddof=1) / len(parts) ** 0.5)
    spread = Spread(error, len(parts) - 1, TAIL / comparisons)
    below, above = np.hypot(mean.margins, spread.margin).tolist()
    return Interval(mean.value, mean.value - below, mean.value + above, mean.whose, spread)


Made = Callable[[int], Sequence[Interval]]  # some contrasts, with intervals for so many comparisons


def largest(make: Made) -> Interval:
    """The largest of several contrasts; its lower bound is corrected for the choice, its upper one as it is.

    >>> largest(lambda comparisons: [Interval(1, 1 - comparisons, 2), Interval(0, -1, 4)])
    Interval(value=1, low=-1, high=4, whose=())
    """
    plain = make(1)
    wide, best = make(len(plain)), max(plain, key=lambda part: part.value)
    return replace(best, low=max(part.low for part in wide), high=max(part.high for part in plain))


def smallest(make: Made) -> Interval:
    """The smallest of several contrasts; its upper bound is corrected for the choice, its lower one as it is.

    >>> smallest(lambda comparisons: [Interval(1, 0, 1 + comparisons), Interval(2, -1, 4)])
    Interval(value=1, low=-1, high=3, whose=())
    """
    return -1 * largest(lambda comparisons: [-1 * part for part in make(comparisons)])
