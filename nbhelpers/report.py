"""The report of a reader's own models: the chapter on them, run and rendered as one page in a folder."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from nbhelpers.files import DATA, atomic_path

CHAPTER = DATA.parent / "book" / "beyond" / "own_model.py"
SVG = "image/svg+xml"
# What nbconvert writes, which does not look for a text in the metadata of a cell.
NO_TEXT = 'alt="No description has been provided for this image"'
SITE_ONLY = "site"  # tag of the chapter's cells that are about the book, not about the models


def report(
    models: Sequence[str], images: str, folder: str | Path, n_images: int | None = None, **options: object
) -> Path:
    """Run the chapter on models of one's own and write `index.html`, its figures and `metrics.csv`.

    Args:
        models: names or paths, for `nbhelpers.load`.
        images: name of a study, such as "shapes" or "folder:/path/to/images".
        folder: made if needed.
        n_images: draw so many; None: all.
        options: other parameters of the chapter: `seed`, `batch_size`, `device`.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: the book is not beside the package.
        ModuleNotFoundError: what runs the chapter is not installed.
        RuntimeError: a cell failed; the message is that of its error.
    """
    if not CHAPTER.exists():
        raise FileNotFoundError(
            f"the report runs the chapter {CHAPTER}, which is part of a checkout: install the package from "
            "one, by `pip install -e .`"
        )
    import jupytext  # these come with requirements.txt, and the library does without them
    import papermill
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import ExtractOutputPreprocessor
    from nbformat.v4 import new_code_cell

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    notebook = jupytext.read(CHAPTER)
    notebook.metadata["language_info"] = {"name": "python"}  # papermill asks for it
    notebook.cells = [cell for cell in notebook.cells if SITE_ONLY not in cell.metadata.get("tags", [])]
    # Figures belong to the page, whatever MPLBACKEND says.
    notebook.cells.insert(0, new_code_cell("%matplotlib inline"))
    parameters = {"MODELS": list(map(str, models)), "IMAGES": images, "N_IMAGES": n_images}
    parameters |= {"OUT": str(folder)} | {name.upper(): value for name, value in options.items()}
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        notebook = papermill.execute_notebook(notebook, None, parameters, kernel_name="python3")
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"{error.ename}: {error.evalue}") from None
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_preprocessor(ExtractOutputPreprocessor(), enabled=True)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    page, resources = exporter.from_notebook_node(notebook, {"metadata": {"name": " and ".join(models)}})
    outputs = [(cell, output) for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = (cell for cell, output in outputs if SVG in output.get("data", {}))
    texts = (cell.metadata["mystnb"]["image"]["alt"] for cell in figures)
    page = re.sub(re.escape(NO_TEXT), lambda _: f'alt="{html.escape(next(texts))}"', page)
    for name, content in resources["outputs"].items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "index.html"
