"""What the book's Sphinx extensions add to a page, on a scratch chapter."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import jupytext
import pytest
import yaml
from sphinx.cmd.build import build_main

BOOK = Path(__file__).parents[2] / "book"
FORK = "https://github.com/someone/a-fork"

CHAPTER = """\
# ---
# jupyter:
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # A chapter
# Mutual information $I(Q; K)$.

# %%
import nbhelpers
import pandas as pd

pd.DataFrame({"effect": [-0.5]})
"""
CONF = f"""\
import sys

sys.path.insert(0, {str(BOOK / "_ext")!r})
extensions = ["myst_nb", "percent", "pages"]
exclude_patterns = ["conf.py"]
myst_enable_extensions = ["dollarmath"]
root_doc = "chapter"
html_theme = "sphinx_book_theme"
html_theme_options = {{}}
"""


def attributes(page: Path, element: str, attribute: str) -> list[str]:
    """The values of one attribute of one kind of element."""
    return re.findall(rf'<{element}\b[^>]*\b{attribute}="([^"]*)"', page.read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a book of one chapter."""
    book, site = tmp_path_factory.mktemp("book"), tmp_path_factory.mktemp("site")
    (book / "chapter.py").write_text(CHAPTER)
    (book / "conf.py").write_text(CONF)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOOK_REPOSITORY", FORK)
        assert build_main(["-q", "-W", "-b", "html", str(book), str(site)]) == 0
    return site


@pytest.fixture
def pages(monkeypatch):
    """The module of the extension."""
    monkeypatch.syspath_prepend(BOOK / "_ext")
    return importlib.import_module("pages")


def test_formulas_need_no_other_host(site: Path) -> None:
    scripts = attributes(site / "chapter.html", "script", "src")
    assert not [address for address in scripts if "//" in address]
    mathjax = [address.split("?")[0] for address in scripts if "tex-svg" in address]
    assert len(mathjax) == 1 and (site / mathjax[0]).stat().st_size > 1e6


def test_punctuation_stays_with_its_formula_and_negative_numbers_have_a_minus_sign(site: Path) -> None:
    text = (site / "chapter.html").read_text()
    assert re.search(r'<span class="unbroken"><span class="math[^<]*</span>\.</span>', text)
    assert "<td>−0.5</td>" in text and "<td>-0.5" not in text


def test_notebook_and_script_can_be_downloaded_and_a_fork_links_to_itself(site: Path) -> None:
    links = set(attributes(site / "chapter.html", "a", "href"))
    assert {"_sources/chapter.py", "_sources/chapter.ipynb", f"{FORK}/edit/main/book/chapter.py"} <= links
    assert any(link.startswith("https://mybinder.org/v2/gh/someone/a-fork/main") for link in links)
    first, *others = jupytext.read(site / "_sources" / "chapter.ipynb").cells
    cells = jupytext.reads(CHAPTER, fmt="py:percent").cells
    assert [cell.source for cell in others] == [cell.source for cell in cells]
    assert FORK in first.source


@pytest.mark.parametrize("address", [FORK, ""])
def test_a_downloaded_notebook_fetches_the_package_where_it_is_missing(pages, monkeypatch, address) -> None:
    cell, ran = pages.ANYWHERE.format(address=address), []
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command))
    exec(cell, {})
    assert ran == []  # it is there
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if not address:
        with pytest.raises(ModuleNotFoundError, match="clone"):
            exec(cell, {})
        return
    exec(cell, {})
    clone, install = ran
    assert clone[:2] == ["git", "clone"] and clone[-2] == address
    assert install[0] == sys.executable and install[-1] == clone[-1] == sys.path[0]


def test_without_an_address_nothing_links_to_a_repository(pages, monkeypatch) -> None:
    for name in ("BOOK_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    config = SimpleNamespace(html_theme_options={})
    pages.link_repository(None, config)
    assert config.html_theme_options == {} and config.repository_address == ""


def test_a_changed_style_makes_all_pages_be_written_anew(pages, tmp_path: Path) -> None:
    (tmp_path / "_static").mkdir()
    config, seen = SimpleNamespace(), []
    for text in ("a {}", "b {}", "b {}"):
        (tmp_path / "_static" / "book.css").write_text(text)
        pages.watch_static(SimpleNamespace(srcdir=tmp_path), config)
        seen.append(config.static_files)
    assert seen[0] != seen[1] == seen[2]
    app = MagicMock()
    pages.setup(app)
    app.add_config_value.assert_any_call("static_files", "", "html")  # a change of which renews every page


def test_reference_page_lists_every_module_of_metrics() -> None:
    page = (BOOK / "reference" / "metrics.md").read_text()
    modules = {p.stem for p in (BOOK.parent / "nbhelpers" / "metrics").glob("*.py")} - {"__init__"}
    assert {module for module in modules if f"automodule:: nbhelpers.metrics.{module}\n" not in page} == set()


def test_every_loaded_extension_is_named_where_jupyter_book_looks_for_it() -> None:
    sphinx = yaml.safe_load((BOOK / "_config.yml").read_text())["sphinx"]
    own = {path.stem for path in (BOOK / "_ext").glob("*.py")}
    assert own == set(sphinx["local_extensions"]) == own & set(sphinx["config"]["extensions"])
