import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from conditions import unprivileged
from reidkit.atomic import check_free, growing_file, output_file
from reidkit.atomic import output_directory as marked_directory
from reidkit.errors import OutputError

MARKER = ".mine"
output_directory = partial(marked_directory, marker=MARKER)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill_directory(path: Path, text: str, *, overwrite: bool = False) -> None:
    with output_directory(path, overwrite=overwrite) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text(text)


def fill_file(path: Path, text: str) -> None:
    with output_file(path) as temporary:
        temporary.write_text(text)


def refused(block: AbstractContextManager[object]) -> None:
    """Enters a block that must not run."""
    with block:
        pytest.fail("the block must not run")


def broken_off(block: AbstractContextManager[Path], error: BaseException) -> None:
    """Writes something, then fails."""
    with block as temporary:
        (temporary / "a.txt" if temporary.is_dir() else temporary).write_text("half")
        raise error


Output = Callable[[Path], AbstractContextManager[Path]]
BOTH = pytest.mark.parametrize("output", [output_file, output_directory])


def raise_on(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, *, call: int = 1) -> None:
    """Makes the `call`-th call of a function fail with that errno; the others are as they were."""
    original, calls = getattr(owner, name), []

    def failing(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == call:
            raise OSError(number, os.strerror(number))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


class TestFile:
    def test_it_appears_when_the_block_ends_and_not_before(self, tmp_path):
        target = tmp_path / "new" / "folders" / "a.json"
        with output_file(str(target)) as temporary:
            temporary.write_text("whole")
            assert temporary.parent == target.parent
            assert temporary.suffix == ".json"
            assert not target.exists()
        assert target.read_text() == "whole"
        assert names(target.parent) == ["a.json"]

    def test_it_replaces_an_older_one(self, tmp_path):
        fill_file(tmp_path / "a.json", "old")
        fill_file(tmp_path / "a.json", "new")
        assert (tmp_path / "a.json").read_text() == "new"
        assert names(tmp_path) == ["a.json"]

    @pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OutputError("no")])
    def test_when_the_block_raises_the_old_one_stays(self, tmp_path, error):
        fill_file(tmp_path / "a.json", "old")
        with pytest.raises(type(error)):
            broken_off(output_file(tmp_path / "a.json"), error)
        assert (tmp_path / "a.json").read_text() == "old"
        assert names(tmp_path) == ["a.json"]

    def test_a_folder_in_its_place_is_refused(self, tmp_path):
        (tmp_path / "a.json").mkdir()
        with pytest.raises(OutputError) as caught:
            fill_file(tmp_path / "a.json", "new")
        assert str(caught.value) == (
            f"Cannot write {tmp_path / 'a.json'}\n  got: Is a directory\n  to do: choose another name"
        )
        assert names(tmp_path) == ["a.json"]

    def test_a_pipe_in_its_place_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OutputError, match="got: no plain file in its place\n  to do: choose another name"):
            fill_file(tmp_path / "pipe", "new")
        assert (tmp_path / "pipe").is_fifo()

    def test_the_file_of_the_block_itself_must_be_there(self, tmp_path):
        with pytest.raises(FileNotFoundError), output_file(tmp_path / "a.json") as temporary:
            temporary.unlink()
        assert names(tmp_path) == []


