"""CIFAR-10 from every place it may come from, folders of images, and scikit-image's photographs."""

import os
import pickle
import socket
import tarfile
import urllib.error
import warnings
from hashlib import md5
from importlib.metadata import files as package_files

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nbhelpers.images import cifar10, folder, photographs
from nbhelpers.images.photos import CIFAR10_CLASSES, PHOTOGRAPHS
from nbhelpers.images.source import MissingDataError

PER_CLASS = {"train": 10, "test": 2}


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """An empty cache and home, and a small CIFAR-10, so that no test finds what the machine holds."""
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NBHELPERS_CIFAR10", raising=False)
    monkeypatch.setattr("nbhelpers.images.photos.CIFAR10_PER_CLASS", PER_CLASS)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def pixels(part, number, index):
    """The picture number `index` of a class: constant colour that says which one it is."""
    colour = (number * 20 + 7, index * 9 + 3, 200 if part == "train" else 50)
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (32, 32, 3)).copy()


def tiny_cifar10(root, suffix=".png"):
    for part, count in PER_CLASS.items():
        for number, title in enumerate(CIFAR10_CLASSES):
            target = root / part / title
            target.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(pixels(part, number, index)).save(target / f"{index:04d}{suffix}")
    return root


def as_tar(root, path, mode="w"):
    with tarfile.open(path, mode) as archive:
        archive.add(root, root.name)
    return path


def tiny_torchvision(root, monkeypatch):
    """The same pictures as torchvision's pickled batches, the classes interleaved as in the original."""
    batches = root / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    lists = {}
    for part, name in (("train", "data_batch_1"), ("test", "test_batch")):
        rows = [(i, n) for i in range(PER_CLASS[part]) for n in reversed(range(10))]
        data = np.stack([pixels(part, n, i).transpose(2, 0, 1).reshape(-1) for i, n in rows])
        content = pickle.dumps({"data": data, "labels": [n for _, n in rows]})
        (batches / name).write_bytes(content)
        lists[part] = [[name, md5(content).hexdigest()]]
    meta = pickle.dumps({"label_names": list(CIFAR10_CLASSES)})
    (batches / "batches.meta").write_bytes(meta)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.train_list", lists["train"])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", lists["test"])
    monkeypatch.setattr(
        "torchvision.datasets.CIFAR10.meta",
        {"filename": "batches.meta", "key": "label_names", "md5": md5(meta).hexdigest()},
    )
    return batches


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


def test_from_a_folder(tmp_path, monkeypatch):
    root = tiny_cifar10(tmp_path / "cifar10")
    for named in (root, tmp_path):
        monkeypatch.setenv("NBHELPERS_CIFAR10", str(named))
        train, val, test = (
            check(cifar10(split), split, f"{named.name} (lossless copy)")
            for split in ("train", "val", "test")
        )
        assert not train & val and len(train | val) == 100 and len(test) == 20


def test_mean_and_std_are_those_of_the_training_images(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(tiny_cifar10(tmp_path / "cifar10")))
    values = cifar10("train").images.double() / 255
    for split in ("train", "val", "test"):
        assert cifar10(split).mean == pytest.approx(values.mean((0, 2, 3)).tolist())
        assert cifar10(split).std == pytest.approx(values.std((0, 2, 3), unbiased=False).tolist())


@pytest.mark.parametrize("mode", ["w", "w:xz"])
def test_from_an_archive(tmp_path, monkeypatch, mode):
    path = as_tar(tiny_cifar10(tmp_path / "cifar10"), tmp_path / "photos.tar.xz", mode)
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(path))
    check(cifar10("test"), "test", "photos.tar.xz (lossless copy)")


def test_jpeg_files_are_recorded_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(tiny_cifar10(tmp_path / "cifar10", ".jpg")))
    assert cifar10("val").origin == "cifar10 (JPEG copy)"


