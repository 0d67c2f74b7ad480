"""Downloads from a server on this machine, and what can go wrong with them."""

import hashlib
import multiprocessing
import os
import resource
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from nbhelpers.models import (
    CHECKPOINTS,
    ChecksumError,
    DamagedWeights,
    DownloadError,
    UnsafeWeights,
    WeightsError,
    load,
    registry,
)
from nbhelpers.models.download import fetch
from nbhelpers.models.weights import read_weights

sleep = time.sleep
NUMBERS = torch.arange(1_274_980, dtype=torch.float32)
CONTENT = safetensors.torch.save({"numbers": NUMBERS})


@dataclass
class Page:
    """What the server says at one address."""

    body: bytes = CONTENT
    resumable: bool = True
    break_at: list[int] = field(default_factory=list)  # bytes after which successive connections are cut
    pause: float = 0.0


@pytest.fixture
def server(monkeypatch):
    """A server of pages, and what it was asked: page and range."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the server is on this machine
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # before another attempt
    pages, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path.removeprefix("/"))
            wanted = self.headers.get("Range")
            asked.append((self.path.removeprefix("/"), wanted))
            if page is None:
                self.send_error(404)
                return
            sleep(page.pause)
            start = 0
            if wanted and page.resumable:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(page.body):
                    self.send_error(416)
                    return
            body = page.body[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                total = len(page.body)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            if page.break_at:
                body = body[: page.break_at.pop(0)]
            with suppress(ConnectionError):  # a client may hang up on us
                self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{http.server_port}/"
    yield SimpleNamespace(pages=pages, asked=asked, address=lambda page: url + page)
    http.shutdown()
    thread.join()
    http.server_close()


def _names(folder: Path) -> list[str]:
    """Files that are left, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_fetched_once_although_two_want_it(server, tmp_path):
    server.pages["good"] = Page(pause=0.1)
    path = tmp_path / "folder" / "file.weights"
    address = server.address("good") + "#sha256=" + hashlib.sha256(CONTENT).hexdigest()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: fetch([address], path), range(2))) == [path] * 2
    assert fetch([address], path).read_bytes() == CONTENT
    assert server.asked == [("good", None)]
    assert _names(path.parent) == ["file.weights"]


