"""Downloads from a server on this machine, and what can go wrong with them."""

import hashlib
import multiprocessing
import os
import resource
import socket
import struct
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from nbhelpers.models import (
    CHECKPOINTS,
    ChecksumError,
    DamagedWeights,
    DownloadError,
    MismatchedWeights,
    UnsafeWeights,
    WeightsError,
    load,
    registry,
    weights,
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
    status: int = 200
    kind: str = "application/octet-stream"
    resumable: bool = True
    break_at: list[int] = field(default_factory=list)  # bytes after which successive connections are cut
    reset: bool = False  # cut connections end in a reset, not in an orderly close
    pause: float = 0.0


@dataclass
class Server:
    """A server of pages, and what it was asked."""

    url: str
    pages: dict[str, Page]
    asked: list[tuple[str, str | None]]

    def address(self, page: str) -> str:
        return f"{self.url}/{page}"


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the server is on this machine
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
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
            self.send_response(206 if start else page.status)
            self.send_header("Content-Type", page.kind)
            self.send_header("Content-Length", str(len(body)))
            if start:
                total = len(page.body)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            cut = bool(page.break_at)
            if cut:
                body = body[: page.break_at.pop(0)]
            with suppress(ConnectionError):  # a client may hang up on us
                self.wfile.write(body)
            if cut and page.reset:
                sleep(0.2)  # for the client to take what was sent
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(self.connection.detach())
            self.close_connection = True

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Server(f"http://127.0.0.1:{http.server_port}", pages, asked)
    http.shutdown()
    thread.join()
    http.server_close()


def _names(folder: Path) -> list[str]:
    """Files that are left, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_fetched_once(server, tmp_path):
    server.pages["good"] = Page()
    path = tmp_path / "folder" / "file.weights"
    address = server.address("good") + "#sha256=" + hashlib.sha256(CONTENT).hexdigest()
    assert fetch([address], path) == path
    assert path.read_bytes() == CONTENT
    fetch([address], path)
    assert server.asked == [("good", None)]
    assert _names(path.parent) == ["file.weights"]


def test_a_broken_connection_is_resumed_at_once(server, tmp_path):
    server.pages["flaky"] = Page(break_at=[2_000_000, 1_500_000])
    fetch([server.address("flaky")], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [("flaky", None), ("flaky", "bytes=2000000-"), ("flaky", "bytes=3500000-")]


def test_a_server_that_cannot_resume_begins_anew(server, tmp_path):
    server.pages["flaky"] = Page(break_at=[2_000_000, 1_500_000], resumable=False)
    fetch([server.address("flaky")], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_line_that_brings_nothing_more_is_given_up_and_gone_on_from_by_the_next_call(server, tmp_path):
    server.pages["flaky"] = Page(break_at=[1_000_000] + [0] * 99)
    with pytest.raises(DownloadError, match="flaky could not be fetched"):
        fetch([server.address("flaky")], tmp_path / "file")
    (part,) = tmp_path.glob("*.part")
    assert part.read_bytes() == CONTENT[: part.stat().st_size] and not (tmp_path / "file").exists()
    came = part.stat().st_size
    server.pages["flaky"] = Page()
    fetch([server.address("flaky")], tmp_path / "file")
    assert server.asked[-1] == ("flaky", f"bytes={came}-")
    assert (tmp_path / "file").read_bytes() == CONTENT and _names(tmp_path) == ["file"]


def test_a_part_with_all_or_more_than_there_is_begins_anew(server, tmp_path):
    server.pages["flaky"] = Page(break_at=[1_000_000] + [0] * 99)
    with pytest.raises(DownloadError):
        fetch([server.address("flaky")], tmp_path / "file")
    server.pages["flaky"] = Page()
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(CONTENT[::-1])
    fetch([server.address("flaky")], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and _names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000 + b"\r\n\r\n"]
)
def test_no_answer_or_a_malformed_one_leads_to_the_mirror(server, tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def reply():
            connection, _ = odd.accept()
            with connection:
                if answer:
                    connection.recv(4096)
                    connection.sendall(answer)
                else:  # reset
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        thread = threading.Thread(target=reply)
        thread.start()
        server.pages["good"] = Page()
        address = f"http://127.0.0.1:{odd.getsockname()[1]}/file"
        fetch([address, server.address("good")], tmp_path / "file")
        thread.join()
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_line_that_breaks_often_advances(server, tmp_path):
    server.pages["flaky"] = Page(break_at=[900_000] * 5)
    fetch([server.address("flaky")], tmp_path / "file")
    assert server.asked[-1] == ("flaky", "bytes=4500000-")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_came_before_a_reset_is_kept(server, tmp_path):
    server.pages["flaky"] = Page(break_at=[900_000] * 5, reset=True)
    fetch([server.address("flaky")], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.asked) > 3


def test_a_body_that_is_no_weights_is_named_and_removed_and_the_mirror_asked(server, tmp_path, capsys):
    server.pages["odd"] = Page(b"quota exceeded, come back tomorrow")
    server.pages["good"] = Page()
    fetch([server.address("odd"), server.address("good")], tmp_path / "file")
    assert f"{server.url}/odd (34 bytes) is cut off, damaged or no weight file" in capsys.readouterr().err
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert _names(tmp_path) == ["file"]


def test_next_mirror_is_tried_and_said(server, tmp_path, capsys):
    server.pages["good"] = Page()
    fetch([server.address("gone"), server.address("good")], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    said = capsys.readouterr().err
    assert f"{server.url}/gone could not be fetched: Client error '404 Not Found'" in said
    assert f"trying the next source, {server.url}/good" in said


def test_all_mirrors_failing_are_all_named(server, tmp_path):
    server.pages["page"] = Page(b"<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(DownloadError, match=r"(?s)none of 2 sources worked.*gone .*404.*page .*an HTML"):
        fetch([server.address("gone"), server.address("page")], tmp_path / "file")
    assert _names(tmp_path) == []  # what was no weight file is gone


def test_wrong_checksum(server, tmp_path):
    server.pages["other"] = Page()
    with pytest.raises(
        ChecksumError, match=r"other: wrong checksum; expected sha256 abc, found [0-9a-f]{64}"
    ):
        fetch([server.address("other") + "#sha256=abc"], tmp_path / "file")
    assert _names(tmp_path) == []


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_html_page_instead_of_weights(server, tmp_path, kind):
    server.pages["quota"] = Page(b"\n<html><title>Quota exceeded</title></html>", kind=kind)
    with pytest.raises(DamagedWeights, match=r"quota .*HTML"):
        fetch([server.address("quota")], tmp_path / "file")
    assert _names(tmp_path) == []


def test_unreachable_server(server, tmp_path):
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:1/file could not be fetched: .*refused"):
        fetch(["http://127.0.0.1:1/file"], tmp_path / "file")
    assert _names(tmp_path) == []


def test_silent_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    server.pages["slow"] = Page(pause=0.5)
    with pytest.raises(DownloadError, match=r"slow could not be fetched: .*timed out"):
        fetch([server.address("slow")], tmp_path / "file")


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
    context.Process(
        target=_fetch_on_full_disk, args=(server.address("good"), tmp_path / "file", answers)
    ).start()
    assert answers.get(timeout=60) == ("File too large", str(tmp_path / "file"))
    assert _names(tmp_path) == []


def test_two_processes_take_turns(server, tmp_path):
    server.pages["good"] = Page(pause=0.1)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch([server.address("good")], tmp_path / "file"), range(2)))
    assert paths == [tmp_path / "file"] * 2
    assert len(server.asked) == 1
    assert (tmp_path / "file").read_bytes() == CONTENT


# --- reading -----------------------------------------------------------------------------------------------


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Code()}, "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeWeights, match=r"file\.pth holds code \(\w+\.system\), which is not run"):
        read_weights(Path("file.pth"))
    assert not Path("executed").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_checkpoints(tmp_path, zipped, share):
    path = tmp_path / "file.pth"
    torch.save({"a": torch.zeros(5_000)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DamagedWeights, match=r"file\.pth .*is cut off"):
        read_weights(path)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(5_000)}, path)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(DamagedWeights, match=r"file\.safetensors .*is cut off"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"  <!doctype HTML>", "an HTML"),
        (b"\1\2\3 something else", "no weight file"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DamagedWeights, match=message):
        read_weights(tmp_path / "file")


def _archive(path, kind):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "a")
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("a.txt"))
    elif kind == "torchscript":
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    else:
        with tarfile.open(path, "w") as archive:
            for name in ("sys_info", "pickle", "tensors", "storages"):
                archive.addfile(tarfile.TarInfo(name))


@pytest.mark.parametrize("kind", ["zip", "tar", "torchscript", "old"])
def test_other_containers_are_no_weights(tmp_path, kind):
    _archive(tmp_path / "file", kind)
    with pytest.raises(DamagedWeights, match=r"file .*archive") as error:
        read_weights(tmp_path / "file")
    assert "weights_only" not in str(error.value)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        read_weights(tmp_path)


def test_a_shortage_of_memory_is_no_damage(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(5_000)}, tmp_path / "file")

    def no_room(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20000 bytes.")

    monkeypatch.setattr(torch, "load", no_room)
    with pytest.raises(MemoryError, match="does not fit into memory"):
        read_weights(tmp_path / "file")


RAW = [struct.error(), IndexError(), KeyError("k"), TypeError(), AttributeError(), AssertionError()]
RAW += [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), EOFError(), OverflowError(), RecursionError()]


@pytest.mark.parametrize("error", RAW, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("reader", ["load", "load_file"])
def test_whatever_a_damaged_file_provokes_is_one_type(tmp_path, monkeypatch, reader, error):
    def raw(*args, **kwargs):
        raise error

    torch.save({"a": torch.zeros(2)}, tmp_path / "load")
    save_file({"a": torch.zeros(2)}, tmp_path / "load_file")
    monkeypatch.setattr(torch if reader == "load" else weights, reader, raw)
    with pytest.raises(DamagedWeights, match=rf"{reader} \([\d,]+ bytes\) is cut off"):
        read_weights(tmp_path / reader)


def test_a_bare_tensor_is_no_checkpoint(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "file")
    with pytest.raises(DamagedWeights, match="holds a Tensor, not a table"):
        read_weights(tmp_path / "file")


# --- the whole way -----------------------------------------------------------------------------------------


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """A small MoCo v3 checkpoint on the server, registered like the real one."""
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    real = CHECKPOINTS["mocov3.vit_small_patch16_224"]
    small = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 48}
    changes = {"options": small, "addresses": (server.address("gone"), server.address("moco"))}
    checkpoint = type(real)(**{**vars(real), **changes})
    monkeypatch.setitem(registry.CHECKPOINTS, real.name, checkpoint)
    module = checkpoint.build().module
    table = {f"module.base_encoder.{key}": value for key, value in module.state_dict().items()}
    torch.save({"state_dict": table}, tmp_path / "moco.pth")
    server.pages["moco"] = Page((tmp_path / "moco.pth").read_bytes())
    return real.name, module


def test_load_by_name(published, server, tmp_path, capsys):
    name, module = published
    encoder = load(name, device="cpu")
    assert "404 Not Found" in capsys.readouterr().err
    images = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected = module.forward_features(encoder.preprocess(images))
    torch.testing.assert_close(encoder.forward(images), expected)
    asked = len(server.asked)
    load(name, device="cpu")
    assert len(server.asked) == asked
    (tmp_path / "cache" / "weights" / f"{name}.weights").unlink()
    assert load(name, from_file=tmp_path / "moco.pth", device="cpu").fingerprint == encoder.fingerprint


def test_a_file_that_is_short_on_the_server_is_not_kept(published, server, tmp_path):
    name, _ = published
    server.pages["moco"].body = server.pages["moco"].body[:-1000]
    with pytest.raises(WeightsError, match=r"moco .* is cut off"):
        load(name)
    assert _names(tmp_path / "cache" / "weights") == []


def test_without_network_the_way_out_is_named(published, server):
    server.pages.clear()
    with pytest.raises(DownloadError, match=r"(?s)none of 2 sources.*load\('mocov3.*', from_file=\.\.\.\)"):
        load(published[0])


def test_a_file_of_another_model(published, tmp_path):
    torch.save({"state_dict": {"module.base_encoder.conv1": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(
        MismatchedWeights,
        match=r"(?s)resnet\.pth does not fit mocov3.*Missing.*cls_token.*Unexpected.*base_encoder.conv1",
    ):
        load(published[0], from_file=tmp_path / "resnet.pth")
