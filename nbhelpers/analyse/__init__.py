"""The report on models of one's own: the book's chapter, run on them and rendered as one page in a folder."""

import html
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from nbhelpers.files import DATA, atomic_path

CHAPTER = DATA.parent / "book" / "own" / "model.py"
SVG = "image/svg+xml"
# The text that nbconvert gives to every figure: it does not read the one in the metadata of a cell.
NO_TEXT = 'alt="No description has been provided for this image"'
SITE_ONLY = "site"  # tag of the chapter's cells that are about the book, not about the models


def report(models: Sequence[str], images: str, folder: str | Path, **options: object) -> Path:
    """Run the chapter on models of one's own and write `index.html`, its figures and `metrics.csv`.

    Args:
        models: names or paths, for `nbhelpers.load`.
        images: name of a study, such as "shapes" or "folder:/path/to/images".
        folder: made if needed.
        options: other parameters of the chapter: `n_images`, `seed`, `batch_size`, `device`, `from_file`.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: the book is not beside the package.
        ModuleNotFoundError: what runs the chapter is not installed.
        RuntimeError: a cell failed; the message is that of its error.
    """
    if not CHAPTER.exists():
        way = "install the package from a checkout of the project, by `pip install -e .`"
        raise FileNotFoundError(f"the report runs the chapter {CHAPTER}, which is not there: {way}")
    import jupytext  # these come with requirements.txt, and the library does without them
    import papermill
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import ExtractOutputPreprocessor
    from nbformat.v4 import new_code_cell

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("papermill", "traitlets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    notebook = jupytext.read(CHAPTER)
    notebook.metadata["language_info"] = {"name": "python"}  # papermill asks for it
    notebook.cells = [cell for cell in notebook.cells if SITE_ONLY not in cell.metadata.get("tags", [])]
    # Figures belong to the page, whatever MPLBACKEND says.
    notebook.cells.insert(0, new_code_cell("%matplotlib inline"))
    parameters = {"MODELS": list(map(str, models)), "IMAGES": images, "OUT": str(folder)}
    parameters |= {name.upper(): value for name, value in options.items()}
    try:
        notebook = papermill.execute_notebook(notebook, None, parameters, kernel_name="python3")
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"{error.ename}: {error.evalue}") from None
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_preprocessor(ExtractOutputPreprocessor(), enabled=True)
    page, resources = exporter.from_notebook_node(notebook, {"metadata": {"name": " and ".join(models)}})
    outputs = [(cell, output) for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = (cell for cell, output in outputs if SVG in output.get("data", {}))
    texts = (cell.metadata["mystnb"]["image"]["alt"] for cell in figures)
    page = re.sub(re.escape(NO_TEXT), lambda _: f'alt="{html.escape(next(texts))}"', page)
    for name, content in {**resources["outputs"], "index.html": page.encode()}.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / "index.html"
