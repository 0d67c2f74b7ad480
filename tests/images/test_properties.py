"""Generated image files: pixels against NumPy, and an identity that follows pixels and nothing else."""

import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from nbhelpers.images import folder
from nbhelpers.images.decode import RefusedError, decode

settings.register_profile("images", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("images")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
SIDES = st.integers(1, 9)
LOSSLESS = {"PNG": {}, "TIFF": {}, "BMP": {}, "WEBP": {"lossless": True, "exact": True}}


def over_white(colour, alpha):
    """Colours `H W 3` laid on white with alpha `H W`, both 0..255."""
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def grey(plane):
    return np.repeat(plane[..., None].astype(float), 3, axis=2)


def upright(pixels, orientation):
    """What EXIF says of a stored array: which side is the top, and which the left."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1)}[
        {5: 1, 6: 2, 7: 3, 8: 4}.get(orientation, orientation)
    ]
    return pixels[::rows, ::columns]


@st.composite
def pictures(draw):
    """(image, right 8-bit RGB, formats that hold the mode without loss)."""
    shape = draw(st.tuples(SIDES, SIDES))
    mode = draw(st.sampled_from(["1", "L", "LA", "RGB", "RGBA", "P", "P+alpha", "CMYK"]))
    depth = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode)
    values = draw(arrays(np.uint8, (*shape, depth) if depth else shape))
    planes = values.astype(float)
    if mode == "1":
        return Image.fromarray(values > 127), grey(255 * (values > 127)), ("PNG", "TIFF", "BMP")
    if mode == "L":
        return Image.fromarray(values), grey(planes), ("PNG", "TIFF", "BMP")
    if mode == "LA":
        right = over_white(grey(planes[..., 0]), planes[..., 1])
        return Image.fromarray(values, "LA"), right, ("PNG", "TIFF")
    if mode == "RGB":
        return Image.fromarray(values), planes, tuple(LOSSLESS)
    if mode == "RGBA":
        return Image.fromarray(values), over_white(planes[..., :3], planes[..., 3]), ("PNG", "TIFF", "WEBP")
    if mode == "CMYK":
        ink = 255 - planes
        return Image.fromarray(values, "CMYK"), ink[..., :3] * ink[..., 3:] / 255, ("TIFF",)
    palette = draw(arrays(np.uint8, (256, 3)))
    image = Image.fromarray(values, "P")
    image.putpalette(palette.tobytes())
    if mode == "P":
        return image, palette[values].astype(float), ("PNG", "TIFF", "BMP")
    alpha = draw(arrays(np.uint8, 256))
    image.info["transparency"] = alpha.tobytes()
    return image, over_white(palette[values], alpha[values]), ("PNG",)


@given(pictures(), st.data())
def test_decoded_pixels_are_those_of_numpy(picture, data):
    image, expected, kinds = picture
    kind = data.draw(st.sampled_from(kinds))
    options = dict(LOSSLESS.get(kind, {}))
    if kind in ("PNG", "TIFF", "WEBP"):
        orientation = data.draw(st.integers(0, 9))  # 0 and 9 mean nothing
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
        if 1 <= orientation <= 8:
            expected = upright(expected, orientation)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    decoded = decode(buffer.getvalue()).permute(1, 2, 0).numpy()
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= 1


@given(pictures(), st.data())
def test_any_cut_is_a_reason_and_never_another_error(picture, data):
    image, _, kinds = picture
    buffer = io.BytesIO()
    image.save(buffer, data.draw(st.sampled_from(kinds)))
    whole = bytearray(buffer.getvalue())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[place] ^= data.draw(st.integers(1, 255))
    else:
        del whole[place:]
    try:
        pixels = decode(bytes(whole))
    except RefusedError as error:
        assert str(error) and "0x" not in str(error)  # one reason, not an address in memory each
    else:
        assert pixels.shape[0] == 3


NAMES = st.lists(st.text("abcXYZ019 _é", min_size=1, max_size=6), min_size=4, max_size=4, unique=True)
PIXELS = arrays(np.uint8, (4, 2, 3, 3))


@settings(max_examples=20)
@given(PIXELS, NAMES, st.permutations(range(4)), st.integers(0, 71), st.integers(1, 255))
def test_identity_follows_pixels_and_neither_disk_order_nor_times(pixels, names, order, place, change):
    assume(len({name.lower() for name in names}) == 4)  # a disk may not tell them apart
    names = sorted(names)
    with tempfile.TemporaryDirectory() as place_of_all:

        def write(name, pixels, order, time):
            root = Path(place_of_all) / name
            for i in order:
                path = root / names[i][0].upper() / f"{names[i]}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[i]).save(path)
                os.utime(path, (time + i, time))
            return folder(root, size=2).fingerprint

        first = write("first", pixels, range(4), 1)
        assert write("again", pixels, order, 10**9) == first
        changed = pixels.copy()
        changed.flat[place] ^= change
        assert write("changed", changed, range(4), 1) != first
        shutil.copytree(Path(place_of_all) / "first", Path(place_of_all) / "copy")
        assert folder(Path(place_of_all) / "copy", size=2).fingerprint == first
