"""Fetch a weight file: streamed, resumed, checked, and only then put in its place."""

from __future__ import annotations

import errno
import fcntl
import http.client
import os
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
from nbhelpers.models.errors import (
    ChecksumError,
    DiskFull,
    DownloadError,
    NotWeights,
    TruncatedWeights,
    WeightsError,
)
from nbhelpers.models.weights import check_container

PIECE = 1 << 20
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 3  # per source, each going on where the last one broke off


@dataclass(frozen=True)
class Source:
    """An http(s) address, and the hexadecimal sha256 of what is there, where it is known."""

    url: str
    sha256: str | None = None


def fetch(sources: Sequence[Source], path: Path) -> Path:
    """The file `path`, downloaded from the first source that gives it, if it is not there yet.

    Bytes go to `NAME.part` in the same folder, which a later call resumes where the server allows it, and
    which becomes `path` once it is complete and checked. Two processes that want the same file take turns.

    Args:
        sources: of the same weights, in the order in which to try them.
        path: where the file shall be.

    Raises:
        DiskFull: no room; the partial file is deleted.
        WeightsError: the failure of the only source (`DownloadError`, `TruncatedWeights`, `ChecksumError`,
            `NotWeights`), or a `DownloadError` that lists the failures of all.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures: list[WeightsError] = []
    for source in sources:
        if failures:
            message = f"{path.name}: {failures[-1]}; trying the next source, {source.url}"
            tqdm.write(message, file=sys.stderr)
        try:
            return _from_one(source, path, part)
        except DiskFull:
            raise
        except WeightsError as failure:
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    listing = "".join(f"\n  {failure}" for failure in failures)
    raise DownloadError(f"{path.name}: none of {len(failures)} sources worked:{listing}") from failures[-1]


class _BrokenOff(TruncatedWeights):
    """The connection ended early: what came is good, and the rest can be asked for."""


def _from_one(source: Source, path: Path, part: Path) -> Path:
    """Download from one source, check, move."""
    with _open_locked(part) as file:
        if path.exists():  # another process was faster
            _discard(part)
            return path
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    _stream(source.url, file, part)
                    break
                except _BrokenOff:
                    if attempt == ATTEMPTS:
                        raise
            _check(source, part)
        except WeightsError as failure:
            if not (isinstance(failure, _BrokenOff) and _size(file)):
                _discard(part)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _discard(part)
            raise DiskFull(f"no room left in {part.parent} for {source.url}") from error
        part.replace(path)
        _tag(part).unlink(missing_ok=True)
    return path


@contextmanager
def _open_locked(part: Path) -> Iterator[FileIO]:
    """The partial file, opened for appending by one process at a time."""
    lock = part.with_name(part.name + ".lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with part.open("ab", buffering=0) as file:
            yield file


def _stream(source: str, file: FileIO, part: Path) -> None:
    """Append what is missing of the source to the open partial file."""
    have = _size(file)
    headers = {"User-Agent": "nbhelpers", "Accept-Encoding": "identity"}
    tagged, _, tag = _tag(part).read_text().partition("\n") if _tag(part).exists() else ("", "", "")
    if have and tagged == source:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    with _open_source(source, headers) as response:
        if response.status == 416:  # there is nothing beyond what we have: start again rather than trust it
            _restart(file, part)
            raise _BrokenOff(f"{source} has no more than the {have:,} bytes that came before")
        if response.status != 206:  # the whole file: the source cannot resume, or its file has changed
            have = 0
            _restart(file, part)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < total - have:
            raise DiskFull(f"{source} needs {total - have:,} bytes, {part.parent} has {free:,} left")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):  # a weak tag does not promise the same bytes
            _tag(part).write_text(f"{source}\n{tag}")
        with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar:
            for piece in _pieces(response):
                written = 0
                while written < len(piece):
                    written += file.write(piece[written:])
                bar.update(len(piece))
    if total is not None and _size(file) != total:
        raise _BrokenOff(f"{source} broke off after {_size(file):,} of {total:,} bytes")


def _open_source(source: str, headers: dict[str, str]) -> http.client.HTTPResponse | urllib.error.HTTPError:
    """The answer of a source, unless it is an error or a web page."""
    if not source.startswith(("http://", "https://")):
        raise DownloadError(f"{source} is not an http(s) address")
    try:
        response = urllib.request.urlopen(urllib.request.Request(source, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        raise DownloadError(f"{source} answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        raise DownloadError(f"{source} is not reachable: {getattr(error, 'reason', error)}") from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise NotWeights(f"{source} answered with an HTML page, not with weights")
    return response


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body; a connection that breaks ends it, which shows in the size."""
    try:
        while piece := response.read(PIECE):
            yield piece
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        return


def _check(source: Source, part: Path) -> None:
    """Raise if the complete file is not the weights."""
    check_container(part, source.url)
    if source.sha256 is not None and (found := sha256(part)) != source.sha256:
        raise ChecksumError(f"{source.url}: wrong checksum; expected sha256 {source.sha256}, found {found}")


def _size(file: FileIO) -> int:
    """Bytes in an open file."""
    return os.fstat(file.fileno()).st_size


def _tag(part: Path) -> Path:
    """Beside a partial file: its source and the server's tag for that version of it."""
    return part.with_name(part.name + ".tag")


def _restart(file: FileIO, part: Path) -> None:
    """Empty the partial file."""
    if _size(file):
        file.truncate(0)
    _tag(part).unlink(missing_ok=True)


def _discard(part: Path) -> None:
    """Delete the partial file."""
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)
