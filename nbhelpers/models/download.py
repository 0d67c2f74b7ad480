"""Fetch a weight file: resumed where the connection breaks, checked, and only then put in its place."""

import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.file_download import http_get
from tqdm import tqdm

from nbhelpers.files import atomic_path, locked, sha256
from nbhelpers.models.errors import ChecksumError, DownloadError, WeightsError
from nbhelpers.models.weights import read_weights


def fetch(addresses: Sequence[str], path: Path) -> Path:
    """The weight file `path`, downloaded from the first address that gives it, if it is not there yet.

    It gets its name once it is complete and can be read. Two processes that want the same file take turns.

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
    with locked(path.with_name(path.name + ".lock")):
        if path.exists():  # from an earlier call or another process
            return path
        for address in addresses:
            if failures:
                message = f"{path.name}: {failures[-1]}; trying the next source, {address}"
                tqdm.write(message, file=sys.stderr)
            try:
                with atomic_path(path) as part:
                    _download(address, part)
                return path
            except WeightsError as failure:
                failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    listing = "".join(f"\n  {failure}" for failure in failures)
    raise DownloadError(f"{path.name}: none of {len(failures)} sources worked:{listing}")


def _download(address: str, part: Path) -> None:
    """Write what is at an address into a file and check it."""
    url, _, expected = address.partition("#sha256=")
    with part.open("wb") as file:
        while True:
            before = file.tell()
            try:
                http_get(url, file, resume_size=before, displayed_filename=part.name)
                break
            except Exception as error:  # the hub's client lets through what its transport raises
                if isinstance(error, OSError) and error.errno:  # of the disk
                    raise
                if file.tell() <= before:  # it tried several times already
                    raise DownloadError(f"{url} could not be fetched: {error}") from error
    if expected and (found := sha256(part)) != expected:
        raise ChecksumError(f"{url}: wrong checksum; expected sha256 {expected}, found {found}")
    read_weights(part, url)
