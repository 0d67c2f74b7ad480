"""Image files in a folder or in a tar archive, read without unpacking."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


def is_image_name(name: str) -> bool:
    """Whether a path has an image file's suffix and no hidden part.

    >>> is_image_name("cat/1.JPEG"), is_image_name("cat/._1.jpg"), is_image_name("readme.txt")
    (True, False, False)
    """
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(
        part.startswith((".", "__MACOSX")) for part in path.parts
    )


def read_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image file of a folder (sorted) or a tar archive (in its own order)."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if is_image_name(name) and file.is_file():
                yield name, file.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isfile() and is_image_name(name):
                yield name, archive.extractfile(member).read()


def stamp(path: Path) -> str:
    """A short key that changes with an archive's name, size or time, or with those of a folder's files."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256(path.name.encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(path.parent)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def decode(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file's bytes as `uint8 H W 3`, scaled to cover `size` (rows, columns) and centre-cropped."""
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGB")
        if size is not None and image.size != (size[1], size[0]):
            image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BICUBIC)
        return np.array(image)
