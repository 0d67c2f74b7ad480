"""The scorecard: every claim of the paper as an effect with an interval, and a verdict by one rule."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from IPython.display import HTML

from nbhelpers.scorecard.claims import CLAIMS, Claim
from nbhelpers.scorecard.evidence import Evidence, Measured, NotMeasured, Paper
from nbhelpers.scorecard.intervals import Interval
from nbhelpers.scorecard.page import NOT_MEASURED, html_table

__all__ = ["CLAIMS", "Claim", "rows", "scorecard", "verdict"]


def verdict(effect: Interval) -> str:
    """The one rule, for every claim and study: what the 95 % interval of the effect says.

    >>> [verdict(Interval(1, *ends)) for ends in [(0.5, 1.5), (-1, 3), (-2, 0)]]
    ['shows', 'undecided', 'does not show']
    """
    if effect.low > 0:
        return "shows"
    return "does not show" if effect.high <= 0 else "undecided"


def scorecard(studies: Sequence[str], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Every claim on every study, from the tables that the chapters' figures are drawn from.

    Args:
        studies: names of studies, see `nbhelpers.studies`.
        claims: default all of them.

    Returns:
        A row per claim and study with the columns `number claim measure chapter study effect low high unit
        seeds published published_unit source verdict note`. `low` and `high` bound the 95 % interval of
        `effect`, over images and, with more than one of the `seeds`, over them too. `published` is the
        paper's own value. Where the verdict is "not measured", `note` says what is missing; else it names
        the encoder that was chosen from several.
    """
    measured = {name: Measured(name) for name in studies}
    lines = []
    for claim in claims:
        known = {
            "number": claim.number,
            "claim": claim.words,
            "measure": claim.measure,
            "chapter": claim.chapter,
            "unit": claim.unit,
        } | _published(claim)
        lines += [known | {"study": name} | _line(claim, evidence) for name, evidence in measured.items()]
    columns = ["number", "claim", "measure", "chapter", "study", "effect", "low", "high", "unit", "seeds"]
    columns += ["published", "published_unit", "source", "verdict", "note"]
    return pd.DataFrame(lines, columns=columns)


def _line(claim: Claim, evidence: Evidence) -> dict[str, object]:
    """What one study says of a claim."""
    evidence.seeds.clear()
    try:
        effect = claim.effect(evidence, *claim.quantities)
    except NotMeasured as error:
        return {"verdict": NOT_MEASURED, "note": str(error)}
    numbers = {"effect": effect.value, "low": effect.low, "high": effect.high}
    return numbers | {"seeds": min(evidence.seeds), "verdict": verdict(effect), "note": effect.name}


def _published(claim: Claim) -> dict[str, object]:
    """The paper's own value of the effect, if there is one."""
    paper = Paper()
    try:
        if claim.published:
            value = claim.published.effect(paper)
        else:
            value = claim.effect(paper, *claim.quantities).value
    except NotMeasured:
        return {"source": ""}
    unit = claim.published.unit if claim.published and claim.published.unit else claim.unit
    return {"published": value, "published_unit": unit, "source": "; ".join(paper.sources)}


def rows(chapter: str, studies: Sequence[str], models: Sequence[str] | None = None) -> HTML:
    """The claims of a chapter, or of a whole part of the book, as a table to show.

    Args:
        chapter: such as "attention/collapse", or the part "attention", whose rows link to their chapters.
        studies: names of studies, a column each.
        models: what the chapter draws; other models than the studies' own have no row.

    Raises:
        KeyError: for a chapter without a claim.
    """
    chosen = [c for c in CLAIMS if chapter in (c.chapter, c.chapter.partition("/")[0])]
    if not chosen:
        raise KeyError(
            f"no claim belongs to {chapter!r}; chapters with one: {sorted({c.chapter for c in CLAIMS})}"
        )
    if models is not None:
        return HTML("<p>The scorecard is about the studies' own models: set <code>MODELS = None</code>.</p>")
    return HTML(html_table(scorecard(studies, chosen), links="/" not in chapter))
