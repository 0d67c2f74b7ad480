"""The interactive attention maps of the built site, worked by mouse and by keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Locator, expect

pytestmark = pytest.mark.site
ADDRESS = "own/model.html"
PIXELS = """canvases => canvases.map(
  canvas => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.join())"""


@pytest.fixture
def maps(open_page: Callable, site: str) -> Iterator[Locator]:
    page, look = open_page(site + ADDRESS)
    yield page.locator(".attention-maps")
    assert look.complaints == []
    page.close()


def query(maps: Locator) -> str:
    """The name of the patch that is chosen."""
    return maps.locator("[aria-selected=true]").get_attribute("aria-label")


def pictures(maps: Locator) -> list[str]:
    """The pixels of each model's map."""
    return maps.locator(".frame canvas").evaluate_all(PIXELS)


def distances(maps: Locator) -> list[float]:
    """The attention distance under each map, px."""
    return [float(number) for number in re.findall(r"attention distance: ([\d.]+)", maps.inner_text())]


def test_a_click_shows_the_maps_of_another_query(maps: Locator) -> None:
    before = pictures(maps)
    assert len(before) == len(distances(maps)) >= 2 and len(set(before)) == len(before)
    maps.get_by_role("gridcell", name="row 0, column 1").click()
    assert query(maps) == "row 0, column 1"
    after = pictures(maps)
    assert all(old != new for old, new in zip(before, after, strict=True))
    expect(maps.get_by_role("status")).to_contain_text("row 0, column 1")
    for distance in distances(maps):
        expect(maps.get_by_role("status")).to_contain_text(f"{distance} px")


def test_arrow_keys_move_the_query_and_stop_at_the_border(maps: Locator) -> None:
    maps.get_by_role("gridcell", name="row 1, column 1").click()
    keyboard = maps.page.keyboard
    before = pictures(maps)
    scrolled = maps.page.evaluate("scrollY")
    keyboard.press("ArrowDown")
    keyboard.press("ArrowRight")
    assert query(maps) == "row 2, column 2"
    assert pictures(maps) != before
    for _ in range(4):
        keyboard.press("ArrowUp")
        keyboard.press("ArrowLeft")
    assert query(maps) == "row 0, column 0"
    assert maps.page.evaluate("scrollY") == scrolled
    assert maps.page.evaluate("document.activeElement.getAttribute('aria-label')") == "row 0, column 0"


def test_one_patch_is_in_the_order_of_the_tab_key(maps: Locator) -> None:
    maps.get_by_role("combobox", name="Head").focus()
    maps.page.keyboard.press("Tab")
    assert maps.page.evaluate("document.activeElement.getAttribute('aria-label')") == query(maps)
    assert maps.locator("[role=gridcell][tabindex='0']").count() == 1


def test_depth_and_head_are_chosen(maps: Locator) -> None:
    seen = [pictures(maps)]
    slider = maps.get_by_role("slider", name="Depth")
    last = int(slider.input_value())
    slider.focus()
    maps.page.keyboard.press("ArrowLeft")
    expect(maps.get_by_role("status")).to_contain_text(f"depth {last - 1};")
    seen.append(pictures(maps))

    mean, heads = distances(maps), []
    choice = maps.get_by_role("combobox", name="Head")
    for number in range(choice.locator("option").count() - 1):
        choice.select_option(str(number))
        expect(maps.get_by_role("status")).to_contain_text(f"head {number}.")
        seen.append(pictures(maps))
        heads.append(distances(maps))
    assert len(heads) > 1
    for model, value in enumerate(mean):
        assert value == pytest.approx(sum(head[model] for head in heads) / len(heads), abs=0.11)  # rounded

    assert len({tuple(picture) for picture in seen}) == len(seen)
