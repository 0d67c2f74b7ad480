"""The execution cache of the book: what is executed again, and when."""

import importlib
from pathlib import Path

import pytest
import yaml
from sphinx.cmd.build import build_main

BOOK = Path(__file__).parents[2] / "book"

CHAPTER = """\
# %% [markdown]
# # A chapter

# %%
import sys
from pathlib import Path

with open("../runs", "a") as runs:
    runs.write("run ")
sys.path.insert(0, "..")
import helper

print(f"helper says {helper.WORD}, data say {Path('../data/word').read_text()}")
"""
CONF = f"""\
import sys

sys.path.insert(0, {str(BOOK / "_ext")!r})
exclude_patterns = ["conf.py"]
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
root_doc = "chapter"
html_theme = "basic"
extensions = ["myst_nb", "percent"]
percent_watch = ["../helper/**/*.py", "../data/**/*"]
"""


class ScratchBook:
    """A book of one chapter that prints a helper's word and a data file's word."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("book", "helper", "data"):
            (root / folder).mkdir()
        self.write("book/chapter.py", CHAPTER)
        self.write("book/conf.py", CONF)
        self.write("helper/__init__.py", "WORD = 'one'\n")
        self.write("data/word", "one")

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def status(self) -> int:
        """Build, and return how it ended."""
        folders = self.root / "book", self.root / "_build" / "html"
        return build_main(["-q", "-W", "-b", "html", *map(str, folders)])

    def build(self) -> str:
        """Build, and return the chapter's text as a reader sees it."""
        assert self.status() == 0
        return (self.root / "_build" / "html" / "chapter.html").read_text()

    @property
    def runs(self) -> int:
        """How often the chapter has been executed."""
        return (self.root / "runs").read_text().count("run")


def test_a_changed_helper_executes_again_and_prose_does_not(tmp_path: Path) -> None:
    book = ScratchBook(tmp_path)
    page = book.build()
    assert "helper says one, data say one" in page
    book.build()
    assert book.runs == 1

    book.write("helper/__init__.py", "WORD = 'two'\n")
    assert "helper says two, data say one" in book.build()
    assert book.runs == 2

    book.write("book/chapter.py", CHAPTER.replace("# # A chapter", "# # Another title"))
    page = book.build()
    assert "Another title" in page and "helper says two" in page
    assert book.runs == 2  # prose alone executes nothing


MEETS = """\
# %% [markdown]
# # {one}

# %%
import time
from pathlib import Path

with open("../runs", "a") as runs:
    runs.write("run ")
Path("../{one}").touch()
while not Path("../{other}").exists():
    time.sleep(0.05)
print("met")
"""
LISTS = """
# %% [markdown]
# ```{toctree}
# second
# ```
"""


def test_chapters_are_executed_side_by_side_and_once_and_a_failure_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Each of two chapters waits for the other one to have begun."""
    book = ScratchBook(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    book.write("book/conf.py", CONF + "nb_execution_timeout = 60\n")
    book.write("book/chapter.py", MEETS.format(one="chapter", other="second") + LISTS)
    second = MEETS.format(one="second", other="chapter")
    book.write("book/second.py", second)
    assert "met" in book.build()
    book.build()
    assert book.runs == 2
    book.write("book/second.py", second + "raise OSError('broken')\n")
    assert book.status() != 0
    problems = capfd.readouterr().err
    assert "second.py" in problems and "broken" in problems


def test_digest_sees_content_names_and_the_image_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BOOK / "_ext")
    percent = importlib.import_module("percent")

    def digest() -> str:
        return percent.digest(tmp_path / "book", ["../data/**/*"])

    (tmp_path / "book").mkdir()
    (tmp_path / "data" / "deep").mkdir(parents=True)
    file = tmp_path / "data" / "deep" / "table.csv"
    file.write_text("1")
    seen = [digest()]
    file.write_text("2")
    seen.append(digest())
    file.rename(file.with_name("other.csv"))
    seen.append(digest())
    archive = tmp_path / "photos.tar"
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(archive))
    seen.append(digest())
    archive.write_bytes(b"photos")
    seen.append(digest())
    assert len(set(seen)) == len(seen)
    (tmp_path / "data" / ".half-written").write_text("3")
    assert digest() == seen[-1]


def test_the_book_watches_the_library_and_the_data() -> None:
    sphinx = yaml.safe_load((BOOK / "_config.yml").read_text())["sphinx"]
    root = BOOK.parent
    watched = {(BOOK / pattern.split("/**")[0]).resolve() for pattern in sphinx["config"]["percent_watch"]}
    assert watched == {root / "nbhelpers", root / "data"}
    code = set((root / "nbhelpers").rglob("*.py"))
    assert code <= {p.resolve() for p in BOOK.glob(sphinx["config"]["percent_watch"][0])}