@pytest.mark.parametrize(
    ("page", "asked"),
    [
        ({"break_at": [2_000_000, 1_500_000]}, [None, "bytes=2000000-", "bytes=3500000-"]),
        ({"break_at": [900_000] * 5}, [None, *(f"bytes={i * 900_000}-" for i in range(1, 6))]),
        ({"break_at": [2_000_000], "resumable": False}, [None, "bytes=2000000-"]),
    ],
    ids=["twice", "often", "no resuming"],
)
def test_a_broken_connection_is_resumed_at_once(server, tmp_path, page, asked):
    server.pages["flaky"] = Page(**page)
    fetch([server.address("flaky")], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == asked


@pytest.mark.parametrize("usable", [True, False])
def test_a_line_that_brings_nothing_more_is_given_up_and_gone_on_from_by_the_next_call(
    server, tmp_path, usable
):
    server.pages["flaky"] = Page(break_at=[1_000_000] + [0] * 99)
    with pytest.raises(DownloadError, match="flaky could not be fetched"):
        fetch([server.address("flaky")], tmp_path / "file")
    (part,) = tmp_path.glob("*.part")
    came = part.stat().st_size
    assert part.read_bytes() == CONTENT[:came] and not (tmp_path / "file").exists()
    if not usable:
        part.write_bytes(CONTENT[::-1])  # all that there is, and wrong
    server.pages["flaky"] = Page()
    fetch([server.address("flaky")], tmp_path / "file")
    assert server.asked[-1] == ("flaky", f"bytes={came}-" if usable else None)
    assert (tmp_path / "file").read_bytes() == CONTENT and _names(tmp_path) == ["file"]


FAILURES = {
    "gone": (None, DownloadError, "404"),
    "page": (Page(b"\n<html><title>Quota exceeded</title></html>"), DamagedWeights, "HTML"),
    "text": (Page(b"quota exceeded, come back tomorrow"), DamagedWeights, r"\(34 bytes\) is cut off"),
    "short": (Page(CONTENT[:-1000]), DamagedWeights, "cut off"),
    "other#sha256=abc": (Page(), ChecksumError, "expected sha256 abc, found [0-9a-f]{64}"),
}


@pytest.mark.parametrize("page", FAILURES)
def test_a_failure_is_named_and_leaves_nothing(server, tmp_path, page):
    answer, kind, reason = FAILURES[page]
    url = server.address(page.partition("#")[0])
    if answer:
        server.pages[page.partition("#")[0]] = answer
    with pytest.raises(kind, match=f"{url}.*{reason}"):
        fetch([server.address(page)], tmp_path / "file")
    assert _names(tmp_path) == []


def test_the_next_source_is_tried_and_said(server, tmp_path, capsys):
    server.pages |= {"odd": Page(b"quota exceeded"), "good": Page()}
    addresses = [server.address(page) for page in ("gone", "odd", "good")]
    with pytest.raises(DownloadError, match=r"(?s)none of 2 sources.*gone .*404.*odd .*cut off"):
        fetch(addresses[:2], tmp_path / "file")
    fetch(addresses, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and _names(tmp_path) == ["file"]
    said = capsys.readouterr().err
    assert "404" in said and f"trying the next source, {addresses[2]}" in said


def _fetch_on_full_disk(address, path, answers):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # stands for the disk's end
    try:
        fetch([address, address], path)
    except OSError as error:
        answers.put((error.strerror, error.filename))


def test_disk_that_fills_up(server, tmp_path):
    server.pages["good"] = Page()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    arguments = (server.address("good"), tmp_path / "file", answers)
    context.Process(target=_fetch_on_full_disk, args=arguments).start()
    assert answers.get(timeout=60) == ("File too large", str(tmp_path / "file"))
    assert _names(tmp_path) == []


# --- reading: what is cut off or damaged anywhere is in test_properties.py ---------------------------------


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Code()}, "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeWeights, match=r"file\.pth holds code \(\w+\.system\)"):
        read_weights(Path("file.pth"))
    assert not Path("executed").exists()


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


def _tar(path, *names):
    """An archive of empty files; those of an old checkpoint are named as PyTorch 0.1 did."""
    with tarfile.open(path, "w") as archive:
        for name in names or ["a.txt"]:
            archive.addfile(tarfile.TarInfo(name))


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(b"  <!doctype HTML>"), "HTML"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.write_bytes(b"\1\2\3 something else"), "no weight file"),
        (_zip, "archive"),
        (_tar, "archive"),
        (lambda path: _tar(path, "sys_info", "pickle", "tensors", "storages"), "archive"),
        (lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path), "TorchScript"),
        (lambda path: torch.save(torch.zeros(3), path), "a Tensor"),
    ],
    ids=["empty", "page", "pointer", "bytes", "zip", "tar", "old tar", "program", "tensor"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:'torch.load'")
def test_files_that_are_no_weights(tmp_path, write, what):
    write(tmp_path / "file")
    with pytest.raises(DamagedWeights, match=rf"file .*{what}"):
        read_weights(tmp_path / "file")


@pytest.mark.parametrize(
    ("error", "kind", "what"),
    [
        (
            RuntimeError("can't allocate memory: you tried to allocate 20000 bytes."),
            MemoryError,
            "fit into memory",
        ),
        (OSError(5, "Input/output error"), OSError, "Input/output"),
    ],
)
def test_a_lack_of_memory_or_a_failing_disk_is_no_damage(tmp_path, monkeypatch, error, kind, what):
    def fail(*args, **kwargs):
        raise error

    torch.save({"a": torch.zeros(5_000)}, tmp_path / "file")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(kind, match=what) as caught:
        read_weights(tmp_path / "file")
    assert not isinstance(caught.value, WeightsError)


# --- the whole way -----------------------------------------------------------------------------------------


def test_load_by_name(server, tmp_path, monkeypatch):
    """A small MoCo v3 checkpoint on the server, registered like the real one."""
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    small = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 48}
    name = "mocov3.vit_small_patch16_224"
    checkpoint = replace(CHECKPOINTS[name], options=small, addresses=[server.address("moco")])
    monkeypatch.setitem(registry.CHECKPOINTS, name, checkpoint)
    module = checkpoint.build().module
    torch.save(module.state_dict(), tmp_path / "moco.pth")
    server.pages["moco"] = Page((tmp_path / "moco.pth").read_bytes())
    images = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    for _ in range(2):
        encoder = load(name, device="cpu")
        torch.testing.assert_close(
            encoder.forward(images), module.forward_features(encoder.preprocess(images))
        )
    assert len(server.asked) == 1
    (tmp_path / "cache" / "weights" / f"{name}.weights").unlink()
    assert load(name, from_file=tmp_path / "moco.pth", device="cpu").fingerprint == encoder.fingerprint
    server.pages.clear()
    with pytest.raises(DownloadError, match=rf"(?s)404.*load\('{name}', from_file=\.\.\.\)"):
        load(name)
