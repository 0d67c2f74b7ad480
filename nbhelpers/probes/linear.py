"""Linear probing: multinomial logistic regression on frozen features, depth by depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.features import Pool, features
from nbhelpers.probes.rows import Predictor, Undefined, accuracy, accuracy_by_depth

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def _checked(features: Tensor, what: str) -> np.ndarray:
    """Features `N D` as float64 for the solver."""
    if features.ndim != 2:
        raise ValueError(f"{what} must be N D; got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise Undefined(f"non-finite {what} {tuple(features.shape)}")
    return features.cpu().double().numpy()


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: standardisation by the training moments, then `weight` `C D` and `bias` `C`.

    `strength` is the inverse L2 penalty (scikit-learn's `C`), `validation` the accuracy it was chosen by.
    """

    scaler: StandardScaler
    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    strength: float
    validation: float

    def predict(self, features: Tensor) -> Tensor:
        """Most probable class `N` of features `N D`; ValueError for features that are not finite."""
        x = self.scaler.transform(_checked(features, "features"))
        return torch.from_numpy(self.classes[(x @ self.weight.T + self.bias).argmax(1)])

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share in [0, 1] of features `N D` whose predicted class is the label `N`."""
        return accuracy(self.predict(features), labels)["value"]


class _Path:
    r"""Solutions of the penalised regression from strong to weak penalty, each starting from the last.

    L-BFGS in the basis of principal components, each weight in units of $1 / \sqrt{1 + C N \lambda / K}$,
    about the inverse square root of the loss's curvature for a component of variance $\lambda$ and K classes.
    The change of variables leaves the solution as it is; features of one depth are nearly collinear, and
    without it some hundred steps are needed instead of some ten.
    """

    def __init__(self, x: np.ndarray, target: np.ndarray) -> None:
        """Standardised features `N D` and their classes `N` as numbers 0..K-1."""
        variances, self.basis = np.linalg.eigh(x.T @ x / len(x))
        self.x = np.c_[x @ self.basis, np.ones(len(x))]
        self.variances = np.append(variances.clip(min=0), 1)
        self.penalised = np.append(np.ones(len(variances)), 0)[:, None]  # all but the bias
        self.truth = np.eye(target.max() + 1)[target]
        self.solution = np.zeros((self.x.shape[1], self.truth.shape[1]))

    def solve(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Weight `K D` and bias `K` that minimise the objective of `fit_linear`."""
        curvature = strength * len(self.x) / self.truth.shape[1]
        unit = 1 / np.sqrt(self.penalised + curvature * self.variances[:, None])

        def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            weight = scaled.reshape(unit.shape[0], -1) * unit
            logits = self.x @ weight
            logits -= logits.max(1, keepdims=True)
            shares = np.exp(logits)
            totals = shares.sum(1, keepdims=True)
            loss = np.log(totals).sum() - (logits * self.truth).sum()
            shares /= totals
            shares -= self.truth
            gradient = strength * self.x.T @ shares + self.penalised * weight
            value = strength * loss + (self.penalised * weight**2).sum() / 2
            return value, (gradient * unit).ravel()

        # In these units a gradient g is about the distance to the solution, and the objective lacks g^2 / 2.
        options = {"maxiter": 2000, "maxcor": 20, "ftol": 0, "gtol": 1e-5 * (strength * len(self.x)) ** 0.5}
        start = (self.solution / unit).ravel()
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
        self.solution = found.reshape(self.solution.shape) * unit
        return (self.basis @ self.solution[:-1]).T, self.solution[-1]


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
    Layer-wise probing: section 5 of Park et al. 2023 (there with SGD).

    Raises:
        Undefined: a ValueError; features that are not finite, or the same for every image.
        ValueError: for shapes that do not fit, or fewer than two classes.

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
    classes, target = np.unique(train_labels.cpu().numpy(), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"a probe needs at least two classes; got {classes.tolist()}")
    if not len(strengths):
        raise ValueError("no strengths to choose from")
    x = _checked(train_features, "train_features")
    if (x == x[0]).all():
        raise Undefined(f"train_features {x.shape} are the same for every image")
    probes = []
    with threadpool_limits(1):  # matrices this small cost more to share among threads than to multiply
        scaler = StandardScaler().fit(x)
        path = _Path(scaler.transform(x), target)
        for strength in sorted(strengths):
            probe = LinearProbe(scaler, *path.solve(strength), classes, strength, 0.0)
            reached = probe.accuracy(validation_features, validation_labels)
            probes.append(replace(probe, validation=reached))
    return max(probes, key=lambda probe: probe.validation)


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
    Columns: `study model objective seed metric depth label pool norm value low high images`, value in [0, 1],
    NaN at a depth whose features are not finite or do not vary. Raises the errors of `features`, `fit_linear`
    and `accuracy_by_depth`.
    """
    return accuracy_by_depth(
        "linear",
        encoder,
        [train, validation],
        test,
        label,
        partial(features, pool=pool, norm=norm, finite=False),
        partial(predictor, strengths=strengths),
        depths,
        pool=pool,
        norm=norm,
    )


def predictor(learnt: tuple, chosen: tuple, strengths: Sequence[float] = STRENGTHS) -> Predictor:
    """What a linear probe predicts, as `predictions` takes it."""
    return fit_linear(*learnt, *chosen, strengths).predict
