"""Claims of paper and book, rows of `data/claims.csv`, each an effect that is above 0 when the claim shows.

All of it was fixed before any effect was computed: which table, which metric, where in the encoder, which
side is subtracted. Exceptions: 3b, 3c, 5b, 11b, 14g and those numbered 21 were added after their curves had
been seen; 14a, 14c, 14e and 14f were first read from few labels of the photographs and now from all (14c of
several seeds still from few), 14c and 14g now after longer fine-tuning; those numbered 21 were first
compared with uniform attention; 16a and 16b first had the intervals of unpaired accuracies, all with seeds
on both sides wider ones than Welch's, and 10, on photographs, one of independent trials. "Late" is the last
third of the blocks; a claim that names no place is judged there. The columns, which are the attributes of a
claim:

- number: of the claim in the book's list, with a letter where it has parts
- claim: what is claimed
- measure: the effect, in words
- remark: why the verdict says less than it seems to; or empty
- chapter: where it is looked at
- unit: of the effect; "points" are hundredths of what the table holds
- contrast: one of `CONTRASTS`; empty: `more` less `less`
- more: label of the encoders that should have more of the quantity
- less: label of those that should have less; empty: the quantity of `more` itself
- quantity: as `Quantity.parse` reads it; of several tables, the first that has both sides
- minus: a second quantity, subtracted from the first of the same encoder, or of the encoder that bears the
  same name (18 to 19b: the same recipe trained on other images); or empty
- published: the paper's own value of the effect, from `data/published.csv`; or empty
- published_unit: its unit, which may be another one
- source: where it was published
"""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from nbhelpers.files import DATA
from nbhelpers.intervals import Interval, difference, largest, smallest
from nbhelpers.scorecard.evidence import PAIR_LABELS, Evidence, NotMeasured, Quantity, at

_TABLE = pd.read_csv(DATA / "claims.csv", dtype=str, keep_default_na=False)
Claim = namedtuple("Claim", _TABLE.columns)
CLAIMS = tuple(map(Claim._make, _TABLE.itertuples(index=False)))


def measured(claim: Claim, evidence: Evidence) -> Interval:
    """The effect of a claim in some evidence, in the claim's unit.

    Raises:
        NotMeasured: an encoder, a table or a metric is not there.
    """
    texts, kinds = (claim.quantity, claim.minus), (claim.more, claim.less)
    quantities = evidence.quantities([*filter(None, texts)], [*filter(None, kinds)])
    effect = CONTRASTS[claim.contrast](evidence, claim, quantities)
    return 100 * effect if claim.unit == "points" else effect


def _difference(evidence: Evidence, claim: Claim, quantities: list[Quantity]) -> Interval:
    """How far the quantity of one kind of encoder lies above 0, or above that of another kind."""
    more, *others = evidence.alike(quantities[0].table, *filter(None, (claim.more, claim.less)))
    if not others:
        return evidence.of(more, quantities)
    (less,) = others
    one_network = claim.more == f"{claim.less}'s decoder"
    return difference(evidence.of(more, quantities), evidence.of(less, quantities), same_encoder=one_network)


def _smallest_over_depths(evidence: Evidence, claim: Claim, quantities: list[Quantity]) -> Interval:
    """The smallest difference of two kinds of encoders over all depths."""
    kinds = evidence.alike(quantities[0].table, claim.more, claim.less)
    depths = sorted(set(evidence.curves(kinds[0], quantities[0])[0]["depth"]))

    def at_each(comparisons: int) -> list[Interval]:
        here = [[replace(quantity, read=at(depth)) for quantity in quantities] for depth in depths]
        pairs = [[evidence.of(who, q, comparisons) for who in kinds] for q in here]
        return [difference(*pair) for pair in pairs]

    return smallest(at_each)


def _gain_from_width(evidence: Evidence, claim: Claim, quantities: list[Quantity]) -> Interval:
    """How much more one kind gains than another from the narrowest to the widest that saw the same images."""
    more, less = (
        difference(evidence.of(wide, quantities), evidence.of(narrow, quantities))
        for narrow, wide in evidence.widths(claim.more, claim.less)
    )
    return difference(more, less)


def _best_hybrid(evidence: Evidence, claim: Claim, quantities: list[Quantity]) -> Interval:
    """The largest quantity of the hybrids that were measured, or its lead over the better of CL and MIM."""

    def of(hybrid: str, comparisons: int) -> Interval:
        if not claim.less:
            return evidence.of(hybrid, quantities, comparisons)

        def leads(number: int) -> list[Interval]:
            each = comparisons * number
            own = evidence.of(hybrid, quantities, each)
            parents = [evidence.beside(hybrid, parent) for parent in PAIR_LABELS]
            return [difference(own, evidence.of(parent, quantities, each)) for parent in parents]

        return smallest(leads)

    there, why = [], NotMeasured("no hybrid was trained")
    for hybrid in evidence.hybrids():
        try:
            of(hybrid, 1)
            there.append(hybrid)
        except NotMeasured as error:
            why = error
    if not there:
        raise why
    return largest(lambda comparisons: [of(hybrid, comparisons) for hybrid in there])


CONTRASTS: dict[str, Callable[[Evidence, Claim, list[Quantity]], Interval]] = {
    "": _difference,
    "smallest_over_depths": _smallest_over_depths,
    "gain_from_width": _gain_from_width,
    "best_hybrid": _best_hybrid,
}
