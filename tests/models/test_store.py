"""Trained encoders survive the way to disk and back, and nothing else is taken for them."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from nbhelpers.models import (
    ChecksumError,
    DamagedWeights,
    MaskedAutoencoder,
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
    for (key, saved), value in zip(
        original.state_dict().items(), encoder.module.state_dict().values(), strict=True
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, saved.half().float()), key
    with torch.no_grad():
        expected = original.half().float().forward_features(encoder.preprocess(IMAGES))
    torch.testing.assert_close(encoder.forward(IMAGES), expected)
    assert load_file(folder / "shapes.cl.safetensors")["norm.weight"].dtype == torch.float16


def test_manifest_lists_names(folder):
    rows = json.loads((folder / "manifest.json").read_text())
    assert list(rows) == ["shapes.cl", "shapes.cl.s1"]
    assert rows["shapes.cl"]["file"] == "shapes.cl.safetensors"
    assert {"shapes.cl", "shapes.cl.s1", "shapes.random"} <= set(available())
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "manifest.json",
        "shapes.cl.s1.safetensors",
        "shapes.cl.safetensors",
    ]


def test_seeds(folder):
    one = load("shapes.cl", seed=1, device="cpu")
    assert (one.name, one.seed) == ("shapes.cl.s1", 1)
    assert one.fingerprint == load("shapes.cl.s1", device="cpu").fingerprint
    assert one.fingerprint != load("shapes.cl", device="cpu").fingerprint
    with pytest.raises(ValueError, match="names seed 1, but seed=2"):
        load("shapes.cl.s1", seed=2)


def test_random_has_the_same_architecture_and_leaves_the_generator_alone(folder):
    before = torch.get_rng_state()
    encoder = load("shapes.random", device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert (encoder.width, encoder.depth, encoder.mean, encoder.objective) == (
        32,
        2,
        (0.5, 0.4, 0.3),
        "random",
    )
    torch.manual_seed(1234)
    assert encoder.fingerprint == load("shapes.random", device="cpu").fingerprint
    other = load("shapes.random.s3", device="cpu")
    assert (other.name, other.seed) == ("shapes.random.s3", 3)
    assert other.fingerprint != encoder.fingerprint


def test_autoencoder_keeps_its_decoder(folder):
    torch.manual_seed(0)
    autoencoder = MaskedAutoencoder(mini_vit(**ARCHITECTURE), width=24, depth=3, heads=3).eval()
    sizes = ARCHITECTURE | {"decoder": {"width": 24, "depth": 3, "heads": 3}}
    save_encoder(autoencoder, "shapes.mae", _row(objective="MIM", architecture=sizes))
    encoder = load("shapes.mae", device="cpu")
    decoder = decoder_of(encoder)
    assert (encoder.depth, encoder.width, decoder.depth, decoder.width, decoder.heads) == (2, 32, 3, 24, 3)
    with torch.no_grad():
        pixels = encoder.preprocess(IMAGES)
        expected = autoencoder.half().float().decoder(autoencoder.encode(pixels))
    torch.testing.assert_close(decoder.forward(IMAGES), expected)
    assert load("shapes.random", device="cpu").depth == 2
    with pytest.raises(TypeError, match=r"shapes\.cl has no decoder"):
        decoder_of(load("shapes.cl", device="cpu"))


def test_changed_file_is_refused(folder):
    path = folder / "shapes.cl.safetensors"
    expected = store.sha256(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ChecksumError, match=f"{path}: wrong checksum; expected sha256 {expected}, found"
    ) as error:
        load("shapes.cl")
    assert store.sha256(path) in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shapes\.cl\.safetensors"):
        load("shapes.cl")


def test_file_alone_describes_itself(folder, tmp_path):
    encoder = load(folder / "shapes.cl.s1.safetensors", device="cpu")
    assert (encoder.name, encoder.objective, encoder.seed) == ("shapes.cl.s1", "CL", 1)
    assert encoder.fingerprint == load("shapes.cl.s1", device="cpu").fingerprint


def test_local_copy_is_checked_like_the_original(folder, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((folder / "shapes.cl.safetensors").read_bytes())
    assert load("shapes.cl", from_file=copy, device="cpu").name == "shapes.cl"
    with pytest.raises(ChecksumError):
        load("shapes.cl.s1", from_file=copy)


def test_files_that_describe_nothing(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not say which architecture"):
        load(path)
    path.write_bytes(b"<html>Not found</html>")
    with pytest.raises(DamagedWeights, match=r"weights\.safetensors .*an HTML"):
        load(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load(tmp_path / "absent.safetensors")


def test_incomplete_or_broken_encoders_are_not_saved(tmp_path):
    row = _row()
    del row["mean"]
    with pytest.raises(KeyError, match="mean"):
        save_encoder(mini_vit(**ARCHITECTURE), "shapes.cl", row, folder=tmp_path)
    module = mini_vit(**ARCHITECTURE)
    with torch.no_grad():
        module.norm.weight[0] = 1e6
    with pytest.raises(ValueError, match=r"not finite in half precision: norm\.weight"):
        save_encoder(module, "shapes.cl", _row(), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_may_save_at_once(tmp_path):
    def save(seed):
        save_encoder(mini_vit(8, 1, 1), f"shapes.cl.s{seed}", _row(seed=seed), folder=tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(1, 17)))
    assert len(store.manifest(tmp_path)) == 16


@pytest.mark.parametrize("moment", ["before the weights are in place", "before the row is written"])
def test_killed_while_a_name_is_saved_again(folder, monkeypatch, moment):
    """What is left can be loaded, or is missing from the manifest and so is trained again."""

    class Killed(BaseException):
        pass

    calls = []

    def write(*args):
        calls.append(args)
        if len(calls) == (1 if moment.startswith("before the weights") else 2):
            raise Killed
        write_row(*args)

    write_row = store._write_row
    monkeypatch.setattr(store, "_write_row", write)
    with pytest.raises(Killed):
        save_encoder(mini_vit(**ARCHITECTURE), "shapes.cl", _row())
    if "shapes.cl" in store.manifest():
        load("shapes.cl", device="cpu")
    else:
        monkeypatch.undo()
        monkeypatch.setattr(store, "ENCODERS", folder)
        save_encoder(mini_vit(**ARCHITECTURE), "shapes.cl", _row())
        load("shapes.cl", device="cpu")


def test_a_git_lfs_pointer_says_what_to_do(folder):
    (folder / "shapes.cl.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    with pytest.raises(DamagedWeights, match="git lfs pull"):
        load("shapes.cl")


def test_an_encoder_is_returned_as_it_is(folder):
    encoder = load("shapes.cl", device="cpu")
    assert load(encoder) is encoder
    assert load(str(folder / "shapes.cl.safetensors"), device="cpu").fingerprint == encoder.fingerprint
    with pytest.raises(ValueError, match="seed=1 cannot"):
        load(encoder, seed=1)
    with pytest.raises(ValueError, match=r"from_file=.* cannot"):
        load("shapes.random", from_file=folder / "shapes.cl.safetensors")
    with pytest.raises(ValueError, match="seed=1 cannot"):
        load("mae.vit_base_patch16_224", seed=1)
