"""The scorecard as a table or as sentences of a page."""

import html
import math

import pandas as pd

from nbhelpers.studies import TITLES

NOT_MEASURED = "not measured"
# A sign, since nothing is said by colour alone, a class for the style sheet, the verb of a sentence, and
# where the interval of the effect lies.
MARKS = {
    "shows": ("✓", "shows", "shows", "above zero"),
    "does not show": ("✗", "fails", "does not show", "not above zero"),
    "undecided": ("?", "open", "is undecided", "an interval that includes zero"),
    NOT_MEASURED: ("–", "absent", "is not measured", ""),
}
PAPER = "Park et al. 2023, arXiv 2305.00729, "


def tint(sign: str) -> str:
    """The style of a cell that holds a sign of `MARKS`, light on either colour scheme; for `Styler.map`.

    >>> tint("✓"), tint("?")
    ('background: #009e7340', '')
    """
    return {"✓": "background: #009e7340", "✗": "background: #d55e0040"}.get(sign, "")


def figures(value: float, *ends: float) -> list[str]:
    """A value and the ends of its interval with as many decimals as the interval is worth; alone, two digits.

    >>> figures(26.38, 23.1, 29.6)
    ['26.4', '23.1', '29.6']
    >>> figures(-0.30612, -0.30655, -0.30571)
    ['−0.306', '−0.307', '−0.306']
    >>> figures(0.00712)
    ['0.0071']

    No sign stands before a zero, and no end that is not zero is written as one:

    >>> figures(-0.001, -0.11, 0.11), figures(5.9, 0.31, 12.4)
    (['0.00', '−0.11', '0.11'], ['5.9', '0.3', '12.4'])

    Ends that differ are not written alike:

    >>> figures(-0.12994, -0.13033, -0.12958)
    ['−0.1299', '−0.1303', '−0.1296']
    """
    size = max(abs(number) for number in (value, *ends))
    width = max(ends) - min(ends) if ends else size
    # Three digits of the largest number, or two of the interval's width if those are fewer.
    digits = [number for number in (size / 10, width) if number > 0]
    decimals = max(0, 1 - math.floor(math.log10(max(digits)))) if digits else 0
    nearest = min((abs(end) for end in ends if end), default=1)
    lost = round(nearest, decimals) == 0 < round(nearest, decimals + 1)
    if lost or len({round(end, decimals) for end in ends}) < len({*ends}):
        decimals += 1
    rounded = [round(number, decimals) + 0.0 for number in (value, *ends)]  # -0.0 becomes 0.0
    return [f"{number:.{decimals}f}".replace("-", "−") for number in rounded]


def _unit(row: pd.Series, value: str) -> str:
    """The unit of an effect, in the singular behind a one."""
    return row["unit"].removesuffix("s") if value.strip("−") == "1" else row["unit"]


def _small(text: str) -> str:
    return f"<small>{html.escape(text)}</small>" if text else ""


def _remark(row: pd.Series) -> str:
    return f"But {row['remark']}" if row["remark"] else ""


def _cell(row: pd.Series) -> str:
    """What one study says of a claim: verdict, effect, interval, seeds."""
    sign, kind, *_ = MARKS[row["verdict"]]
    word = f'<span class="{kind}"><span aria-hidden="true">{sign}</span> {row["verdict"]}</span>'
    lines, notes = [word], [row["note"]]
    if row["verdict"] != NOT_MEASURED:
        value, low, high = figures(row["effect"], row["low"], row["high"])
        lines.append(f"{value} {_small(_unit(row, value))} {_small(f'[{low}, {high}]')}")
        notes.append(_seeds(row["seeds"]))
    lines.append(_small(", ".join(filter(None, notes))))
    if not pd.isna(row["repeated_effect"]):
        sign = MARKS[row["repeated_verdict"]][0]
        lines.append(_small(f"{_repeated_on(row)}: {sign} {_effect(row, 'repeated_')}"))
    return f"<td>{'<br>'.join(filter(None, lines))}</td>"


def _seeds(number: float) -> str:
    return f"{number:.0f} seeds each" if number > 1 else ""


def _repeated_on(row: pd.Series) -> str:
    """Which encoders of several seeds a row was asked of again."""
    return f"{row['repeated_note']}, {_seeds(row['repeated_seeds'])}"


def _effect(row: pd.Series, prefix: str = "") -> str:
    """Effect and interval, with the unit."""
    value, low, high = figures(*(row[prefix + column] for column in ("effect", "low", "high")))
    return f"{' '.join(filter(None, [value, _unit(row, value)]))} [{low}, {high}]"


def _paper(row: pd.Series) -> str:
    if pd.isna(row["published"]):
        return "<td><small>none found</small></td>"
    sources = [source.removeprefix(PAPER).split(",")[0] for source in row["source"].split("; ")]
    (value,) = figures(row["published"])
    return f"<td>{value} {_small(row['published_unit'])}<br>{_small(', '.join(dict.fromkeys(sources)))}</td>"


def html_table(card: pd.DataFrame, links: bool) -> str:
    """A row per claim, a column per study and one of published values; claims link to chapters if asked to.

    The links are those of the site, from its front page.
    """
    studies = list(dict.fromkeys(card["study"]))
    names = ["claim", *(TITLES.get(study, study) for study in studies), "published"]
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    body = []
    for number, lines in card.groupby("number", sort=False):
        first = lines.iloc[0]
        words = html.escape(first["claim"])
        if links:
            words = f'<a href="{first["chapter"]}.html">{words}</a>'
        lines_of_head = f"{number}. {words}", _small(first["measure"]), _small(_remark(first))
        claim = f'<th scope="row">{"<br>".join(filter(None, lines_of_head))}</th>'
        cells = "".join(_cell(row) for _, row in lines.iterrows())
        body.append(f"<tr>{claim}{cells}{_paper(first)}</tr>")
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<table class="dataframe scorecard">{table}</table>'


def sentences(card: pd.DataFrame) -> str:
    """Markdown: a paragraph per claim, a sentence in it per study with the verdict and why."""
    paragraphs = []
    for number, lines in card.groupby("number", sort=False):
        first = lines.iloc[0]
        said = [f"**{number}. {first['claim']}** ({first['measure']})."]
        for _, row in lines.iterrows():
            *_, verb, why = MARKS[row["verdict"]]
            if row["verdict"] != NOT_MEASURED:
                why = f"{_effect(row)}, {why}"
            said.append(f"On {TITLES.get(row['study'], row['study'])} it **{verb}**: {why or row['note']}.")
            if not pd.isna(row["repeated_effect"]):
                *_, verb, _ = MARKS[row["repeated_verdict"]]
                said.append(f"With {_repeated_on(row)}, it **{verb}**: {_effect(row, 'repeated_')}.")
        if first["remark"]:
            said.append(f"{_remark(first)}.")
        paragraphs.append(" ".join(said))
    return "\n\n".join(paragraphs)
