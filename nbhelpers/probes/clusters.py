"""How the tokens of a few images fall into groups: silhouettes by depth, and a map of them by t-SNE."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import pairwise_distances, silhouette_samples

from nbhelpers.images.source import ImageSource
from nbhelpers.intervals import mean_interval
from nbhelpers.measure import identified
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.features import checked_depths, features
from nbhelpers.probes.rows import labels_of, row


def silhouette_by_depth(
    encoder: Encoder, images: ImageSource, label: str, depths: Sequence[int] | None = None
) -> pd.DataFrame:
    r"""Silhouette of the patch tokens of a few images at every depth, grouped by image and by label.

    Mean over tokens of $(b - a) / \max(a, b)$: $a$ is the mean euclidean distance to the other tokens of the
    token's group, $b$ that to the tokens of the nearest other group (Rousseeuw 1987; scikit-learn).

    Args:
        encoder: the frozen model.
        images: a few; all distances between their tokens are held in memory. With one image, or one
            class, the silhouette of that grouping is NaN.
        label: name of the label whose classes are the second grouping.
        depths: default all of 0..L.

    Returns:
        Columns `study model objective seed metric depth value low high images`, metric "silhouette_image" or
        "silhouette_label"; value in [-1, 1], 1 for tight groups far apart, 0 or below where there are none;
        `low` and `high` bound the 95 % interval over images (Student's t).

    Raises:
        ValueError: an unknown label, or the errors of `features`.
    """
    classes = labels_of(images, label)
    depths = checked_depths(encoder, depths)
    layers = features(encoder, images, depths, "none")
    count = layers.shape[2]
    groups = {"silhouette_image": torch.arange(len(images)), "silhouette_label": classes}
    for name, group in groups.items():
        if len(group.unique()) < 2:
            warnings.warn(f"{images.name} has one group only, so {name} is NaN", stacklevel=2)
    rows = []
    for depth, layer in zip(depths, layers, strict=True):
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
    labels = {
        name: np.asarray(images.classes[name])[numbers.repeat_interleave(count).numpy()]
        for name, numbers in images.labels.items()
    }
    frame = pd.DataFrame({"depth": depth, "image": image, "x": x, "y": y} | labels)
    return identified(frame, encoder, images)
