"""Weighted k-NN against explicit loops."""

import math

import pytest
import torch

from nbhelpers.probes import knn_predict


def knn_oracle(train, labels, test, k, temperature):
    """Votes e^(cos / tau) counted one by one in float64."""
    predictions = []
    for x in test.double():
        cosines = [float(x @ t / (x.norm() * t.norm())) for t in train.double()]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes = {}
        for i in nearest:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosines[i] / temperature)
        predictions.append(max(votes, key=votes.get))
    return predictions


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (5, 0.002)])
def test_votes_equal_the_loop(k, temperature):
    generator = torch.Generator().manual_seed(k)
    train, test = torch.randn(60, 3, generator=generator), torch.randn(40, 3, generator=generator)
    labels = torch.randint(4, (60,), generator=generator) * 3
    expected = knn_oracle(train, labels, test, k, temperature)
    assert knn_predict(train, labels, test, k, temperature).tolist() == expected
