"""The folder of what was computed once; what its users make of it is tested with them."""

import errno
import logging
import os
import shutil
import time

import pytest

from reidkit import cache
from reidkit.cache import CacheFolder, canonical, default_folder, pictures_sha256, sources_sha256
from reidkit.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return CacheFolder(tmp_path / "kept", suffix=".bin", limit=1000, holds="things", made="made")


def write(folder, about, data):
    with folder.new_entry(folder.entry(about), len(data)) as stream:
        stream.write(data)
    return folder.entry(about)


def test_default_folder_is_named_after_what_it_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("REIDKIT_CACHE", str(tmp_path))
    assert default_folder("crops") == tmp_path / "crops"
    monkeypatch.delenv("REIDKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder("crops") == tmp_path / "reidkit" / "crops"


def test_an_entry_is_there_when_its_block_ends_and_its_owners_alone(folder, tmp_path):
    entry = folder.entry("a")
    with folder.new_entry(entry, 3) as stream:
        stream.write(b"abc")
        assert not entry.exists()
    assert entry.read_bytes() == b"abc"
    assert [place.stat().st_mode & 0o777 for place in (tmp_path / "kept", entry)] == [0o700, 0o600]
    # sha256 of "a"
    assert entry.name == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb.bin"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_entry_that_is_not_finished_leaves_nothing(folder, tmp_path, error):
    write(folder, "a", b"old")

    def fail():
        with folder.new_entry(folder.entry("a"), 3) as stream:
            stream.write(b"new")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [file.read_bytes() for file in (tmp_path / "kept").iterdir()] == [b"old"]


def test_a_disk_without_room_is_seen_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match="No space left"), folder.new_entry(folder.entry("a"), 11):
        pytest.fail("the block was entered")
    assert list((tmp_path / "kept").iterdir()) == []
    write(folder, "a", bytes(10))


def test_room_is_made_by_what_was_not_used_for_longest(folder):
    entries = {about: write(folder, about, bytes(400)) for about in ("a", "b")}
    for age, about in enumerate(("b", "a")):
        os.utime(entries[about], (1000 + age, 1000 + age))
    write(folder, "c", bytes(300))
    assert (entries["a"].exists(), entries["b"].exists()) == (True, False)
    assert folder.recall(entries["a"], entries["a"].read_bytes) == bytes(400)
    assert entries["a"].stat().st_mtime > time.time() - 60  # used just now


def test_what_is_larger_than_the_limit_is_not_taken(folder, caplog):
    caplog.set_level(logging.INFO)
    assert folder.takes(1000)
    assert not caplog.records
    assert not folder.takes(1001)
    assert caplog.messages == ["1001 bytes of things are not kept: the limit is 1000"]


def test_recalling_what_is_not_there_or_damaged_or_locked(folder, caplog):
    entry = folder.entry("a")
    assert folder.recall(entry, entry.read_bytes) is None
    assert not caplog.records
    write(folder, "a", b"x")

    def damaged():
        raise DataError("it is damaged", got="one byte")

    def locked():
        raise PermissionError(errno.EACCES, "not yours")

    assert folder.recall(entry, locked) is None
    assert entry.exists()
    assert folder.recall(entry, damaged) is None
    assert not entry.exists()
    assert folder.recall(entry, damaged) is None  # removed by another process while it was read: nothing to say
    assert [message.split(": ")[0].split(" in ")[0] for message in caplog.messages] == [
        "the cache of things",
        "it is damaged (one byte); it is removed, and the pictures are made again",
    ]


def test_a_folder_that_cannot_be_used_is_said_once(folder, caplog):
    for _ in range(3):
        folder.warn(OSError(errno.EROFS, "read-only\n  file system"))
    (message,) = caplog.messages
    assert message.endswith("kept cannot be used: [Errno 30] read-only file system")


def test_pictures_are_known_by_their_bytes_and_order(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_SETTLED", 3600.0)
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_text(file.name)
    first = pictures_sha256(files)
    moved = [file.rename(file.with_suffix(".moved")) for file in files]
    assert pictures_sha256(moved) == first
    assert pictures_sha256(moved[::-1]) != first
    moved[0].write_text("c")
    assert pictures_sha256(moved) != first
    assert pictures_sha256([*moved, tmp_path / "none"]) is None


def test_facts_in_any_order_are_the_same_text():
    assert canonical({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'


def test_sources_are_known_by_name_and_contents(tmp_path):
    (tmp_path / "room").mkdir()
    for name in ("a.py", "room/b.py", "room/notes.txt"):
        (tmp_path / name).write_text(name)
    first = sources_sha256(tmp_path, ["a.py", "room"])
    assert sources_sha256(tmp_path, ["a.py"]) != first
    (tmp_path / "room" / "notes.txt").write_text("no code")
    assert sources_sha256(tmp_path, ["a.py", "room"]) == first
    (tmp_path / "room" / "b.py").write_text("other code")
    assert sources_sha256(tmp_path, ["a.py", "room"]) != first
