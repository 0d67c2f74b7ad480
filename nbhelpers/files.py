"""Where files live and how they are written: temporary name first, then moved."""

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
DAY = 24 * 3600  # seconds
TEMPORARY = ".nbhelpers-tmp-"  # how names of unfinished files start; .gitignore has it too
# First bytes of what a file often holds in place of weights, an image or an archive.
DISGUISES = {
    rb"\Z": "an empty file",
    rb"version https://git-lfs": "a git-lfs pointer instead of the file (git lfs pull fetches it)",
    rb"PK\x03\x04": "a zip archive (unpack it and name what is in it)",
    rb"[\xef\xbb\xbf\s]*<(!doctype|html|head|\?xml)": "an HTML or XML page, as a failed download leaves it",
}


def cache_dir() -> Path:
    """Folder for what can be made again: `$NBHELPERS_CACHE`, else `.cache/` in the checkout.

    Raises:
        OSError: the folder cannot be made; names it and the reason.
    """
    folder = Path(os.environ.get("NBHELPERS_CACHE") or ROOT / ".cache").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror} (cache folder; NBHELPERS_CACHE names another)"
        raise OSError(error.errno, reason, str(folder)) from error
    return folder


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; move it to `path` on success, delete it on failure.

    A reader of `path` sees the old content or the new content, never a part of it. A folder is never
    replaced: where another process made it first, that one stays. What killed processes left unfinished
    beside `path` is removed after a day.

    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # another process removed it first
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent, ignore_cleanup_errors=True) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        _move(temporary, path)


def _move(temporary: Path, path: Path) -> None:
    """Give a finished file or folder its name, with its bytes on the disk before."""
    if folder := temporary.is_dir():
        os.sync()
    else:
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # safetensors writes 0600, which hides the file from other users
    try:
        os.replace(temporary, path)
    except OSError:
        if not (folder and path.is_dir()):  # made first by another process
            raise


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def disguise(start: bytes) -> str | None:
    """What a file that cannot be read really is, by its first bytes; None where they say nothing.

    >>> disguise(b"<!DOCTYPE html><html>")
    'an HTML or XML page, as a failed download leaves it'
    """
    return next((kind for first, kind in DISGUISES.items() if re.match(first, start, re.I)), None)
