"""Fetch a weight file: streamed, resumed, checked, and only then put in its place."""

import errno
import http.client
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from nbhelpers.files import locked, sha256
from nbhelpers.models.errors import ChecksumError, DamagedWeights, DiskFull, DownloadError, WeightsError
from nbhelpers.models.weights import read_weights

CHUNK = 1 << 20  # most bytes taken from a connection at once
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 3  # in a row that brought nothing new, before the next address is tried


def fetch(addresses: Sequence[str], path: Path) -> Path:
    """The weight file `path`, downloaded from the first address that gives it, if it is not there yet.

    Bytes go to `NAME.part` in the same folder, which later attempts and calls resume where the server allows
    it, and which becomes `path` once it is complete and can be read. Two processes that want the same file
    take turns.

    Args:
        addresses: of the same weights, in the order in which to try them. A checksum, where one is known,
            follows as in pip's requirements: `https://.../file.pth#sha256=...`.
        path: where the file shall be.

    Raises:
        DiskFull: no room; the partial file is deleted.
        WeightsError: the failure of the only address (`DownloadError`, `ChecksumError`, `DamagedWeights`,
            `UnsafeWeights`), or a `DownloadError` that lists the failures of all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures: list[WeightsError] = []
    with locked(part.with_name(part.name + ".lock")):
        for address in addresses:
            if path.exists():  # from an earlier call or another process
                return path
            if failures:
                message = f"{path.name}: {failures[-1]}; trying the next source, {address}"
                tqdm.write(message, file=sys.stderr)
            try:
                _download(address, part)
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


def _download(address: str, part: Path) -> None:
    """Complete and check the partial file; what came stays for a later attempt unless it is useless."""
    url, _, expected = address.partition("#sha256=")
    most, idle = _size(part), 0
    try:
        while not _append(url, part):
            most, idle = max(most, _size(part)), idle + 1 if _size(part) <= most else 0
            if idle == ATTEMPTS:
                raise DownloadError(f"{url} broke off after {most:,} bytes, {ATTEMPTS} times in a row")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard(part)
        raise DiskFull(f"no room left in {part.parent} for {url}: {error.strerror}") from error
    try:
        if expected and (found := sha256(part)) != expected:
            raise ChecksumError(f"{url}: wrong checksum; expected sha256 {expected}, found {found}")
        read_weights(part, url)
    except WeightsError:
        _discard(part)
        raise


def _append(url: str, part: Path) -> bool:
    """Append what is missing to the partial file, or write it anew; whether it is complete now."""
    about, _, tag = _tag(part).read_text().partition("\n") if _tag(part).exists() else ("", "", "")
    have = _size(part) if about == url else 0
    headers = {"User-Agent": "nbhelpers", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
        _discard(part)  # the source has no more bytes than the partial file, which is no use
        return False
    except (OSError, http.client.HTTPException, ValueError) as error:  # no route, reset, malformed answer
        raise DownloadError(f"{url} is not reachable: {getattr(error, 'reason', error)}") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DamagedWeights(f"{url} answered with an HTML page, not with weights")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the whole file: the source cannot resume, or its file has changed
        total = None if response.length is None else have + response.length
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < total - have:
            raise OSError(errno.ENOSPC, f"it needs {total - have:,} bytes, {free:,} are left")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with part.open("ab" if have else "wb") as file, bar:
            # Without a tag, or with a weak one, the server does not promise the same bytes next time.
            _tag(part).write_text(f"{url}\n{tag}" if tag and not tag.startswith("W/") else "")
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(part) == total


def _read(response: http.client.HTTPResponse) -> bytes:
    """The bytes that have come; none at the end or where the connection breaks, which shows in the size."""
    try:
        return response.read1(CHUNK)  # read() would lose what had come when the connection breaks
    except (http.client.HTTPException, OSError, ValueError):
        return b""


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
