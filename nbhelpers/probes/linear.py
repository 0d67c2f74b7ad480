"""Probes of pooled features, depth by depth: multinomial logistic regression, and k nearest neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.images.source import ImageSource
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.layers import Labels, Probe, Undefined, accuracies, accuracy, by_depth, checked

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: standardisation by the training moments, then `weight` `C D` and `bias` `C`.

    `strength` is the inverse L2 penalty (scikit-learn's `C`).
    """

    scaler: StandardScaler
    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    strength: float

    def predict(self, features: Tensor) -> Tensor:
        """Most probable class `N` of features `N D`; ValueError for features that are not finite."""
        x = self.scaler.transform(checked("test", features, "N D").cpu().double().numpy())
        return torch.from_numpy(self.classes[(x @ self.weight.T + self.bias).argmax(1)])


def _varied(x: Tensor) -> Tensor:
    """Features `N D` to learn from, unless they are the same for every image."""
    if (x == x[:1]).all():
        raise Undefined(f"train features {tuple(x.shape)} are the same for every image")
    return x


def fit_linear(
    train_features: Tensor,
    train_labels: Tensor,
    validation_features: Tensor,
    validation_labels: Tensor,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    r"""Linear probe on features `N D`, its L2 penalty chosen by accuracy on validation features `M D`.

    $\min_{W, b} \lVert W \rVert^2 / 2 - C \sum_i \log \mathrm{softmax}(W x_i + b)_{y_i}$, x standardised
    feature by feature: scikit-learn's `LogisticRegression` on `StandardScaler`. Of equals the strongest
    penalty wins.
    Layer-wise probing: Park et al. 2023, on components (there with SGD).

    Raises:
        Undefined: a ValueError; features that are not finite, or the same for every image.
        ValueError: for shapes that do not fit, or fewer than two classes.

    >>> x, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([3, 3, 8, 8])
    >>> fit_linear(x, y, x, y).predict(torch.tensor([[0.5], [4.5]])).tolist()
    [3, 8]
    """
    checked("validation", validation_features, "M D", validation_labels)
    x = _varied(checked("train", train_features, "N D", train_labels)).cpu().double().numpy()
    y = train_labels.cpu().numpy()
    classes = np.unique(y)
    probes, two = [], len(classes) == 2
    # From the strongest penalty to the weakest, each fit starting from the last.
    model = LogisticRegression(solver="newton-cg", tol=1e-5, max_iter=1000, warm_start=True)
    with threadpool_limits(1):  # matrices this small cost more to share among threads than to multiply
        scaler = StandardScaler().fit(x)
        for strength in sorted(strengths):
            # For two classes scikit-learn fits one vector w. The rows of the softmax are -w / 2 and w / 2,
            # with half the squared norm of w, so that C counts twice.
            model.set_params(C=2 * strength if two else strength).fit(scaler.transform(x), y)
            fitted = [np.concatenate([-w, w]) / 2 if two else w for w in (model.coef_, model.intercept_)]
            probes.append(LinearProbe(scaler, *fitted, classes, strength))
    return max(probes, key=lambda p: accuracy(p.predict(validation_features), validation_labels)["value"])


def linear_by_depth(
    encoder: Encoder,
    train: ImageSource,
    validation: ImageSource,
    test: ImageSource,
    label: Labels,
    **reading: Any,
) -> pd.DataFrame:
    """Accuracy of a linear probe at every depth, for one label or several, with Wilson's 95 % interval.

    The interval is over the test images, the probe held fixed; `reading` is `depths`, `pool` and `norm`, as
    in `features`.
    Columns: `study model objective seed metric depth label pool norm value low high images`, value in [0, 1],
    NaN at a depth whose features are not finite or do not vary. Raises the errors of `features`, `fit_linear`
    and `targets_of`.
    """
    images = [train, validation, test]
    return by_depth(encoder, images, label, fit_linear, accuracies("linear"), **reading)


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    r"""Class `M` that the `k` nearest of the training features `N D` vote for, for test features `M D`.

    $\hat y = \arg\max_c \sum_{i \in \mathrm{kNN}} [y_i = c]\, e^{\cos(x, x_i) / \tau}$
    (DINO, Caron et al. 2021, section 3.2; Wu et al. 2018, section 3.4).

    Raises:
        Undefined: for features that do not vary.
        ValueError: for shapes that do not fit, features that are not finite, or fewer than `k` images.

    >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    >>> knn_predict(train, torch.tensor([7, 3, 3]), torch.tensor([[5.0, 1.0]]), k=3).tolist()
    [7]
    """
    checked("train", train_features, "N D", train_labels)
    checked("test", test_features, "M D")
    if k > len(train_features):
        raise ValueError(f"k-NN of k={k} needs as many images to learn from; there are {len(train_features)}")
    _varied(train_features)
    train, test = (F.normalize(x.cpu().float(), dim=1).numpy() for x in (train_features, test_features))

    # On the unit sphere d^2 = 2 - 2 cos, so euclidean distance, which scikit-learn has a fast path for, ranks
    # alike; e^(-d^2 / 2 tau) is the vote up to a factor that all share. The nearest comes first and has 1.
    def votes(d: np.ndarray) -> np.ndarray:
        return np.exp((d[:, :1] ** 2 - d**2) / (2 * temperature))

    classifier = KNeighborsClassifier(k, weights=votes, algorithm="brute")
    prediction = classifier.fit(train, train_labels.cpu().numpy()).predict(test)
    return train_labels.new_tensor(prediction)


def knn_by_depth(
    encoder: Encoder, train: ImageSource, test: ImageSource, label: Labels, **reading: Any
) -> pd.DataFrame:
    """k-NN accuracy at every depth, for one label or several, with Wilson's 95 % interval over test images.

    `reading` is `depths`, `pool` and `norm`, as in `features`.
    Columns: `study model objective seed metric depth label pool norm value low high images`, value in [0, 1],
    NaN at a depth whose features are not finite. Raises the errors of `features`, `knn_predict` and
    `targets_of`.
    """

    def fit(*learnt: Tensor) -> Probe:
        return Probe(partial(knn_predict, *learnt))

    return by_depth(encoder, [train, test], label, fit, accuracies("knn"), **reading)