class TestDirectory:
    def test_it_appears_when_the_block_ends_and_not_before(self, tmp_path):
        target = tmp_path / "new" / "m.reid"
        with output_directory(str(target)) as folder:
            (folder / "a.txt").write_text("whole")
            assert not target.exists()
        assert (target / "a.txt").read_text() == "whole"
        assert names(target.parent) == ["m.reid"]

    def test_one_that_stands_there_is_refused_before_anything_is_done(self, tmp_path):
        fill_directory(tmp_path / "m.reid", "old")
        with pytest.raises(OutputError) as caught:
            refused(output_directory(tmp_path / "m.reid"))
        assert str(caught.value) == (
            f"{tmp_path / 'm.reid'} already exists\n  to do: choose another name, or say --overwrite"
        )

    def test_overwrite_replaces_all_of_it_at_the_end(self, tmp_path):
        target = tmp_path / "m.reid"
        fill_directory(target, "old")
        with output_directory(target, overwrite=True) as folder:
            (folder / "new.txt").write_text("new")
            assert (target / "inner" / "b.txt").read_text() == "old"
        assert names(target) == [MARKER, "new.txt"]
        assert names(tmp_path) == ["m.reid"]

    def test_the_block_may_write_the_marker_itself(self, tmp_path):
        with output_directory(tmp_path / "m.reid") as folder:
            (folder / MARKER).write_text("something")
        assert (tmp_path / "m.reid" / MARKER).read_text() == "something"

    @pytest.mark.parametrize(
        ("files", "found"),
        [
            (["photo.jpg"], "photo.jpg"),
            (["d", "c", "b", "a", ".e"], ".e, a, b and 2 more"),
        ],
    )
    def test_overwrite_never_removes_a_folder_of_another_kind(self, tmp_path, files, found):
        target = tmp_path / "holiday"
        target.mkdir()
        for name in files:
            (target / name).write_text("dear")
        with pytest.raises(OutputError) as caught:
            refused(output_directory(target, overwrite=True))
        assert str(caught.value) == (
            f"{target} is not replaced, for it may hold something else; nothing was removed\n"
            f"  got: a folder with {found}, and no .mine\n"
            "  expected: an empty folder, or one with the .mine that reidkit writes\n"
            "  to do: choose another name, or remove the folder yourself"
        )
        assert names(target) == sorted(files)
        assert names(tmp_path) == ["holiday"]

    def test_a_folder_is_no_marker(self, tmp_path):
        (tmp_path / "holiday" / MARKER).mkdir(parents=True)
        with pytest.raises(OutputError, match=r"nothing was removed\n  got: a folder with \.mine, and no \.mine"):
            refused(output_directory(tmp_path / "holiday", overwrite=True))

    def test_overwrite_takes_an_empty_folder(self, tmp_path):
        (tmp_path / "m.reid").mkdir()
        fill_directory(tmp_path / "m.reid", "new", overwrite=True)
        assert (tmp_path / "m.reid" / "a.txt").read_text() == "new"

    def test_a_folder_of_another_kind_that_came_meanwhile_is_not_removed(self, tmp_path):
        target = tmp_path / "m.reid"
        with pytest.raises(OutputError, match="nothing was removed"), output_directory(target, overwrite=True):
            fill_file(target / "photo.jpg", "dear")
        assert names(target) == ["photo.jpg"]
        assert names(tmp_path) == ["m.reid"]

    @pytest.mark.parametrize("name", [".", "..", "inner/.."])
    def test_the_working_folder_itself_cannot_be_replaced(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "inner").mkdir()
        with pytest.raises(OutputError) as caught:
            fill_directory(Path(name), "new", overwrite=True)
        assert str(caught.value) == (
            f"Cannot write {name}\n  got: no name to put a new folder under\n  to do: choose another name"
        )
        assert names(tmp_path) == ["inner"]

    @pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
    def test_when_the_block_raises_the_old_one_stays(self, tmp_path, error):
        fill_directory(tmp_path / "m.reid", "old")
        with pytest.raises(type(error)):
            broken_off(output_directory(tmp_path / "m.reid", overwrite=True), error)
        assert (tmp_path / "m.reid" / "a.txt").read_text() == "old"
        assert names(tmp_path) == ["m.reid"]

    @pytest.mark.parametrize("call", [1, 2])
    def test_when_a_rename_fails_the_old_one_is_back(self, tmp_path, monkeypatch, call):
        fill_directory(tmp_path / "m.reid", "old")
        raise_on(monkeypatch, Path, "rename", errno.EACCES, call=call)
        with pytest.raises(OutputError, match="choose a folder that you may write to"):
            fill_directory(tmp_path / "m.reid", "new", overwrite=True)
        assert (tmp_path / "m.reid" / "inner" / "b.txt").read_text() == "old"
        assert names(tmp_path) == ["m.reid"]

    def test_an_interrupt_between_the_renames_brings_the_old_one_back(self, tmp_path, monkeypatch):
        fill_directory(tmp_path / "m.reid", "old")
        rename, calls = Path.rename, []

        def interrupted(self: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill_directory(tmp_path / "m.reid", "new", overwrite=True)
        assert (tmp_path / "m.reid" / "a.txt").read_text() == "old"
        assert names(tmp_path) == ["m.reid"]

    def test_one_that_came_meanwhile_is_not_replaced_without_overwrite(self, tmp_path):
        target = tmp_path / "m.reid"
        with pytest.raises(OutputError, match="choose another name"), output_directory(target):
            fill_directory(target, "quick")
        assert (target / "a.txt").read_text() == "quick"
        assert names(tmp_path) == ["m.reid"]

    def test_a_file_in_its_place_is_refused_even_with_overwrite(self, tmp_path):
        (tmp_path / "m.reid").write_text("a file")
        with pytest.raises(OutputError, match="got: Not a directory\n  to do: choose another name"):
            fill_directory(tmp_path / "m.reid", "new", overwrite=True)
        assert (tmp_path / "m.reid").read_text() == "a file"

    def test_a_link_is_replaced_and_what_it_led_to_stays(self, tmp_path):
        fill_directory(tmp_path / "real", "old")
        (tmp_path / "m.reid").symlink_to("real")
        fill_directory(tmp_path / "m.reid", "new", overwrite=True)
        assert not (tmp_path / "m.reid").is_symlink()
        assert (tmp_path / "m.reid" / "a.txt").read_text() == "new"
        assert (tmp_path / "real" / "a.txt").read_text() == "old"


class TestGrowing:
    def test_every_line_is_there_when_it_is_written(self, tmp_path):
        target = tmp_path / "new" / "log.csv"
        with growing_file(target) as stream:
            assert target.read_bytes() == b""
            stream.write("größe,1\r\n")
            assert target.read_bytes() == "größe,1\r\n".encode()
            stream.write("b,2\n")
            assert target.read_bytes() == "größe,1\r\nb,2\n".encode()

    def test_what_was_written_stays_when_the_block_raises(self, tmp_path):
        fill_file(tmp_path / "log.csv", "an earlier log, much longer than the new one")
        with pytest.raises(UnicodeEncodeError), growing_file(tmp_path / "log.csv") as stream:
            stream.writelines(["a,1\n", "\ud800"])
        assert (tmp_path / "log.csv").read_text() == "a,1\n"

    @pytest.mark.parametrize("place", ["folder", "pipe"])
    def test_what_is_no_plain_file_is_refused(self, tmp_path, place):
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OutputError, match=r"Cannot write .*\n  got: (Is a directory|no plain file in its place)\n"):
            refused(growing_file(tmp_path / place))

    def test_a_full_disk_does_not_promise_what_is_not_so(self, tmp_path):
        with pytest.raises(OutputError) as caught, growing_file(tmp_path / "log.csv"):
            Path("/dev/full").write_bytes(b"x")
        assert str(caught.value) == (
            f"Cannot write {tmp_path / 'log.csv'}\n  got: No space left on device\n"
            "  to do: free some space or write elsewhere; what was written so far stays"
        )


