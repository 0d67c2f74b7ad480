"""Reading image files out of folders and tar archives."""

import io
import tarfile

import pytest
import torch
from PIL import Image

from nbhelpers.images.archive import decode, is_sound, list_images, read_images, resize, stamp


def encoded(colour, size=(8, 6), kind="PNG", mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NBHELPERS_CACHE", str(folder))
    return folder


FILES = {
    "./b/2.png": encoded("red"),
    "a/1.JPG": encoded("blue", kind="JPEG"),
    "notes.txt": b"no image",
    "b/._2.png": b"",
}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_of_any_compression(tmp_path, mode, cache):
    path = write_tar(tmp_path / "some.tar", FILES, mode)
    listed = list_images(path)
    assert [file.name for file in listed] == ["a/1.JPG", "b/2.png"]
    assert [file.read() for file in listed] == [FILES["a/1.JPG"], FILES["./b/2.png"]]
    assert dict(read_images(path)) == {file.name: file.read() for file in listed}
    assert len(list(cache.rglob("*.tar"))) == (mode != "w")
    assert list_images(path) == listed


def test_folders_and_links_to_folders(tmp_path):
    root = tmp_path / "root"
    for name, data in FILES.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (root / "c").symlink_to(root / "a")
    names = [file.name for file in list_images(root)]
    assert names == ["a/1.JPG", "b/2.png", "c/1.JPG"]
    assert dict(read_images(root))["c/1.JPG"] == FILES["a/1.JPG"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_broken_archives_are_named(tmp_path, mode):
    path = write_tar(tmp_path / "cut.tar", {f"{i}.png": bytes(range(256)) * 40 for i in range(4)}, mode)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for read in (list_images, lambda path: list(read_images(path))):
        with pytest.raises(ValueError, match=r"cut\.tar is not a complete tar archive"):
            read(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"cut\.tar is not a complete tar archive"):
        list_images(path)


def test_stamp_follows_name_size_and_time(tmp_path):
    path = write_tar(tmp_path / "a.tar", FILES)
    first = stamp(path)
    assert stamp(path) == first
    moved = tmp_path / "elsewhere" / "a.tar"
    moved.parent.mkdir()
    path.rename(moved)
    assert stamp(moved) == first
    with moved.open("ab") as file:
        file.write(b"x")
    assert stamp(moved) != first
    before = stamp(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "new.png").write_bytes(FILES["./b/2.png"])
    assert stamp(tmp_path / "elsewhere") != before


@pytest.mark.parametrize(
    ("mode", "colour", "kind"),
    [
        ("L", 255, "PNG"),
        ("1", 1, "PNG"),
        ("LA", (255, 255), "PNG"),
        ("P", 0, "GIF"),
        ("CMYK", (0, 0, 0, 0), "JPEG"),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, kind):
    image = decode(encoded(colour, kind=kind, mode=mode))
    assert image.shape == (3, 6, 8) and image.dtype == torch.uint8
    assert (image == (0 if mode == "P" else 255)).all()


def test_resize_covers_and_crops_at_the_centre():
    image = Image.new("RGB", (12, 4))
    image.paste((255, 255, 255), (4, 0, 8, 4))  # the middle third is white
    assert (resize(image, 4) == 255).all()
    assert (resize(image, (4, 4)) == 255).all()
    wide = resize(image, (2, 6))
    assert wide.shape == (3, 2, 6) and wide[0, 0].tolist()[0] < 64 < 192 < wide[0, 0].tolist()[3]
    assert torch.equal(resize(image, (4, 12)), resize(image))
    assert resize(image, 9).shape == (3, 9, 9)
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        resize(image, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_truncated_files_are_not_sound(kind):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, kind)
    data = buffer.getvalue()
    assert is_sound(data)
    assert not is_sound(data[: len(data) // 2])
    assert not is_sound(b"") and not is_sound(b"no image at all")
