"""Numbers published by others, and how far the curves that are computed here lie from them."""

import pandas as pd

from nbhelpers.files import DATA
from nbhelpers.results.summary import whole_layers

_MODELS = pd.read_csv(DATA / "published_models.csv")
# Which public checkpoint is which published model: a curve is compared with that of the same weights alone.
MODEL_OF = _MODELS.dropna().set_index("checkpoint")["model"].to_dict()
# What kind of encoder a published model is, and each public checkpoint.
PUBLISHED = _MODELS.set_index("model")["kind"].to_dict()
PUBLIC = {checkpoint: PUBLISHED[model] for checkpoint, model in MODEL_OF.items()}


def published() -> pd.DataFrame:
    """Numbers published by others, digitised: `metric model objective depth value error low high source`.

    `depth` is NaN where a number belongs to no depth; `low` and `high` lie the reading error off the value.
    """
    numbers = pd.read_csv(DATA / "published.csv")
    return numbers.assign(low=numbers["value"] - numbers["error"], high=numbers["value"] + numbers["error"])


def published_maps() -> pd.DataFrame:
    """The paper's four attention maps (figure 2), decoded: `objective query row column value`.

    Two queries on one photograph, 14 x 14 patches, MoCo v3 (CL) and SimMIM (MIM); each map is scaled to 0..1.
    """
    return pd.read_csv(DATA / "published_maps.csv")


def published_triples() -> pd.DataFrame:
    """Accuracy of public encoders, frozen (k-NN, linear and attentive probes) or fine-tuned.

    Columns `model size images metric value source`; value is the share of the test images that are
    recognised. `images` is "ImageNet-1k", or "CIFAR-10" for ViTs about as small as the book's. "attentive" is
    efficient probing (arXiv 2506.10178).
    """
    return pd.read_csv(DATA / "published_triples.csv")


def difference_to_published(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    r"""How far the computed curves of public checkpoints lie from the published curves of the same weights.

    .. math:: \mathrm{rms} = \sqrt{\frac{1}{L} \sum_l (x_l - y_l)^2}

    over the L depths that both curves have. It is to be read beside the reading error of the published one,
    and means little where the images differ in kind: accuracies on ten classes are not those on a thousand.

    Args:
        frame: rows as `analyse` and the probes give them, or none; models that nobody published are left out.
        metric: a metric with one value per model and depth, heads aside.

    Returns:
        A row per model, and per `study` and `label` where the frame has these: `model published rms error
        depths`, rms and (root mean square) reading error in the unit of the metric.

    Raises:
        ValueError: there is no published curve of the metric, or a model has several values at a depth.

    Example: the published curve itself, shifted.
        >>> curve = published().query("metric == 'nmi' and model == 'MoCo v3'")
        >>> frame = curve.assign(model="mocov3.vit_base_patch16_224", value=curve["value"] + 0.01)
        >>> difference_to_published(frame, "nmi").round(3).to_dict("records")
        [{'model': 'mocov3.vit_base_patch16_224', 'published': 'MoCo v3', 'rms': 0.01, 'error': 0.006,
          'depths': 12}]
    """
    theirs = published()
    theirs = theirs[(theirs["metric"] == metric) & theirs["depth"].notna() & (theirs["part"] == "encoder")]
    if theirs.empty:
        known = published().dropna(subset="depth")["metric"].unique()
        raise ValueError(f"no curve of {metric!r} was published; there are {', '.join(known)}")
    if frame.empty:
        return frame
    rows = whole_layers(frame[(frame["metric"] == metric) & frame["model"].isin(MODEL_OF)])
    curve = ["model", *(each for each in ("study", "label") if each in rows)]
    if (twice := rows[rows.duplicated([*curve, "depth"])]["model"].unique()).size:
        raise ValueError(f"{metric}: {twice[0]} has several values at a depth; give the rows of one label")
    rows = rows[[*curve, "depth", "value"]].assign(published=rows["model"].map(MODEL_OF))
    both = rows.merge(theirs.rename(columns={"model": "published"}), on=["published", "depth"])
    both = both.assign(square=(both["value_x"] - both["value_y"]) ** 2, error=both["error"] ** 2)
    groups = both.groupby([*curve, "published"], sort=False, dropna=False)
    means = groups[["square", "error"]].mean() ** 0.5
    return means.rename(columns={"square": "rms"}).assign(depths=groups.size()).reset_index()
