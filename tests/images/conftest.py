"""What the tests of images share: an empty cache folder for each, and tar archives."""

import tarfile

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The cache folder of a test."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NBHELPERS_CACHE", str(place))
    return place


@pytest.fixture
def as_tar():
    """Packs a folder into an archive."""

    def pack(root, path, mode="w"):
        with tarfile.open(path, mode) as archive:
            archive.add(root, root.name)
        return path

    return pack
