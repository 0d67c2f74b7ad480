"""Silhouettes against explicit loops; a map keeps its tokens' labels."""

import numpy as np
import pytest
import torch

from nbhelpers.probes import features
from nbhelpers.probes.structure import silhouette_by_depth, token_map


def silhouette_oracle(points, groups):
    """One value per point, distances taken one by one in float64."""
    values = []
    for i, point in enumerate(points.double()):
        apart = {}
        for j, other in enumerate(points.double()):
            if i != j:
                apart.setdefault(int(groups[j]), []).append(float((point - other).norm()))
        means = {group: sum(found) / len(found) for group, found in apart.items()}
        own = means.pop(int(groups[i]))
        nearest = min(means.values())
        values.append((nearest - own) / max(nearest, own))
    return torch.tensor(values)


def test_oracle(encoder, colours):
    images = colours(6, seed=0)
    frame = silhouette_by_depth(encoder, images, "colour").set_index(["metric", "depth"])
    layers = features(encoder, images, pool="none")
    groups = {"silhouette_image": torch.arange(6), "silhouette_label": images.labels["colour"]}
    for metric, group in groups.items():
        for depth, layer in enumerate(layers):
            values = silhouette_oracle(layer.flatten(0, 1), group.repeat_interleave(4)).view(6, 4).mean(1)
            row = frame.loc[metric, depth]
            assert row["value"] == pytest.approx(values.mean().item(), abs=1e-6)
            half = 2.5705818 * values.std().item() / 6**0.5  # Student's t, 5 degrees of freedom
            assert row["high"] - row["value"] == pytest.approx(half, rel=1e-5)
    assert set(frame["study"]) == {"toy"} and set(frame["model"]) == {"toy.cl"}


def test_one_class_or_one_image_leaves_the_other_numbers(encoder, colours):
    images = colours(20, seed=0).restrict(["red"], "colour")
    with pytest.warns(UserWarning, match="silhouette_label is NaN"):
        values = silhouette_by_depth(encoder, images, "colour").set_index("metric")["value"]
    assert values["silhouette_label"].isna().all() and values["silhouette_image"].notna().all()
    with pytest.warns(UserWarning, match="silhouette_image is NaN"):
        assert silhouette_by_depth(encoder, images.select([0]), "colour")["value"].isna().all()


def test_a_map_keeps_the_labels_of_its_tokens(encoder, colours):
    images = colours(8, seed=1)
    frame = token_map(encoder, images, depth=0, perplexity=5)
    assert frame["image"].tolist() == [i for i in range(8) for _ in range(4)]
    names = [images.classes["colour"][i] for i in images.labels["colour"]]
    assert frame["colour"].tolist() == [name for name in names for _ in range(4)]
    assert np.isfinite(frame[["x", "y"]]).all(axis=None)
    again = token_map(encoder, images, depth=0, perplexity=5)
    assert (frame[["x", "y"]] == again[["x", "y"]]).all(axis=None)
