"""The form of each chapter, and that a chapter runs on its own with another model."""

import ast
import shutil
import subprocess
import sys
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


def test_copied_chapters_build_beside_their_originals(tmp_path: Path) -> None:
    """Nothing that a chapter defines, such as the label of a formula, may be there twice."""
    book = tmp_path / "book"
    shutil.copytree(BOOK, book, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    pages = ["reference/glossary", "reference/bibliography"]
    for path in filter(solutions, CHAPTERS):
        name = path.relative_to(BOOK).with_suffix("").as_posix()
        shutil.copy(path, book / f"{name}_copy.py")
        pages += [name, f"{name}_copy"]
    (book / "index.py").write_text("# %% [markdown]\n# # Front\n")
    toc = {"format": "jb-book", "root": "index", "chapters": [{"file": page} for page in pages]}
    (book / "_toc.yml").write_text(yaml.safe_dump(toc))
    config = yaml.safe_load((book / "_config.yml").read_text())
    config["execute"]["execute_notebooks"] = "off"
    # Of pages that are left out, and of a language that is known only from a run.
    config["sphinx"]["config"]["suppress_warnings"] = ["myst.xref_missing", "myst-nb.lexer"]
    config["sphinx"]["config"]["percent_watch"] = []
    (book / "_config.yml").write_text(yaml.safe_dump(config))
    command = [Path(sys.executable).parent / "jupyter-book", "build", str(book), "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", [*filter(solutions, CHAPTERS)], ids=lambda path: path.stem)
def test_first_exercise_another_architecture_through_all_cells(path: Path, tmp_path: Path) -> None:
    """Twelve blocks, three heads, 14 x 14 patches of 16 px and random weights, as the exercise says."""
    model = ["random:vit_tiny_patch16_224"]
    prose = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown"]
    assert f"`MODELS = {model}`".replace("'", '"') in "".join(prose)
    run(path, tmp_path, STUDIES=["shapes"], MODELS=model, N_IMAGES=8)


def run(path: Path, folder: Path, **parameters: object) -> None:
    """Execute a chapter with other parameters."""
    notebook = folder / "chapter.ipynb"
    jupytext.write(jupytext.read(path), notebook)
    papermill.execute_notebook(
        notebook,
        None,
        parameters,
        kernel_name="python3",
        language="python",
        cwd=path.parent,
        progress_bar=False,
    )


ONE_PER_PART = [next(filter(solutions, paths)) for paths in PARTS.values() if any(map(solutions, paths))]


@pytest.mark.slow
@pytest.mark.parametrize("path", ONE_PER_PART, ids=lambda path: path.stem)
def test_runs_on_its_own_with_another_model(path: Path, tmp_path: Path) -> None:
    run(path, tmp_path, STUDIES=["shapes"], MODELS=["shapes.random"])
