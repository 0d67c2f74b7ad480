"""The form of each chapter, and that a chapter runs on its own with another model."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jupytext
import pytest
import yaml
from PIL import Image

from nbhelpers.images import shapes
from nbhelpers.studies import kind

BOOK = Path(__file__).parents[2] / "book"
TOC = yaml.safe_load((BOOK / "_toc.yml").read_text())
PARTS = {
    part["caption"]: [BOOK / f"{entry['file']}.py" for entry in part["chapters"]]
    for part in TOC.get("parts", [])
}
CHAPTERS = [path for paths in PARTS.values() for path in paths if path.exists()]
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def tagged(notebook, tag: str) -> list[str]:
    """The source of the code cells that carry a tag."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in cells if tag in cell.metadata.get("tags", [])]


@every_chapter
def test_one_parameter_cell_of_plain_assignments(path: Path) -> None:
    (source,) = tagged(jupytext.read(path), "parameters")
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.Assign) and statement.targets[0].id.isupper()
        ast.literal_eval(statement.value)  # papermill puts literals in its place


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {TOC["root"], *(entry["file"] for part in TOC["parts"] for entry in part["chapters"])}
    written = {
        path.relative_to(BOOK).with_suffix("").as_posix()
        for path in BOOK.rglob("*")
        if path.suffix in (".py", ".md") and path.relative_to(BOOK).parts[0][0] not in "_."
    }
    assert written == listed


def solutions(path: Path) -> list[str]:
    """The hidden solutions of a chapter's exercises."""
    return tagged(jupytext.read(path), "solution") if path.suffix == ".py" and path.exists() else []


def build(folder: Path, chapters: dict[str, str]) -> Path:
    """Build a book of these chapters (source by page) and the pages that all refer to; return its site."""
    book = folder / "book"
    shutil.copytree(BOOK, book, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    for page, source in chapters.items():
        (book / f"{page}.py").write_text(source)
    (book / "index.py").write_text("# %% [markdown]\n# # Front\n")
    pages = ["reference/glossary", "reference/bibliography", *chapters]
    toc = {"format": "jb-book", "root": "index", "chapters": [{"file": page} for page in pages]}
    (book / "_toc.yml").write_text(yaml.safe_dump(toc))
    config = yaml.safe_load((book / "_config.yml").read_text())
    # Of pages that are left out, and of a language that is known only from a run.
    config["sphinx"]["config"] |= {"suppress_warnings": ["myst.xref_missing", "myst-nb.lexer"]}
    config["sphinx"]["config"] |= {"percent_watch": []}
    (book / "_config.yml").write_text(yaml.safe_dump(config))
    command = [Path(sys.executable).parent / "jupyter-book", "build", str(book), "-W", "--keep-going"]
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment["PYTHONPATH"] = str(BOOK.parent)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return book / "_build" / "html"


def page(path: Path) -> str:
    """What a chapter is called in the table of contents."""
    return path.relative_to(BOOK).with_suffix("").as_posix()


# What is known to the whole book by its name: sections, formulas, figures, terms, entries of an index.
NAMED = re.compile(r"^# \(\S+\)=|:label:|:name:|\$\$ ?\(\w|\{#|\{(?:glossary|index)\}", re.MULTILINE)


def test_a_chapter_names_nothing_that_its_copy_would_name_again() -> None:
    assert {path.stem: NAMED.findall(path.read_text()) for path in CHAPTERS} == {p.stem: [] for p in CHAPTERS}


# Chapters and how many images they look at; those that train probes learn from more, in proportion.
ADAPTED = {
    "attention/maps": 8,
    "representations/diversity": 8,
    "components/layers": 20,
    "beyond/components": 20,
    "hybrid/agreement": 40,
}
# Twelve blocks at 224 px and random weights; six blocks at 160 px; trained on the images of another study.
FOREIGN = ["random:vit_tiny_patch16_224", "random:test_vit", "cifar10.cl"]


def with_parameters(path: Path, **values: object) -> str:
    """The source of a chapter whose cell of parameters has other values."""
    notebook = jupytext.read(path)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    known = {statement.targets[0].id for statement in ast.parse(cell.source).body}
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items() if name in known)
    return jupytext.writes(notebook, "py:percent")


@pytest.mark.slow
def test_adapted_chapters_are_executed_and_built(tmp_path: Path) -> None:
    """Three foreign models at once, on generated images and on a folder of ten photographs."""
    for number, photograph in enumerate(shapes("test").batch(range(10))):
        file = tmp_path / "photographs" / f"kind {number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph.permute(1, 2, 0).numpy()).save(file)
    values = {"STUDIES": ["shapes", f"folder:{tmp_path / 'photographs'}"], "MODELS": FOREIGN, "BATCHES": 3}
    chapters = {
        name: with_parameters(BOOK / f"{name}.py", **values, N_IMAGES=few) for name, few in ADAPTED.items()
    }
    site = build(tmp_path, chapters)
    for name in chapters:
        html = (site / f"{name}.html").read_text()
        figures = re.findall(r'<figure.*?_images/([^"]+\.svg)', html, re.DOTALL)
        drawn = "".join((site / "_images" / figure).read_text() for figure in figures)
        assert all(model in drawn for model in ("vit_tiny_patch16_224", "test_vit", "CL")), name


# The other chapters with a first exercise on the model, and the parameters that they run with.
FEW = {page(path): {"N_IMAGES": 8} for path in filter(solutions, CHAPTERS) if page(path) not in ADAPTED}
OTHERS = {"components/behaviour": {}, "hybrid/hybrid": {}}  # which draw stored tables
OTHERS |= {"beyond/moments": {"STUDIES": ["cifar10"], "N_IMAGES": 8}}  # stored too, without photographs
OTHERS |= {"representations/shape_texture": {"N_IMAGES": 10}}  # its probes learn from in proportion


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW | OTHERS)
def test_first_exercise_as_its_text_says(name: str, run_chapter: Callable) -> None:
    """It runs through all cells: mostly with a ViT of 12 blocks, 14 x 14 patches and random weights."""
    prose = [cell.source for cell in jupytext.read(BOOK / f"{name}.py").cells if cell.cell_type == "markdown"]
    exercises = "\n".join(prose).partition("## Exercises")[2]
    change = ast.parse(re.search(r"`([A-Z]+ = .+?)`", exercises)[1]).body[0]
    parameter, value = change.targets[0].id, ast.literal_eval(change.value)
    if name in FEW:
        assert (parameter, value) == ("MODELS", ["random:vit_tiny_patch16_224"])
    parameters = {"STUDIES": ["shapes"], parameter: value} | (FEW | OTHERS)[name]
    outputs = str([cell.get("outputs") for cell in run_chapter(BOOK / f"{name}.py", parameters)])
    names = [f"shapes.{value}"] if isinstance(value, str) else value
    assert all(kind(model) in outputs for model in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention/distance", "attention/collapse", "attention/maps"])
def test_a_study_without_its_images_is_a_note_in_the_figures(name: str, run_chapter: Callable) -> None:
    cells = run_chapter(BOOK / f"{name}.py", {"STUDIES": ["imagenet"], "N_IMAGES": 8})
    assert "set NBHELPERS_IMAGENET to a folder" in str([cell.get("outputs") for cell in cells])
