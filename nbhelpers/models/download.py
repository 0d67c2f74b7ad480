"""Fetch a weight file: resumed where the connection breaks, checked, and only then put in its place."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from nbhelpers.files import sha256
from nbhelpers.models.errors import ChecksumError, DownloadError, WeightsError
from nbhelpers.models.weights import read_weights


def fetch(addresses: Sequence[str], path: Path) -> Path:
    """The weight file `path`, downloaded from the first address that gives it, if it is not there yet.

    It gets its name once it is complete and can be read. What came of it before a failure lies beside it as
    `.part`, where the next call goes on. Two processes that want the same file take turns.

    Args:
        addresses: of the same weights, in the order in which to try them. A checksum, where one is known,
            follows as in pip's requirements: `https://.../file.pth#sha256=...`.
        path: where the file shall be.

    Raises:
        OSError: no room on the disk.
        WeightsError: the failure of the only address (`DownloadError`, `ChecksumError`, `DamagedWeights`,
            `UnsafeWeights`), or a `DownloadError` that lists the failures of all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    failures: list[WeightsError] = []
    with FileLock(path.with_name(path.name + ".lock")):
        if path.exists():  # from an earlier call or another process
            return path
        for address in addresses:
            if failures:
                message = f"{path.name}: {failures[-1]}; trying the next source, {address}"
                tqdm.write(message, file=sys.stderr)
            try:
                _download(address, path).replace(path)
                return path
            except WeightsError as failure:
                failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    listing = "".join(f"\n  {failure}" for failure in failures)
    raise DownloadError(f"{path.name}: none of {len(failures)} sources worked:{listing}")


def _download(address: str, path: Path) -> Path:
    """The file beside `path` into which what is at an address was written and checked."""
    from huggingface_hub.file_download import http_get  # undocumented: should it move, all else works

    url, _, expected = address.partition("#sha256=")
    part = path.with_name(f"{path.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    with part.open("ab") as file:
        while True:
            before = file.tell()
            try:
                http_get(url, file, resume_size=before, displayed_filename=path.name)
                break
            except Exception as error:  # the hub's client lets through what its transport raises
                if isinstance(error, OSError) and error.errno:  # of the disk: give its room back
                    part.unlink()
                    raise OSError(error.errno, error.strerror, str(path)) from error
                if before and getattr(getattr(error, "response", None), "status_code", None) == 416:
                    file.truncate(0)  # nothing follows what is there, and it may be wrong: from the beginning
                    file.seek(0)
                elif file.tell() <= before:  # http_get repeats by itself what may yet succeed
                    if not before:
                        part.unlink()
                    raise DownloadError(f"{url} could not be fetched: {error}") from error
    try:
        if expected and (found := sha256(part)) != expected:
            raise ChecksumError(f"{url}: wrong checksum; expected sha256 {expected}, found {found}")
        read_weights(part, url)
    except WeightsError:
        part.unlink()
        raise
    return part
