"""What a claim rests on: one number per encoder, read off a result table."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from nbhelpers.images import MissingDataError
from nbhelpers.intervals import Interval, average, difference, largest, over_seeds, widened
from nbhelpers.metrics import effective_rank
from nbhelpers.models import DECODER
from nbhelpers.results import TABLES, NoTableError, StaleTableError, table
from nbhelpers.results.published import PUBLIC
from nbhelpers.results.summary import first_third, last_third, one_value_each, whole_layers
from nbhelpers.studies import NAMES, PAIR, VARIED, kind, label, nearness, study

PAIR_LABELS = tuple(NAMES[key] for key in PAIR)  # of the encoders that every table has
DRAWS = 2_000  # of a parametric bootstrap
UNDEFINED = Interval(np.nan, np.nan, np.nan)
ENDS = ["value", "low", "high"]

REASONS = {
    MissingDataError: "no table {name} of {who}",
    StaleTableError: "the table {name} is of other weights",
    NoTableError: "no table {name} in this study",
}

NEEDS = {"miou": "the masks of objects", "=='texture'": "labels of textures"}  # that photographs lack

ACRONYMS = {"miou": "mIoU", "nmi": "NMI"}


def _in_words(metric: str) -> str:
    return ACRONYMS.get(metric, metric.replace("_", " "))


Reading = Callable[[pd.DataFrame], Interval]  # of one encoder's rows


class NotMeasured(LookupError):
    """An encoder, a table or a metric that a claim needs is not there; the message says which."""


@dataclass(frozen=True)
class Quantity:
    """One number of an encoder: rows of a result table, and what becomes of them.

    Attributes:
        table: the result table; of several, parted by "/", the first that the study has.
        metric: which of its rows.
        read: what becomes of them.
        where: which of them further columns choose, as `pandas.DataFrame.query` reads it; or empty.
    """

    table: str
    metric: str
    read: Reading
    where: str = ""

    @classmethod
    def parse(cls, text: str) -> "Quantity":
        """`TABLE METRIC READING [WHERE]`, the reading one of `READINGS`.

        >>> Quantity.parse("tokens miou last label=='mask'").where
        "label=='mask'"
        """
        table, metric, reading, *where = text.split(maxsplit=3)
        return cls(table, metric, READINGS[reading], *where)


def mean(rows: pd.DataFrame) -> Interval:
    """Mean over all rows. Margins add up within an encoder, so the ends are the means of the rows' ends."""
    return Interval(*rows[ENDS].mean(skipna=False).tolist())


def early(rows: pd.DataFrame) -> Interval:
    """Mean over the first third of the blocks."""
    return mean(rows[first_third(rows["depth"])])


def late(rows: pd.DataFrame) -> Interval:
    """Mean over the last third of the blocks."""
    return mean(rows[last_third(rows["depth"])])


def overall(rows: pd.DataFrame) -> Interval:
    """Mean over all blocks."""
    return mean(rows[rows["depth"] > 0])


def last(rows: pd.DataFrame) -> Interval:
    """At the output of the last block."""
    return mean(rows[rows["depth"] == rows["depth"].max()])


def at(depth: int) -> Reading:
    """At one depth."""
    return lambda rows: mean(rows[rows["depth"] == depth])


def taken_by_late(rows: pd.DataFrame) -> Interval:
    """What enters the last third of the blocks less the mean over it."""
    before = rows["depth"][~last_third(rows["depth"])].max()
    return difference(at(before)(rows), late(rows), same_encoder=True)


def highest_less_last(rows: pd.DataFrame) -> Interval:
    """The highest depth before the last less the last; negative where the last is the highest.

    Depths without a value stand aside.
    """
    *before, end = (Interval(*row) for row in rows.sort_values("depth")[ENDS].to_numpy().tolist())
    falls = [difference(part, end, same_encoder=True) for part in before if not np.isnan(part.value)]
    return largest(lambda number: [widened(fall, number) for fall in falls]) if falls else UNDEFINED


def _around(value: float, drawn: np.ndarray) -> Interval:
    """A value with the interval of its bootstrap, which is made to hold it."""
    low, high = map(float, np.quantile(drawn, [0.025, 0.975]))
    return Interval(value, min(value, low), max(value, high))


