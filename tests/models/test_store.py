"""Trained encoders survive the way to disk and back, and nothing else is taken for them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from nbhelpers.models import (
    ChecksumError,
    MaskedAutoencoder,
    MismatchedWeights,
    available,
    decoder_of,
    load,
    mini_vit,
    save_encoder,
    store,
)

ARCHITECTURE = {"width": 32, "depth": 2, "heads": 2, "image_size": 32, "patch_size": 4}
IMAGES = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _row(**changes):
    row = {"study": "shapes", "objective": "CL", "seed": 0, "architecture": ARCHITECTURE}
    return row | {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "images_seen": 640} | changes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two trained encoders in the place of data/encoders."""
    monkeypatch.setattr(store, "ENCODERS", tmp_path)
    torch.manual_seed(0)
    save_encoder(mini_vit(**ARCHITECTURE), "shapes.cl", _row())
    save_encoder(mini_vit(**ARCHITECTURE), "shapes.cl.s1", _row(seed=1))
    return tmp_path


def test_round_trip(folder):
    torch.manual_seed(0)
    original = mini_vit(**ARCHITECTURE).eval()
    encoder = load("shapes.cl", device="cpu")
    assert (encoder.name, encoder.objective, encoder.seed) == ("shapes.cl", "CL", 0)
    assert (encoder.width, encoder.depth, encoder.heads, encoder.mean) == (32, 2, 2, (0.5, 0.4, 0.3))
    assert encoder.provenance["images_seen"] == 640
    assert encoder.provenance["sha256"] == store.sha256(folder / "shapes.cl.safetensors")
    assert encoder.module.norm.weight.dtype == torch.float32
    assert load_file(folder / "shapes.cl.safetensors")["norm.weight"].dtype == torch.float16
    with torch.no_grad():
        expected = original.half().float().forward_features(encoder.preprocess(IMAGES))
    torch.testing.assert_close(encoder.forward(IMAGES), expected)
    names = {path.name for path in folder.iterdir()}
    assert names == {".lock", "manifest.json", "shapes.cl.safetensors", "shapes.cl.s1.safetensors"}
    assert {"shapes.cl", "shapes.cl.s1", "shapes.random"} <= set(available())


def test_an_encoder_by_its_seed_by_its_file_and_itself(folder):
    one, usual = load("shapes.cl", seed=1, device="cpu"), load("shapes.cl", device="cpu")
    assert one.fingerprint != usual.fingerprint
    for name in ("shapes.cl.s1", folder / "shapes.cl.s1.safetensors"):
        again = load(name, device="cpu")
        assert (again.name, again.objective, again.seed) == ("shapes.cl.s1", "CL", 1)
        assert again.fingerprint == one.fingerprint
    assert load(one) is one
    with pytest.raises(ValueError, match="seed=1 cannot"):
        load(one, seed=1)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("shapes.cl.s1", {"seed": 2}, "names seed 1"),
        ("mae.vit_base_patch16_224", {"seed": 1}, "seed=1 cannot"),
        ("shapes.random", {"from_file": "shapes.cl.safetensors"}, "from_file=.* cannot"),
        ("random:test_vit", {"from_file": "shapes.cl.safetensors"}, "from_file=.* cannot"),
        ("shapes.cl.safetensors", {"seed": 1}, "seed=1 cannot"),
    ],
)
def test_options_that_contradict_a_name(folder, monkeypatch, name, options, word):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=word):
        load(name, **options)


