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

from nbhelpers.files import TEMPORARY
from nbhelpers.images import MissingDataError, folder


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


def unpacked(cache):
    return [path for path in cache.glob("images/unpacked-*") if path.is_dir()]


def red(kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, kind)
    return buffer.getvalue()


def left(cache):
    """What was unpacked, or left of trying to."""
    return [place for place in cache.rglob("*") if place.name != "images"]


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


@pytest.mark.parametrize("mode", ["w", "w:xz"])
def test_an_archive_is_unpacked_once_and_read_as_the_folder(pets, tmp_path, as_tar, mode, cache, monkeypatch):
    path = as_tar(pets, tmp_path / "pets.tar", mode)
    source = folder(path, size=8)
    assert source.fingerprint == folder(pets, size=8).fingerprint and source.origin == "pets.tar"
    assert torch.equal(source.batch(range(8)), folder(pets, size=8).batch(range(8)))
    monkeypatch.setattr("nbhelpers.images.folders._unpack", None)
    assert folder(path, size=8).fingerprint == source.fingerprint
    assert len(unpacked(cache)) == 1


def test_several_sets_side_by_side_are_named(tmp_path):
    for part in ("train", "val"):
        make_folder(tmp_path / "sets" / part, LAYOUT)
    with pytest.raises(ValueError, match=r"train/cat.*name one set's folder"):
        folder(tmp_path / "sets")


def test_flat_folder_is_one_class(tmp_path):
    source = folder(make_folder(tmp_path / "holiday", {"1.png": (8, 8), "2.png": (8, 8)}))
    assert source.classes == {"class": ("holiday",)} and source.labels["class"].tolist() == [0, 0]
    make_folder(tmp_path / "holiday", {"beach/3.png": (8, 8)})
    with pytest.raises(ValueError, match="beach"):
        folder(tmp_path / "holiday")


# Identity: that it follows pixels, and neither names nor times, is in test_properties.py


def test_identity_is_of_the_images_that_are_looked_at_their_order_labels_and_size(pets):
    source, few = folder(pets), folder(pets).select([0, 5])
    relabelled, sized = folder(pets), folder(pets)
    relabelled.labels["class"] = relabelled.labels["class"].flip(0)
    sized.size = 8
    prints = [source, few, relabelled, sized, source.select([5, 0])]
    prints = [each.fingerprint for each in prints]
    make_folder(pets, {"dog/new.png": (9, 9)})
    assert folder(pets).select([0, 5]).fingerprint == few.fingerprint
    prints.append(folder(pets).fingerprint)
    (pets / "dog" / "new.png").unlink()
    (pets / "cat" / "3.png").rename(pets / "dog" / "-.png")  # the same pictures in the same order
    prints.append(folder(pets).fingerprint)
    assert len(set(prints)) == len(prints)


