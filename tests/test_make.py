"""`make` in a folder with a space in its name: the environment it makes, and what it says when it can't."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Stands in for a Python: its environments hold a copy of itself, and its pip installs nothing.
PYTHON = """#!/bin/sh
[ -n "{broken}" ] && case "$*" in "-m pip"* | *"import sys, pip;"*) exit 1 ;; esac
case "$*" in
  -V) echo "Python {version}" ;;
  "-m venv --clear .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip"*) ;;
  *) exec '{python}' -c "import sys; sys.version_info = tuple(map(int, '{version}'.split('.')))
exec(sys.argv[1].replace(', pip', ''))" "$2" ;;
esac
"""


def script(path: Path, text: str) -> Path:
    """Write a script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def python(path: Path, version: str = "3.12.1", broken: str = "") -> Path:
    """Write a stand-in for a Python."""
    return script(path, PYTHON.format(version=version, broken=broken, python=sys.executable))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the Makefile beside requirements that ask for nothing."""
    folder = tmp_path / "a b"
    (folder / "nbhelpers").mkdir(parents=True)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("requirements.txt", "pyproject.toml"):
        (folder / name).touch()
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run make; a PYTHON of the environment would count as named."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_python_that_is_too_old_is_named_at_once(folder: Path) -> None:
    old = python(folder / "python3.9", "3.9.1")
    done = make(folder, "install", f"PYTHON={old}")
    assert done.returncode and "3.10" in done.stderr and str(old) in done.stderr
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize("unfit", [{"broken": "no pip"}, {"version": "3.9.1"}], ids=["unfinished", "too old"])
def test_an_unfit_environment_is_made_anew_and_lab_finds_its_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, unfit: dict[str, str]
) -> None:
    python(folder / ".venv/bin/python", **unfit)
    new = python(folder / "bin/python3")
    monkeypatch.setenv("PATH", f"{new.parent}:{os.environ['PATH']}")
    done = make(folder, "install")
    assert done.returncode == 0, done.stderr
    assert (folder / ".venv/bin/python").read_text() == new.read_text()

    script(folder / ".venv/bin/jupyter-lab", '#!/bin/sh\necho "settings in $JUPYTER_CONFIG_PATH"\n')
    assert f"settings in {folder}/.jupyter\n" in make(folder, "lab").stdout


def test_only_a_python_that_is_named_replaces_a_finished_environment(folder: Path) -> None:
    old = python(folder / ".venv/bin/python", "3.11.2").read_text()
    (folder / ".venv/.installed").touch()
    new = python(folder / "python3.12")
    assert make(folder, "install").returncode == 0
    assert (folder / ".venv/bin/python").read_text() == old
    assert make(folder, "install", f"PYTHON={new}").returncode == 0
    assert (folder / ".venv/bin/python").read_text() == new.read_text()