def test_random_has_the_same_architecture_and_leaves_the_generator_alone(folder):
    before = torch.get_rng_state()
    encoder = load("shapes.random", device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert (encoder.width, encoder.depth, encoder.mean) == (32, 2, (0.5, 0.4, 0.3))
    torch.manual_seed(1234)
    assert encoder.fingerprint == load("shapes.random", device="cpu").fingerprint
    other = load("shapes.random.s3", device="cpu")
    assert (other.name, other.objective, other.seed) == ("shapes.random.s3", "random", 3)
    assert other.fingerprint != encoder.fingerprint


def test_autoencoder_keeps_its_decoder(folder):
    autoencoder = MaskedAutoencoder(mini_vit(**ARCHITECTURE), width=24, depth=3, heads=3).eval()
    sizes = ARCHITECTURE | {"decoder": {"width": 24, "depth": 3, "heads": 3}}
    save_encoder(autoencoder, "shapes.mae", _row(objective="MIM", architecture=sizes))
    encoder = load("shapes.mae", device="cpu")
    decoder = decoder_of(encoder)
    assert (encoder.depth, encoder.width, decoder.depth, decoder.width, decoder.heads) == (2, 32, 3, 24, 3)
    with torch.no_grad():
        pixels = encoder.preprocess(IMAGES)
        expected = autoencoder.half().float().decoder(autoencoder.forward_features(pixels))
    torch.testing.assert_close(decoder.forward(IMAGES), expected)
    assert load("shapes.random", device="cpu").depth == 2
    with pytest.raises(TypeError, match=r"shapes\.cl has no decoder"):
        decoder_of(load("shapes.cl", device="cpu"))


def test_a_file_is_refused_unless_it_is_the_recorded_one(folder):
    path = folder / "shapes.cl.safetensors"
    copy = folder / "copy.safetensors"
    content = path.read_bytes()
    copy.write_bytes(content)
    assert load("shapes.cl", from_file=copy, device="cpu").name == "shapes.cl"
    recorded = store.sha256(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ChecksumError, match=f"{path}.*{recorded}.*{store.sha256(path)}"):
        load("shapes.cl")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        load("shapes.cl")


def test_a_file_that_describes_nothing(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="which architecture"):
        load(path)


def test_incomplete_or_broken_encoders_are_not_saved(tmp_path):
    row, module = _row(), mini_vit(8, 1, 1)
    del row["mean"]
    with pytest.raises(KeyError, match="mean"):
        save_encoder(module, "shapes.cl", row, folder=tmp_path)
    module.norm.weight.data[0] = 1e6
    with pytest.raises(ValueError, match=r"norm\.weight"):
        save_encoder(module, "shapes.cl", _row(), folder=tmp_path)
    sizes = {"width": 8, "depth": 1, "heads": 2}
    for other in (sizes | {"heads": 1}, sizes | {"standardised": True}):  # of which no weight depends
        with pytest.raises(ValueError, match="than the row describes"):
            save_encoder(mini_vit(**sizes), "shapes.cl", _row(architecture=other), folder=tmp_path)
    with pytest.raises(MismatchedWeights):
        save_encoder(mini_vit(**sizes), "shapes.cl", _row(architecture=sizes | {"depth": 2}), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_may_save_at_once(tmp_path):
    module = mini_vit(**ARCHITECTURE)

    def save(seed):
        save_encoder(module, f"shapes.cl.s{seed}", _row(seed=seed), folder=tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(1, 17)))
    assert len(store.manifest(tmp_path)) == 16


@pytest.mark.parametrize("last", [1, 2], ids=["before the weights are in place", "before the row is written"])
def test_killed_while_a_name_is_saved_again(folder, monkeypatch, last):
    """What is left can be loaded, or is missing from the manifest and so is trained again."""
    write_row, calls = store._write_row, []

    def write(*args):
        calls.append(args)
        if len(calls) == last:
            raise KeyboardInterrupt
        write_row(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_write_row", write)
        save_encoder(mini_vit(**ARCHITECTURE), "shapes.cl", _row())
    if last == 1:
        load("shapes.cl", device="cpu")
    assert ("shapes.cl" in store.manifest()) == (last == 1)
    save_encoder(mini_vit(**ARCHITECTURE), "shapes.cl", _row())
    load("shapes.cl", device="cpu")
