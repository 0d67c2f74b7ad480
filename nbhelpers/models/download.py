"""Fetch a weight file: streamed, resumed, checked, and only then put in its place."""

from __future__ import annotations

import errno
import fcntl
import http.client
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from tqdm import tqdm

from nbhelpers.files import sha256
from nbhelpers.models.errors import ChecksumError, DamagedWeights, DiskFull, DownloadError, WeightsError
from nbhelpers.models.weights import read_weights

PIECE = 1 << 20  # most bytes taken from a connection at once
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 3  # in a row that brought nothing new, before the next source is tried


@dataclass(frozen=True)
class Source:
    """An http(s) address, and the hexadecimal sha256 of what is there, where it is known."""

    url: str
    sha256: str | None = None


class _BrokenOff(DownloadError):
    """The connection ended early: what came is good, and the rest can be asked for."""


def fetch(sources: Sequence[Source], path: Path) -> Path:
    """The weight file `path`, downloaded from the first source that gives it, if it is not there yet.

    Bytes go to `NAME.part` in the same folder, which later attempts and calls resume where the server allows
    it, and which becomes `path` once it is complete and can be read. Two processes that want the same file
    take turns.

    Args:
        sources: of the same weights, in the order in which to try them.
        path: where the file shall be.

    Raises:
        DiskFull: no room; the partial file is deleted.
        WeightsError: the failure of the only source (`DownloadError`, `ChecksumError`, `DamagedWeights`,
            `UnsafeWeights`), or a `DownloadError` that lists the failures of all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures: list[WeightsError] = []
    for source in sources:
        if failures:
            message = f"{path.name}: {failures[-1]}; trying the next source, {source.url}"
            tqdm.write(message, file=sys.stderr)
        try:
            with _locked(part):
                if not path.exists():  # another process may have been faster
                    _download(source, part)
                    part.replace(path)
                _discard(part)
            return path
        except DiskFull:
            raise
        except WeightsError as failure:
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    listing = "".join(f"\n  {failure}" for failure in failures)
    raise DownloadError(f"{path.name}: none of {len(failures)} sources worked:{listing}")


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Hold the partial file for the duration, against other processes."""
    with part.with_name(part.name + ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _download(source: Source, part: Path) -> None:
    """Complete and check the partial file; what came stays for a later attempt unless it is useless."""
    most, idle = _size(part), 0
    try:
        while True:
            try:
                _stream(source.url, part)
                break
            except _BrokenOff:
                most, idle = max(most, _size(part)), idle + 1 if _size(part) <= most else 0
                if idle == ATTEMPTS:
                    raise
    except OSError as error:
        if isinstance(error, DiskFull) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            _discard(part)
            raise DiskFull(f"no room left in {part.parent} for {source.url}: {error}") from error
        raise
    try:
        if source.sha256 is not None and (found := sha256(part)) != source.sha256:
            raise ChecksumError(
                f"{source.url}: wrong checksum; expected sha256 {source.sha256}, found {found}"
            )
        read_weights(part, source.url)
    except WeightsError:
        _discard(part)
        raise


def _stream(url: str, part: Path) -> None:
    """Append what is missing of a source to the partial file."""
    have, known = _size(part), _tag(part)
    headers = {"User-Agent": "nbhelpers", "Accept-Encoding": "identity"}
    of, _, tag = known.read_text().partition("\n") if known.exists() else ("", "", "")
    if have and of == url:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    with _answer(url, headers) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        if response.status not in (200, 206) or (response.status == 206 and not resumed):
            _discard(part)
            raise _BrokenOff(f"{url} does not continue after the bytes that came before")
        if not resumed:  # the whole file: the source cannot resume, or its file has changed
            have = 0
            known.unlink(missing_ok=True)
        total = None if response.length is None else have + response.length
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < total - have:
            raise DiskFull(f"it needs {total - have:,} bytes, {free:,} are left")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):  # a weak tag does not promise the same bytes
            known.write_text(f"{url}\n{tag}")
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with part.open("ab" if resumed else "wb", buffering=0) as file:
            _append(response, file, bar)
    if total is not None and _size(part) != total:
        raise _BrokenOff(f"{url} broke off after {_size(part):,} of {total:,} bytes")


def _append(response: http.client.HTTPResponse, file: FileIO, bar: tqdm) -> None:
    """Write a body as it comes; a connection that breaks ends it, which shows in the size."""
    with bar:
        while True:
            try:
                piece = response.read1(PIECE)  # what is there: read() would lose it when the line breaks
            except (http.client.HTTPException, OSError, ValueError):
                return
            if not piece:
                return
            written = 0
            while written < len(piece):
                written += file.write(piece[written:])
            bar.update(len(piece))


def _answer(url: str, headers: dict[str, str]) -> http.client.HTTPResponse | urllib.error.HTTPError:
    """The answer of a source, unless it is an error or a web page."""
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url} is not an http(s) address")
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing beyond what came before
            return error
        raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # no route, reset, malformed answer
        raise DownloadError(f"{url} is not reachable: {getattr(error, 'reason', error)}") from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise DamagedWeights(f"{url} answered with an HTML page, not with weights")
    return response


def _size(part: Path) -> int:
    """Bytes in the partial file."""
    return part.stat().st_size if part.exists() else 0


def _tag(part: Path) -> Path:
    """Beside a partial file: its source and the server's tag for that version of it."""
    return part.with_name(part.name + ".tag")


def _discard(part: Path) -> None:
    """Delete the partial file."""
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)
