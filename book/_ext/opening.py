"""What a chapter opens with: how long its cells ran, and what they need.

The time is the one that the execution cache keeps; the needs are read off the names of studies and encoders in
the chapter's code. Nothing of it is typed in.
"""

from __future__ import annotations

import ast
import os
from datetime import datetime
from pathlib import Path

import nbformat
import torch
from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx

IMAGES = {
    "shapes": "generated images",
    "cifar10": "the photographs of CIFAR-10 or, without them, the tables stored with the book",
    "imagenet": "photographs of ImageNet and public encoders or, without them, the tables stored with the book",
}
ENCODERS = "the encoders in data/encoders"


def needs(notebook: nbformat.NotebookNode) -> list[str]:
    """The images and encoders that the code of a notebook names."""
    trees = [ast.parse(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    found = [node for tree in trees for node in ast.walk(tree)]
    words = {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    needed = [text for study, text in IMAGES.items() if study in words]
    own = any(word.startswith(f"{study}.") for word in words for study in IMAGES)
    if own or any(isinstance(node, ast.Name) and node.id == "MODELS" for node in found):
        needed.append(ENCODERS)
    return needed


def duration(seconds: float) -> str:
    """A run time as readers think of it.

    >>> duration(0.4), duration(12.3), duration(200)
    ('1 s', '12 s', '3 min')
    """
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def machine() -> str:
    """What the cells ran on."""
    cores = os.cpu_count()
    return f"{cores} CPU core{'s' if cores > 1 else ''}" + (" and a GPU" if torch.cuda.is_available() else "")


def on_doctree_read(app: Sphinx, doctree: nodes.document) -> None:
    """Write a line under the title of a page whose cells were executed; the front page goes without."""
    page = app.env.docname
    run = NbMetadataCollector.get_exec_data(app.env, page)
    if not run or run["runtime"] is None or page == app.config.root_doc:
        return
    notebook = nbformat.read(Path(app.env.mystnb_config.output_folder, f"{page}.ipynb"), as_version=4)
    day = datetime.fromtimestamp(run["mtime"])
    time = (
        f" {duration(run['runtime'])} on {machine()}, measured on {day.day} {day:%B %Y}, when these cells last "
        "ran. It takes longer with an empty cache folder. "
    )
    needed = "; ".join(needs(notebook)) or "nothing but this project"
    line = nodes.paragraph(
        "",
        "",
        nodes.strong(text="Run time:"),
        nodes.Text(time),
        nodes.strong(text="Needs:"),
        nodes.Text(f" {needed}."),
        classes=["opening"],
    )
    title = next(iter(doctree.findall(nodes.title)))
    title.parent.insert(title.parent.index(title) + 1, line)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-read", on_doctree_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
