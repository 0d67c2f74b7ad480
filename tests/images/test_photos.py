"""CIFAR-10 from every place it may come from, and scikit-image's photographs."""

import os
import pickle
import socket
import urllib.error
from hashlib import md5

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from nbhelpers.images import cifar10, photographs
from nbhelpers.images.photos import CIFAR10_CLASSES, PHOTOGRAPHS, _hold_out
from nbhelpers.images.source import MissingDataError

PER_CLASS = {"train": 10, "test": 2}


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch, cache):
    """An empty home, and a small CIFAR-10, so that no test finds what the machine holds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NBHELPERS_CIFAR10", raising=False)
    monkeypatch.setattr("nbhelpers.images.photos.CIFAR10_PER_CLASS", PER_CLASS)


def pixels(part, number, index):
    """The picture number `index` of a class: constant colour that says which one it is."""
    colour = (number * 20 + 7, index * 9 + 3, 200 if part == "train" else 50)
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (32, 32, 3)).copy()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """CIFAR-10 with few images, named as the place to read."""

    def make(suffix=".png"):
        for part, count in PER_CLASS.items():
            for number, title in enumerate(CIFAR10_CLASSES):
                target = tmp_path / "cifar10" / part / title
                target.mkdir(parents=True)
                for index in range(count):
                    Image.fromarray(pixels(part, number, index)).save(target / f"{index:04d}{suffix}")
        monkeypatch.setenv("NBHELPERS_CIFAR10", str(tmp_path / "cifar10"))
        return tmp_path / "cifar10"

    return make


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """The same pictures as torchvision's pickled batches, the classes interleaved as in the original."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(content := pickle.dumps(content))
        return md5(content).hexdigest()

    for part, name in (("train", "data_batch_1"), ("test", "test_batch")):
        rows = [(i, n) for i in range(PER_CLASS[part]) for n in reversed(range(10))]
        data = np.stack([pixels(part, n, i).transpose(2, 0, 1).reshape(-1) for i, n in rows])
        digest = write(name, {"data": data, "labels": [n for _, n in rows]})
        monkeypatch.setattr(CIFAR10, f"{part}_list", [[name, digest]])
    digest = write("batches.meta", {"label_names": list(CIFAR10_CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": digest})
    return folder


def check(source, split, origin):
    part = "test" if split == "test" else "train"
    count = {"train": 9, "val": 1, "test": 2}[split]
    assert source.name == f"cifar10/{split}" and source.origin == origin
    assert source.labels["class"].tolist() == list(range(10)) * count
    assert source.classes == {"class": CIFAR10_CLASSES}
    seen = set()
    for image, number in zip(source.images, source.labels["class"].tolist(), strict=True):
        index = (int(image[1, 0, 0]) - 3) // 9
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels(part, number, index))
        seen.add((number, index))
    assert len(seen) == 10 * count
    return seen


def test_from_a_folder_with_mean_and_deviation_of_the_training_images(tmp_path, monkeypatch, tiny):
    root = tiny()
    for named in (root, tmp_path):
        monkeypatch.setenv("NBHELPERS_CIFAR10", str(named))
        sources = {split: cifar10(split) for split in ("train", "val", "test")}
        origin = f"{named.name} (lossless copy)"
        train, val, _ = (check(source, split, origin) for split, source in sources.items())
        assert not train & val
    values = sources["train"].images.double() / 255
    for source in sources.values():
        assert source.mean == pytest.approx(values.mean((0, 2, 3)).tolist())
        assert source.std == pytest.approx(values.std((0, 2, 3), unbiased=False).tolist())


def test_the_images_held_out_are_those_that_no_encoder_was_trained_on():
    """With another seed the stored encoders would have seen the images that probes choose a penalty on."""
    train, val = _hold_out(torch.arange(200) % 10)
    assert val.tolist() == [
        *(40, 131, 112, 63, 194, 165, 46, 187, 28, 29),
        *(50, 111, 42, 3, 34, 125, 116, 157, 48, 149),
    ]
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(200))


def test_jpeg_files_are_recorded_as_such(tiny):
    tiny(".jpg")
    assert cifar10("val").origin == "cifar10 (JPEG copy)"


def test_from_torchvision_the_same_pictures_in_the_same_order(tmp_path, monkeypatch, tiny, batches):
    root = tiny()
    from_files = {split: cifar10(split) for split in ("train", "val", "test")}  # what is named comes first
    monkeypatch.delenv("NBHELPERS_CIFAR10")
    for split, source in from_files.items():
        check(source, split, f"{root.name} (lossless copy)")
        check(cifar10(split), split, "torchvision (original)")
        assert cifar10(split).fingerprint == source.fingerprint
    assert len({source.fingerprint for source in from_files.values()}) == 3
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(tmp_path / "data"))
    assert cifar10("test").origin == "torchvision (original)"