class TestFree:
    def test_a_file(self, tmp_path):
        check_free(tmp_path / "a.json")
        fill_file(tmp_path / "a.json", "old")
        check_free(tmp_path / "a.json", overwrite=True)
        with pytest.raises(OutputError, match=r"a\.json already exists\n  to do: choose another name, or say --overwr"):
            check_free(str(tmp_path / "a.json"))

    def test_a_folder_where_a_file_is_to_be_written(self, tmp_path):
        with pytest.raises(OutputError, match=f"Cannot write {tmp_path}\n  got: Is a directory"):
            check_free(tmp_path, overwrite=True)

    def test_a_folder(self, tmp_path):
        check_free(tmp_path / "m.reid", marker=MARKER)
        fill_directory(tmp_path / "m.reid", "old")
        check_free(tmp_path / "m.reid", marker=MARKER, overwrite=True)
        with pytest.raises(OutputError, match=r"m\.reid already exists"):
            check_free(tmp_path / "m.reid", marker=MARKER)
        with pytest.raises(OutputError, match="nothing was removed"):
            check_free(tmp_path / "m.reid", marker="manifest.json", overwrite=True)


def test_a_file_that_the_block_put_there_has_the_permissions_of_a_new_one(tmp_path):
    # safetensors writes beside and renames; its files are for their owner alone.
    with output_file(tmp_path / "a.json") as temporary:
        other = tmp_path / "other"
        other.touch(mode=0o600)
        other.replace(temporary)
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_umask_of_the_process_is_left_alone(tmp_path, monkeypatch):
    # It belongs to every thread: to read it is to change it for a moment.
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask was touched"))
    fill_file(tmp_path / "a.json", "x")
    fill_directory(tmp_path / "m.reid", "x")


def test_files_are_synced_through_a_handle_that_may_write(tmp_path, monkeypatch):
    # Windows refuses any other. Folders have none.
    synced, fsync = [], os.fsync

    def spy(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    fill_directory(tmp_path / "m.reid", "x")
    files = [access for path, access in synced if path.suffix == ".txt"]
    assert files == [os.O_RDWR, os.O_RDWR]


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_permissions_follow_the_umask(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        fill_file(tmp_path / "a.json", "x")
        fill_directory(tmp_path / "m.reid", "x")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "m.reid", "m.reid/a.txt", "m.reid/inner")]
    assert modes == [file, folder, file, folder]


