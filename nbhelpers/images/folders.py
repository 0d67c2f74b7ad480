"""Image files in a folder or a tar archive: finding, unpacking, checking them, and a source made of them."""

import hashlib
import os
import tarfile
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nbhelpers.files import atomic_path, cache_dir, disguise, sha256
from nbhelpers.images.decode import DECODER, SUFFIXES, RefusedError, Size, check, decode
from nbhelpers.images.source import ImageSource, MissingDataError, Triple, channel_statistics, drawn

STATISTICS_IMAGES = 256  # images of a folder whose pixels give mean and deviation
MAX_BYTES = 1 << 30  # of an image file
SOUND: set[str] = set()  # SHA-256 of files that this process decoded: 100,000 small ones take 20 s


class FileSource(ImageSource):
    """The image files of a folder, which may differ in size, read when they are needed.

    `at_most` and `subset` of a whole folder read what they draw. All else, such as the length, depends on
    which files are sound, and reads them all. `mean` and `std` are over all pixels of up to 256 images drawn
    at random from the whole. A file that changed since the source read it first is an error: `fingerprint` is
    of the contents as they were.
    """

    masks = None
    files: tuple[tuple[str, str], ...]  # path of each image, and the SHA-256 of the bytes that were checked

    def __init__(
        self, path: Path, root: Path, origin: str, groups: Mapping[str, Sequence[str]], size: Size | None
    ) -> None:
        """List the names below `root`, by class; messages call it `path`."""
        self.name, self.origin, self.size = f"folder:{printable(path)}", origin, size
        self.path, self.root, self._whole = path, root, self
        self.classes = {"class": tuple(map(printable, groups))}
        self.names = [name for names in groups.values() for name in names]
        sizes = torch.tensor([len(names) for names in groups.values()])
        self.numbers = torch.repeat_interleave(sizes)  # the class of each name

    def __getattr__(self, name: str) -> object:
        if name not in ("files", "labels"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        part = self._sound(torch.arange(len(self.names)))
        numbers = part.labels["class"]
        if empty := [title for i, title in enumerate(self.classes["class"]) if i not in numbers]:
            raise ValueError(f"{printable(self.path)}: no image can be read of class {empty}")
        self.files, self.labels = part.files, part.labels
        return vars(self)[name]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as `uint8 C H W`."""
        path, digest = self.files[index]
        try:
            data, found = _read(path)
            if found != digest:
                raise ValueError("its content changed since it was first read")
            return decode(data, self.size)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.name}: {printable(path)} cannot be read any more: {error}") from error

    def _keep(self, indices: Tensor) -> None:
        self.files = tuple(self.files[i] for i in indices.tolist())

    @property
    def fingerprint(self) -> str:
        """Identity of contents, labels and size; the files are not read again."""
        labels = [values.tolist() for values in self.labels.values()]
        seen = [DECODER, self.size, [digest for _, digest in self.files], labels]
        return hashlib.sha256(repr(seen).encode()).hexdigest()

    def at_most(self, n: int, seed: int = 0, label: str | None = None) -> ImageSource:
        """As `subset`, but all images where there are fewer than `n`."""
        if self._whole is not self or n < 1:  # of a selection, or the error
            return super().at_most(n, seed, label)
        return self._sound(drawn(len(self.names), seed, None if label is None else self.numbers), n)

    def _sound(self, order: Tensor, most: int | None = None) -> "FileSource":
        """The first `most` sound files of an order; a warning names what was damaged on the way."""
        files, chosen, left_out = [], [], {}
        for i in tqdm(order.tolist(), f"checking {self.path.name}", most, disable=None):
            if len(files) == most:
                break
            path = os.path.join(self.root, self.names[i])
            try:
                data, digest = _read(path)
                if digest not in SOUND:
                    check(data)
            except (OSError, RefusedError) as error:
                left_out[self.names[i]] = str(error)
                continue
            SOUND.add(digest)
            files.append((path, digest))
            chosen.append(i)
        _warn_of(self.path, left_out)
        part = copy(self)
        part.files, part.labels = tuple(files), {"class": self.numbers[chosen]}
        return part

    @property
    def mean(self) -> Triple:
        """Mean of each colour channel, images scaled to 0..1."""
        return self._whole._statistics[0]

    @property
    def std(self) -> Triple:
        """Standard deviation of each colour channel over pixels, images scaled to 0..1."""
        return self._whole._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[Triple, Triple]:
        seen = self.at_most(STATISTICS_IMAGES)
        return channel_statistics(seen[i][None] for i in range(len(seen)))


def folder(path: str | Path, size: Size | None = None) -> FileSource:
    """The images of a folder or tar archive laid out as `CLASS/FILE`, decoded when asked for.

    A set inside an archive or a folder is named by the longer path: `imagenette2.tgz/imagenette2/val`. Images
    that lie in one folder without sub-folders form one class, named after it. A file is read when the source
    needs it, and decoded once to see that it is whole; what cannot be read is left out with a warning that
    names and counts it. Drawing by `at_most` or `subset` needs no more files than it draws.

    Args:
        path: a folder, a tar archive (any compression that Python reads), or a folder inside an archive.
        size: resize to cover this many pixels (one number, or rows and columns) and crop at the centre;
            None leaves every image as it is.

    Raises:
        MissingDataError: nothing is at `path`.
        ValueError: no images, several sets side by side, or something that is neither a folder nor a complete
            tar archive.
    """
    path = Path(path).expanduser()
    container, inner = _split(path)
    root = unpacked(container) / inner
    found, left_out = find_images(root)
    groups = _by_class(path, found, left_out)
    _warn_of(path, left_out)
    return FileSource(path, root, printable(container.name), groups, size)


def read_all(path: Path, size: Size | None = None) -> Iterator[tuple[str, Tensor]]:
    """Names and pixels `uint8 3 H W` of all images of a folder or tar archive, sorted by name.

    For data sets whose content is known: an image that cannot be read is an error.
    """
    root = unpacked(path)
    found, left_out = find_images(root)
    _warn_of(path, left_out)
    for name in tqdm(found, f"decoding {path.name}", disable=None):
        try:
            yield name, decode(_read(root / name)[0], size)
        except (OSError, RefusedError) as error:
            raise ValueError(f"{path}: {printable(name)}: {error}") from error


def find_images(root: Path) -> tuple[list[str], dict[str, str]]:
    """Sorted names below a folder of its image files, and why others are left out, by name.

    Every real folder is entered once, links to folders last, so that loops end. Hidden names are passed over.
    """
    found, left_out, entered = [], {}, set()
    folders = deque([""])
    while folders:
        folder = folders.popleft()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            left_out[folder] = error.strerror
            continue
        if (place := os.path.realpath(root / folder)) in entered:
            left_out[folder] = "a link to a folder that is read already"
            continue
        entered.add(place)
        for entry in entries:
            name, suffix = os.path.join(folder, entry.name), os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if os.path.isdir(entry):
                (folders.append if entry.is_symlink() else folders.appendleft)(name)
            elif not os.path.isfile(entry):
                left_out[name] = "no regular file, or a link to nothing"
            elif suffix not in SUFFIXES:
                left_out[name] = f"{suffix or 'without suffix'}, which is not read"
            else:
                found.append(name)
    return sorted(found), left_out


def unpacked(path: Path) -> Path:
    """A folder as it is, or the folder in the cache into which a tar archive is unpacked once.

    Raises:
        ValueError: something else, a broken archive, or one that leads out of that folder or holds devices.
    """
    if path.is_dir():
        return path
    if not path.is_file():
        raise ValueError(f"{printable(path)} is neither a folder nor a regular file")
    target = cache_dir() / "images" / f"unpacked-3-{sha256(path)}"
    if target.exists():
        return target
    try:
        with tarfile.open(path) as archive, atomic_path(target) as temporary:
            _unpack(archive, temporary)
        return target
    except Exception as error:  # tarfile and what decompresses raise almost any type on broken bytes
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        with path.open("rb") as file:
            kind = disguise(file.read(64))
        if path.suffix.lower() in SUFFIXES:
            kind = kind or "a single image (name the folder that it lies in)"
        what = f"{kind or f'not a complete tar archive: {error}'}; give a folder or a tar archive"
        raise ValueError(f"{printable(path)} is {what}") from error


def printable(name: str | Path) -> str:
    r"""A name of any bytes as text; those that are no UTF-8 become escapes.

    >>> printable("caf\udce9")
    'caf\\xe9'
    """
    return os.fsencode(name).decode(errors="backslashreplace")


def summary(left_out: Mapping[str, str], most: int = 5) -> str:
    """What was left out, by reason, each with its number and the first names.

    >>> summary({"a/1.heic": ".heic, which is not read", "a/2.heic": ".heic, which is not read"}, most=1)
    '2 (.heic, which is not read): a/1.heic ...'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(printable(name))
    return "; ".join(
        f"{len(names)} ({reason}): {', '.join(sorted(names)[:most])}{' ...' * (len(names) > most)}"
        for reason, names in sorted(by_reason.items())
    )


def _warn_of(path: Path, left_out: Mapping[str, str]) -> None:
    if left_out:
        warnings.warn(f"{printable(path)}: left out {summary(left_out)}", stacklevel=3)


def _read(path: str | Path) -> tuple[bytes, str]:
    """The bytes of an image file and their SHA-256."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise RefusedError(f"too large: more than {MAX_BYTES >> 30} GiB")
        data = file.read()
    return data, hashlib.sha256(data).hexdigest()


def _split(path: Path) -> tuple[Path, str]:
    """A path that may lead into an archive as (folder or archive, path inside it)."""
    for candidate in (path, *path.parents):
        if candidate.is_dir() and candidate != path:
            break
        if candidate.exists():
            return candidate, path.relative_to(candidate).as_posix()
    raise MissingDataError(f"there is no folder or tar archive {printable(path)}")


def _unpack(archive: tarfile.TarFile, target: Path) -> None:
    """Write what is in an archive below `target`; a ReadError unless it is complete."""
    target.mkdir()
    members = tqdm(archive, f"unpacking {Path(archive.name).name}", disable=None)
    archive.extractall(target, members, filter="data")
    # A complete archive ends in a block of zeros; tarfile stops at a damaged record without an error.
    archive.fileobj.seek(archive.offset)
    end = archive.fileobj.read(tarfile.BLOCKSIZE)
    while archive.fileobj.read(1 << 20):
        pass  # up to the checksum of a compressed archive
    if end != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("a damaged record, or cut off")


def _by_class(path: Path, names: Iterable[str], left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Names grouped by the folder each lies in; all those folders must lie side by side."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(os.path.dirname(name), []).append(name)
    if not groups:
        also = f"; left out {summary(left_out)}" if left_out else ""
        wanted = f"looked for files ending in {', '.join(SUFFIXES)}"
        raise ValueError(f"no images in {printable(path)}{also}; {wanted}")
    if len({(os.path.dirname(parent), parent == "") for parent in groups}) > 1:
        places = [printable(path / parent) for parent in sorted(groups)[:: max(1, len(groups) // 4)]]
        where = f"not in {', '.join(places)} ...; name one set's folder"
        raise ValueError(f"{printable(path)}: images must lie in CLASS/FILE, classes side by side, {where}")
    return {os.path.basename(parent) or path.name: files for parent, files in sorted(groups.items())}
