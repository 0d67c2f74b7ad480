"""What the page of interactive maps holds is what the encoder attends to; what is left out is said."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from nbhelpers import interactive
from nbhelpers.interactive import explore
from nbhelpers.measure import attention_maps
from nbhelpers.metrics import attention_distance, patch_distances
from nbhelpers.models import mini_vit, wrap


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    module = mini_vit(width=32, depth=2, heads=2)
    for block in module.blocks:  # maps of random weights are flat: make them selective
        block.attn.qkv.weight.data *= 30
    return wrap(module, name="mine", objective="unknown", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def image():
    return torch.randint(256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def content(page):
    """The data that the page carries for its script."""
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page.data, flags=re.DOTALL)
    return json.loads(data)


def array(model, key, dtype="<f4", *shape):
    """One of a model's arrays `L H N`, or of another shape."""
    values = np.frombuffer(base64.b64decode(model[key]), dtype)
    return torch.from_numpy(values.reshape(shape or (model["depth"], model["heads"], 64)).astype("f4"))


def test_the_page_holds_the_maps_to_within_quantisation_and_their_distances(encoder, image):
    found = content(explore(image, [encoder]))
    (model,) = found["models"]
    attention = attention_maps(encoder, image)[:, 0]  # L H N N
    assert (model["depth"], model["heads"]) == attention.shape[:2]
    assert model["grid"] == [8, 8] and model["label"] == "mine" and found["note"] == ""
    peaks = array(model, "peaks")
    assert torch.equal(peaks, attention.amax(-1))
    assert peaks.max() > 0.1  # one key of 64 stands out: not the flat maps that anything would match
    stored = array(model, "maps", "u1", *attention.shape) / 255 * peaks[..., None]
    assert ((stored - attention).abs() <= peaks[..., None] / 510 + 1e-6).all()
    expected = attention_distance(attention, encoder.grid, encoder.patch_size)
    torch.testing.assert_close(array(model, "distances").mean(-1), expected)
    assert array(model, "uniform", "<f4", 64).tolist() == pytest.approx(
        patch_distances((8, 8), 4).mean(-1).tolist()
    )


def test_the_maps_are_of_the_whole_image_that_is_drawn(encoder, image):
    wide = image.repeat_interleave(4, 2).repeat_interleave(8, 3)  # 128 x 256 px
    (model,) = content(explore(wide, [replace(encoder, crop=0.5)]))["models"]
    small = transforms.resize(wide, [32, 32], antialias=True, interpolation=InterpolationMode.BICUBIC)
    torch.testing.assert_close(array(model, "peaks"), attention_maps(encoder, small)[:, 0].amax(-1))


def test_seeds_are_called_by_name_and_the_image_is_shown_as_it_is(encoder, image):
    names = ["shapes.cl", "shapes.cl.s1"]
    found = content(explore(image, [replace(encoder, name=name) for name in names]))
    assert [model["label"] for model in found["models"]] == names
    head, data = found["image"].split(",")
    assert head == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.array_equal(shown, image[0].permute(1, 2, 0).numpy())


def test_without_scripts_a_sentence_is_left_and_a_name_ends_nothing(encoder, image):
    page = explore(image, [replace(encoder, name="</script><b>")])
    visible = re.sub(r"<(script|style).*?</\1>", "", page.data, flags=re.DOTALL)
    assert re.sub(r"<.*?>", "", visible).strip() == interactive.FALLBACK
    assert content(page)["models"][0]["label"] == "</script><b>"
    assert not re.search("https?:", page.data)  # nothing is fetched


def test_single_heads_that_are_too_large_for_a_page_are_left_out_and_named(encoder, image, monkeypatch):
    monkeypatch.setattr(interactive, "LIMIT", 2 * 2 * 64**2 - 1)
    shown = content(explore(image, [encoder]))
    assert "Means over heads" in shown["note"] and shown["models"][0]["heads"] == 1
    mean = attention_maps(encoder, image)[:, 0].mean(1, keepdim=True)
    torch.testing.assert_close(array(shown["models"][0], "peaks"), mean.amax(-1))
