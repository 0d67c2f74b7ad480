"""The form of each chapter, and that a chapter runs on its own with another model."""

import ast
import re
from pathlib import Path

import jupytext
import papermill
import pytest
import yaml

BOOK = Path(__file__).parents[2] / "book"
TOC = yaml.safe_load((BOOK / "_toc.yml").read_text())
PARTS = {
    part["caption"]: [BOOK / f"{entry['file']}.py" for entry in part["chapters"]]
    for part in TOC.get("parts", [])
}
CHAPTERS = [path for paths in PARTS.values() for path in paths if path.exists()]
ONE_PER_PART = [
    next(path for path in paths if "\nMODELS = " in path.read_text())
    for paths in PARTS.values()
    if any(path.exists() and "\nMODELS = " in path.read_text() for path in paths)
]
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def tagged(notebook, tag: str) -> list[str]:
    """The source of the code cells that carry a tag."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in cells if tag in cell.metadata.get("tags", [])]


@every_chapter
def test_one_title_and_it_comes_first(path: Path) -> None:
    prose = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown"]
    titles = [title for text in prose for title in re.findall(r"^# .+$", text, flags=re.MULTILINE)]
    assert len(titles) == 1 and prose[0].startswith(titles[0])


@every_chapter
def test_one_parameter_cell_of_plain_assignments(path: Path) -> None:
    (source,) = tagged(jupytext.read(path), "parameters")
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.Assign) and statement.targets[0].id.isupper()
        ast.literal_eval(statement.value)  # papermill puts literals in its place


@every_chapter
def test_cells_are_short(path: Path) -> None:
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "code":
            statements = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.stmt)]
            assert len(statements) <= 15, cell.source


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {TOC["root"], *(entry["file"] for part in TOC["parts"] for entry in part["chapters"])}
    written = {
        path.relative_to(BOOK).with_suffix("").as_posix()
        for path in BOOK.rglob("*")
        if path.suffix in (".py", ".md") and path.relative_to(BOOK).parts[0][0] not in "_."
    }
    assert written == listed


@every_chapter
def test_ends_with_three_things_to_try_the_first_with_another_model(path: Path) -> None:
    last = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown"][-1]
    heading, things = f"\n{last}".rpartition("\n## ")[2].split("\n", 1)
    assert heading == "Try it yourself"
    numbers = re.findall(r"^(\d+)\. ", things, flags=re.MULTILINE)
    assert numbers == ["1", "2", "3"]
    first = things.split("\n2. ")[0]
    assert "model" in first.lower() and re.search(r"`MODELS?`|nbhelpers\.load", first)


@pytest.mark.slow
@pytest.mark.parametrize("path", ONE_PER_PART, ids=lambda path: path.stem)
def test_runs_on_its_own_with_another_model(path: Path, tmp_path: Path) -> None:
    notebook = tmp_path / "chapter.ipynb"
    jupytext.write(jupytext.read(path), notebook)
    parameters = {"STUDIES": ["shapes"], "MODELS": ["shapes.random"]}
    papermill.execute_notebook(
        notebook,
        None,
        parameters,
        kernel_name="python3",
        language="python",
        cwd=path.parent,
        progress_bar=False,
    )
