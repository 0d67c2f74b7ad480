"""Folders and archives of images: what is found, left out, refused, and what their identity follows."""

import io
import multiprocessing
import os
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nbhelpers.images import MissingDataError, folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NBHELPERS_CACHE", str(place))
    return place


def make_folder(root, layout):
    for name, size in layout.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (sum(name.encode()) % 200, 100, 50)).save(target)
    return root


LAYOUT = {f"{title}/{i}.png": (10 + i, 8) for title in ("dog", "cat") for i in range(4)}


@pytest.fixture
def pets(tmp_path):
    return make_folder(tmp_path / "pets", LAYOUT)


def as_tar(root, path, mode="w"):
    with tarfile.open(path, mode) as archive:
        archive.add(root, root.name)
    return path


def tar_of(path, members):
    """A tar archive of the given members (record, content)."""
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def red(kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, kind)
    return buffer.getvalue()


def test_labels_from_sub_folders(pets):
    source = folder(pets)
    assert source.name == f"folder:{pets}" and source.origin == "pets"
    assert source.classes == {"class": ("cat", "dog")}
    assert source.labels["class"].tolist() == [0] * 4 + [1] * 4
    assert source.labels["class"].dtype == torch.int64
    assert source[2].shape == (3, 8, 12) and source[2][:, 0, 0].tolist() == [sum(b"cat/2.png") % 200, 100, 50]
    with pytest.raises(ValueError, match=str(pets)):
        source.batch([0, 1])


def test_one_size_and_selection(pets):
    source = folder(pets, size=(4, 6))
    assert source.batch(torch.tensor([0, 7])).shape == (2, 3, 4, 6)
    assert source.balanced(2).labels["class"].tolist() == [0, 1, 0, 1]
    chosen = source.select([6, 0])
    assert chosen.labels["class"].tolist() == [1, 0] and torch.equal(chosen[1], source[0])
    assert chosen.mean == source.mean and chosen.std == source.std


def test_worker_processes(pets):
    source = folder(pets, size=8)
    loaded = torch.cat(list(DataLoader(source, batch_size=3, num_workers=1)))
    assert torch.equal(loaded, source.batch(range(8)))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_is_unpacked_once_and_read_as_the_folder(tmp_path, mode, cache, monkeypatch):
    val = make_folder(tmp_path / "val", {name: (9, 9) for name in LAYOUT})
    path = as_tar(val, tmp_path / "val.tar", mode)
    source = folder(path)
    assert source.fingerprint == folder(val).fingerprint and source.origin == "val.tar"
    assert torch.equal(source.batch(range(8)), folder(val).batch(range(8)))
    monkeypatch.setattr("nbhelpers.images.folders._unpack", None)
    assert folder(path).fingerprint == source.fingerprint
    assert len(list(cache.glob("images/unpacked-*"))) == 1


def test_several_sets_side_by_side_are_named(tmp_path):
    for part in ("train", "val"):
        make_folder(tmp_path / "sets" / part, LAYOUT)
    for whole in (as_tar(tmp_path / "sets", tmp_path / "sets.tar"), tmp_path / "sets"):
        with pytest.raises(ValueError, match=r"train/cat.*name one set's folder"):
            folder(whole)


def test_flat_folder_is_one_class(tmp_path):
    source = folder(make_folder(tmp_path / "holiday", {"1.png": (8, 8), "2.png": (8, 8)}))
    assert source.classes == {"class": ("holiday",)} and source.labels["class"].tolist() == [0, 0]
    make_folder(tmp_path / "holiday", {"beach/3.png": (8, 8)})
    with pytest.raises(ValueError, match="beach"):
        folder(tmp_path / "holiday")


# Identity


