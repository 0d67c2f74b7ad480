"""Probes of principal components, against loops over single directions and against the plain probes."""

import numpy as np
import pytest
import torch
from scipy import stats

from nbhelpers.probes import (
    components_by_share,
    features,
    fit_linear,
    knn_predict,
    linear_by_depth,
    principal_components,
)
from nbhelpers.probes.layers import accuracy


def test_components_are_those_of_numpy():
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 6))
    directions, variances = principal_components(x)
    centred = x.double().numpy() - x.double().numpy().mean(0)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    assert variances.numpy() == pytest.approx(singular**2 / len(x), rel=1e-10)
    assert np.abs((directions.T.numpy() * vectors).sum(1)) == pytest.approx(np.ones(5), abs=1e-10)


def row(frame, metric, share):
    (value,) = frame[(frame["metric"] == metric) & np.isclose(frame["parameter"], share)]["value"]
    return value


def test_shares_by_a_loop_over_directions_and_all_of_them_are_the_plain_probe(encoder, splits, monkeypatch):
    monkeypatch.setattr("nbhelpers.probes.components.HELD", (1 / 4, 1))  # a few of the many fits
    images = splits(60, 30, 40)
    frame = components_by_share(encoder, *images, ["colour", "coin"])
    assert set(frame["depth"]) == {2} and set(frame["label"]) == {"colour", "coin"}
    frame = frame[frame["label"] == "colour"]
    plain = linear_by_depth(encoder, *images, "colour", depths=[2])["value"].item()
    assert row(frame, "linear_leading", 1) == row(frame, "linear_trailing", 1) == plain
    assert row(frame, "variance_leading", 1) == pytest.approx(1)
    learnt, chosen, asked = (features(encoder, source, [2])[0].double() for source in images)
    covariance = np.cov(learnt.T.numpy(), bias=True)
    _, columns = np.linalg.eigh(covariance)  # ascending
    directions = torch.from_numpy(columns[:, ::-1].copy())

    def only(x, wanted):
        centred, seen = x - learnt.mean(0), torch.zeros_like(x)
        for d in wanted:
            seen += (centred @ directions[:, d])[:, None] * directions[:, d]
        return seen

    labels = [source.labels["colour"] for source in images]
    for metric, wanted in {"leading": range(2), "trailing": range(6, 8)}.items():  # a quarter of eight
        parts = [only(x, wanted) for x in (learnt, chosen, asked)]
        probe = fit_linear(parts[0], labels[0], parts[1], labels[1])
        assert row(frame, f"linear_{metric}", 1 / 4) == accuracy(probe.predict(parts[2]), labels[2])["value"]
    too_few = frame[frame["parameter"].between(1e-9, 1 / 16 - 1e-9)]  # less than half of one of eight
    assert too_few.empty
    hits = {}
    for share, rest in {0: range(8), 1 / 4: range(2, 8)}.items():
        predicted = knn_predict(only(learnt, rest), labels[0], only(asked, rest))
        hits[share] = (predicted == labels[2]).double()
        assert row(frame, "knn_without_leading", share) == accuracy(predicted, labels[2])["value"]
    gain = (hits[1 / 4] - hits[0]).numpy()  # image by image
    gained = frame.query("metric == 'knn_gained' and parameter == 0.25")[["value", "low", "high"]]
    assert set(frame.query("metric == 'knn_gained'")["parameter"]) == {1 / 8, 1 / 4, 1 / 2}
    margin = stats.t.ppf(0.975, 39) * stats.sem(gain)
    assert gained.to_numpy()[0] == pytest.approx([gain.mean(), gain.mean() - margin, gain.mean() + margin])
    beyond = row(frame, "linear_leading", 1) - row(frame, "linear_leading", 1 / 4)
    assert row(frame, "linear_beyond", 1 / 4) == pytest.approx(beyond)
    assert set(frame.query("metric == 'linear_beyond'")["parameter"]) == {1 / 4}