def test_damaged_torchvision_copy(batches):
    (batches / "data_batch_1").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cifar-10-batches-py"):
        cifar10("train")


@pytest.mark.parametrize("packed", [False, True])
def test_decoded_once_and_again_when_the_content_changes(tmp_path, monkeypatch, tiny, as_tar, packed):
    root = tiny(".bmp")
    path = as_tar(root, tmp_path / "photos.tar") if packed else root
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(path))
    before = cifar10("test")
    check(before, "test", f"{path.name} (lossless copy)")
    with monkeypatch.context() as patch:
        patch.setattr("nbhelpers.images.photos.folder", None)
        assert cifar10("test").fingerprint == before.fingerprint
    status = path.stat()
    changed = root / "test" / "cat" / "0000.bmp"
    Image.new("RGB", (32, 32)).save(changed)
    if packed:
        as_tar(root, path)
    for file in (changed, path):  # sizes are the same anyway
        os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert cifar10("test").fingerprint != before.fingerprint


def test_missing_names_the_three_ways_and_touches_no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("the network was touched"))
    with pytest.raises(MissingDataError, match=r"NBHELPERS_CIFAR10.*cifar-10-batches-py.*download=True"):
        cifar10("train")
    monkeypatch.setenv("NBHELPERS_CIFAR10", "nowhere")
    with pytest.raises(MissingDataError, match=r"NBHELPERS_CIFAR10 names nowhere"):
        cifar10("train")


def test_failed_download_says_what_else_to_do(monkeypatch):
    timeouts = []

    def offline(*args, **kwargs):
        timeouts.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", offline)
    with pytest.raises(MissingDataError, match=r"no route.*set NBHELPERS_CIFAR10"):
        cifar10("train", download=True)
    assert timeouts and all(timeout == 30 for timeout in timeouts)
    assert socket.getdefaulttimeout() is None


def test_incomplete_or_wrong_copies_are_named(tmp_path, monkeypatch, tiny):
    root = tiny()
    with pytest.raises(ValueError, match="'valid'"):
        cifar10("valid")
    target = root / "test" / "cat" / "0000.png"
    target.rename(tmp_path / "spare.png")
    with pytest.raises(ValueError, match="'cat': 1"):
        cifar10("test")
    Image.new("RGB", (64, 32)).save(target)
    with pytest.raises(ValueError, match=r"must share one size, got .*32, 64"):
        cifar10("test")
    for image in (root / "train").glob("*/*"):
        Image.new("RGB", (16, 16)).save(image)
    with pytest.raises(ValueError, match="not 32 x 32"):
        cifar10("test")
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(root / "train"))
    with pytest.raises(ValueError, match="train is not CIFAR-10"):
        cifar10("test")


def test_photographs_at_any_size():
    source = photographs((64, 96))
    assert source.batch(range(5)).shape == (5, 3, 64, 96) and source.classes == {"class": PHOTOGRAPHS}
    deviation = source.images.double().std((1, 2, 3))
    assert (deviation > 20).all(), "a photograph is no constant"
    colourful = (source.images[:, 0].int() - source.images[:, 2].int()).abs().amax((1, 2)) > 50
    assert colourful.tolist() == [name != "camera" for name in PHOTOGRAPHS]


@pytest.fixture
def real(monkeypatch):
    """The real CIFAR-10 where its place is named, with the machine's own cache."""
    monkeypatch.undo()
    if "NBHELPERS_CIFAR10" not in os.environ:
        pytest.skip("NBHELPERS_CIFAR10 names no CIFAR-10")


def test_real_cifar10(real):
    train, val, test = (cifar10(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (45_000, 5_000, 10_000)
    assert test.mean == pytest.approx((0.491, 0.482, 0.447), abs=2e-3)
    assert test.std == pytest.approx((0.247, 0.243, 0.262), abs=5e-3)
    assert torch.bincount(test.labels["class"]).tolist() == [1000] * 10
    held = {image.numpy().tobytes() for image in val.images}
    assert not any(image.numpy().tobytes() in held for image in train.images)
