"""Command line of the analysis: `python -m nbhelpers.analyse MODEL --images FOLDER --out DIR`.

It runs the book's chapter on a reader's own models and renders it as one page in a folder.
"""

import argparse
import html
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from nbhelpers.files import DATA, atomic_path
from nbhelpers.models import load
from nbhelpers.pretrain.__main__ import positive
from nbhelpers.studies import OWN, study

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


def parser() -> argparse.ArgumentParser:
    """The options, each with its explanation."""
    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.analyse",
        description="Measure encoders on images: a table, a figure per metric and one HTML page.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a timm or hf-hub: name, a file ...")
    parser.add_argument("--images", required=True, help="a folder of images, or study:shapes, study:cifar10")
    parser.add_argument("--out", required=True, metavar="DIR", help="where page, figures and table go")
    parser.add_argument("--from-file", metavar="FILE", help="local copy of the weights of the one MODEL")
    parser.add_argument("--n-images", type=positive, help="draw so many images (default: all)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per pass (default: 64)")
    parser.add_argument("--device", help="cpu, cuda ... (default: a GPU when there is one)")
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn (default: 0)")
    return parser


def _study(name: str) -> str:
    """The study that an option names."""
    plain = name.removeprefix("study:")
    if plain in OWN and name == plain and Path(name).exists():
        raise ValueError(f"--images {name}: which one, the folder ./{name} or the book's own, study:{name}?")
    if plain not in OWN and name != plain:
        raise ValueError(f"--images {name}: the book's own studies with images are {' and '.join(OWN)}")
    return plain if plain in OWN else f"folder:{name}"


def _say(message: object, *_: object) -> None:
    """A line on the error stream, where progress goes too."""
    print(f"note: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; prints the page's path, or on bad input one line that says what is wrong."""
    line = parser()
    options = line.parse_args(arguments)
    if options.from_file and len(options.models) > 1:
        line.error(f"--from-file has the weights of one MODEL, got {len(options.models)}")
    with warnings.catch_warnings():
        warnings.showwarning = _say
        try:
            name = _study(options.images)
            number = len(study(name).images("test"))  # says what is left out of a folder
            if number < (options.n_images or 0):
                _say(f"{options.n_images} images asked for, there are {number}")
            for model in options.models:  # what cannot be loaded is said before the chapter starts
                load(model, device=options.device or "cpu", from_file=options.from_file)
            chapter = ("n_images", "seed", "batch_size", "device", "from_file")
            parameters = {key: getattr(options, key) for key in chapter}
            print(report(options.models, name, options.out, **parameters))
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            line.exit(1, f"error: {error.args[0] if isinstance(error, KeyError) else error}\n")
        except KeyboardInterrupt:
            line.exit(130, "stopped; models that were finished are kept and not measured again\n")


if __name__ == "__main__":
    main()
