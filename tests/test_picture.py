"""The README's figure: small, the same at every drawing, and there."""

import re
from pathlib import Path

from nbhelpers.picture import PATH, draw

README = Path(__file__).parents[1] / "README.md"


def test_the_same_tables_give_the_same_small_file(tmp_path):
    draw(tmp_path / "one.svg")
    draw(tmp_path / "two.svg")
    one = (tmp_path / "one.svg").read_bytes()
    assert one == (tmp_path / "two.svg").read_bytes()
    assert len(one) < 150_000


def test_the_readme_shows_it():
    (shown,) = re.findall(r"!\[[^]]+\]\((.+?)\)", README.read_text(encoding="utf-8"))
    assert (README.parent / shown).resolve() == PATH and PATH.exists()