def test_from_torchvision_the_same_pictures_in_the_same_order(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(tiny_cifar10(tmp_path / "cifar10")))
    from_files = {split: cifar10(split) for split in ("train", "val", "test")}
    monkeypatch.delenv("NBHELPERS_CIFAR10")
    tiny_torchvision(tmp_path / "data", monkeypatch)
    for split, source in from_files.items():
        other = cifar10(split)
        check(other, split, "torchvision (original)")
        assert torch.equal(other.images, source.images) and other.fingerprint == source.fingerprint
    assert len({source.fingerprint for source in from_files.values()}) == 3


def test_named_place_comes_before_a_torchvision_copy(tmp_path, monkeypatch):
    tiny_torchvision(tmp_path / "data", monkeypatch)
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(tiny_cifar10(tmp_path / "named")))
    assert cifar10("test").origin == "named (lossless copy)"
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(tmp_path / "data"))
    assert cifar10("test").origin == "torchvision (original)"


def test_damaged_torchvision_copy(tmp_path, monkeypatch):
    batches = tiny_torchvision(tmp_path / "data", monkeypatch)
    (batches / "data_batch_1").write_bytes(b"cut")
    with pytest.raises(ValueError, match="incomplete or fails torchvision's checksums"):
        cifar10("train")


def test_decoded_once_and_again_when_the_archive_changes(tmp_path, monkeypatch):
    root = tiny_cifar10(tmp_path / "cifar10")
    path = as_tar(root, tmp_path / "photos.tar")
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(path))
    before = cifar10("test").fingerprint
    cached = list((tmp_path / "cache" / "images").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("nbhelpers.images.photos.decode", None)
        assert cifar10("test").fingerprint == before
    Image.new("RGB", (32, 32)).save(root / "test" / "cat" / "0000.png")
    as_tar(root, path)
    os.utime(path, (1, 1))
    assert cifar10("test").fingerprint != before
    assert len(cached) == 1 and len(list((tmp_path / "cache" / "images").iterdir())) == 2


def test_missing_names_the_three_ways_and_touches_no_network(no_network, tmp_path, monkeypatch):
    with pytest.raises(MissingDataError) as caught:
        cifar10("train")
    message = str(caught.value)
    for way in (
        "NBHELPERS_CIFAR10",
        "cifar10/{train,test}/CLASS/*.jpg",
        "cifar-10-batches-py",
        "download=True",
    ):
        assert way in message
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(tmp_path / "nowhere"))
    with pytest.raises(MissingDataError, match=r"NBHELPERS_CIFAR10 names .*nowhere, which does not exist"):
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


def test_unknown_split():
    with pytest.raises(ValueError, match="no split 'valid'; it has train, val, test"):
        cifar10("valid")


def test_incomplete_or_wrong_copies_are_named(tmp_path, monkeypatch):
    root = tiny_cifar10(tmp_path / "cifar10")
    monkeypatch.setenv("NBHELPERS_CIFAR10", str(root))
    (root / "test" / "cat" / "0000.png").rename(tmp_path / "spare.png")
    with pytest.raises(ValueError, match=r"test should hold 2 images of every class .* cat 1"):
        cifar10("test")
    target = root / "test" / "cat" / "0000.png"
    target.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"test/cat/0000\.png cannot be decoded"):
        cifar10("test")
    Image.new("RGB", (64, 32)).save(target)
    with pytest.raises(ValueError, match=r"test/cat/0000\.png is not 32 x 32 but 32 x 64"):
        cifar10("test")


def make_folder(root, layout):
    for name, size in layout.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shade = sum(name.encode()) % 200
        Image.new("RGB", size, (shade, 100, 50)).save(target)
    return root


LAYOUT = {f"{title}/{i}.png": (10 + i, 8) for title in ("dog", "cat") for i in range(4)}


def test_folder_labels_from_sub_folders(tmp_path):
    source = folder(make_folder(tmp_path / "pets", LAYOUT))
    assert source.name == f"folder:{tmp_path / 'pets'}" and source.origin == "pets"
    assert source.classes == {"class": ("cat", "dog")}
    assert (
        source.labels["class"].tolist() == [0] * 4 + [1] * 4 and source.labels["class"].dtype == torch.int64
    )
    assert source[2].shape == (3, 8, 12) and source[2][:, 0, 0].tolist() == [sum(b"cat/2.png") % 200, 100, 50]
    with pytest.raises(ValueError, match="share one size"):
        source.batch([0, 1])