@BOTH
@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch, output: Output, relative):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    target = Path("locked/m.reid") if relative else tmp_path / "locked" / "m.reid"
    with unprivileged(tmp_path), pytest.raises(OutputError) as caught:
        refused(output(target))
    assert str(caught.value) == (
        f"Cannot write {target}\n  got: Permission denied\n  to do: choose a folder that you may write to"
    )
    assert names(tmp_path / "locked") == []


@BOTH
def test_a_working_folder_that_may_not_be_written_to(tmp_path, monkeypatch, output: Output):
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)
    with unprivileged(tmp_path), pytest.raises(OutputError, match=r"^Cannot write m\.reid\n  got: Permission denied"):
        refused(output(Path("m.reid")))


@BOTH
def test_a_folder_that_may_not_be_looked_into(tmp_path, output: Output):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o600)
    tmp_path.chmod(0o755)
    with unprivileged(tmp_path), pytest.raises(OutputError, match=r"Cannot write .*m\.reid\n  got: Permission denied"):
        refused(output(tmp_path / "closed" / "m.reid"))


@BOTH
def test_a_folder_that_may_be_written_to_but_not_listed_is_enough(tmp_path, output: Output):
    (tmp_path / "box").mkdir()
    if os.geteuid() == 0:
        os.chown(tmp_path / "box", 65534, 65534)
    (tmp_path / "box").chmod(0o300)
    tmp_path.chmod(0o755)
    with unprivileged(tmp_path), output(tmp_path / "box" / "m.reid"):
        pass
    (tmp_path / "box").chmod(0o700)
    assert names(tmp_path / "box") == ["m.reid"]


@BOTH
def test_a_file_where_a_folder_should_be(tmp_path, output: Output):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file" / "m.reid", tmp_path / "file" / "further" / "m.reid"):
        with pytest.raises(OutputError, match=r"Cannot write .*m\.reid\n  got: (File exists|Not a directory)"):
            refused(output(target))
    assert (tmp_path / "file").read_text() == "mine"


@BOTH
def test_a_name_that_is_too_long(tmp_path, output: Output):
    for name in ("x" * 300, "x" * 254):
        with pytest.raises(OutputError, match="got: File name too long\n  to do: choose another name"):
            refused(output(tmp_path / name))


@BOTH
def test_the_disk_is_full_when_the_block_writes(tmp_path, output: Output):
    with pytest.raises(OutputError) as caught, output(tmp_path / "m.reid"):
        Path("/dev/full").write_bytes(b"x")  # the device that is always full
    assert str(caught.value) == (
        f"Cannot write {tmp_path / 'm.reid'}\n  got: No space left on device\n"
        "  to do: free some space or write elsewhere; nothing was left behind and nothing was overwritten"
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize("fill", [fill_file, lambda path, text: fill_directory(path, text, overwrite=True)])
def test_the_disk_turns_out_full_when_synced(tmp_path, monkeypatch, fill):
    fill(tmp_path / "m.reid", "old")
    raise_on(monkeypatch, os, "fsync", errno.ENOSPC)
    with pytest.raises(OutputError, match="got: No space left on device"):
        fill(tmp_path / "m.reid", "new")
    old = tmp_path / "m.reid"
    assert (old / "a.txt" if old.is_dir() else old).read_text() == "old"
    assert names(tmp_path) == ["m.reid"]


def test_a_folder_that_cannot_be_synced_does_no_harm(tmp_path, monkeypatch):
    # Some network file systems answer so. The second call is the one for the folder.
    raise_on(monkeypatch, os, "fsync", errno.EINVAL, call=2)
    fill_file(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new"


@BOTH
@pytest.mark.parametrize("place", ["input.jpg", "m.jpg", "further/input.jpg", "../input.jpg"])
def test_trouble_with_another_file_is_not_blamed_on_the_output(tmp_path, output: Output, place):
    other = str(tmp_path / place)
    with pytest.raises(PermissionError) as caught, output(tmp_path / "m.reid"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), other)
    assert caught.value.filename == other
    with pytest.raises(FileNotFoundError), output(tmp_path / "m.reid"):
        Path(other).read_bytes()
    assert names(tmp_path) == []