def bitmaps(root, seed):
    """Twelve BMP files of random pixels, all of one size and with one time."""
    pixels = np.random.default_rng(seed).integers(256, size=(12, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = root / f"class{i % 2}" / f"{i:02}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        os.utime(path, (1, 1))
    return root


def test_other_pictures_of_one_size_and_time_are_another_source(tmp_path):
    one, two = (bitmaps(tmp_path / name / "set", seed) for name, seed in (("one", 1), ("two", 2)))
    again = bitmaps(tmp_path / "three" / "other name", 1)
    assert folder(one).fingerprint != folder(two).fingerprint
    assert folder(one).fingerprint == folder(again).fingerprint
    tars = [as_tar(root, tmp_path / root.parent.name / "set.tar") for root in (one, two)]
    for tar in tars:
        os.utime(tar, (1, 1))
    assert folder(tars[0]).fingerprint == folder(one).fingerprint
    assert folder(tars[1]).fingerprint == folder(two).fingerprint


def test_identity_is_of_the_images_that_are_looked_at(pets):
    source = folder(pets)
    few = source.select([0, 5])
    make_folder(pets, {"dog/new.png": (9, 9)})
    assert folder(pets).fingerprint != source.fingerprint
    assert folder(pets).select([0, 5]).fingerprint == few.fingerprint
    prints = [
        source.fingerprint,
        few.fingerprint,
        source.select([5, 0]).fingerprint,
        folder(pets, size=8).fingerprint,
        folder(pets).at_most(4, label="class").fingerprint,
        source.restrict(("dog", "cat")).fingerprint,
    ]
    assert len(set(prints)) == len(prints)


def test_identity_follows_labels_and_size(pets):
    source, prints = folder(pets), [folder(pets).fingerprint]
    (pets / "cat" / "3.png").rename(pets / "dog" / "-.png")  # the same pictures in the same order
    prints.append(folder(pets).fingerprint)
    source = folder(pets)
    source.labels["class"] = source.labels["class"].flip(0)
    prints.append(source.fingerprint)
    source.size = 5
    prints.append(source.fingerprint)
    assert len(set(prints)) == len(prints)


def test_a_folder_that_cannot_be_listed_is_named(pets, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if os.path.basename(path) == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match=r"Permission denied.*dog"):
        folder(pets)


def test_a_file_that_changes_or_vanishes_later_is_named(pets):
    source = folder(pets)
    assert len(source.digests) == 8
    (pets / "cat" / "0.png").unlink()
    (pets / "cat" / "1.png").write_bytes((pets / "dog" / "1.png").read_bytes())
    for i in (0, 1):
        with pytest.raises(ValueError, match=rf"cat/{i}\.png"):
            source.select([i])[0]


# What is left out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (red()[:40], "cannot be decoded"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"<html>404</html>", "HTML"),
        (b"", "empty"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(pets, content, reason):
    (pets / "cat" / "1.png").write_bytes(content)
    source = folder(pets)
    assert len(source) == 8 and source[0].shape[0] == 3
    with pytest.raises(ValueError, match=rf"cat/1\.png cannot be read: .*{reason}.*; repair it or"):
        source[1]


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read, in order."""
    names, own = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (names.append(path.name), own(path))[1])
    return names


def test_opening_and_drawing_read_no_file_and_identity_those_that_were_drawn(tmp_path, read):
    root = make_folder(
        tmp_path / "pets", {f"{c}/{i:02}.png": (8, 8) for c in ("cat", "dog") for i in range(20)}
    )
    source = folder(root)
    few = source.at_most(6, seed=3, label="class")
    assert few.labels["class"].bincount().tolist() == [3, 3]
    assert (read, source.classes, len(source)) == ([], {"class": ("cat", "dog")}, 40)
    assert len(few.digests) == len(read) == 6
    assert few.fingerprint != source.fingerprint and len(read) == 40
    assert folder(root).at_most(99, seed=1).fingerprint == source.subset(40, seed=1).fingerprint
    for n in (0, 41):
        with pytest.raises(ValueError, match=f"holds 40 images; cannot draw {n}"):
            folder(root).subset(n)
    for n in (0, -5):
        with pytest.raises(ValueError, match=f"cannot draw {n}"):
            folder(root).at_most(n)


def test_other_formats_are_counted_and_the_usual_ones_read(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    kinds = {".JFIF": "JPEG", ".webp": "WEBP", ".pgm": "PPM", ".jpeg": "JPEG", ".tif": "TIFF"}
    if ".avif" in Image.registered_extensions():
        kinds[".avif"] = "AVIF"
    for suffix, kind in kinds.items():
        Image.new("L" if kind == "PPM" else "RGB", (8, 8)).save(root / f"a{suffix}", kind)
    for name in ("1.heic", "2.HEIC", "3.svg", ".hidden.heic", "._a.jpeg"):
        (root / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"photos: left out 2 \.heic, 1 \.svg, such as 1\.heic, which"):
        assert folder(root).batch(range(len(kinds))).shape == (len(kinds), 3, 8, 8)


def test_whatever_lies_in_a_folder(pets, tmp_path):
    os.mkfifo(pets / "cat" / "pipe.png")
    (pets / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (pets / "cat" / "self.png").symlink_to(pets / "cat" / "self.png")
    (pets / "dog" / "up").symlink_to(pets)
    (pets / "dog" / "up too").symlink_to("..")
    (pets / "like dog").symlink_to(pets / "dog")
    (pets / "dog" / "other name.png").symlink_to(pets / "cat" / "0.png")
    make_folder(tmp_path / "away", {"fish.png": (5, 5)})
    (pets / "fish").symlink_to(tmp_path / "away")
    with pytest.warns(UserWarning, match=r"left out 3 \.png, 3 without suffix, such as cat/gone\.png"):
        source = folder(pets)
    assert source.classes == {"class": ("cat", "dog", "fish")}
    assert source.labels["class"].bincount().tolist() == [4, 5, 1]


def test_empty_and_missing_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"empty, left out 1 \.txt, such as notes\.txt; looked for"):
        folder(tmp_path / "empty")
    with pytest.raises(MissingDataError, match="nowhere"):
        folder(tmp_path / "nowhere" / "deeper")


# What is no folder


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (red(), "single image"),
        (red("JPEG"), "single image"),
        (b"", "empty"),
        (b"something else", "complete tar archive"),
    ],
)
def test_other_things_than_a_folder_each_get_their_error(tmp_path, content, named):
    path = tmp_path / ("pet.PNG" if named == "single image" else "pets.tar")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named) as caught:
        folder(path)
    assert str(path) in str(caught.value)


def test_zip_archives_and_pipes_get_their_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        archive.writestr("cat/1.png", red())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a zip archive"):
        folder(tmp_path / "pets.zip")
    with pytest.raises(ValueError, match="pipe"):
        folder(tmp_path / "pipe")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_broken_archives_are_named_and_leave_nothing(tmp_path, mode, cache):
    noise = random.Random(0).randbytes(40_000)
    path = tmp_path / "cut.tar"
    with tarfile.open(path, mode) as archive:
        for i in range(4):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = 10_000
            archive.addfile(member, io.BytesIO(noise[i * 10_000 :]))
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(200) + whole[middle + 200 :]
    for content in (whole[:middle], *([damaged] if mode != "w" else [])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.tar"):
            folder(path)
        assert [place for place in cache.rglob("*") if place.name != "images"] == []


def member(name, kind=tarfile.REGTYPE, link=""):
    record = tarfile.TarInfo(name)
    record.type, record.linkname = kind, link
    return record


@pytest.mark.parametrize(
    "members",
    [
        [member("../evil.png")],
        [member("pets/../../evil.png")],
        [member("pets/link", tarfile.SYMTYPE, "/tmp"), member("pets/link/evil.png")],
        [member("pets/link", tarfile.SYMTYPE, "../.."), member("pets/link/evil.png")],
        [member("pets/hard.png", tarfile.LNKTYPE, "/etc/passwd")],
        [member("pets/pipe.png", tarfile.FIFOTYPE)],
        [member("pets/disk.png", tarfile.CHRTYPE)],
    ],
)
def test_malicious_archives_are_refused(tmp_path, members, cache):
    path = tar_of(tmp_path / "evil.tar", [(record, red() if record.isreg() else b"") for record in members])
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"evil\.tar"):
        folder(path)
    assert set(tmp_path.rglob("*")) == before
    assert [place for place in cache.rglob("*") if place.name != "images"] == []


def test_images_that_an_archive_holds_as_links_are_there(pets, tmp_path):
    (pets / "bird").mkdir()
    os.link(pets / "cat" / "0.png", pets / "bird" / "hard.png")
    (pets / "bird" / "soft.png").symlink_to("../dog/3.png")
    (pets / "bird" / "zero.png").symlink_to("zones.png")  # comes after it
    (pets / "bird" / "zones.png").write_bytes(red())
    (pets / "bird" / "lost.png").symlink_to("nowhere.png")
    with pytest.warns(UserWarning, match=r"bird/lost\.png"):
        source, plain = folder(as_tar(pets, tmp_path / "pets.tar")), folder(pets)
    assert source.labels["class"].bincount().tolist() == [4, 4, 4]
    assert source.fingerprint == plain.fingerprint


def _open(path, answers):
    answers.put(folder(path).fingerprint)


def test_processes_may_open_an_archive_at_once(tmp_path, pets, cache):
    path = as_tar(pets, tmp_path / "pets.tar")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_open, args=(path, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    prints = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert prints == {folder(pets).fingerprint}
    assert len(list(cache.glob("images/unpacked-*"))) == 1 and not list(cache.rglob(".tmp-*"))


# Mean and deviation


@pytest.mark.parametrize("side", [64, 2048])
def test_mean_and_deviation_of_pictures_with_black_margins(tmp_path, side):
    rng = np.random.default_rng(0)
    total = []
    for i in range(2):
        pixels = rng.integers(256, size=(side // 16, side, 3), dtype=np.uint8)
        pixels[:, : side // 16] = pixels[:, -(side // 16) :] = 0
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        total.append(pixels.reshape(-1, 3) / 255)
    source = folder(tmp_path)
    assert np.allclose(source.mean, np.concatenate(total).mean(0), atol=1e-12)
    assert np.allclose(source.std, np.concatenate(total).std(0), atol=1e-12)


@pytest.mark.parametrize("white", [lambda i: i % 2, lambda i: i // 100], ids=["every other", "the last half"])
def test_mean_of_many_pictures_is_of_a_random_sample(tmp_path, monkeypatch, white):
    monkeypatch.setattr("nbhelpers.images.folders.STATISTICS_IMAGES", 100)
    for i in range(200):  # a stride, or the first hundred, would see one colour alone
        Image.new("L", (4, 4), 255 * white(i)).save(tmp_path / f"{i:03}.png")
    source = folder(tmp_path)
    assert 0.35 < source.mean[0] < 0.65
    assert source.subset(10).mean == source.mean
