"""Image files in a folder or in a tar archive, read without unpacking, and a source made of them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nbhelpers.files import atomic_path, cache_dir
from nbhelpers.images.source import ImageSource, Triple, channel_statistics, selection_fingerprint

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
# Enough for mean and standard deviation to three digits; all pixels of a large folder would take minutes.
STATISTICS_IMAGES, STATISTICS_PIXELS = 256, 4096

Size = int | tuple[int, int]


class ImageFile(NamedTuple):
    """Where the bytes of one image are: a stretch of the file at `path`."""

    name: str
    path: Path
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes; no file is held open in between, so worker processes can share a list of these."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


def is_image_name(name: str) -> bool:
    """Whether a path has an image file's suffix and no hidden part.

    >>> is_image_name("cat/1.JPEG"), is_image_name("cat/._1.jpg"), is_image_name("readme.txt")
    (True, False, False)
    """
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def list_images(path: Path) -> list[ImageFile]:
    """Every image file of a folder or tar archive, sorted by name; a compressed archive is expanded once."""
    if path.is_dir():
        found = [ImageFile(name, file, 0, file.stat().st_size) for name, file in _walk(path)]
    else:
        plain = _uncompressed(path)
        with _open_tar(path, plain) as archive:
            found = [
                ImageFile(name, plain, member.offset_data, member.size) for name, member in _members(archive)
            ]
    return sorted(found)


def read_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image file of a folder or tar archive, in one sweep that leaves no copy."""
    if path.is_dir():
        for name, file in _walk(path):
            yield name, file.read_bytes()
    else:
        with _open_tar(path) as archive:
            for name, member in _members(archive):
                yield name, archive.extractfile(member).read()


def stamp(path: Path) -> str:
    """A short key that changes with an archive's name, size or time, or with those of a folder's images."""
    digest = hashlib.sha256(path.name.encode())
    for name, file in [("", path)] if path.is_file() else sorted(_walk(path)):
        status = file.stat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def decode(data: bytes, size: Size | None = None) -> Tensor:
    """An image file's bytes as `uint8 3 H W`, resized where `size` is given (see `resize`)."""
    with Image.open(io.BytesIO(data)) as image:
        return resize(image, size)


def resize(image: Image.Image, size: Size | None = None) -> Tensor:
    """A Pillow image of any mode as `uint8 3 H W`.

    With `size` (one number, or rows and columns) it is scaled to cover that many pixels (bicubic, aspect
    kept) and what stands out is cropped at the centre.

    >>> resize(Image.new("L", (8, 4), 255), 2).tolist()[0]
    [[255, 255], [255, 255]]

    Raises:
        ValueError: `size` is not positive.
    """
    image = image.convert("RGB")
    if size is not None:
        rows, columns = (size, size) if isinstance(size, int) else size
        if min(rows, columns) < 1:
            raise ValueError(f"size must be positive, got {size}")
        if image.size != (columns, rows):
            image = ImageOps.fit(image, (columns, rows), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def is_sound(data: bytes) -> bool:
    """Whether an image file decodes to its end; JPEG is decoded at reduced size, which is much faster."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except Exception:  # Pillow's plug-ins raise almost any type on broken bytes
        return False
    return True


class FileSource(ImageSource):
    """A source that decodes its image files when they are asked for; the images may differ in size.

    `mean` and `std` are estimated from up to 4,096 pixels of each of up to 256 images.
    """

    masks = None

    def __init__(
        self,
        name: str,
        files: Sequence[ImageFile],
        labels: Mapping[str, Tensor],
        classes: Mapping[str, Sequence[str]],
        fingerprint: str,
        origin: str,
        size: Size | None = None,
        statistics_files: Sequence[ImageFile] | None = None,
    ) -> None:
        """Take the listed files; `statistics_files` stand for the whole source in `mean` and `std`."""
        self.name = name
        self.files = tuple(files)
        self.labels = dict(labels)
        self.classes = {label: tuple(names) for label, names in classes.items()}
        self.fingerprint = fingerprint
        self.origin = origin
        self.size = size
        if statistics_files is None:
            order = torch.randperm(len(self.files), generator=torch.Generator().manual_seed(0))
            statistics_files = [self.files[i] for i in order[:STATISTICS_IMAGES].tolist()]
        self._statistics_files = statistics_files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as `uint8 C H W`."""
        return self._decode(self.files[index])

    def select(self, indices: Sequence[int] | Tensor) -> FileSource:
        """The images at `indices`, in that order; labels follow, name, mean and std stay."""
        indices = torch.as_tensor(indices, dtype=torch.long)
        return FileSource(
            self.name,
            [self.files[i] for i in indices.tolist()],
            {label: values[indices] for label, values in self.labels.items()},
            self.classes,
            selection_fingerprint(self.fingerprint, indices),
            self.origin,
            self.size,
            self._statistics_files,
        )

    @property
    def mean(self) -> Triple:
        """Mean of each colour channel, images scaled to 0..1."""
        return self._statistics[0]

    @property
    def std(self) -> Triple:
        """Standard deviation of each colour channel over pixels, images scaled to 0..1."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[Triple, Triple]:
        pixels = [self._decode(file).flatten(1) for file in self._statistics_files]
        pixels = torch.cat([image[:, :: -(-image.shape[1] // STATISTICS_PIXELS)] for image in pixels], dim=1)
        return channel_statistics(pixels[None, :, :, None])

    def _decode(self, file: ImageFile) -> Tensor:
        try:
            return decode(file.read(), self.size)
        except Exception as error:  # as in is_sound
            raise ValueError(f"{self.name}: {file.name} cannot be decoded any more: {error}") from error


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of every image file; links to folders are followed, unreadable folders raise."""

    def stop(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, followlinks=True, onerror=stop):
        for name in names:
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if is_image_name(relative):
                yield relative, folder / relative


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Name and record of every image file of an open archive."""
    for member in archive:
        name = member.name.removeprefix("./")
        if member.isfile() and is_image_name(name):
            yield name, member


@contextmanager
def _open_tar(path: Path, plain: Path | None = None) -> Iterator[tarfile.TarFile]:
    """Open a tar archive (or its expanded copy `plain`); a broken one is a ValueError that names it."""
    try:
        with tarfile.open(plain or path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, LZMAError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete tar archive: {error}") from error


def _uncompressed(path: Path) -> Path:
    """An archive in which any member can be read at once: itself, or its expanded copy in the cache."""
    with _open_tar(path) as archive:
        if isinstance(archive.fileobj, io.BufferedReader):
            return path
        plain = cache_dir() / "images" / f"{stamp(path)}.tar"
        if not plain.exists():
            archive.fileobj.seek(0)
            with atomic_path(plain) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(archive.fileobj, file, 1 << 20)
        return plain
