"""Bytes of image files as 8-bit RGB: every mode against a value known beforehand, or a refusal by name."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from nbhelpers.files import disguise
from nbhelpers.images.decode import SUFFIXES, RefusedError, decode, resize


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(depth, colour_type, rows, *chunks):
    """A PNG by hand: rows are bytes, chunks (name, content) come before the pixels."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    width = len(rows[0]) * 8 // depth // {0: 1, 2: 3}[colour_type]
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def palette_with_transparency(alpha):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 40])
    return encoded(image, transparency=bytes([255, alpha]))


KNOWN = {
    "1": (encoded(Image.new("1", (4, 4), 1)), (255, 255, 255)),
    "L": (encoded(Image.new("L", (4, 4), 77)), (77, 77, 77)),
    "LA": (encoded(Image.new("LA", (4, 4), (100, 51))), (224, 224, 224)),
    "RGBA": (encoded(Image.new("RGBA", (4, 4), (10, 20, 30, 0))), (255, 255, 255)),
    "P": (palette_with_transparency(255), (200, 100, 40)),
    "P with alpha": (palette_with_transparency(51), (244, 224, 212)),
    "GIF": (encoded(Image.new("P", (4, 4), 0), "GIF"), (0, 0, 0)),
    "CMYK": (encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "TIFF"), (255, 255, 255)),
    "16-bit RGB": (png(16, 2, [struct.pack(">3H", 25700, 0, 65535)]), (100, 0, 255)),
    "LAB": (encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF"), (255, 255, 255)),
    "colour key": (png(8, 2, [bytes([9, 8, 7])], (b"tRNS", struct.pack(">3H", 9, 8, 7))), (255, 255, 255)),
    "WebP": (encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "WEBP", lossless=True), (204, 204, 204)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_mode_has_the_value_it_should(name):
    data, colour = KNOWN[name]
    image = decode(data)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    assert (image.int() - torch.tensor(colour)[:, None, None]).abs().max() <= 1


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), "mode I"),
        (encoded(Image.fromarray(np.full((4, 4), 32768, np.uint16))), "more than 8 bits"),
        (encoded(Image.fromarray(np.full((4, 4), 32768, np.uint16)), "TIFF"), "more than 8 bits"),
        (b"P5\n1 1\n65535\n" + struct.pack(">H", 25700), "more than 8 bits"),
        (encoded(Image.fromarray(np.array([[0, 2]], np.float32)), "TIFF"), "mode F"),
        (png(4, 0, [b"\x12"], (b"tRNS", struct.pack(">H", 1))), "PNG of 4 bits"),
        (png(16, 0, [b"\x12\x34"], (b"tRNS", struct.pack(">H", 0x1234))), "PNG of 16 bits"),
        (encoded(Image.new("1", (19_000, 19_000))), "exceeds limit"),
    ],
)
def test_what_has_no_known_white_or_is_too_large_is_refused_by_name(data, named):
    with pytest.raises(RefusedError, match=named):
        decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_are_upright(orientation, kind):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # white at the top left
    undo = {  # what the camera stored, of what it saw
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    seen = decode(encoded(stored, kind, exif=exif)).permute(1, 2, 0).numpy()
    assert seen.shape == upright.shape
    assert np.abs(seen.astype(int) - upright).max() < 30  # JPEG and WebP lose a little


def test_transparency_of_deep_images_composes():
    premultiplied = Image.new("RGBA", (2, 2), (100, 100, 100, 128)).convert("RGBa")
    assert resize(premultiplied)[:, 0, 0].tolist() == pytest.approx([177] * 3, abs=1)


def test_resize_covers_and_crops_at_the_centre():
    image = Image.new("RGB", (12, 4))
    image.paste((255, 255, 255), (4, 0, 8, 4))  # the middle third is white
    assert (resize(image, 4) == 255).all()
    assert (resize(image, (4, 4)) == 255).all()
    wide = resize(image, (2, 6))
    assert wide.shape == (3, 2, 6) and wide[0, 0].tolist()[0] < 64 < 192 < wide[0, 0].tolist()[3]
    assert torch.equal(resize(image, (4, 12)), resize(image))
    assert resize(image, 9).shape == (3, 9, 9)
    with pytest.raises(ValueError, match="0"):
        resize(image, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_truncated_files_are_flawed(kind):
    data = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    decode(data)
    for broken in (data[: len(data) // 2], b"", b"no image at all"):
        with pytest.raises(RefusedError):
            decode(broken)


def test_lack_of_memory_says_nothing_about_a_file(monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(MemoryError):
        decode(KNOWN["L"][0])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
        (b"\n<!DOCTYPE html>\n<title>404</title>", "HTML"),
        (b"PK\x03\x04 and more", "zip"),
    ],
)
def test_disguises(data, named):
    with pytest.raises(RefusedError, match=named):
        decode(data)
    assert disguise(KNOWN["L"][0]) is None


def test_usual_photographs_are_read():
    assert {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".pgm", ".ppm", ".tif", ".bmp", ".gif"} <= set(
        SUFFIXES
    )
    assert not {".eps", ".pdf", ".ps"} & set(SUFFIXES)
