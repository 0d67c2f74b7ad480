"""Bytes of image files as 8-bit RGB: every mode against a value known beforehand, or a refusal by name."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

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


GREY16 = Image.fromarray(np.full((4, 4), 32768, np.uint16))
KNOWN = {
    "GIF": (encoded(Image.new("P", (4, 4), 0), "GIF"), (0, 0, 0)),
    "16-bit RGB": (png(16, 2, [struct.pack(">3H", 25700, 0, 65535)]), (100, 0, 255)),
    "LAB": (encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF"), (255, 255, 255)),
    "colour key": (png(8, 2, [bytes([9, 8, 7])], (b"tRNS", struct.pack(">3H", 9, 8, 7))), (255, 255, 255)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_modes_that_are_not_generated_have_the_value_they_should(name):
    data, colour = KNOWN[name]
    image = decode(data)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    assert (image.int() - torch.tensor(colour)[:, None, None]).abs().max() <= 1


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), "mode I"),
        (encoded(GREY16), "more than 8 bits"),
        (b"P5\n1 1\n65535\n" + struct.pack(">H", 25700), "more than 8 bits"),
        (encoded(Image.fromarray(np.array([[0, 2]], np.float32)), "TIFF"), "mode F"),
        (png(4, 0, [b"\x12"], (b"tRNS", struct.pack(">H", 1))), "PNG of 4 bits"),
        (png(16, 0, [b"\x12\x34"], (b"tRNS", struct.pack(">H", 0x1234))), "PNG of 16 bits"),
        (encoded(Image.new("1", (19_000, 19_000))), "exceeds limit"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"no image at all", "cannot be decoded"),
    ],
)
def test_what_is_no_image_too_large_or_has_no_known_white_is_refused_by_name(data, named):
    with pytest.raises(RefusedError, match=named):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_truncated_files_are_refused(kind):
    data = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    decode(data)
    with pytest.raises(RefusedError):
        decode(data[: len(data) // 2])


def test_a_photograph_of_a_turned_camera_is_upright():
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # white at the top left
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    seen = decode(encoded(stored, "JPEG", exif=exif)).permute(1, 2, 0).numpy()
    assert np.abs(seen.astype(int) - upright).max() < 30  # JPEG loses a little


def test_transparency_of_deep_images_composes():
    premultiplied = Image.new("RGBA", (2, 2), (100, 100, 100, 128)).convert("RGBa")
    assert resize(premultiplied)[:, 0, 0].tolist() == pytest.approx([177] * 3, abs=1)


def test_resize_covers_and_crops_at_the_centre():
    image = Image.new("RGB", (12, 4))
    image.paste((255, 255, 255), (4, 0, 8, 4))  # the middle third is white
    assert (resize(image, 4) == 255).all()
    wide = resize(image, (2, 6))
    assert wide.shape == (3, 2, 6) and wide[0, 0].tolist()[0] < 64 < 192 < wide[0, 0].tolist()[3]
    assert torch.equal(resize(image, (4, 12)), resize(image))
    assert resize(image, 9).shape == (3, 9, 9) and resize(image, 1).shape == (3, 1, 1)
    with pytest.raises(ValueError, match="0"):
        resize(image, 0)


def test_resize_is_bicubic_as_pillow_does_it():
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(9, 12, 3), dtype=np.uint8))
    for rows, columns in ((3, 4), (18, 24)):
        expected = np.array(noise.resize((columns, rows), Image.Resampling.BICUBIC))
        assert np.array_equal(resize(noise, (rows, columns)).permute(1, 2, 0).numpy(), expected)


def test_lack_of_memory_says_nothing_about_a_file(monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(MemoryError):
        decode(KNOWN["GIF"][0])


def test_usual_photographs_are_read():
    usual = ".jpg .jpeg .jfif .png .webp .pgm .ppm .tif .bmp .gif".split()
    assert set(usual) <= set(SUFFIXES) and not {".eps", ".pdf", ".ps"} & set(SUFFIXES)
