"""What was computed once and is kept on this machine: where, under which name, and for how long.

    FOLDER/<sha256 of everything that decides the contents><suffix>

A picture counts by its bytes, not by its path or date: a moved data set is known again, and a changed picture is never
served what its old bytes gave. Within a process the bytes are read once, as long as the file system says that nobody
has touched a file. Only its owner may read an entry: what is computed from people is personal, too.

How an entry looks, and how it is seen to be damaged, is the affair of those who write it.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from reidkit.bundle import file_sha256
from reidkit.errors import DataError
from reidkit.imaging import available_cores

T = TypeVar("T")

_DIGEST = "[0-9a-f]{64}"
_ABANDONED = 3600.0  # seconds after which a temporary file is nobody's
_FILES_A_TASK = 64
_SETTLED = 2.0  # seconds: a file that was changed longer ago gets another time if it is changed again

_logger = logging.getLogger(__name__)
_hashed: dict[str, str] = {}  # sha256 of pictures that this process has read, by that of what the file system says


def default_folder(name: str) -> Path | None:
    """Where entries of a kind are kept: `name` below REIDKIT_CACHE, or XDG_CACHE_HOME/reidkit, or ~/.cache/reidkit.

    None, and a warning in the log, where none of them says where, because this user has no home.

    Args:
        name: of the kind: "embeddings", "crops".
    """
    own, xdg = os.environ.get("REIDKIT_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            return Path(own).expanduser() / name
        # The standard has a relative one ignored.
        base = Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        _logger.warning("%s are not kept, for want of a folder: %s Set REIDKIT_CACHE to one", name, error)
        return None
    return base / "reidkit" / name


class CacheFolder:
    """The entries of one kind. Several processes may share the folder.

    A folder that cannot be used costs a warning in the log, and only one; whoever calls goes on without it.

    Args:
        path: of the folder; made when there is something to write.
        suffix: of the entries' names.
        limit: bytes that they may take; those that were not used for longest go first.
        holds: what is kept, for the log: "embeddings".
        made: how that was made of pictures, for the log: "embedded".
    """

    def __init__(self, path: Path, *, suffix: str, limit: int, holds: str, made: str) -> None:
        self._path = path
        self._suffix = suffix
        self._limit = limit
        self._holds = holds
        self._made = made
        self._warned = False
        self._entry = re.compile(_DIGEST + re.escape(suffix))
        self._temporary = re.compile(rf"\.{_DIGEST}\.[a-z0-9_]{{8}}{re.escape(suffix)}")  # as `tempfile` names it

    def entry(self, about: str) -> Path:
        """Where that is kept which `about` decides."""
        return self._path / f"{hashlib.sha256(about.encode()).hexdigest()}{self._suffix}"

    def recall(self, entry: Path, read: Callable[[], T]) -> T | None:
        """What `read` makes of an entry; None where there is none that can be believed.

        Args:
            entry: as `entry` names it.
            read: reads it; a DataError says that it is damaged, and then it is removed.
        """
        try:
            found = read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn(error)
            return None
        except DataError as error:
            if not os.path.lexists(entry):
                return None  # another process removed it while it was read
            reason = error.problem if error.got is None else f"{error.problem} ({error.got})"
            _logger.warning("%s; it is removed, and the pictures are %s again", reason, self._made)
            with suppress(OSError):
                entry.unlink()
            return None
        with suppress(OSError):
            os.utime(entry)  # used last
        return found

    def takes(self, size: int) -> bool:
        """Whether so many bytes are within the limit at all."""
        if size > self._limit:
            _logger.info("%d bytes of %s are not kept: the limit is %d", size, self._holds, self._limit)
        return size <= self._limit

    @contextmanager
    def new_entry(self, entry: Path, size: int) -> Iterator[BinaryIO]:
        """Opens a file that becomes `entry` when the block ends well; only its owner may read it.

        Room is made first, and when the block raises, nothing is left. A crash of the machine may harm the entry,
        which whoever reads it has to see.

        Args:
            entry: as `entry` names it.
            size: bytes that will be written, about.

        Raises:
            OSError: the folder cannot be written to, or the disk has no such room.
        """
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room(size)
        if shutil.disk_usage(self._path).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        handle, name = tempfile.mkstemp(prefix=f".{entry.stem}.", suffix=self._suffix, dir=self._path)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
            Path(name).replace(entry)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def warn(self, error: Exception) -> None:
        """Says in the log that the folder cannot be used, once."""
        if not self._warned:
            reason = " ".join(str(error).split())
            _logger.warning("the cache of %s in %s cannot be used: %s", self._holds, self._path, reason)
        self._warned = True

    def _make_room(self, size: int) -> None:
        """Removes the entries that were not used for longest, and what killed processes have left."""
        entries = sorted(self._entries())
        total = size + sum(length for _, length, _ in entries)
        for _, length, file in entries:
            if total <= self._limit:
                return
            with suppress(OSError):  # another process may have been faster
                file.unlink()
                total -= length

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Time of last use, bytes and path of each entry; abandoned temporary files are removed."""
        for file in self._path.iterdir():
            with suppress(FileNotFoundError):
                status = file.lstat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                if self._entry.fullmatch(file.name):
                    yield status.st_mtime_ns, status.st_size, file
                elif self._temporary.fullmatch(file.name) and time.time() - status.st_mtime > _ABANDONED:
                    file.unlink()


def canonical(facts: Mapping[str, Any]) -> str:
    """Plain values as JSON that is the same for the same values."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def sources_sha256(package: Path, names: Iterable[str]) -> str:
    """Of files and folders of a package: while code is worked on, its version stays the same."""
    digest = hashlib.sha256()
    for name in names:
        place = package / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(package).as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def pictures_sha256(files: Sequence[Path]) -> str | None:
    """Of the bytes of all pictures, in order; None where one cannot be read."""
    try:
        state = _state_sha256(files)
        if state in _hashed:
            return _hashed[state]
        pictures = _bytes_sha256(files)
    except OSError:
        return None
    if state is not None:
        _hashed[state] = pictures
    return pictures


def _state_sha256(files: Sequence[Path]) -> str | None:
    """Of all that changes with a file; None where one was touched just now, and could change and look the same."""
    settled = time.time_ns() - int(_SETTLED * 1e9)
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        if max(status.st_mtime_ns, status.st_ctime_ns) > settled:
            return None
        state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        digest.update(repr((str(file.absolute()), *state)).encode())
    return digest.hexdigest()


def _bytes_sha256(files: Sequence[Path]) -> str:
    """Hashed in threads."""

    def hash_some(start: int) -> str:
        return "".join(file_sha256(file) for file in files[start : start + _FILES_A_TASK])

    digest = hashlib.sha256()
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="reidkit-hash") as pool:
        for some in pool.map(hash_some, range(0, len(files), _FILES_A_TASK)):
            digest.update(some.encode())
    return digest.hexdigest()