def test_folder_at_one_size(tmp_path):
    source = folder(make_folder(tmp_path / "pets", LAYOUT), size=(4, 6))
    assert source.batch(torch.tensor([0, 7])).shape == (2, 3, 4, 6)
    assert source.balanced(2).labels["class"].tolist() == [0, 1, 0, 1]
    chosen = source.select([6, 0])
    assert chosen.labels["class"].tolist() == [1, 0] and torch.equal(chosen[1], source[0])
    assert chosen.mean == source.mean and chosen.std == source.std
    assert source.mean[1:] == pytest.approx((100 / 255, 50 / 255))


def test_folder_in_worker_processes(tmp_path):
    source = folder(make_folder(tmp_path / "pets", LAYOUT), size=8)
    loaded = torch.cat(list(DataLoader(source, batch_size=3, num_workers=1)))
    assert torch.equal(loaded, source.batch(range(8)))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_folder_in_an_archive(tmp_path, mode):
    make_folder(tmp_path / "sets" / "train", LAYOUT)
    make_folder(tmp_path / "sets" / "val", {name: (9, 9) for name in LAYOUT})
    path = as_tar(tmp_path / "sets", tmp_path / "sets.tar", mode)
    source = folder(path / "sets" / "val")
    assert len(source) == 8 and source.classes == {"class": ("cat", "dog")} and source[0].shape == (3, 9, 9)
    for whole in (path, tmp_path / "sets"):
        with pytest.raises(ValueError, match=r"all classes side by side.*train/cat.*name one set's folder"):
            folder(whole)


def test_flat_folder_is_one_class(tmp_path):
    source = folder(make_folder(tmp_path / "holiday", {"1.png": (8, 8), "2.png": (8, 8)}))
    assert source.classes == {"class": ("holiday",)} and source.labels["class"].tolist() == [0, 0]
    make_folder(tmp_path / "holiday", {"beach/3.png": (8, 8)})
    with pytest.raises(ValueError, match="all classes side by side"):
        folder(tmp_path / "holiday")


def test_damaged_files_are_named_counted_and_skipped(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "pets", LAYOUT)
    whole = (root / "cat" / "1.png").read_bytes()
    (root / "cat" / "1.png").write_bytes(whole[:40])
    (root / "dog" / "0.png").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"skipped 2 of 8 images that cannot be decoded: cat/1\.png, dog/0\.png"
    ):
        source = folder(root)
    assert len(source) == 6 and source.labels["class"].tolist() == [0] * 3 + [1] * 3
    # The outcome is remembered, and still told.
    monkeypatch.setattr("nbhelpers.images.photos.is_sound", None)
    with pytest.warns(UserWarning, match="skipped 2 of 8"):
        assert folder(root).fingerprint == source.fingerprint


def test_a_mended_file_is_seen(tmp_path):
    root = make_folder(tmp_path / "pets", LAYOUT)
    whole = (root / "cat" / "1.png").read_bytes()
    (root / "cat" / "1.png").write_bytes(whole[:40])
    with pytest.warns(UserWarning, match="skipped 1"):
        folder(root)
    (root / "cat" / "1.png").write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(folder(root)) == 8


def test_per_class_draws_by_seed_and_replaces_damaged_files(tmp_path):
    root = make_folder(
        tmp_path / "pets", {f"{t}/{i:02d}.png": (8, 8) for t in ("cat", "dog") for i in range(20)}
    )
    source = folder(root, per_class=5, seed=1)
    names = [file.name for file in source.files]
    assert source.labels["class"].tolist() == [0] * 5 + [1] * 5 and len(set(names)) == 10
    assert names == [file.name for file in folder(root, per_class=5, seed=1).files]
    assert names != [file.name for file in folder(root, per_class=5, seed=2).files]
    (root / names[0]).write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped 1 of 11"):
        replaced = folder(root, per_class=5, seed=1)
    assert [file.name for file in replaced.files][:4] == names[1:5] and len(replaced) == 10
    with pytest.raises(ValueError, match="'cat' has 19 images"):
        folder(root, per_class=20)
    with pytest.raises(ValueError, match="per_class must be at least 1"):
        folder(root, per_class=0)


