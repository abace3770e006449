"""Files that are either whole or not there: written beside their place under a temporary name, synced, renamed."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

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
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        if target.exists() and not target.is_file():
            # Renaming onto /dev/null would take it away from the whole machine.
            raise OutputError(f"Cannot write {target}", got="no plain file in its place", fix="choose another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
            _sync(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def output_directory(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it becomes `path` when the block ends well.

    With `overwrite`, a folder that stands at `path` is replaced at the end and not a moment before.

    Raises:
        OutputError: as `output_file`; or something stands at `path` and `overwrite` is False.
    """
    target = Path(path)
    with _explained(target):
        if target.exists() and not overwrite:
            raise OutputError(f"{target} already exists", fix="choose another name, or say --overwrite")
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            temporary.chmod(0o777 & ~_umask())
            if overwrite and target.exists():
                _swap(temporary, target)
            else:
                temporary.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _swap(temporary: Path, target: Path) -> None:
    # A folder cannot be renamed onto a full one: the old one steps aside for the moment between two renames.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
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
    # A folder may refuse: on some network file systems, and where it may be written to but not read. The rename itself
    # is still atomic there.
    with suppress(OSError) if path.is_dir() else nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, (str, bytes)) and not _concerns(Path(os.fsdecode(error.filename)), target):
            raise  # some other file that the block was reading
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                fix = "free some space or write elsewhere; nothing was left behind and nothing was overwritten"
            case errno.EACCES | errno.EPERM | errno.EROFS:
                fix = "choose a folder that you may write to"
            case errno.EISDIR | errno.ENOTDIR | errno.EEXIST | errno.ENOTEMPTY | errno.ENAMETOOLONG:
                fix = "choose another name"
            case _:
                raise
        raise OutputError(f"Cannot write {target}", got=error.strerror, fix=fix) from error


def _concerns(named: Path, target: Path) -> bool:
    """Whether a file is the target or in it, a folder above it, or one of the temporary names beside it."""
    # Absolute: `tempfile` gives absolute names, also for a relative target.
    named, target = Path(os.path.abspath(named)), Path(os.path.abspath(target))  # noqa: PTH100 (takes `..` away too)
    if target in (named, *named.parents) or named in target.parents:
        return True
    return target.parent in named.parents and named.relative_to(target.parent).parts[0].startswith(f".{target.stem}.")
