"""The report of a reader's own models: the chapter on them, run for a file and a folder of pictures."""

import importlib

import pandas as pd
import pytest
import torch
from PIL import Image

from nbhelpers.metrics import METRICS

# The package exports a function of the same name, which hides the module from attribute access.
module = importlib.import_module("nbhelpers.analyse")


@pytest.fixture
def pictures(tmp_path):
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        pixels = torch.randint(256, (40, 48, 3), generator=generator).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_a_report_has_every_figure_and_the_numbers_behind_it(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    page = module.report(["shapes.cl", "shapes.cl"], f"folder:{pictures}", tmp_path / "out", n_images=4)
    frame = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert set(frame["metric"]) == set(METRICS)
    assert frame["model"].nunique() == 2  # one name twice is made two
    assert frame["images"].max() == 4
    text = page.read_text()
    figures = sorted(path.name for path in (tmp_path / "out").glob("*.svg"))
    assert len(figures) >= 13 and text.count('src="data:image/svg+xml') == len(figures)
    assert 'alt="delta_log_amplitude' not in text and 'alt="Delta log amplitude against depth' in text
    assert "No description" not in text
    assert "attention-maps" in text and "8 x 8" in text


def test_without_a_checkout_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CHAPTER", tmp_path / "model.py")
    with pytest.raises(FileNotFoundError, match=r"model\.py.*checkout"):
        module.report(["shapes.cl"], "shapes", tmp_path)
