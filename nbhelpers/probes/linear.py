"""Linear probing: multinomial logistic regression on frozen features, depth by depth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.features import Pool, features
from nbhelpers.probes.rows import accuracy, identity, label_names, labels_of

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def _checked(features: Tensor, what: str) -> np.ndarray:
    """Features `N D` as float64 for the solver."""
    if features.ndim != 2:
        raise ValueError(f"{what} must be N D; got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError(f"non-finite {what} {tuple(features.shape)}")
    return features.cpu().double().numpy()


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: whitening by the training moments, then a linear classifier.

    `strength` is the inverse L2 penalty (scikit-learn's `C`), `validation` the accuracy it was chosen by.
    """

    whitening: Pipeline
    classifier: LogisticRegression
    strength: float
    validation: float

    def predict(self, features: Tensor) -> Tensor:
        """Most probable class `N` of features `N D`; ValueError for features that are not finite."""
        return torch.from_numpy(
            self.classifier.predict(self.whitening.transform(_checked(features, "features")))
        )

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share in [0, 1] of features `N D` whose predicted class is the label `N`."""
        return accuracy(self.predict(features), labels)["value"]


def _whitening(x: np.ndarray) -> Pipeline:
    """Standardise `N D`, then rotate and scale to unit covariance, without directions that do not vary.

    Features of one depth are nearly collinear. Whitened, they let the solver converge in a few steps, and the
    probe no longer depends on how an encoder happens to scale and mix its features.
    """
    if (x == x[0]).all():
        raise ValueError(f"train_features {x.shape} are the same for every image")
    scaler = StandardScaler()
    variances = PCA().fit(scaler.fit_transform(x)).explained_variance_
    rank = int((variances > 1e-9 * variances[0]).sum())
    return make_pipeline(scaler, PCA(rank, whiten=True)).fit(x)


def fit_linear(
    train_features: Tensor,
    train_labels: Tensor,
    validation_features: Tensor,
    validation_labels: Tensor,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    r"""Linear probe on features `N D`, its L2 penalty chosen by accuracy on validation features `M D`.

    $\min_{W, b} \lVert W \rVert^2 / 2 - C \sum_i \log \mathrm{softmax}(W x_i + b)_{y_i}$, x whitened;
    a path from strong to weak penalty, each fit starting from the last; of equals the strongest penalty wins.
    Layer-wise probing: section 5 of Park et al. 2023 (there with SGD).

    Raises:
        ValueError: for shapes that do not fit, features that are not finite, or fewer than two classes.

    >>> x, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([3, 3, 8, 8])
    >>> fit_linear(x, y, x, y).predict(torch.tensor([[0.5], [4.5]])).tolist()
    [3, 8]
    """
    for name, x, y in (
        ("train", train_features, train_labels),
        ("validation", validation_features, validation_labels),
    ):
        if len(x) != len(y):
            raise ValueError(f"{len(y)} {name}_labels for {name}_features {tuple(x.shape)}")
    if len(train_labels.unique()) < 2:
        raise ValueError(f"a probe needs at least two classes; got {train_labels.unique().tolist()}")
    x = _checked(train_features, "train_features")
    whitening = _whitening(x)
    x = whitening.transform(x)
    x_validation = whitening.transform(_checked(validation_features, "validation_features"))
    y, y_validation = train_labels.cpu().numpy(), validation_labels.cpu().numpy()
    classifier = LogisticRegression(max_iter=2000, warm_start=True)
    best: LinearProbe | None = None
    with threadpool_limits(1):  # matrices this small cost more to share among threads than to multiply
        for strength in sorted(strengths):
            classifier.set_params(C=strength).fit(x, y)
            reached = float(classifier.score(x_validation, y_validation))
            if best is None or reached > best.validation:
                best = LinearProbe(whitening, copy.deepcopy(classifier), strength, reached)
    if best is None:
        raise ValueError("no strengths to choose from")
    return best


def linear_by_depth(
    encoder: Encoder,
    train: ImageSource,
    validation: ImageSource,
    test: ImageSource,
    label: str | Sequence[str],
    depths: Sequence[int] | None = None,
    pool: Pool = "mean",
    norm: bool = False,
    strengths: Sequence[float] = STRENGTHS,
) -> pd.DataFrame:
    """Accuracy of a linear probe at every depth, for one label or several, with Wilson's 95 % interval.

    The interval is over the test images, the probe held fixed.
    Columns: `study model objective seed metric depth label pool norm value low high images`, value in [0, 1].
    Raises the errors of `features` and `fit_linear`, and ValueError for a label that the images lack.
    """
    sources = (train, validation, test)
    labels = {name: [labels_of(source, name) for source in sources] for name in label_names(label)}
    depths = list(range(encoder.depth + 1) if depths is None else depths)
    by_split = [features(encoder, source, depths, pool, norm) for source in sources]
    rows = []
    for name, (y_train, y_validation, y_test) in labels.items():
        for depth, x_train, x_validation, x_test in zip(depths, *by_split, strict=True):
            probe = fit_linear(x_train, y_train, x_validation, y_validation, strengths)
            row = {"metric": "linear", "depth": depth, "label": name, "pool": pool, "norm": norm}
            rows.append(identity(encoder, test) | row | accuracy(probe.predict(x_test), y_test))
    return pd.DataFrame(rows)
