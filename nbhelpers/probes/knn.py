"""Weighted k-nearest-neighbour accuracy of frozen features: a probe without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from nbhelpers.images.source import ImageSource
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.features import Pool, features
from nbhelpers.probes.rows import accuracy, identity, label_names, labels_of


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
        ValueError: for shapes that do not fit, features that are not finite, or fewer than `k` images.

    >>> import torch
    >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    >>> knn_predict(train, torch.tensor([7, 3, 3]), torch.tensor([[5.0, 1.0]]), k=3).tolist()
    [7]
    """
    shapes = f"train_features {tuple(train_features.shape)}, test_features {tuple(test_features.shape)}"
    if (
        train_features.ndim != 2
        or test_features.ndim != 2
        or train_features.shape[1] != test_features.shape[1]
    ):
        raise ValueError(f"features must be N D and M D with the same D; got {shapes}")
    if len(train_labels) != len(train_features):
        raise ValueError(f"{len(train_labels)} train_labels for {len(train_features)} train_features")
    if not train_features.isfinite().all() or not test_features.isfinite().all():
        raise ValueError(f"non-finite features; {shapes}")
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k={k} neighbours of {len(train_features)} training images")
    train, test = (F.normalize(x.cpu().float(), dim=1).numpy() for x in (train_features, test_features))
    # On the unit sphere d^2 = 2 - 2 cos, so euclidean distance, which scikit-learn has a fast path for, ranks
    # alike; e^(-d^2 / 2 tau) is the vote up to the constant factor e^(1 / tau).
    votes = KNeighborsClassifier(k, weights=lambda d: np.exp(-(d**2) / (2 * temperature)), algorithm="brute")
    prediction = votes.fit(train, train_labels.cpu().numpy()).predict(test)
    return train_labels.new_tensor(prediction)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share in [0, 1] of test images `M D` whose `k` nearest training images `N D` vote for their class.

    Votes, errors and source as in `knn_predict`; chance is 1 / classes.

    >>> import torch
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> knn_accuracy(x, y, torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]), k=1)
    0.5
    """
    return accuracy(knn_predict(train_features, train_labels, test_features, k, temperature), test_labels)[
        "value"
    ]


def knn_by_depth(
    encoder: Encoder,
    train: ImageSource,
    test: ImageSource,
    label: str | Sequence[str],
    depths: Sequence[int] | None = None,
    pool: Pool = "mean",
    norm: bool = False,
    k: int = 20,
    temperature: float = 0.07,
) -> pd.DataFrame:
    """k-NN accuracy at every depth, for one label or several, with Wilson's 95 % interval over test images.

    Columns: `study model objective seed metric depth label pool norm value low high images`, value in [0, 1].
    Raises the errors of `features` and `knn_predict`, and ValueError for a label that the images lack.
    """
    labels = {name: (labels_of(train, name), labels_of(test, name)) for name in label_names(label)}
    depths = list(range(encoder.depth + 1) if depths is None else depths)
    by_split = [features(encoder, source, depths, pool, norm) for source in (train, test)]
    rows = []
    for name, (y_train, y_test) in labels.items():
        for depth, x_train, x_test in zip(depths, *by_split, strict=True):
            row = {"metric": "knn", "depth": depth, "label": name, "pool": pool, "norm": norm}
            predicted = knn_predict(x_train, y_train, x_test, k, temperature)
            rows.append(identity(encoder, test) | row | accuracy(predicted, y_test))
    return pd.DataFrame(rows)
