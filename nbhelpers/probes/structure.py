"""How features lie, with nothing to learn: silhouettes and a map of tokens, and CKA between two encoders."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import pairwise_distances, silhouette_samples
from torch import Tensor

from nbhelpers.images.source import ImageSource, labels_of
from nbhelpers.intervals import mean_interval
from nbhelpers.measure import identified
from nbhelpers.metrics.cka import alignments, gram
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.layers import Pool, features, row

PARTS = 10  # of the images, each of which gives a value of its own


def silhouette_by_depth(encoder: Encoder, images: ImageSource, label: str) -> pd.DataFrame:
    r"""Silhouette of the patch tokens of a few images at every depth, grouped by image and by label.

    Mean over tokens of $(b - a) / \max(a, b)$: $a$ is the mean euclidean distance to the other tokens of the
    token's group, $b$ that to the tokens of the nearest other group (Rousseeuw 1987; scikit-learn).

    Args:
        encoder: the frozen model.
        images: a few; all distances between their tokens are held in memory. With one image, or one
            class, the silhouette of that grouping is NaN.
        label: name of the label whose classes are the second grouping.

    Returns:
        Columns `study model objective seed metric depth value low high images`, metric "silhouette_image" or
        "silhouette_label"; value in [-1, 1], 1 for tight groups far apart, 0 or below where there are none;
        `low` and `high` bound the 95 % interval over images (Student's t).

    Raises:
        ValueError: an unknown label, or the errors of `features`.
    """
    classes = labels_of(images, label)
    layers = features(encoder, images, pool="none")
    count = layers.shape[2]
    groups = {"silhouette_image": torch.arange(len(images)), "silhouette_label": classes}
    for name, group in groups.items():
        if len(group.unique()) < 2:
            warnings.warn(f"{images.name} has one group only, so {name} is NaN", stacklevel=2)
    rows = []
    for depth, layer in enumerate(layers):
        distances = pairwise_distances(layer.flatten(0, 1).double().numpy())
        np.fill_diagonal(distances, 0)
        for metric, group in groups.items():
            values = np.full(len(images), np.nan)
            if len(group.unique()) > 1:
                tokens = group.repeat_interleave(count).numpy()
                each = silhouette_samples(distances, tokens, metric="precomputed")
                values = each.reshape(-1, count).mean(1)
            rows.append({"metric": metric, "depth": depth} | row(*mean_interval(values), len(values)))
    return identified(pd.DataFrame(rows), encoder, images)


def token_map(
    encoder: Encoder, images: ImageSource, depth: int, perplexity: float = 20, seed: int = 0
) -> pd.DataFrame:
    """A map of the patch tokens of a few images at one depth, by t-SNE (van der Maaten and Hinton 2008).

    Perplexity 20 and 1,000 steps are those of the paper's notebook.

    Returns:
        A row per token: `study model objective seed depth image x y`, and a column of class names per label.

    Raises:
        ValueError: more perplexity than tokens, or the errors of `features`.
    """
    tokens = features(encoder, images, [depth], "none")[0]
    count = tokens.shape[1]
    place = TSNE(perplexity=perplexity, max_iter=1000, random_state=seed)
    x, y = place.fit_transform(tokens.flatten(0, 1).numpy()).T
    image = np.arange(len(images)).repeat(count)
    frame = pd.DataFrame({"depth": depth, "image": image, "x": x, "y": y})
    for name, numbers in images.labels.items():
        frame[name] = np.asarray(images.classes[name])[numbers.repeat_interleave(count).numpy()]
    return identified(frame, encoder, images)


def cka_by_depth(
    encoder: Encoder, images: ImageSource, others: Sequence[Encoder], pool: Pool = "mean"
) -> pd.DataFrame:
    r"""Linear CKA of pooled features between every depth of an encoder and every depth of each other one.

    The images `N C H W` are dealt into ten parts at random, the same for every encoder. The value is the
    mean over parts, :math:`\bar c \pm t_{0.975, 9}\, s / \sqrt{10}` its 95 % interval. The HSIC inside is
    unbiased, so small parts do not raise it; as a ratio of three, it is too low by up to a fifth in parts of
    four images, and by a fiftieth in parts of twenty.

    Args:
        encoder: one side.
        images: at least 40, since a part needs four.
        others: the other sides, one after the other.
        pool: as in `features`.

    Returns:
        Tidy frame `study model objective seed metric depth other other_depth value low high images`; values
        at most about 1 (features that agree up to rotation and scale) and about 0 for unrelated ones; NaN for
        features that do not vary.

    Raises:
        ValueError: for fewer than 40 images, or the errors of `features`.

    Source: `nbhelpers.metrics.linear_cka`.
    """
    if len(images) < 4 * PARTS:
        raise ValueError(f"cka_by_depth: needs at least {4 * PARTS} images, got {len(images)}")

    # At random: where ten classes take turns, every tenth image is of the same class.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))

    def parts(seen_by: Encoder) -> list[Tensor]:
        layers = features(seen_by, images, pool=pool)  # L+1 N D
        return [gram(layers[:, order[start::PARTS]]) for start in range(PARTS)]

    ours, rows = parts(encoder), []
    for other in others:
        theirs = ours if other is encoder else parts(other)
        values = torch.stack([alignments(*pair) for pair in zip(ours, theirs, strict=True)])
        found = np.stack(mean_interval(values.numpy()), axis=-1)
        rows += [
            {"metric": "cka", "depth": depth, "other": other.name, "other_depth": other_depth}
            | row(*found[depth, other_depth], len(images))
            for depth, other_depth in np.ndindex(found.shape[:2])
        ]
    return identified(pd.DataFrame(rows), encoder, images)
