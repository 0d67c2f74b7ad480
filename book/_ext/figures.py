"""Give the figures of executed notebooks the alternative text that was written while they were drawn.

myst-nb takes `alt` from the head of a cell alone, where it can't hold a number from the run. Here it may also
come with the figure, as `display(figure, metadata={"image/svg+xml": {"alt": "..."}})`. A figure with neither
is a warning.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def is_element(node: nodes.Node, name: str) -> bool:
    """Whether `node` is the part of a notebook that myst-nb calls `name`."""
    return isinstance(node, nodes.container) and node.get("nb_element") == name


def take_over_alt(doctree: nodes.document, notebook: nbformat.NotebookNode) -> None:
    """Copy `alt` from the metadata of each output to the image made of it."""
    for cell in doctree.findall(lambda node: is_element(node, "cell_code")):
        bundles = list(cell.findall(lambda node: is_element(node, "mime_bundle")))
        if not bundles:  # the cell shows no output
            continue
        outputs = [output for output in notebook.cells[cell["cell_index"]].outputs if "data" in output]
        for bundle, output in zip(bundles, outputs, strict=True):
            for container in bundle.children:
                alt = output.metadata.get(container["mime_type"], {}).get("alt")
                for image in container.findall(nodes.image):
                    if alt:
                        image["alt"] = alt


def with_outputs(notebook: nbformat.NotebookNode, app: Sphinx) -> nbformat.NotebookNode:
    """The notebook with its outputs: where they came from the cache, myst-nb writes it out without them."""
    try:
        return get_cache(app.env.mystnb_config.execution_cache_path).merge_match_into_notebook(notebook)[1]
    except KeyError:  # not in the cache: a page that is not executed
        return notebook


def on_doctree_read(app: Sphinx, doctree: nodes.document) -> None:
    """Describe the images of one page and warn of those that have no description."""
    path = Path(app.env.mystnb_config.output_folder, f"{app.env.docname}.ipynb")
    if path.exists():
        take_over_alt(doctree, with_outputs(nbformat.read(path, as_version=4), app))
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning("image without alternative text: %s", image["uri"], location=image, type="figures")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-read", on_doctree_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