def peak(rows: pd.DataFrame) -> Interval:
    """Depth at which the value is highest, with a parametric bootstrap.

    Every depth's value is drawn anew from its interval (normal), the depths independently: they share their
    images, so the true curve wobbles less than the drawn ones. Depths without a value stand aside.
    """
    rows = rows.dropna(subset="value").sort_values("depth")  # NumPy would take a NaN for the largest
    if rows.empty:
        return UNDEFINED
    depth, value = rows["depth"].to_numpy(), rows["value"].to_numpy()
    error = (rows["high"] - rows["low"]).to_numpy() / (2 * 1.96)
    highest = float(depth[value.argmax()])
    if np.isnan(error).any():  # of a single image
        return Interval(highest, np.nan, np.nan)
    drawn = np.random.default_rng(0).normal(value, error, (DRAWS, len(value)))
    return _around(highest, depth[drawn.argmax(1)])


def late_effective_rank(rows: pd.DataFrame) -> Interval:
    r"""Mean effective rank of spectra over the last third of the blocks, with a parametric bootstrap.

    A spectrum of one covariance over n images has no value per image. Of normal variables a sample
    eigenvalue's logarithm has the standard error :math:`\sqrt{2 / (n - 1)}`, independently of the others
    (Anderson 1963); so are they drawn.
    """
    ranks = []
    for _, lines in rows[last_third(rows["depth"])].groupby("depth"):
        spectrum = torch.tensor(lines["value"].to_numpy())
        error = (2 / (int(lines["images"].iloc[0]) - 1)) ** 0.5
        noise = torch.randn(DRAWS, len(spectrum), generator=torch.Generator().manual_seed(0))
        drawn = effective_rank(spectrum + error * noise).numpy()
        ranks.append(_around(effective_rank(spectrum).item(), drawn))
    return average(ranks)


_ALL = (mean, early, late, overall, last, taken_by_late, highest_less_last, peak, late_effective_rank)
READINGS: dict[str, Reading] = {read.__name__: read for read in _ALL}


def read_by(frame: pd.DataFrame, column: str, metric: str, reading: str) -> pd.DataFrame:
    """Curves over depth made one number each by one of `READINGS`: per encoder and value of a column.

    Args:
        frame: rows as the result tables hold them, of one label.
        column: such as "seen": an encoder has a curve for each of its values.
        metric: which rows.
        reading: how a curve becomes one number.

    Returns:
        Rows `model objective COLUMN metric value low high`, as `plots.by_depth` draws them over the column.

    Raises:
        ValueError: a curve has several values at a depth, of two labels, say.

    >>> rows = [("cl", "CL", 8, "knn", depth, v, v, v) for depth, v in enumerate([0.1, 0.2, 0.6])]
    >>> names = "model objective seen metric depth value low high".split()
    >>> read_by(pd.DataFrame(rows, columns=names), "seen", "knn", "overall")["value"].tolist()  # blocks 1, 2
    [0.4]
    """
    rows = whole_layers(frame[frame["metric"] == metric])
    who = ["model", "objective", column]
    lines = []
    for key, curve in rows.groupby(who):
        if reading != late_effective_rank.__name__:  # of spectra, which have several values at a depth
            one_value_each(curve)
        found = READINGS[reading](curve)
        lines.append((*key, metric, found.value, found.low, found.high))
    return pd.DataFrame(lines, columns=[*who, "metric", *ENDS])


def read_labels(rows: pd.DataFrame, reading: Reading) -> dict[str, Interval]:
    """The rows of each encoder made one number by a reading; by label, the mean over its seeds.

    >>> ends = {"low": 0.0, "high": 0.3}
    >>> rows = pd.DataFrame({"model": ["shapes.cl", "shapes.mim"], "value": [0.1, 0.2]} | ends)
    >>> {who: part.value for who, part in read_labels(rows, mean).items()}
    {'CL': 0.1, 'MIM': 0.2}
    """
    found: dict[str, list[Interval]] = {}
    for model, own in rows.groupby("model", sort=False):
        found.setdefault(label(model), []).append(reading(own))
    return {who: over_seeds(parts) for who, parts in found.items()}


