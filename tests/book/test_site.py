"""The built site as a reader meets it, page by page, in headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag

import jupytext
import numpy as np
import pytest
from playwright.sync_api import Browser

pytestmark = pytest.mark.site
SITE = Path(__file__).parents[2] / "book" / "_build" / "html"


@cache
def anchors(page: str) -> set[str]:
    """The places of a page that links can lead to."""
    text = (SITE / page).read_text(encoding="utf-8")
    return {*re.findall(r'\bid="([^"]+)"', text), *re.findall(r'<a\b[^>]*\bname="([^"]+)"', text)}


def test_no_error_and_nothing_from_elsewhere(look_at: Callable, page_name: str) -> None:
    look = look_at(page_name)
    assert look.complaints == []
    assert look.foreign == []  # offline readers see all there is
    assert look.content["problems"] == []


def test_images_show_and_are_described(look_at: Callable, page_name: str) -> None:
    for image in look_at(page_name).content["images"]:
        assert image["loaded"], image
        assert image["hidden"] or image["width"] > 1, image
        # Without a text, Sphinx puts the file's path there.
        assert image["alt"].strip() and Path(image["src"]).name not in image["alt"], image


def test_formulas_are_typeset(look_at: Callable, page_name: str) -> None:
    content = look_at(page_name).content
    assert content["typeset"] >= content["formulas"]


def test_links_within_the_site_lead_somewhere(look_at: Callable, site: str, page_name: str) -> None:
    broken = []
    for link in set(look_at(page_name).content["links"]):
        if link.startswith(site):
            address, anchor = urldefrag(link)
            target = unquote(address.removeprefix(site)).split("?")[0] or "index.html"
            if not (SITE / target).is_file():
                broken.append(link)
            elif anchor and target.endswith(".html") and unquote(anchor) not in anchors(target):
                broken.append(link)
    assert broken == []


def test_nothing_sticks_out_on_a_phone(look_at: Callable, page_name: str) -> None:
    assert look_at(page_name).too_wide == []


def test_light_and_dark_are_not_blank(look_at: Callable, page_name: str) -> None:
    grey = look_at(page_name).grey
    assert all(shot.std() > 5 for shot in grey.values())
    assert np.median(grey["dark"]) < 80 < 200 < np.median(grey["light"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_violation(look_at: Callable, page_name: str, scheme: str) -> None:
    assert look_at(page_name).violations[scheme] == []


def test_search_finds_mutual_information(open_page: Callable, site: str) -> None:
    page, _ = open_page(f"{site}search.html?q=mutual+information")
    page.wait_for_selector("#search-results ul.search li a")
    found = page.locator("#search-results ul.search li a").all_inner_texts()
    assert "Attention collapse" in " ".join(found)
    page.close()


def test_opens_from_the_disk(open_page: Callable) -> None:
    page, look = open_page((SITE / "reference" / "glossary.html").as_uri())
    assert page.locator("article h1").count() == 1
    assert (
        page.locator("article .math").count() == page.locator("article .math mjx-container svg").count() > 0
    )
    assert look.foreign == []
    page.close()


def test_chapter_can_be_downloaded_as_script_and_as_notebook(
    look_at: Callable, site: str, chapter: str
) -> None:
    script = (SITE / "_sources" / chapter).with_suffix(".py")
    notebook = script.with_suffix(".ipynb")
    for file in (script, notebook):
        assert f"{site}{file.relative_to(SITE)}" in look_at(chapter).content["links"]
    cells = [cell.source for cell in jupytext.read(script).cells]
    offered = [cell.source for cell in jupytext.read(notebook).cells]
    assert offered[-len(cells) :] == cells  # behind a cell that fetches the package


@pytest.mark.parametrize(
    ("address", "part"), [("own/model.html", ".attention-maps"), ("own/picture.html", ".own-picture")]
)
def test_without_scripts_a_sentence_stands_in(browser: Browser, site: str, address: str, part: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site + address)
    assert "needs a browser with scripts enabled" in page.locator(part).text_content()
    context.close()
