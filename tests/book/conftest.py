"""A headless Chromium that looks once at each page of the built site and notes what it sees."""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

SITE = Path(__file__).parents[2] / "book" / "_build" / "html"
PAGES = sorted(
    str(p.relative_to(SITE)) for p in SITE.rglob("*.html") if p.relative_to(SITE).parts[0][0] != "_"
)
CHAPTERS = [p for p in PAGES if (SITE / "_sources" / p).with_suffix(".py").exists()]

CHROMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Without the last four, Chromium talks to its maker's hosts at every start.
FLAGS = ["--disable-gpu", "--no-first-run", "--disable-quic"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
AXE = {"resultTypes": ["violations"], "preload": False}  # preloading asks for style sheets at wrong addresses
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

CONTENT = """() => ({
  links: [...document.querySelectorAll("a[href]")].map(a => a.href),
  images: [...document.querySelectorAll("main img")].map(i => ({
    src: i.getAttribute("src"),
    alt: i.getAttribute("alt") || "",
    loaded: i.complete && i.naturalWidth > 0,
    hidden: !i.checkVisibility(),
    width: i.getBoundingClientRect().width,
  })),
  formulas: document.querySelectorAll("main .math").length,
  typeset: document.querySelectorAll("main .math mjx-container svg").length,
  problems: [...document.querySelectorAll(
    ".output.stderr, .output.traceback, .system-message, [data-mjx-error]")]
    .map(e => e.textContent.trim().slice(0, 300)),
})"""
# What sticks out on the right, unless a box around it scrolls.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = e => e && e.tagName != "MAIN"
    && (getComputedStyle(e).overflowX != "visible" || scrolls(e.parentElement));
  return [...document.querySelectorAll("main *")]
    .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > width + 1 && !scrolls(e))
    .map(e => e.outerHTML.slice(0, 200));
}"""


@dataclass
class Look:
    """What a page is made of, and how it appears in each colour scheme and on a phone."""

    address: str
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    content: dict = field(default_factory=dict)
    grey: dict[str, np.ndarray] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    too_wide: list[str] = field(default_factory=list)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `page_name` for each page, one that takes `chapter` for each chapter.

    All tests of a page run one after the other, so that one process opens it, once.
    """
    if "page_name" in metafunc.fixturenames:
        metafunc.parametrize("page_name", PAGES or ["index.html"], scope="session")
    if "chapter" in metafunc.fixturenames:
        metafunc.parametrize("chapter", CHAPTERS, scope="session")


def chromium() -> str | None:
    """The path of a Chromium: `$CHROME`, else one on the PATH."""
    named = os.environ.get("CHROME")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, CHROMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium; without one the test is skipped, on a CI machine it fails."""
    executable = chromium()
    if executable is None:
        reason = "no Chromium: put one on the PATH, name one in $CHROME, or `apt-get install chromium`"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    flags = [*FLAGS, "--no-sandbox"] if os.getuid() == 0 else FLAGS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    """A file server that logs nothing."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address at which the built site is served."""
    if not PAGES:
        pytest.fail(f"there is no site in {SITE}: run `make book` first")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def watch(page: Page, look: Look) -> None:
    """Note what goes wrong on `page`, and let nothing through to other hosts."""
    home = look.address.split("/", 3)[2]

    def gate(route) -> None:
        url = route.request.url
        if url.startswith(("http://", "https://")) and url.split("/", 3)[2] != home:
            look.foreign.append(url)
            route.abort()
        else:
            route.continue_()

    page.route("**/*", gate)
    page.on("console", lambda m: look.complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: look.complaints.append(str(error)))
    page.on("requestfailed", lambda r: look.complaints.append(f"{r.failure}: {r.url}"))
    page.on("response", lambda r: look.complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)


def settle(page: Page, address: str) -> None:
    """Open `address` and wait until it is loaded to its end and typeset."""
    page.goto(address, wait_until="load")
    page.evaluate("async () => { if (window.MathJax?.startup) await MathJax.startup.promise; }")
    page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_load_state("networkidle")
    page.evaluate("() => window.scrollTo(0, 0)")


def serious(page: Page, *rules: str) -> list[str]:
    """The accessibility violations that axe-core calls serious or critical, by all its rules or by these."""
    options = AXE | {"runOnly": rules} if rules else AXE
    return [
        f"{violation['id']}: {violation['help']}: {node['html'][:200]}"
        for violation in Axe().run(page, options=options).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.fixture(scope="session")
def open_page(browser: Browser) -> Iterator[Callable[[str], tuple[Page, Look]]]:
    """Open an address on a desktop's screen; what goes wrong is noted in the second part of the answer."""
    context = browser.new_context(viewport=DESKTOP)
    context.set_default_timeout(120_000)  # ms; the machine may be busy

    def open_page(address: str) -> tuple[Page, Look]:
        page, look = context.new_page(), Look(address)
        watch(page, look)
        settle(page, address)
        return page, look

    yield open_page
    context.close()


@pytest.fixture(scope="session")
def look_at(open_page, site: str) -> Callable[[str], Look]:
    """Look at a page of the site; each page is opened once."""

    @cache
    def look_at(name: str) -> Look:
        page, look = open_page(site + name)
        look.content = page.evaluate(CONTENT)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.wait_for_function(f"document.documentElement.dataset.theme == '{scheme}'")
            page.wait_for_timeout(300)  # colours fade into each other
            look.grey[scheme] = np.asarray(
                Image.open(io.BytesIO(page.screenshot())).convert("L"), dtype=float
            )
            look.violations[scheme] = serious(page) if scheme == "light" else serious(page, "color-contrast")
        page.set_viewport_size(PHONE)
        look.too_wide = page.evaluate(TOO_WIDE)
        page.close()
        return look

    return look_at


@pytest.fixture(scope="session")
def kernel() -> Iterator[KernelManager]:
    """A kernel for one chapter after the other, without photographs; starting it takes longer than most."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("MPLBACKEND", "NBHELPERS_CIFAR10", "NBHELPERS_IMAGENET"):
            environment.delenv(name, raising=False)
        manager, client = start_new_kernel(kernel_name="python3")
    client.stop_channels()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture
def run_chapter(kernel: KernelManager) -> Callable[[Path, dict[str, object]], list[nbformat.NotebookNode]]:
    """(chapter, parameters) -> its cells after a run in its own folder, with no name left from another."""

    def run(path: Path, parameters: dict[str, object]) -> list[nbformat.NotebookNode]:
        notebook = jupytext.read(path)
        (place,) = (i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
        lines = (f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(place + 1, new_code_cell("\n".join(lines)))
        notebook.cells.insert(0, new_code_cell(f"%reset -f\n%cd -q {path.parent}"))
        NotebookClient(notebook, km=kernel, timeout=600).execute()
        return notebook.cells

    return run
