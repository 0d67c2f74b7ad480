"""What each page of the site carries: notebook download, local MathJax, links to the repository."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from nbformat.v4 import new_code_cell
from percent import digest
from sphinx.application import Sphinx
from sphinx.config import Config

# First cell of a downloaded notebook. The package reads encoders and tables beside it, so it comes as a checkout.
ANYWHERE = """\
# Runs anywhere: where the book's package is missing, it is fetched and installed.
import importlib.util
import subprocess
import sys

ADDRESS = {address!r}
if importlib.util.find_spec("nbhelpers") is None:
    if not ADDRESS:
        raise ModuleNotFoundError("nbhelpers: clone the project, then `pip install -e .` in it")
    subprocess.run(["git", "clone", "--depth", "1", ADDRESS, "book"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "book"], check=True)
    sys.path.insert(0, "book")"""
# A formula within a sentence, with the punctuation that follows it.
FORMULA = re.compile(r'<span class="math notranslate nohighlight">[^<]*</span>[,.;:)]+')
# A negative number in a table, which pandas writes with a hyphen.
NEGATIVE = re.compile(r"(?<=<td>)-(?=\d)")
MATHJAX = "tex-svg-full.js"  # one file, fonts and TeX extensions included: also works from file://


def serve_mathjax(app: Sphinx, config: Config) -> None:
    """Serve MathJax from the site itself, so that formulas show without a network."""
    config.html_static_path.append(
        str(files("sphinx-mathjax-offline") / "static" / "mathjax" / MATHJAX)
    )
    config.mathjax_path = MATHJAX
    # The menu loads parts that are not served.
    config.mathjax3_config = {"options": {"enableMenu": False}}


def watch_static(app: Sphinx, config: Config) -> None:
    """Write all pages anew where a style or script has changed: Sphinx by itself looks at pages alone."""
    config.static_files = digest(Path(app.srcdir), ["_static/*"])


def link_repository(app: Sphinx, config: Config) -> None:
    """Add repository, edit, issue and launch buttons where a repository is known.

    `BOOK_REPOSITORY` is its address. On GitHub Actions it is known without: a fork's site points at the fork.
    """
    server, name = (
        os.environ.get("GITHUB_SERVER_URL", ""),
        os.environ.get("GITHUB_REPOSITORY", ""),
    )
    address = os.environ.get("BOOK_REPOSITORY") or (
        f"{server}/{name}" if server and name else ""
    )
    config.repository_address = address
    if not address:
        return
    config.html_theme_options |= {
        "repository_url": address,
        "repository_branch": os.environ.get("GITHUB_REF_NAME", "main"),
        "path_to_docs": "book",
        "use_repository_button": True,
        "use_edit_page_button": True,
        "use_issues_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        },
    }


def offer_notebook(
    app: Sphinx,
    page: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Write a chapter as a notebook beside its source, for the theme's download menu."""
    if not doctree or context.get("page_source_suffix") != ".py":
        return
    target = Path(app.outdir, "_sources", f"{page}.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = jupytext.read(app.env.doc2path(page))
    notebook.metadata["language_info"] = {"name": "python"}  # papermill asks for it
    if any(
        "nbhelpers" in cell.source
        for cell in notebook.cells
        if cell.cell_type == "code"
    ):
        notebook.cells.insert(
            0, new_code_cell(ANYWHERE.format(address=app.config.repository_address))
        )
    jupytext.write(notebook, target)
    context["ipynb_source"] = f"{page}.ipynb"


def mend_body(
    app: Sphinx,
    page: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Mend roles, line breaks and minus signs of a page.

    The children of a bibliography may not have their roles inside the list that docutils makes of it.
    Punctuation stays on the line of the formula before it.
    """
    body = context.get("body", "").replace(
        '<div role="list" class="citation-list">', "<div>"
    )
    body = FORMULA.sub(r'<span class="unbroken">\g<0></span>', body)
    context["body"] = NEGATIVE.sub("−", body)


def leave_out_methods(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Describe a class of the library by its docstring alone: its methods are for those who read the code."""
    return True if what == "class" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_config_value("repository_address", "", "html")
    app.add_config_value("static_files", "", "html")
    app.connect("config-inited", serve_mathjax)
    app.connect("config-inited", watch_static)
    app.connect("config-inited", link_repository)
    app.connect("html-page-context", offer_notebook)
    app.connect("html-page-context", mend_body)
    app.connect("autodoc-skip-member", leave_out_methods)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
