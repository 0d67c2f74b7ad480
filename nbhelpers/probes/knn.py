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
from nbhelpers.probes.features import Pool
from nbhelpers.probes.rows import Predictor, accuracies, by_depth, checked, targets_of


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
    checked("train", train_features, "N D", train_labels)
    checked("test", test_features, "M D")
    train, test = (F.normalize(x.cpu().float(), dim=1).numpy() for x in (train_features, test_features))
    # On the unit sphere d^2 = 2 - 2 cos, so euclidean distance, which scikit-learn has a fast path for, ranks
    # alike; e^(-d^2 / 2 tau) is the vote up to the constant factor e^(1 / tau).
    votes = KNeighborsClassifier(k, weights=lambda d: np.exp(-(d**2) / (2 * temperature)), algorithm="brute")
    prediction = votes.fit(train, train_labels.cpu().numpy()).predict(test)
    return train_labels.new_tensor(prediction)


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

    Columns: `study model objective seed metric depth label pool norm value low high images`, value in [0, 1],
    NaN at a depth whose features are not finite. Raises the errors of `features`, `knn_predict` and
    `targets_of`.
    """

    def fit(learnt: tuple[Tensor, Tensor]) -> Predictor:
        return lambda x: knn_predict(*learnt, x, k, temperature)

    tests, targets = {"": (encoder, test)}, targets_of([train, test], label)
    return by_depth(encoder, [train], tests, targets, fit, accuracies("knn"), depths, pool, norm)
