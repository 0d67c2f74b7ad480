"""Files are whole or not there, errors name the path, and nothing is left of killed processes."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbhelpers.files import ROOT, TEMPORARY, atomic_path, cache_dir


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NBHELPERS_CACHE", "~/somewhere/else")
    assert cache_dir() == tmp_path / "somewhere" / "else" and cache_dir().is_dir()
    monkeypatch.setattr("nbhelpers.files.ROOT", tmp_path)
    for set_empty in (True, False):
        monkeypatch.setenv("NBHELPERS_CACHE", "") if set_empty else monkeypatch.delenv("NBHELPERS_CACHE")
        assert cache_dir() == tmp_path / ".cache"


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="NBHELPERS_CACHE") as caught:
        cache_dir()
    assert caught.value.filename == str(tmp_path / "file")


def test_old_or_new_content_and_nothing_else(tmp_path):
    target = tmp_path / "folder" / "a.txt"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.write_text(content)
            assert temporary.suffix == ".txt"
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "new" and os.listdir(target.parent) == ["a.txt"]


def test_others_may_read_what_a_private_writer_wrote(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.touch(mode=0o600)
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_folder_that_another_process_made_first_stays(tmp_path):
    with atomic_path(tmp_path / "made") as slow:
        slow.mkdir()
        (slow / "slow").touch()
        with atomic_path(tmp_path / "made") as fast:
            fast.mkdir()
            (fast / "fast").touch()
    assert os.listdir(tmp_path) == ["made"] and os.listdir(tmp_path / "made") == ["fast"]


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path):
    old, new = (tmp_path / f"{TEMPORARY}{age}" for age in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "a.txt").write_text("half")
    os.utime(old, (1, 1))
    with atomic_path(tmp_path / "c.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [new.name, "c.txt"]


def test_git_ignores_unfinished_files():
    assert f"{TEMPORARY}*" in (ROOT / ".gitignore").read_text().splitlines()


def test_many_writers_at_once(tmp_path):
    target, seen = tmp_path / "a.txt", set()
    contents = [letter * 100_000 for letter in "abcd"]

    def write(content):
        for _ in range(10):
            with atomic_path(target) as temporary:
                temporary.write_text(content)

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, content) for content in contents]
        while not all(writer.done() for writer in writers):
            if target.exists():
                seen.add(target.read_text())
    assert all(writer.exception() is None for writer in writers)
    assert seen and seen <= set(contents) and os.listdir(tmp_path) == ["a.txt"]
