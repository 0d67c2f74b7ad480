"""Image files in a folder or a tar archive: finding and unpacking them, and a source made of them."""

import hashlib
import os
import shutil
import tarfile
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nbhelpers.files import atomic_path, cache_dir, disguise, sha256
from nbhelpers.images.decode import DECODER, SUFFIXES, RefusedError, Size, decode
from nbhelpers.images.source import ImageSource, MissingDataError, Triple, channel_statistics

STATISTICS_IMAGES = 256  # images of a folder whose pixels give mean and deviation
HIDDEN = (".", "__MACOSX")  # how names begin that a system, not a person, put beside images

# Names of folders that hold parts of a set, seldom its classes.
NO_CLASSES = {"images", "img", "masks", "annotations", "labels", "train", "val", "valid", "test"}


class FileSource(ImageSource):
    """The image files of a folder, which may differ in size, read when they are needed.

    A file that cannot be read, or that changed since the source read it first, is an error that names it.
    `mean` and `std` are over all pixels of up to 256 images drawn at random from the whole.
    """

    masks = None

    def __init__(self, path: Path, size: Size | None = None) -> None:
        """See `folder`."""
        self.name, self.origin, self.size = f"folder:{path}", path.name, size
        root, names = find_images(path)
        groups = _by_class(path, names)
        self.classes = {"class": tuple(groups)}
        self.files = [root / name for names in groups.values() for name in names]
        sizes = torch.tensor([len(names) for names in groups.values()])
        self.labels = {"class": torch.repeat_interleave(sizes)}
        self._whole = self  # which selections keep, for mean and deviation
        self._seen: dict[Path, str] = {}  # SHA-256 of each file that was read, shared with selections

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as `uint8 C H W`."""
        try:
            return decode(self._read(self.files[index]), self.size)
        except (OSError, RefusedError) as error:
            what = f"{self.files[index]} cannot be read: {error}"
            raise ValueError(f"{self.name}: {what}; repair it or take it out of the folder") from error

    def _read(self, path: Path) -> bytes:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if self._seen.setdefault(path, digest) != digest:
            raise RefusedError("its content has changed since it was first read")
        return data

    def _keep(self, indices: Tensor) -> None:
        self.files = [self.files[i] for i in indices.tolist()]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each file's content; what was read before is not read again."""
        unread = [path for path in self.files if path not in self._seen]
        for path in tqdm(unread, f"reading {self.name}", leave=False, disable=None):
            self._read(path)
        return [self._seen[path] for path in self.files]

    @property
    def fingerprint(self) -> str:
        """Identity of contents, labels and size."""
        labels = [values.tolist() for values in self.labels.values()]
        seen = [DECODER, self.size, self.digests, labels]
        return hashlib.sha256(repr(seen).encode()).hexdigest()

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
        return channel_statistics(image[None] for image in self.at_most(STATISTICS_IMAGES))


def folder(path: str | Path, size: Size | None = None) -> FileSource:
    """The images of a folder or tar archive laid out as `CLASS/FILE`, decoded when asked for.

    Images that lie in one folder without sub-folders form one class, named after it. A warning counts files
    that are no images by their names.

    Args:
        path: a folder or a tar archive (any compression that Python reads).
        size: resize to cover this many pixels (one number, or rows and columns) and crop at the centre;
            None leaves every image as it is.

    Raises:
        MissingDataError: nothing is at `path`.
        ValueError: no images, several sets side by side, or something that is neither a folder nor a complete
            tar archive.
    """
    return FileSource(Path(path).expanduser(), size)


def find_images(path: Path) -> tuple[Path, list[str]]:
    """The folder of a path, unpacked if that is an archive, and the sorted names of the images below it.

    A warning counts what else is there, but for hidden names. Links are followed, no folder is entered twice.
    """
    root = unpacked(path)
    found, left_out, entered = [], [], set()
    for place, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            left_out.append(os.path.relpath(place, root))
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        for name in names:
            file = os.path.join(place, name)
            image = name.lower().endswith(SUFFIXES) and os.path.isfile(file)
            if not name.startswith(HIDDEN):
                (found if image else left_out).append(os.path.relpath(file, root))
    kinds = Counter(os.path.splitext(name)[1].lower() or "without suffix" for name in left_out)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    also = f"left out {counts}, such as {min(left_out)}" if left_out else "nor anything else"
    if not found:
        raise ValueError(f"no images in {path}, {also}; looked for files ending in {', '.join(SUFFIXES)}")
    if left_out:
        warnings.warn(f"{path}: {also}, which cannot be read", stacklevel=4)
    return root, sorted(found)


def _raise(error: OSError) -> None:
    raise error


def unpacked(path: Path) -> Path:
    """A folder as it is, or the folder in the cache into which a tar archive is unpacked once.

    Raises:
        MissingDataError: nothing is there.
        ValueError: something else, a broken archive, or one that leads out of that folder or holds devices.
    """
    if path.is_dir():
        return path
    if not path.exists():
        raise MissingDataError(f"there is no folder or tar archive {path}")
    if not path.is_file():
        raise ValueError(f"{path} is neither a folder nor a regular file")
    target = cache_dir() / "images" / f"unpacked-4-{sha256(path)}"
    counted = target.with_suffix(".files")
    try:
        if target.exists():
            if counted.exists() and int(counted.read_text()) == _files(target):
                return target
            shutil.rmtree(target)  # something cleans the cache folder file by file
        with tarfile.open(path) as archive, atomic_path(target) as temporary:
            _unpack(archive, temporary)
            with atomic_path(counted) as number:
                number.write_text(str(_files(temporary)))
        return target
    except Exception as error:  # tarfile and what decompresses raise almost any type on broken bytes
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        with path.open("rb") as file:
            kind = disguise(file.read(64))
        if path.suffix.lower() in SUFFIXES:
            kind = kind or "a single image (name the folder that it lies in)"
        what = f"{kind or f'not a complete tar archive: {error}'}; give a folder or a tar archive"
        raise ValueError(f"{path} is {what}") from error


def _files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


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


def _by_class(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Names grouped by the folder each lies in; all those folders must lie side by side."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(os.path.dirname(name), []).append(name)
    if len({(os.path.dirname(parent), parent == "") for parent in groups}) > 1:
        places = [str(path / parent) for parent in sorted(groups)[:: max(1, len(groups) // 4)]]
        where = f"but they lie in {', '.join(places)} ...; name one set's folder (unpack an archive first)"
        raise ValueError(f"{path}: images must lie in CLASS/FILE, all classes in one folder, {where}")
    classes = {os.path.basename(parent) or path.name: files for parent, files in sorted(groups.items())}
    if len(classes) > 1 and (parts := [name for name in classes if name.lower() in NO_CLASSES]):
        listed = ", ".join(parts)
        warnings.warn(f"{path}: {listed} are taken for classes; if not, name one of them", stacklevel=4)
    return classes
