"""The line under a chapter's title: how long its cells ran, and what they need."""

import os
import re
from datetime import date
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from sphinx.cmd.build import build_main

BOOK = Path(__file__).parents[2] / "book"

INDEX = """\
# %% [markdown]
# # The front page
# ```{toctree}
# chapter
# prose
# ```

# %%
print("the front page runs code")
"""
CHAPTER = """\
# %% [markdown]
# # A chapter
# Its first sentence.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None

# %%
import time

time.sleep(2)
"""
CONF = f"""\
import sys

sys.path.insert(0, {str(BOOK / "_ext")!r})
extensions = ["myst_nb", "percent", "opening"]
exclude_patterns = ["conf.py"]
nb_execution_mode = "cache"
root_doc = "index"
html_theme = "basic"
"""


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BOOK / "_ext")
    import opening

    return opening


def build(root: Path) -> dict[str, str]:
    """Build the scratch book; its pages as HTML."""
    assert build_main(["-q", "-W", "-b", "html", str(root / "book"), str(root / "site")]) == 0
    return {name: (root / "site" / f"{name}.html").read_text() for name in ("index", "chapter", "prose")}


def line(page: str) -> str | None:
    """The opening line of a page without its mark-up."""
    found = re.search(r'<p class="opening">(.*?)</p>', page, flags=re.DOTALL)
    return found and re.sub(r"\s+", " ", re.sub("<.*?>", "", found.group(1)))


def test_a_chapter_opens_with_the_time_that_its_cells_took(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    texts = {"conf.py": CONF, "index.py": INDEX, "chapter.py": CHAPTER, "prose.md": "# Prose\n"}
    for name, text in texts.items():
        (tmp_path / "book" / name).write_text(text)
    pages = build(tmp_path)
    assert line(pages["index"]) is line(pages["prose"]) is None  # even though the front page runs code
    first = line(pages["chapter"])
    seconds = re.match(rf"Run time: (\d+) s on {os.cpu_count()} CPU cores?( and a GPU)?, measured on", first)
    assert int(seconds.group(1)) >= 2
    assert str(date.today().year) in first
    assert pages["chapter"].index("<h1>") < pages["chapter"].index("Run time:")
    assert pages["chapter"].index("Run time:") < pages["chapter"].index("Its first sentence.")

    (tmp_path / "book" / "chapter.py").write_text(CHAPTER.replace("first sentence", "new sentence"))
    again = build(tmp_path)["chapter"]
    assert "new sentence" in again and line(again) == first  # nothing ran, so the time stands


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('STUDIES = ["shapes", "cifar10"]\nMODELS = None', ["generated", "CIFAR-10", "data/encoders"]),
        ('SPLIT = "test"\nstudy("shapes").images(SPLIT)', ["generated"]),
        ('MODEL = "cifar10.mim"  # not "imagenet"', ["data/encoders"]),
        ("print(1 + 1)", []),
    ],
)
def test_needs_follow_from_the_names_in_the_code(opening, code: str, expected: list[str]) -> None:
    found = opening.needs(new_notebook(cells=[new_code_cell(code)]))
    assert len(found) == len(expected)
    for text, word in zip(found, expected, strict=True):
        assert word in text


def test_every_study_is_explained(opening) -> None:
    from nbhelpers.studies import TITLES

    assert set(opening.IMAGES) == set(TITLES)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (12.4, "12 s"), (89.9, "90 s"), (90, "2 min"), (310, "5 min")]
)
def test_durations_are_round(opening, seconds: float, text: str) -> None:
    assert opening.duration(seconds) == text
