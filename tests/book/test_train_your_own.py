"""The notebook that trains: a short run leaves one figure of the loss, no noise, and an encoder to load."""

from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest

from nbhelpers import load

CHAPTER = Path(__file__).parents[2] / "book" / "hybrid" / "train_your_own.py"


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    notebook = tmp_path / "chapter.ipynb"
    jupytext.write(jupytext.read(CHAPTER), notebook)
    parameters = {
        "OBJECTIVE": "hybrid-0.3",
        "SECONDS": 0,
        "BATCH_SIZE": 8,
        "N_IMAGES": 10,
        "FOLDER": str(tmp_path),
    }
    papermill.execute_notebook(
        notebook,
        notebook,
        parameters,
        kernel_name="python3",
        language="python",
        cwd=CHAPTER.parent,
        progress_bar=False,
    )
    outputs = [output for cell in nbformat.read(notebook, 4).cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} == {"display_data", "execute_result"}  # no streams
    alts = [output.metadata["image/svg+xml"]["alt"] for output in outputs if "image/svg+xml" in output.data]
    assert [alt.split(" against ")[0] for alt in alts] == ["Training loss", "NMI of query and key"]
    assert alts[0].endswith("after 2 steps.")
    encoder = load(tmp_path / "yours.safetensors")
    assert (encoder.objective, encoder.depth) == ("hybrid", 8)