def test_images_that_are_decoded_in_another_way_are_others(pets, monkeypatch):
    before = folder(pets, size=8).fingerprint
    monkeypatch.setattr("nbhelpers.images.folders.DECODER", 0)
    assert folder(pets, size=8).fingerprint != before


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read, in order."""
    names, own = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (names.append(path.name), own(path))[1])
    return names


def test_opening_and_drawing_read_no_file_and_identity_those_that_were_drawn(pets, read):
    source = folder(pets)
    few = source.at_most(6, seed=3, label="class")
    assert few.labels["class"].bincount().tolist() == [3, 3]
    assert (read, source.classes, len(source)) == ([], {"class": ("cat", "dog")}, 8)
    assert len(few.digests) == len(read) == 6
    assert few.fingerprint != source.fingerprint and len(read) == 8


def test_a_folder_that_cannot_be_listed_is_named(pets, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if os.path.basename(path) == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="dog"):
        folder(pets)


def test_a_file_that_changes_or_vanishes_later_or_is_damaged_is_named(pets):
    (pets / "dog" / "0.png").write_bytes(red()[:40])
    source = folder(pets)
    assert len(source.digests) == 8
    (pets / "cat" / "0.png").unlink()
    (pets / "cat" / "1.png").write_bytes(red())
    for i, name, reason in ((0, "cat/0", "No such file"), (1, "cat/1", "changed"), (4, "dog/0", "decoded")):
        with pytest.raises(ValueError, match=rf"{name}\.png cannot be read: .*{reason}.*; repair it or"):
            source.select([i])[0]


# What is left out


def test_other_formats_are_counted(tmp_path):
    make_folder(tmp_path / "photos", {f"a{suffix}": (8, 8) for suffix in (".JPEG", ".webp", ".tif")})
    for name in ("1.heic", "2.HEIC", "3.svg", ".hidden.heic", "._a.jpeg"):
        (tmp_path / "photos" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"photos: left out 2 \.heic, 1 \.svg, such as 1\.heic, which"):
        assert folder(tmp_path / "photos").batch(range(3)).shape == (3, 3, 8, 8)


def test_whatever_lies_in_a_folder(pets, tmp_path):
    os.mkfifo(pets / "cat" / "pipe.png")
    (pets / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (pets / "cat" / "self.png").symlink_to(pets / "cat" / "self.png")
    (pets / "dog" / "up").symlink_to(pets)
    (pets / "like dog").symlink_to(pets / "dog")
    (pets / "dog" / "other name.png").symlink_to(pets / "cat" / "0.png")
    make_folder(tmp_path / "away", {"fish.png": (5, 5)})
    (pets / "fish").symlink_to(tmp_path / "away")
    with pytest.warns(UserWarning, match=r"left out 3 \.png, 2 without suffix, such as cat/gone\.png"):
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


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cat/1.png", red())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("pets.tar", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        ("pets.tar", b"something else", "complete tar archive"),
        ("pets.zip", zipped(), "zip archive"),
        ("pet.PNG", red(), "single image"),
        ("pipe", None, "nor a regular file"),
    ],
)
def test_other_things_than_a_folder_each_get_their_error(tmp_path, name, content, what):
    path = tmp_path / name
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is .*{what}"):
        folder(path)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_broken_archives_are_named_and_leave_nothing(tmp_path, mode, cache):
    noise = random.Random(0).randbytes(40_000)
    path = tmp_path / "cut.tar"
    with tarfile.open(path, mode) as archive:
        for i in range(4):
            record = tarfile.TarInfo(f"{i}.png")
            record.size = 10_000
            archive.addfile(record, io.BytesIO(noise[i * 10_000 :]))
    whole = path.read_bytes()
    middle = len(whole) // 2
    at = 10_752 if mode == "w" else middle  # the second record's name, at which tarfile stops without a word
    for content in (whole[:middle], whole[:at] + b"x" * 100 + whole[at + 100 :]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.tar is not a complete"):
            folder(path)
        assert left(cache) == []


def test_a_full_disk_is_no_broken_archive(pets, tmp_path, as_tar, cache, monkeypatch):
    def full(archive, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nbhelpers.images.folders._unpack", full)
    with pytest.raises(OSError, match="No space"):
        folder(as_tar(pets, tmp_path / "pets.tar"))
    assert left(cache) == []


@pytest.mark.parametrize(
    "members",
    [
        [("../evil.png", tarfile.REGTYPE, "")],
        [("pets/link", tarfile.SYMTYPE, "../.."), ("pets/link/evil.png", tarfile.REGTYPE, "")],
        [("pets/hard.png", tarfile.LNKTYPE, "/etc/passwd")],
        [("pets/disk.png", tarfile.CHRTYPE, "")],
    ],
)
def test_malicious_archives_are_refused(tmp_path, members, cache):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, kind, link in members:
            record = tarfile.TarInfo(name)
            record.type, record.linkname = kind, link
            archive.addfile(record)
    with pytest.raises(ValueError, match=r"evil\.tar"):
        folder(tmp_path / "evil.tar")
    assert os.listdir(tmp_path) == ["evil.tar"] and left(cache) == []


def test_images_that_an_archive_holds_as_links_are_there(pets, tmp_path, as_tar):
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


def _fingerprint(path):
    return folder(path).fingerprint


def test_processes_may_open_an_archive_at_once(tmp_path, pets, as_tar, cache):
    path = as_tar(pets, tmp_path / "pets.tar")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        prints = pool.map(_fingerprint, [path] * 4, chunksize=1)
    assert set(prints) == {_fingerprint(pets)}
    assert len(unpacked(cache)) == 1 and not list(cache.rglob(f"{TEMPORARY}*"))


def test_an_archive_whose_files_were_cleaned_from_the_cache_is_unpacked_again(tmp_path, pets, as_tar, cache):
    path = as_tar(pets, tmp_path / "pets.tar")
    before = folder(path)
    for file in before.files[::2]:
        file.unlink()
    assert folder(path).fingerprint == before.fingerprint


def test_an_archive_that_is_packed_anew_under_its_name_is_unpacked_anew(tmp_path, pets, as_tar):
    before = folder(as_tar(pets, tmp_path / "pets.tar")).fingerprint
    (pets / "cat" / "0.png").write_bytes(red())
    assert folder(as_tar(pets, tmp_path / "pets.tar")).fingerprint == folder(pets).fingerprint != before


def test_parts_of_a_set_that_look_like_classes_are_named(tmp_path):
    make_folder(tmp_path, {f"{part}/{i}.png": (8, 8) for part in ("images", "masks") for i in range(3)})
    with pytest.warns(UserWarning, match="images, masks are taken for classes"):
        folder(tmp_path)


# Mean and deviation


def test_mean_and_deviation_of_pictures_with_black_margins(tmp_path):
    rng = np.random.default_rng(0)
    total = []
    for i in range(2):
        pixels = rng.integers(256, size=(4, 64, 3), dtype=np.uint8)
        pixels[:, :4] = pixels[:, -4:] = 0
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        total.append(pixels.reshape(-1, 3) / 255)
    source = folder(tmp_path)
    assert np.allclose(source.mean, np.concatenate(total).mean(0), atol=1e-12)
    assert np.allclose(source.std, np.concatenate(total).std(0), atol=1e-12)


def test_mean_of_many_pictures_is_of_a_random_sample_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("nbhelpers.images.folders.STATISTICS_IMAGES", 50)
    for i in range(100):  # the first fifty would be black
        Image.new("L", (4, 4), 255 * (i // 50)).save(tmp_path / f"{i:03}.png")
    source = folder(tmp_path)
    assert 0.3 < source.mean[0] < 0.7
    assert source.subset(10).mean == source.mean
