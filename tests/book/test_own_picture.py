"""The reader's own picture: the browser computes as PyTorch does; the page is worked by mouse and keys."""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from torch import Tensor

from nbhelpers import load
from nbhelpers.capture import capture
from nbhelpers.images import photographs, shapes
from nbhelpers.measure import attention_maps
from nbhelpers.metrics import attention_distance, nmi
from nbhelpers.models import mini_vit, wrap
from nbhelpers.own_picture import SUFFIX, weights

CORE = files("nbhelpers") / "own_picture" / "core.js"
ENCODERS = ("cifar10.cl", "cifar10.mim", "shapes.cl", "shapes.mim")
# What the page's Worker does, under node: tasks come on standard input, answers go to standard output.
HARNESS = """
const { readFileSync } = require("fs");
const [core, ...scripts] = process.argv.slice(1);
const ownPictureCore = new Function(readFileSync(core, "utf8") + "; return ownPictureCore;")();
const models = {};
const ownPicture = { receive: (content) => (models[content.name] = ownPictureCore.decode(content)) };
for (const script of scripts) new Function("ownPicture", readFileSync(script, "utf8"))(ownPicture);
const plain = (value) => ArrayBuffer.isView(value)
  ? Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") : value;
const answers = JSON.parse(readFileSync(0, "utf8")).map(({ name, pixels, side, size }) => {
  const bytes = Uint8Array.from(Buffer.from(pixels, "base64"));
  const found = side
    ? { small: ownPictureCore.shrink(bytes, side, size) }
    : ownPictureCore.look(models[name], bytes);
  return Object.fromEntries(Object.entries(found).map(([key, value]) => [key, plain(value)]));
});
process.stdout.write(JSON.stringify(answers));
"""


def text(pixels: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()


def array(text: str, dtype: str, *shape: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).reshape(shape).copy())


def run(tasks: list[dict], *scripts: Path) -> list[dict]:
    """The answers of the page's core to some tasks."""
    if (node := shutil.which("node")) is None:
        pytest.skip("no node on the PATH to run the page's script without a browser")
    command = [node, "-e", HARNESS, "--", str(CORE), *map(str, scripts)]
    done = subprocess.run(command, input=json.dumps(tasks), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@cache
def pictures() -> Tensor:
    """Two pictures, uint8 `2 3 32 32`: a photograph and a generated one."""
    return torch.cat([photographs(32).batch([2]), shapes("test").batch([7])])


def pixels(image: Tensor) -> np.ndarray:
    """Colours `S S C` of an image `C S S`."""
    return image.permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict]:
    """What the core says of each encoder and picture."""
    folder = tmp_path_factory.mktemp("weights")
    scripts = [folder / f"{name}{SUFFIX}" for name in ENCODERS]
    for name, script in zip(ENCODERS, scripts, strict=True):
        script.write_text(weights(load(name, device="cpu")))
    keys = [(name, number) for name in ENCODERS for number in range(len(pictures()))]
    tasks = [{"name": name, "pixels": text(pixels(pictures()[number]))} for name, number in keys]
    return dict(zip(keys, run(tasks, *scripts), strict=True))


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("name", ENCODERS)
def test_maps_at_every_depth_and_head_are_those_of_pytorch(answers: dict, name: str, number: int) -> None:
    encoder = load(name, device="cpu")
    expected = attention_maps(encoder, pictures()[number : number + 1])[:, 0]  # L H N N
    assert expected.amax(-1).mean() > 2 / 64  # far from uniform: not maps that anything would match
    maps = array(answers[name, number]["maps"], "<f4", *expected.shape)
    assert (maps - expected).abs().max() < 1e-3
    assert (maps / expected - 1).abs()[expected > 1e-3].max() < 1e-2


