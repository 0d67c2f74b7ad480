"""Where labels lie among the principal components of frozen features."""

import math

import pandas as pd
import torch
from torch import Tensor

from nbhelpers.images.source import ImageSource
from nbhelpers.intervals import mean_interval
from nbhelpers.measure import identified
from nbhelpers.models import Encoder
from nbhelpers.probes.layers import Labels, accuracy, features, row, targets_of
from nbhelpers.probes.linear import fit_linear, knn_predict

# Of all components; 0 and 1 are the features as they are.
REMOVED = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
HELD = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def principal_components(features: Tensor) -> tuple[Tensor, Tensor]:
    r"""Directions `D D` (a column each) and variances `D` of features `N D`, from the largest variance down.

    $\frac{1}{N} \sum_n (x_n - \bar x)(x_n - \bar x)^\top = U \,\mathrm{diag}(\lambda)\, U^\top$, in float64.

    >>> u, variances = principal_components(torch.tensor([[0.0, 1.0], [0.0, -1.0], [3.0, 0.0], [-3.0, 0.0]]))
    >>> variances.tolist(), u.abs().tolist()
    ([4.5, 0.5], [[1.0, 0.0], [0.0, 1.0]])
    """
    centred = features.double() - features.double().mean(0)
    variances, directions = torch.linalg.eigh(centred.mT @ centred / len(centred))
    return directions.flip(1), variances.flip(0).clamp(min=0)


def components_by_share(
    encoder: Encoder, train: ImageSource, validation: ImageSource, test: ImageSource, label: Labels
) -> pd.DataFrame:
    r"""Accuracy of probes that see only some of the principal components of the features of the last block.

    With the components $U$ of the training images and a set $S$ of them, a probe sees $\bar x + U_S U_S^\top
    (x - \bar x)$: rotated back, so that a linear probe of all components is the linear probe of the book.

    - `knn_without_leading`: k-NN in $x - \bar x$ without the leading share of the components.
    - `knn_gained`: how much more than with all components that is.
    - `linear_leading`, `linear_trailing`: a linear probe of the leading or of the trailing share alone.
    - `linear_beyond`: how much more one of all components reaches than one of the leading share.
    - `variance_leading`: the leading share's part of the variance.

    Args:
        encoder: the frozen model.
        train: images to learn from and to take components of.
        validation: images that the linear probe's penalty is chosen on.
        test: images to predict.
        label: name of the label, or several.

    Returns:
        Tidy frame `study model objective seed metric depth parameter label value low high images`; the
        parameter is the share of components in [0, 1], `low` and `high` are a 95 % interval over test images
        (NaN for the variance): Wilson's, and of a gain the t interval of the difference on the same images.

    Raises:
        ValueError: the errors of `features`, `fit_linear` and `knn_predict`.

    Source: Balestriero & LeCun 2024 (arXiv 2402.11337), who sort the components of pixels.
    """
    learnt, chosen, asked = (
        features(encoder, source, [encoder.depth])[0].double() for source in (train, validation, test)
    )
    directions, variances = principal_components(learnt)
    mean = learnt.mean(0)

    def seen(x: Tensor, components: slice) -> Tensor:
        basis = directions[:, components]
        return (x - mean) @ basis @ basis.mT

    def number(share: float) -> int:
        return round(share * len(variances))

    rows = []
    for name, (known, checked, truth) in targets_of([train, validation, test], label).items():
        found, guesses = {}, {}
        for share in (share for share in REMOVED if number(share) or not share):
            rest = slice(number(share), None)
            guesses["knn_without_leading", share] = knn_predict(seen(learnt, rest), known, seen(asked, rest))
        for share in filter(number, HELD):
            count = number(share)
            held = float(variances[:count].sum() / variances.sum())
            found["variance_leading", share] = row(held, math.nan, math.nan, len(learnt))
            for end, part in {"leading": slice(count), "trailing": slice(-count, None)}.items():
                if end == "leading" or count < len(variances):  # with all components they are the same
                    probe = fit_linear(seen(learnt, part), known, seen(chosen, part), checked)
                    predicted = probe.predict(seen(asked, part))
                guesses[f"linear_{end}", share] = predicted
        found |= {key: accuracy(guess, truth) for key, guess in guesses.items()}
        right = {key: (guess == truth).double() for key, guess in guesses.items()}
        knn, linear = "knn_without_leading", "linear_leading"
        gains = {("knn_gained", s): right[m, s] - right[m, 0] for m, s in right if m == knn and s > 0}
        gains |= {("linear_beyond", s): right[m, 1] - right[m, s] for m, s in right if m == linear and s < 1}
        found |= {key: row(*map(float, mean_interval(gain)), len(truth)) for key, gain in gains.items()}
        for (metric, share), last in found.items():
            rows.append({"metric": metric, "parameter": share, "depth": encoder.depth, "label": name} | last)
    return identified(pd.DataFrame(rows), encoder, test)
