"""Weighted k-NN against explicit loops, and its two extremes."""

import math

import pytest
import torch

from nbhelpers.probes import knn_by_depth, knn_predict


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
def test_oracle(k, temperature):
    generator = torch.Generator().manual_seed(k)
    train, test = torch.randn(60, 3, generator=generator), torch.randn(40, 3, generator=generator)
    labels = torch.randint(4, (60,), generator=generator) * 3
    assert knn_predict(train, labels, test, k, temperature).tolist() == knn_oracle(
        train, labels, test, k, temperature
    )


def test_votes_are_weighted():
    train = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.01]])
    assert (
        knn_predict(train, labels, query, k=3, temperature=0.07).item() == 0
    )  # near one outvotes two far ones
    assert knn_predict(train, labels, query, k=3, temperature=100.0).item() == 1


def test_small_temperature_does_not_overflow():
    x, y = torch.eye(3), torch.arange(3)
    assert torch.equal(knn_predict(x, y, x, k=1, temperature=1e-3), y)


def test_by_depth_separable_and_noise(encoder, colours):
    train, test = colours(300, 0), colours(200, 1)
    frame = knn_by_depth(encoder, train, test, "colour")
    assert list(frame.depth) == [0, 1, 2] and (frame.value == 1).all() and (frame.high == 1).all()
    assert frame.iloc[0][["study", "model", "objective", "images"]].tolist() == ["toy", "toy.cl", "CL", 200]
    noise = knn_by_depth(encoder, train, test, "coin")
    assert ((noise.low < 0.5) & (noise.high > 0.5)).all()


def test_errors(encoder, colours):
    x, y = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match="2 features"):
        knn_predict(x, y, torch.eye(2), k=1)
    with pytest.raises(ValueError, match="2 train_labels"):
        knn_predict(x, y[:2], x, k=1)
    with pytest.raises(ValueError, match="non-finite"):
        knn_predict(x, y, x * torch.nan, k=1)
    with pytest.raises(ValueError, match="n_neighbors = 20"):
        knn_predict(x, y, x)
    source = colours(30, 0)
    with pytest.raises(ValueError, match=r"no label 'shape'.*'coin', 'colour'"):
        knn_by_depth(encoder, source, source, "shape")
