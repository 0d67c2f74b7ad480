"""The README's figure: small, the same at every drawing, and there."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_same_tables_give_the_same_small_file(tmp_path):
    draw = runpy.run_path(str(ROOT / "book" / "_static" / "picture.py"))["draw"]
    draw(tmp_path / "one.svg")
    draw(tmp_path / "two.svg")
    one = (tmp_path / "one.svg").read_bytes()
    assert one == (tmp_path / "two.svg").read_bytes()
    assert len(one) < 150_000


def test_the_readme_shows_it():
    (shown,) = re.findall(r"!\[[^]]+\]\((.+?)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown == "book/_static/collapse.svg" and (ROOT / shown).exists()