class Evidence:
    """The result tables of a study, read by the labels that encoders have in legends.

    Attributes:
        study: whose tables.
        seeds: how many encoders there were of each label that was asked for.
    """

    def __init__(self, name: str) -> None:
        self.study = study(name)
        decoders = [name + DECODER for name in self.study.trained("mae")]
        self._usual = (*self.study.trained(), *decoders)
        self._labels = {name: label(name) for name in (*self.study.trained(vary=VARIED), *decoders)}
        self.seeds: dict[str, int] = {}
        self._frames: dict[tuple[str, Sequence[str] | None], pd.DataFrame] = {}

    def quantities(self, texts: Sequence[str], kinds: Sequence[str]) -> list[Quantity]:
        """What `Quantity.parse` reads, all of their first tables if those have these kinds, and so on."""
        found = [Quantity.parse(text) for text in texts]
        *better, last = zip(*(quantity.table.split("/") for quantity in found), strict=True)
        there = (names for names in better if all(self._has(name, kinds) for name in names))
        return [replace(each, table=name) for each, name in zip(found, next(there, last), strict=True)]

    def _has(self, table: str, kinds: Sequence[str]) -> bool:
        """Whether a table, other than the last that a claim names, is the one to take for these kinds."""
        return TABLES[table].belongs_to(self.study)

    def of(self, who: str, quantities: Sequence[Quantity], comparisons: int = 1) -> Interval:
        """The first quantity of the encoders of a label, less the second if there is one, over seeds.

        The margins of the two are added, as of one encoder; also where the second is of another training of
        the recipe (rows 18 to 19b), whose errors on the same objects may be alike or opposite.

        Raises:
            NotMeasured: an encoder, a table or a metric is not there.
        """
        curves = [self.curves(who, quantity) for quantity in quantities]
        values = []
        for encoder in zip(*curves, strict=True):
            read = [quantity.read(rows) for quantity, rows in zip(quantities, encoder, strict=True)]
            values.append(read[0] if len(read) == 1 else difference(*read, same_encoder=True))
        if any(np.isnan(each.value) for each in values):
            raise NotMeasured(f"{_in_words(quantities[0].metric)} of {who} is undefined")
        found = label(self._encoders(who, quantities[0].table)[0])  # says width and images where unusual
        self.seeds[found] = len(values)
        return replace(over_seeds(values, comparisons), whose=(found,))

    def _encoders(self, who: str, table: str) -> list[str]:
        """Names of the encoders, or decoders, of a label in a table: of its own trainings, if it has some."""
        made = TABLES[table]
        if not made.belongs_to(self.study):
            raise NotMeasured(made.why)
        if made.runs:
            found = [name for name in made.runs(self.study) if kind(name) == who]
        elif self.study.name == "imagenet":
            found = [name for name in self.study.models if PUBLIC.get(name) == who]
        else:
            found = [name for name, known in self._labels.items() if known == who]
            # Where there is none of the usual width and training, those that are next to it.
            found = found or [name for name in self._usual if kind(name) == who]
        if not found:
            raise NotMeasured(f"{who} was not trained")
        return found

    def _by_size(self, kinds: Sequence[str]) -> list[dict[tuple[float, float], str]]:
        """Labels of the encoders of each kind, by width and number of images."""
        labels = self._labels.items()
        return [{nearness(name): known for name, known in labels if kind(name) == who} for who in kinds]

    def widths(self, *kinds: str) -> list[tuple[str, str]]:
        """Labels of the narrowest and the widest encoders that all saw the same images, a pair for each kind.

        Raises:
            NotMeasured: if the kinds have no two widths in common.
        """
        labels, by_images = self._by_size(kinds), {}
        for width, images in sorted(set.intersection(*map(set, labels))):
            by_images.setdefault(images, []).append(width)
        images, widths = max(by_images.items(), key=lambda each: each[1][-1] / each[1][0], default=(0, []))
        if len(widths) < 2:
            raise NotMeasured(f"no two widths of {' and '.join(kinds)} saw the same images")
        return [(each[widths[0], images], each[widths[-1], images]) for each in labels]

    def alike(self, table: str, *kinds: str) -> list[str]:
        """Labels of encoders of the most usual width and length that all kinds have; else the kinds."""
        labels = self._by_size(kinds)
        common = set.intersection(*map(set, labels))
        if TABLES[table].runs or not common:
            return list(kinds)
        return [each[max(common)] for each in labels]

    def beside(self, who: str, other: str) -> str:
        """Label of another objective with the same width and images; its usual one where there is none."""
        alike = ", ".join([other, *who.split(", ")[1:]])
        return alike if alike in self._labels.values() else other

    def hybrids(self) -> list[str]:
        """Labels of the hybrids, such as "hybrid 0.2"."""
        return list(dict.fromkeys(label(name) for name in self.study.trained("hybrid")))

    def _table(self, name: str, who: str, encoders: Sequence[str]) -> pd.DataFrame:
        """A table with these encoders; for CL and MIM, with all the study's models, as chapters read it."""
        as_drawn = who in PAIR_LABELS and not TABLES[name].slow
        models = None if as_drawn else tuple(encoder.removesuffix(DECODER) for encoder in encoders)
        if (name, models) not in self._frames:
            try:
                self._frames[name, models] = table(self.study.name, name, models)
            except tuple(REASONS) as error:
                raise NotMeasured(REASONS[type(error)].format(name=name, who=who)) from error
        return self._frames[name, models]

    def curves(self, who: str, quantity: Quantity) -> list[pd.DataFrame]:
        """The rows of the quantity, a frame per seed; those that stand for whole layers."""
        encoders = self._encoders(who, quantity.table)
        # Models beside the pair have the metrics that all are compared by, in a table of its own.
        name = "profile" if quantity.table == "metrics" and who not in PAIR_LABELS else quantity.table
        rows = self._table(name, who, encoders)
        rows = whole_layers(rows[rows["metric"] == quantity.metric])
        where = quantity.where
        if "label" in rows and rows["label"].notna().any() and "label" not in where:
            shown = "shape" if self.study.name == "shapes" else "class"
            where = " and ".join(filter(None, [where, f"label == {shown!r}"]))
        rows = rows.query(where) if where and len(rows) else rows
        found = [rows[rows["model"] == encoder] for encoder in encoders]
        if any(frame.empty for frame in found):
            asked = f"{quantity.metric} {where}"
            needs = next((what for word, what in NEEDS.items() if word in asked), "")
            if needs and self.study.name != "shapes":
                raise NotMeasured(f"photographs come without {needs}")
            raise NotMeasured(f"the table {name} has no {_in_words(quantity.metric)} of {who}")
        return found


