"""The benchmark that trains until an accuracy is reached."""

import runpy
from dataclasses import replace
from pathlib import Path

import torch

from nbhelpers.images import ArraySource
from nbhelpers.pretrain import recipe

UNTIL_KNN = runpy.run_path(str(Path(__file__).with_name("benchmark.py")))["until_knn"]


def test_training_until_an_accuracy_measures_it_and_stops(monkeypatch, capsys):
    pixels = torch.arange(3 * 8 * 8 * 10_000).view(-1, 3, 8, 8).mul(7919).to(torch.uint8)
    images = ArraySource("toy/train", pixels, {"class": torch.arange(10_000) % 2}, {"class": ("a", "b")})
    small = replace(recipe("cifar10", "cl").of_width(32), depth=2, images=400)
    monkeypatch.setitem(UNTIL_KNN.__globals__, "cifar10", lambda split: images)
    monkeypatch.setitem(UNTIL_KNN.__globals__, "recipe", lambda *_: small)
    UNTIL_KNN(0.0, torch.device("cpu"), 8)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["8", "pairs"] and "k-NN" in line
