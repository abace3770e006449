"""Files that are either whole or not there: written beside their place under a temporary name, synced, renamed.

The one exception is a log, which is there as it grows.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from reidkit.errors import OutputError


@contextmanager
def output_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there becomes `path` when the block ends well.

    When the block raises, `path` is as it was and the temporary file is gone. Missing parent folders are made.

    Raises:
        OutputError: the folder cannot be written to, the disk is full, or a folder, pipe or device stands at `path`.
    """
    target = Path(path)
    with _explained(target):
        _check_plain(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode & 0o777
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(mode)  # the block may have put another file there: safetensors does, for its owner alone
            temporary.replace(target)
            _sync(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def growing_file(path: Path | str, *, append: bool = False) -> Iterator[TextIO]:
    """Opens a text file that replaces `path` at once; every line is in it when it is written, and stays.

    Missing parent folders are made. Line ends are written as they come, as `csv` wants it.

    Args:
        path: of the file.
        append: go on with the file that stands at `path` instead of replacing it.

    Raises:
        OutputError: as `output_file`.
    """
    target = Path(path)
    with _explained(target, full="free some space or write elsewhere; what was written so far stays"):
        _check_plain(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a" if append else "w", buffering=1, encoding="utf-8", newline="") as stream:
            yield stream


@contextmanager
def output_directory(path: Path | str, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it becomes `path` when the block ends well.

    With `overwrite`, a folder that stands at `path` is replaced at the end and not a moment before, and only when it is
    empty or of the same kind.

    Args:
        path: of the folder.
        marker: name of the file by which such a folder is known; written empty when the block does not write it.
        overwrite: replace a folder that is already there.

    Raises:
        OutputError: as `output_file`, or as `check_free`.
    """
    target = Path(path)
    with _explained(target):
        check_free(target, overwrite=overwrite, marker=marker)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target)
        temporary.mkdir()
        try:
            yield temporary
            (temporary / marker).touch()
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            check_free(target, overwrite=overwrite, marker=marker)  # once more: the block may have taken hours
            if target.exists():
                _swap(temporary, target)
            else:
                temporary.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_free(path: Path | str, *, overwrite: bool = False, marker: str | None = None) -> None:
    """Refuses a place where something stands that may not be replaced: asked first, it spares the work.

    Args:
        path: of the file or folder that is to be written.
        overwrite: whether what stands there may be replaced.
        marker: for a folder, the file by which one of its kind is known; no other folder is replaced, unless empty.

    Raises:
        OutputError: something stands at `path` and `overwrite` is False, or something of another kind.
    """
    target = Path(path)
    with _explained(target):
        if not target.exists():
            return
        if not overwrite:
            raise OutputError(f"{target} already exists", fix="choose another name, or say --overwrite")
        if marker is None:
            _check_plain(target)
        else:
            _check_marked(target, marker)


def _check_marked(target: Path, marker: str) -> None:
    if not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    if target.name in ("", ".."):  # `.`, `..` and `/`: there is no beside, and whoever is in it would fall out
        raise OutputError(f"Cannot write {target}", got="no name to put a new folder under", fix="choose another name")
    if (target / marker).is_file():
        return
    found = sorted(entry.name for entry in target.iterdir())
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise OutputError(
            f"{target} is not replaced, for it may hold something else; nothing was removed",
            got=f"a folder with {', '.join(found[:3])}{more}, and no {marker}",
            expected=f"an empty folder, or one with the {marker} that reidkit writes",
            fix="choose another name, or remove the folder yourself",
        )


def _check_plain(target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        # Renaming onto /dev/null would take it away from the whole machine.
        raise OutputError(f"Cannot write {target}", got="no plain file in its place", fix="choose another name")


def _beside(target: Path) -> Path:
    """A hidden name beside the target that nobody has. `tempfile` would give what it makes to its owner alone."""
    return target.parent / f".{target.stem}.{secrets.token_hex(4)}{target.suffix}"


def _swap(temporary: Path, target: Path) -> None:
    # A folder cannot be renamed onto a full one: the old one steps aside for the moment between two renames.
    aside = _beside(target)
    aside.mkdir()
    old = aside / "old"
    try:
        target.rename(old)
        temporary.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        with suppress(OSError):
            aside.rmdir()  # never what is in it
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    # A folder may refuse: on Windows, on some network file systems, and where it may be written to but not read. The
    # rename itself is still atomic there.
    folder = path.is_dir()
    with suppress(OSError) if folder else nullcontext():
        # Windows syncs no file that is open for reading only.
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _explained(
    target: Path,
    *,
    full: str = "free some space or write elsewhere; nothing was left behind and nothing was overwritten",
) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, (str, bytes)) and not _concerns(Path(os.fsdecode(error.filename)), target):
            raise  # some other file that the block was reading
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                fix = full
            case errno.EACCES | errno.EPERM | errno.EROFS:
                fix = "choose a folder that you may write to"
            case errno.EISDIR | errno.ENOTDIR | errno.EEXIST | errno.ENOTEMPTY | errno.ENAMETOOLONG | errno.EBUSY:
                fix = "choose another name"
            case _:
                raise
        raise OutputError(f"Cannot write {target}", got=error.strerror, fix=fix) from error


def _concerns(named: Path, target: Path) -> bool:
    """Whether a file is the target or in it, a folder above it, or one of the temporary names beside it."""
    # Absolute: a block may name the file otherwise than the caller named the target.
    named, target = Path(os.path.abspath(named)), Path(os.path.abspath(target))  # noqa: PTH100 (takes `..` away too)
    if target in (named, *named.parents) or named in target.parents:
        return True
    return target.parent in named.parents and named.relative_to(target.parent).parts[0].startswith(f".{target.stem}.")
