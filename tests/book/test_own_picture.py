"""The reader's own picture: the browser's numbers are PyTorch's; mouse and keyboard work the page."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nbhelpers import load
from nbhelpers.capture import capture
from nbhelpers.images import photographs, shapes
from nbhelpers.measure import attention_maps
from nbhelpers.metrics import attention_distance, normalized_mutual_information, patch_tokens
from nbhelpers.models import mini_vit, wrap
from nbhelpers.own_picture import SUFFIX, weights

CORE = files("nbhelpers") / "own_picture" / "core.js"
ENCODERS = ("cifar10.cl", "cifar10.mim", "shapes.cl", "shapes.mim")
# What the page's Worker does, under node: tasks come on standard input, answers go to standard output.
HARNESS = """
const { readFileSync } = require("fs");
const [core, ...scripts] = process.argv.slice(1);
const ownPictureCore = new Function(readFileSync(core, "utf8") + "; return ownPictureCore;")();
const models = {};
const ownPicture = { receive: (content) => (models[content.name] = ownPictureCore.decode(content)) };
for (const script of scripts) new Function("ownPicture", readFileSync(script, "utf8"))(ownPicture);
const plain = (value) => ArrayBuffer.isView(value)
  ? Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") : value;
const answers = JSON.parse(readFileSync(0, "utf8")).map(({ name, pixels, side, size }) => {
  const bytes = Uint8Array.from(Buffer.from(pixels, "base64"));
  const found = side
    ? { small: ownPictureCore.shrink(bytes, side, size) }
    : ownPictureCore.look(models[name], bytes);
  return Object.fromEntries(Object.entries(found).map(([key, value]) => [key, plain(value)]));
});
process.stdout.write(JSON.stringify(answers));
"""


def text(pixels: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()


def array(text: str, dtype: str, *shape: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).reshape(shape).copy())


def run(tasks: list[dict], *scripts: Path) -> list[dict]:
    """The answers of the page's core to some tasks."""
    if (node := shutil.which("node")) is None:
        pytest.skip("no node on the PATH to run the page's script without a browser")
    command = [node, "-e", HARNESS, "--", str(CORE), *map(str, scripts)]
    done = subprocess.run(command, input=json.dumps(tasks), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@cache
def pictures() -> Tensor:
    """Three pictures, uint8 `3 3 32 32`: two photographs and a generated one."""
    return torch.cat([photographs(32).batch([0, 2]), shapes("test").batch([7])])


def pixels(image: Tensor) -> np.ndarray:
    """Colours `S S C` of an image `C S S`."""
    return image.permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict]:
    """What the core says of each encoder and picture."""
    folder = tmp_path_factory.mktemp("weights")
    scripts = [folder / f"{name}{SUFFIX}" for name in ENCODERS]
    for name, script in zip(ENCODERS, scripts, strict=True):
        script.write_text(weights(load(name, device="cpu")))
    keys = [(name, number) for name in ENCODERS for number in range(len(pictures()))]
    tasks = [{"name": name, "pixels": text(pixels(pictures()[number]))} for name, number in keys]
    return dict(zip(keys, run(tasks, *scripts), strict=True))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", ENCODERS)
def test_maps_at_every_depth_and_head_are_those_of_pytorch(answers: dict, name: str, number: int) -> None:
    encoder = load(name, device="cpu")
    expected = attention_maps(encoder, pictures()[number : number + 1])[:, 0]  # L H N N
    assert expected.amax(-1).mean() > 2 / 64  # far from uniform: not maps that anything would match
    maps = array(answers[name, number]["maps"], "<f4", *expected.shape)
    assert (maps - expected).abs().max() < 1e-3
    assert (maps / expected - 1).abs()[expected > 1e-3].max() < 1e-2


@pytest.mark.parametrize("name", ENCODERS)
def test_numbers_and_tokens_are_those_of_pytorch(answers: dict, name: str) -> None:
    encoder, image = load(name, device="cpu"), pictures()[:1]
    answer = answers[name, 0]
    maps = attention_maps(encoder, image)[:, 0]
    expected = attention_distance(maps, encoder.grid, encoder.patch_size)
    distances = array(answer["distances"], "<f4", *maps.shape[:3])
    torch.testing.assert_close(distances.mean(-1), expected, atol=1e-3, rtol=0)
    found = array(answer["nmi"], "<f4", *maps.shape[:2])
    torch.testing.assert_close(found, normalized_mutual_information(maps), atol=1e-3, rtol=0)

    kept: list[Tensor] = []
    with capture(encoder, on_stream=lambda r: kept.append(patch_tokens(r)[0]), places=("block",)):
        encoder.forward(image)
    tokens = torch.stack(kept[-encoder.depth :]).double()  # L N D
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    cosines = array(answer["cosines"], "<f4", *maps.shape[:1], *maps.shape[2:])
    torch.testing.assert_close(cosines.double(), unit @ unit.mT, atol=1e-3, rtol=0)

    left, singular, _ = torch.linalg.svd(tokens - tokens.mean(1, keepdim=True), full_matrices=False)
    share = singular.square()[:, :3].sum(1) / singular.square().sum(1)
    explained = array(answer["explained"], "<f4", encoder.depth)
    torch.testing.assert_close(explained.double(), share, atol=1e-3, rtol=0)
    first = left[:, :, 0]
    first = first * first.gather(1, first.abs().argmax(1, keepdim=True)).sign()
    red = (first - first.amin(1, keepdim=True)) / (first.amax(1) - first.amin(1))[:, None]
    colours = array(answer["colours"], "<f4", encoder.depth, len(first[0]), 3)
    torch.testing.assert_close(colours[..., 0].double(), red, atol=5e-3, rtol=0)


@pytest.mark.parametrize("side", [96, 50, 20])
def test_pictures_are_shrunk_by_area_averaging(side: int) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    (answer,) = run([{"pixels": text(rgba), "side": side, "size": 32}])
    fine = np.repeat(np.repeat(rgba[..., :3].astype(float), 32, 0), 32, 1)
    expected = fine.reshape(32, side, 32, side, 3).mean((1, 3))
    assert np.abs(array(answer["small"], "u1", 32, 32, 3).numpy() - expected).max() <= 0.5 + 1e-6


def test_other_architectures_are_refused_by_name() -> None:
    module = mini_vit(width=32, depth=1, heads=2)
    module.blocks[0].attn.q_norm = torch.nn.LayerNorm(16)
    with pytest.raises(ValueError, match="mine"):
        weights(wrap(module, name="mine", mean=(0.5,) * 3, std=(0.5,) * 3))
