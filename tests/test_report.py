"""The report of a reader's own model: tables, figures with texts, one page; for a folder of pictures."""

import pandas as pd
import pytest
import timm
import torch

from nbhelpers.images import ArraySource
from nbhelpers.metrics import METRICS
from nbhelpers.models import wrap
from nbhelpers.report import DRAWINGS, report


@pytest.fixture
def images():
    pixels = torch.randint(256, (5, 3, 40, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ArraySource("toy/<all>", pixels, {}, {})


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=(48, 64), embed_dim=48)
    return wrap(module, name="mine", objective="unknown")


def test_a_report_has_every_figure_and_the_numbers_behind_it(encoder, images, tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    page = report([encoder], images, tmp_path / "out").read_text()
    frame = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert set(frame["metric"]) == set(METRICS)
    for drawing in DRAWINGS:
        figure = tmp_path / "out" / f"{drawing.metric}.svg"
        assert "<svg" in figure.read_text()
        assert f'<img src="{figure.name}" alt="' in page
    assert "3 x 4" in page  # the patch grid that was read
    assert "toy/&lt;all&gt;" in page
    assert "mine" in (tmp_path / "out" / "nmi.svg").read_text()  # the legend names the model