class Repeated(Evidence):
    """Evidence on those encoders alone that were trained from several seeds, of what is stored of them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        seeds = Counter(self._labels.values())
        self._labels = {model: known for model, known in self._labels.items() if seeds[known] > 1}
        self._usual = ()

    def _has(self, table: str, kinds: Sequence[str]) -> bool:
        several = {self._labels.get(name) for name in TABLES[table].models(self.study)}
        return super()._has(table, kinds) and {*self.alike(table, *kinds)} <= several

    def _encoders(self, who: str, table: str) -> list[str]:
        if not self._labels:
            raise NotMeasured("no encoder was trained from several seeds")
        return super()._encoders(who, table)

    def _table(self, name: str, who: str, encoders: Sequence[str]) -> pd.DataFrame:
        if not {*encoders} <= {*TABLES[name].models(self.study)}:
            raise NotMeasured(f"the table {name} has no rows of {who}")
        return super()._table(name, who, encoders)


class Moment(Evidence):
    """Evidence on encoders in training: rows of the table `along_training` that are of one moment."""

    def __init__(self, name: str, rows: pd.DataFrame) -> None:
        super().__init__(name)
        self._rows = rows

    def _encoders(self, who: str, table: str) -> list[str]:
        found = [name for name in self._rows["model"].unique() if who in (kind(name), label(name))]
        if not found:
            raise NotMeasured(f"{who} was not measured")
        return found

    def _table(self, name: str, who: str, encoders: Sequence[str]) -> pd.DataFrame:
        if TABLES[name].runs:
            raise NotMeasured(f"the table {name} is of other trainings")
        return self._rows
