"""The notebook that trains: a short run leaves one figure of the loss, no noise, and an encoder to load."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from nbhelpers import load
from nbhelpers.images import shapes

CHAPTER = Path(__file__).parents[2] / "book" / "own" / "training.py"


@pytest.mark.slow
def test_a_short_run(tmp_path: Path, run_chapter: Callable) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number, image in enumerate(shapes("test").batch(range(60))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(photographs / f"{number}.png")
    parameters = {
        "STUDY": f"folder:{photographs}",
        "OBJECTIVE": "hybrid-0.3",
        "SECONDS": 0,
        "BATCH_SIZE": 8,
        "N_IMAGES": 10,
        "FOLDER": str(tmp_path),
    }
    outputs = [output for cell in run_chapter(CHAPTER, parameters) for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} == {"display_data", "execute_result"}  # no streams
    figures = [output for output in outputs if {"image/svg+xml", "image/png"} & set(output.data)]
    assert len(figures) == 2  # the loss, one figure however often it was drawn, and attention
    texts = [output.data["text/markdown"] for output in outputs if "text/markdown" in output.data]
    assert "makes **2 steps**" in texts[0]
    encoder = load(tmp_path / "yours.safetensors")
    assert (encoder.objective, encoder.depth) == ("hybrid", 8)
