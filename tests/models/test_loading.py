"""Names: what they give, and what an unknown one says."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from nbhelpers.models import DownloadError, UnsupportedArchitecture, load, registry


def test_random_weights_of_any_timm_name():
    encoder = load("random:test_vit", device="cpu")
    assert (encoder.name, encoder.objective, encoder.seed, encoder.depth) == (
        "random:test_vit",
        "random",
        0,
        6,
    )
    assert encoder.fingerprint == load("random:test_vit", device="cpu").fingerprint
    other = load("random:test_vit", seed=1, device="cpu")
    assert (other.name, other.seed) == ("random:test_vit.s1", 1)  # two seeds are two lines in a figure
    assert encoder.fingerprint != other.fingerprint


def test_timm_name_with_a_local_file(tmp_path):
    torch.manual_seed(3)
    module = timm.create_model("test_vit", num_classes=1000)
    path = tmp_path / "weights.safetensors"
    save_file(module.state_dict(), path)
    encoder = load("test_vit", from_file=path, device="cpu")
    images = torch.zeros(1, 3, 160, 160, dtype=torch.uint8)
    with torch.no_grad():
        expected = module.eval().forward_features(encoder.preprocess(images))
    torch.testing.assert_close(encoder.forward(images), expected)
    assert encoder.provenance["source"] == str(path)


@pytest.fixture
def offline(monkeypatch):
    def no_route(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(registry, "hf_hub_download", no_route)


def test_unreachable_weights(offline):
    with pytest.raises(DownloadError, match=r"no route to host[^$]*from_file=[^$]*'random:test_vit") as error:
        load("test_vit")
    assert "timm/test_vit" in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_242", "nearest: .*vit_base_patch16_224"),
        ("random:vit_base_patch16_242", "nearest: .*vit_base_patch16_224"),
        ("mocov3.vit_base", r"nearest: mocov3\.vit_base_patch16_224$"),
        ("shape.cl", "no encoder is named 'shape.cl'"),
        ("vit_base_patch16_224.moe", r"nearest: .*vit_base_patch16_224\.mae"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(LookupError, match=message):
        load(name)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hiera_tiny_224", "random:cait_xxs24_224"])
def test_refused_before_anything_is_fetched(name, monkeypatch):
    monkeypatch.setattr(registry, "hf_hub_download", lambda *a, **k: pytest.fail("was fetched"))
    with pytest.raises(UnsupportedArchitecture, match=r"\(timm .*cannot be read: "):
        load(name)


def test_contradictions(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"from_file=.* cannot"):
        load("random:test_vit", from_file=path)
    with pytest.raises(FileNotFoundError, match="absent"):
        load("test_vit", from_file=tmp_path / "absent")
