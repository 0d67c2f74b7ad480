"""The bytes of an image file as `uint8 3 H W`, or a refusal by name."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nbhelpers.files import disguise

Image.init()
# Those of Pillow's that read photographs in their own process; EPS, for one, starts Ghostscript.
FORMATS = [kind for kind in "JPEG PNG BMP DIB GIF PPM TIFF WEBP AVIF".split() if kind in Image.OPEN]
SUFFIXES = tuple(sorted(end for end, kind in Image.registered_extensions().items() if kind in FORMATS))
DECODER = 1  # part of every fingerprint: raise it when the same bytes give other pixels
BACKGROUND = "white"  # what shows through transparent pixels

Size = int | tuple[int, int]


class RefusedError(ValueError):
    """An image file that is damaged or too large, or of which it is unclear what is white in it."""


def decode(data: bytes, size: Size | None = None) -> Tensor:
    """An image file's bytes as `uint8 3 H W`, upright, resized where `size` is given (see `resize`).

    Transparent pixels lie on white; of an animation the first picture is taken.

    Raises:
        RefusedError: no image, damaged, too large for Pillow, or grey of more than 8 bits.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Pillow compares a transparent colour, stored at the file's depth, with values of 8 bits.
            by_colour = image.format == "PNG" and image.mode != "P" and "transparency" in image.info
            if by_colour and (depth := data[24]) != 8:
                raise RefusedError(f"it has a transparent colour in a PNG of {depth} bits; save it with 8")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            upright = _rgb(image)
    except (MemoryError, RefusedError):  # a lack of memory says nothing about the file
        raise
    except Image.DecompressionBombError as error:
        raise RefusedError(str(error)) from error
    except Exception as error:  # Pillow's plug-ins raise almost any type on broken bytes
        raise RefusedError(disguise(data) or "it cannot be decoded") from error
    return resize(upright, size)


def resize(image: Image.Image, size: Size | None = None) -> Tensor:
    """A Pillow image of any mode as `uint8 3 H W`.

    With `size` (one number, or rows and columns) it is scaled to cover that many pixels (bicubic, aspect
    kept) and what stands out is cropped at the centre.

    >>> resize(Image.new("L", (8, 4), 255), 2).tolist()[0]
    [[255, 255], [255, 255]]

    Raises:
        ValueError: `size` is not positive.
    """
    image = _rgb(image)
    if size is not None:
        rows, columns = (size, size) if isinstance(size, int) else size
        if min(rows, columns) < 1:
            raise ValueError(f"size must be positive, got {size}")
        image = ImageOps.fit(image, (columns, rows), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, transparent pixels on the background."""
    if image.mode.startswith(("I", "F")):  # Pillow would cut values off at 255
        what = f"it is grey with more than 8 bits (mode {image.mode})"
        raise RefusedError(f"{what}, so it is unknown which value is white; save it with 8")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image.convert("RGB")
