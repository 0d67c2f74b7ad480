"""Names: what they give, and what an unknown one says."""

import pytest

from nbhelpers.models import DownloadError, UnsupportedArchitecture, load, registry


def test_random_weights_of_any_timm_name():
    encoder, other = load("random:test_vit", device="cpu"), load("random:test_vit", seed=1, device="cpu")
    assert (encoder.name, encoder.objective, encoder.seed) == ("random:test_vit", "random", 0)
    assert encoder.fingerprint == load("random:test_vit", device="cpu").fingerprint
    assert (other.name, other.seed) == ("random:test_vit.s1", 1)  # two seeds are two lines in a figure
    assert encoder.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_vit", r"timm/test_vit[^$]*no route[^$]*from_file=[^$]*random:test_vit"),
        ("vit_relpos_small_patch16_rpn_224", r"timm has no weights[^$]*from_file="),
        ("hf-hub:nobody/absent", "nobody/absent could not be fetched"),
    ],
)
def test_weights_that_cannot_be_had_name_the_reason_and_the_ways_out(name, words, monkeypatch):
    def no_route(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(registry, "hf_hub_download", no_route)
    with pytest.raises(DownloadError, match=words):
        load(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:vit_base_patch16_242", "nearest: .*vit_base_patch16_224"),
        ("mocov3.vit_base", r"nearest: mocov3\.vit_base_patch16_224$"),
        ("shape.cl", "no encoder is named 'shape.cl'"),
        ("vit_base_patch16_224.moe", r"nearest: .*vit_base_patch16_224\.mae"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(LookupError, match=message):
        load(name)


def test_refused_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr(registry, "hf_hub_download", lambda *a, **k: pytest.fail("was fetched"))
    with pytest.raises(UnsupportedArchitecture, match="maxxvit"):
        load("test_maxvit")


@pytest.mark.parametrize("name", ["absent.safetensors", "folder/absent"])
def test_a_file_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=name):
        load(name)