@pytest.mark.parametrize("name", ENCODERS)
def test_numbers_and_tokens_are_those_of_pytorch(answers: dict, name: str) -> None:
    encoder, image = load(name, device="cpu"), pictures()[:1]
    answer = answers[name, 0]
    maps = attention_maps(encoder, image)[:, 0]
    expected = attention_distance(maps, encoder.grid, encoder.patch_size)
    distances = array(answer["distances"], "<f4", *maps.shape[:3])
    torch.testing.assert_close(distances.mean(-1), expected, atol=1e-3, rtol=0)
    found = array(answer["nmi"], "<f4", *maps.shape[:2])
    torch.testing.assert_close(found, nmi(maps), atol=1e-3, rtol=0)

    kept: list[Tensor] = []
    with capture(encoder, on_stream=lambda r: kept.append(r.patches[0]), places=("block",)):
        encoder.forward(image)
    tokens = torch.stack(kept[-encoder.depth :]).double()  # L N D
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    cosines = array(answer["cosines"], "<f4", *maps.shape[:1], *maps.shape[2:])
    torch.testing.assert_close(cosines.double(), unit @ unit.mT, atol=1e-3, rtol=0)

    left, singular, _ = torch.linalg.svd(tokens - tokens.mean(1, keepdim=True), full_matrices=False)
    share = singular.square()[:, :3].sum(1) / singular.square().sum(1)
    explained = array(answer["explained"], "<f4", encoder.depth)
    torch.testing.assert_close(explained.double(), share, atol=1e-3, rtol=0)
    first = left[:, :, 0]
    first = first * first.gather(1, first.abs().argmax(1, keepdim=True)).sign()
    red = (first - first.amin(1, keepdim=True)) / (first.amax(1) - first.amin(1))[:, None]
    colours = array(answer["colours"], "<f4", encoder.depth, len(first[0]), 3)
    torch.testing.assert_close(colours[..., 0].double(), red, atol=5e-3, rtol=0)


@pytest.mark.parametrize("side", [96, 50, 20])
def test_pictures_are_shrunk_by_area_averaging(side: int) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    (answer,) = run([{"pixels": text(rgba), "side": side, "size": 32}])
    fine = np.repeat(np.repeat(rgba[..., :3].astype(float), 32, 0), 32, 1)
    expected = fine.reshape(32, side, 32, side, 3).mean((1, 3))
    assert np.abs(array(answer["small"], "u1", 32, 32, 3).numpy() - expected).max() <= 0.5 + 1e-6


def test_other_architectures_are_refused_by_name() -> None:
    module = mini_vit(width=32, depth=1, heads=2)
    module.blocks[0].attn.q_norm = torch.nn.LayerNorm(16)
    with pytest.raises(ValueError, match="mine"):
        weights(wrap(module, name="mine", mean=(0.5,) * 3, std=(0.5,) * 3))


ADDRESS = "own/picture.html"
RESULT = """(name) => {
  const { pixels, maps } = ownPicture.results[name];
  return { pixels: [...pixels], maps: [...maps] };
}"""


@pytest.fixture
def own(open_page: Callable, site: str) -> Iterator[Locator]:
    page, look = open_page(site + ADDRESS)
    yield page.locator(".own-picture")
    assert look.complaints == [] and look.foreign == []
    page.close()


def take(own: Locator, title: str) -> None:
    """Choose one of the pictures that are offered and wait for what the encoders say."""
    own.get_by_role("button", name=title).click()
    expect(own.locator(".message")).to_contain_text(f"{title}: click", timeout=60_000)


def maps_drawn(own: Locator) -> list[str]:
    return own.locator(".views canvas").evaluate_all("all => all.map(canvas => canvas.toDataURL())")


def query(own: Locator) -> str:
    return own.locator("[aria-selected=true]").get_attribute("aria-label")


@pytest.mark.site
def test_maps_in_the_browser_are_those_of_pytorch(own: Locator) -> None:
    for title, names in (("chelsea", ENCODERS[:2]), ("generated image 7", ENCODERS[2:])):
        take(own, title)
        for name in names:
            found = own.page.evaluate(RESULT, name)
            image = torch.tensor(found["pixels"], dtype=torch.uint8).view(1, 32, 32, 3).permute(0, 3, 1, 2)
            expected = attention_maps(load(name, device="cpu"), image)[:, 0]
            assert (torch.tensor(found["maps"]).view(expected.shape) - expected).abs().max() < 1e-3
    assert torch.equal(image, pictures()[1:])  # a picture of the training's size stays as it is


