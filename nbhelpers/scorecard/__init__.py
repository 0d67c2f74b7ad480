"""The scorecard: every claim of paper and book as an effect with an interval, and a verdict by one rule."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from scipy.stats import t as student

from nbhelpers.intervals import TAIL, Interval
from nbhelpers.scorecard.claims import CLAIMS, Claim, measured
from nbhelpers.scorecard.evidence import Evidence, Moment, NotMeasured, Repeated, read_by, read_labels
from nbhelpers.scorecard.page import MARKS, NOT_MEASURED, html_table, sentences, tint

COLUMNS = "number claim measure remark chapter study effect low high unit seeds degrees".split()
COLUMNS += "published published_unit source verdict note".split()
REPEATED = [f"repeated_{column}" for column in ("effect", "low", "high", "seeds", "verdict", "note")]
ONE_RUN = """Intervals are over test images, and over training seeds where a side has several; a side with one
training run has no spread over seeds."""
OWN_MODELS = "The scorecard is about the studies' own models: set `MODELS = None`."


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
        A row per claim and study with the columns `number claim measure remark chapter study effect low high
        unit seeds degrees published published_unit source verdict note`. `low` and `high` bound the 95 %
        interval of `effect`, over images and, with more than one of the `seeds`, over them too: then by
        Student's t with so many `degrees` of freedom, else infinitely many. `published` is a
        published value of it. Where the verdict is "not measured", `note` says what is missing; else it names
        the encoder that was chosen from several, and widths and images where the encoders differ in them.
        Columns whose names begin with `repeated_` hold the same of encoders that were trained from several
        seeds, where such rows are stored and are not those of the verdict.
    """
    evidences = [(Evidence(name), Repeated(name)) for name in studies]
    lines = []
    for claim in claims:
        for usual, repeated in evidences:
            line, again = _line(claim, usual), _line(claim, repeated)
            other = again["verdict"] != NOT_MEASURED and again["whose"] != line.get("whose")
            lines.append(line | {name: again[name.removeprefix("repeated_")] for name in REPEATED if other})
    return pd.DataFrame(lines, columns=[*COLUMNS, *REPEATED])


def lost_together(card: pd.DataFrame) -> pd.DataFrame:
    """Rows of a scorecard that would be undecided if all its rows were corrected together (Holm).

    The p-value of an effect is read off its interval: by the normal distribution or, where every side has
    several seeds, by Student's t of the spread over these, from which most of such an interval comes. A side
    with a single seed makes the row one of the first kind, whatever the other side has.

    Args:
        card: as of `scorecard`.

    Returns:
        Those rows that have another verdict now, in the card's order.
    """
    measured = card[card["verdict"] != NOT_MEASURED]
    effect = measured["effect"]
    margin = (effect - measured["low"]).where(effect > 0, measured["high"] - effect)
    spread = student(measured["degrees"])  # with infinitely many, the normal distribution
    p = 2 * spread.sf(spread.ppf(1 - TAIL) * effect.abs() / margin)
    p = pd.Series(p, measured.index).sort_values()
    holm = (p * np.arange(len(p), 0, -1)).cummax()  # the smallest times their number, the next times one less
    return measured[(holm.reindex(measured.index) > 2 * TAIL) & (measured["verdict"] != "undecided")]


def along(study: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The claims as they stand at each moment of a training, where all that they rest on was measured.

    Args:
        study: its name.
        frame: rows of the table `along_training`.

    Returns:
        Rows as of `scorecard`, with the column `seen`: how many images each encoder had been trained on.
    """
    moments = [(seen, Moment(study, rows)) for seen, rows in frame.groupby("seen")]
    lines = [_line(claim, moment) | {"seen": seen} for seen, moment in moments for claim in CLAIMS]
    card = pd.DataFrame(lines, columns=[*COLUMNS, "seen"])
    return card[card["verdict"] != NOT_MEASURED].reset_index(drop=True)


def _line(claim: Claim, evidence: Evidence) -> dict[str, object]:
    """The claim, and what one study says of it."""
    line = claim._asdict() | {"published": float(claim.published or "nan"), "study": evidence.study.name}
    try:
        effect = measured(claim, evidence)
    except NotMeasured as error:
        return line | {"verdict": NOT_MEASURED, "note": str(error)}
    seeds = [evidence.seeds[label] for label in effect.whose]
    varied = f"{min(seeds)} to {max(seeds)} seeds" if min(seeds) < max(seeds) else ""
    note = _note(effect.whose, chosen=claim.contrast == "best_hybrid")
    return line | {
        "whose": effect.whose,
        "effect": effect.value,
        "low": effect.low,
        "high": effect.high,
        "seeds": min(seeds),
        "degrees": effect.spread.degrees if min(seeds) > 1 else np.inf,
        "verdict": verdict(effect),
        "note": "; ".join(filter(None, [note, varied])),
    }


def _note(whose: Sequence[str], chosen: bool) -> str:
    """The encoder that was chosen, which comes first, and what sets the encoders apart beside the objective.

    >>> _note(("MIM", "MAE, 512,000 images"), chosen=False)
    'MIM: usual width and images; MAE: 512,000 images'
    >>> _note(("MIM, width 64", "MIM, width 16", "CL, width 64", "CL, width 16"), chosen=False)
    'width 64 against width 16'
    >>> _note(("MIM, width 64", "MAE, width 64"), chosen=False), _note(("MIM", "CL"), chosen=False)
    ('width 64', '')
    """
    usual = "usual width and images"
    settings: dict[str, list[str]] = {}
    for label in whose:
        kind, _, setting = label.partition(", ")
        settings.setdefault(setting or usual, []).append(kind)
    if len(settings) == 1:
        return "; ".join(whose[:chosen] or [each for each in settings if each != usual])
    if len({*map(tuple, settings.values())}) == 1:  # the same kinds in every setting
        return " against ".join(settings)
    apart = [f"{' and '.join(kinds)}: {setting}" for setting, kinds in settings.items()]
    return "; ".join([*whose[:chosen], *apart])


def rows(chapter: str, studies: Sequence[str], models: Sequence[str] | None = None) -> HTML | Markdown:
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
        raise KeyError(f"no claim belongs to {chapter!r}, but to {sorted({c.chapter for c in CLAIMS})}")
    if models is not None:
        return Markdown(OWN_MODELS)
    return HTML(html_table(scorecard(studies, chosen), links="/" not in chapter))


def result(numbers: Sequence[str], studies: Sequence[str], models: Sequence[str] | None = None) -> Markdown:
    """Claims with their verdicts, effects and intervals in words: a paragraph each, a sentence per study.

    Args:
        numbers: of claims, such as `["2", "3"]`.
        studies: names of studies.
        models: as of `rows`.

    Raises:
        KeyError: for a number that no claim has.
    """
    claims = {claim.number: claim for claim in CLAIMS}
    if unknown := [number for number in numbers if number not in claims]:
        raise KeyError(f"no claim has the number {', '.join(unknown)}; there are {', '.join(claims)}")
    if models is not None:
        return Markdown(OWN_MODELS)
    card = scorecard(studies, [claims[number] for number in numbers])
    return Markdown(sentences(card) + (f"\n\n{ONE_RUN}" if (card["seeds"] == 1).any() else ""))