def test_folder_fingerprint_follows_files_size_and_choice(tmp_path):
    root = make_folder(tmp_path / "pets", LAYOUT)
    prints = [
        folder(root).fingerprint,
        folder(root, size=8).fingerprint,
        folder(root, per_class=2).fingerprint,
    ]
    assert folder(root).fingerprint == prints[0]
    os.utime(root / "cat" / "1.png", (1, 1))
    prints.append(folder(root).fingerprint)
    assert len(set(prints)) == 4


def test_empty_missing_and_unreadable_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images in .*empty; looked for files ending in \.jpg"):
        folder(tmp_path / "empty")
    with pytest.raises(MissingDataError, match=r"no folder or tar archive .*nowhere"):
        folder(tmp_path / "nowhere" / "deeper")
    path = as_tar(make_folder(tmp_path / "pets", LAYOUT), tmp_path / "pets.tar")
    with pytest.raises(ValueError, match=r"no images in .*pets\.tar/birds"):
        folder(path / "birds")
    (tmp_path / "pets" / "bird").mkdir()
    (tmp_path / "pets" / "bird" / "1.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"class 'bird' has 0 images that can be decoded \(damaged: bird/1\.png\)"
    ):
        folder(tmp_path / "pets")


def test_a_file_that_vanishes_later_is_named(tmp_path):
    source = folder(make_folder(tmp_path / "pets", LAYOUT))
    (tmp_path / "pets" / "cat" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"cat/0\.png cannot be decoded any more"):
        source[0]


def test_photographs_at_any_size_without_network(no_network):
    source = photographs((64, 96))
    assert source.batch(range(5)).shape == (5, 3, 64, 96) and source.classes == {"class": PHOTOGRAPHS}
    assert photographs(700)[0].shape == (3, 700, 700)
    deviation = source.images.double().std((1, 2, 3))
    assert (deviation > 20).all(), "a photograph is no constant"
    colourful = (source.images[:, 0].int() - source.images[:, 2].int()).abs().amax((1, 2)) > 50
    assert colourful.tolist() == [name != "camera" for name in PHOTOGRAPHS]


def test_photographs_are_part_of_the_wheel():
    held = {file.stem for file in package_files("scikit-image") if file.parent.as_posix() == "skimage/data"}
    assert set(PHOTOGRAPHS) <= held


@pytest.fixture
def real(monkeypatch):
    """The real CIFAR-10 where its place is named, with the machine's own cache."""
    monkeypatch.undo()
    if "NBHELPERS_CIFAR10" not in os.environ:
        pytest.skip("NBHELPERS_CIFAR10 names no CIFAR-10")


def test_real_cifar10(real):
    sizes = {split: len(cifar10(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 45_000, "val": 5_000, "test": 10_000}
    test = cifar10("test")
    assert test.mean == pytest.approx((0.491, 0.482, 0.447), abs=2e-3)
    assert test.std == pytest.approx((0.247, 0.243, 0.262), abs=5e-3)
    assert torch.bincount(test.labels["class"]).tolist() == [1000] * 10
    held = {image.numpy().tobytes() for image in cifar10("val").images}
    assert not any(image.numpy().tobytes() in held for image in cifar10("train").images)


def test_mean_colours_of_real_classes(real):
    test = cifar10("test")
    blueness = [
        float((test.images[test.labels["class"] == n].double().mean((0, 2, 3)) / 255)[2]) for n in range(10)
    ]
    assert max(range(10), key=blueness.__getitem__) == CIFAR10_CLASSES.index("airplane")