@pytest.mark.site
def test_weights_come_with_the_first_picture_and_nothing_is_sent(own: Locator) -> None:
    requests = []
    own.page.on("request", lambda request: requests.append(request))
    loaded = own.page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert not [address for address in loaded if address.endswith(SUFFIX)]
    take(own, "coffee")
    take(own, "rocket")
    sent = [r for r in requests if not r.url.startswith(("data:", "blob:"))]
    assert sorted(Path(r.url).name for r in sent) == [f"{name}{SUFFIX}" for name in ENCODERS[:2]]
    assert all(r.method == "GET" and r.post_data is None for r in requests)


@pytest.mark.site
def test_arrow_keys_move_the_query_and_its_focus_is_seen(own: Locator) -> None:
    take(own, "chelsea")
    keyboard, before = own.page.keyboard, maps_drawn(own)
    own.get_by_role("combobox", name="Head").focus()
    keyboard.press("Tab")
    active = "document.activeElement.getAttribute('aria-label')"
    assert own.page.evaluate(active) == query(own) == "row 3, column 3"
    keyboard.press("ArrowDown")
    keyboard.press("ArrowRight")
    assert own.page.evaluate(active) == query(own) == "row 4, column 4"
    assert own.page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 3
    after = maps_drawn(own)
    changed = [old != new for old, new in zip(before, after, strict=True)]
    assert changed == [True, True, False] * 2  # components do not depend on the query
    for _ in range(9):
        keyboard.press("ArrowUp")
    assert query(own) == "row 0, column 4"
    expect(own.locator(".summary")).to_contain_text("row 0, column 4")


@pytest.mark.site
def test_depth_head_and_encoders_are_chosen(own: Locator) -> None:
    take(own, "chelsea")
    seen = [maps_drawn(own)]
    own.get_by_role("slider", name="Depth").focus()
    own.page.keyboard.press("ArrowLeft")
    expect(own.locator(".summary")).to_contain_text("depth 7;")
    seen.append(maps_drawn(own))
    own.get_by_role("combobox", name="Head").select_option("1")
    expect(own.locator(".charts")).to_contain_text("Depth 7, head 1: CL")
    seen.append(maps_drawn(own))
    own.get_by_role("combobox", name="Encoders").select_option("1")
    own.page.wait_for_function("'shapes.mim' in ownPicture.results", timeout=60_000)
    seen.append(maps_drawn(own))
    assert all(one[0] != other[0] for one, other in pairwise(seen))


@pytest.mark.site
def test_a_file_of_the_reader_is_looked_at_and_what_is_no_picture_named(own: Locator, tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    Image.fromarray(np.full((80, 120, 3), 200, dtype=np.uint8)).save(picture)
    own.locator("input[type=file]").set_input_files(picture)
    expect(own.locator(".panels")).to_contain_text("mine.png, 120 × 80 px", timeout=60_000)
    assert set(own.page.evaluate(RESULT, "cifar10.cl")["pixels"]) == {200}
    text = tmp_path / "mine.txt"
    text.write_text("no picture")
    own.locator("input[type=file]").set_input_files(text)
    expect(own.locator(".message")).to_contain_text("no picture that this browser can read")


@pytest.mark.site
def test_with_results_it_is_accessible_in_both_schemes_and_fits_a_phone(own: Locator) -> None:
    take(own, "chelsea")
    page: Page = own.page
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.wait_for_function(f"document.documentElement.dataset.theme == '{scheme}'")
        page.wait_for_timeout(300)  # colours fade into each other
        found = Axe().run(page, context=".own-picture", options={"preload": False}).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert own.evaluate("host => host.scrollWidth <= host.clientWidth")


@pytest.mark.site
def test_it_works_from_the_disk(open_page: Callable) -> None:
    page, look = open_page((Path(__file__).parents[2] / "book" / "_build" / "html" / ADDRESS).as_uri())
    take(page.locator(".own-picture"), "astronaut")
    assert look.foreign == []
    page.close()
