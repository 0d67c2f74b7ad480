"""Read py:percent chapters so that the execution cache notices changed code and data.

jupyter-cache looks a notebook up by the text of its code cells. A chapter's outputs depend on the helper
package and on data files as well, so their digest goes into each notebook as a hidden first code cell. It
reaches the reader through `nb_custom_formats`, whose change also makes Sphinx read every page again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from sphinx.application import Sphinx
from sphinx.config import Config


def digest(folder: Path, patterns: list[str]) -> str:
    """Hash the files that match `patterns` under `folder`, and what the `NBHELPERS_*` variables point at."""
    state = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not path.name.startswith("."):  # a dot: still being written
                state.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
                state.update(path.read_bytes())
    for name, value in sorted(os.environ.items()):
        if name.startswith("NBHELPERS_"):
            state.update(f"{name}={value}\0".encode())
            if Path(value).is_file():  # an image archive is too large to read at every build
                status = Path(value).stat()
                state.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
    return state.hexdigest()


def read(text: str, depends_on: str) -> NotebookNode:
    """Turn py:percent text into a notebook that carries the digest of what its outputs depend on."""
    notebook = jupytext.reads(text, fmt="py:percent")
    first = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), None)
    if first is not None:
        marker = new_code_cell(f"# depends on {depends_on}", metadata={"tags": ["remove-cell"]})
        notebook.cells.insert(first, marker)
    return notebook


def hand_over_digest(app: Sphinx, config: Config) -> None:
    """Pass the digest to `read`."""
    value = digest(Path(app.srcdir), config.percent_watch)
    config.nb_custom_formats = {".py": ["percent.read", {"depends_on": value}]}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_config_value("percent_watch", [], "", list)
    app.connect("config-inited", hand_over_digest, priority=400)  # before myst-nb reads the setting
    return {"parallel_read_safe": True, "parallel_write_safe": True}
