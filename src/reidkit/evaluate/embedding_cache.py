"""Embeddings that were extracted once: a second metric, protocol or re-ranking costs no second extraction.

    FOLDER/<sha256 of everything that decides the embeddings>.npz
        embeddings   float32, a row per picture that could be read
        rows         which of the pictures those are
        about        what the name is the sha256 of, and the sha256 of the arrays, as JSON

What decides an embedding is the bundle's files and what the manifest says of the graph (not its measurements), the
engine with its version, precision and device, test-time augmentation, Pillow, this package, and the bytes of every
picture. The batch size does not: `reid verify` holds every engine to the same embeddings crop by crop and batched. Nor
do path and date: a moved data set is known again, and a changed picture is never served its old embedding. Within a
process the bytes are read once, as long as the file system says that nobody has touched a file.

An entry is written when a whole subset is embedded: of an extraction that was stopped, or that an unreadable picture
ended, nothing is kept. Only its owner may read it.

The sha256 finds damage, not forgery: whoever may write to the folder can write other numbers, but nothing that runs.
"""

import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL

import reidkit
from reidkit.bundle import GOLDEN, Bundle, file_sha256
from reidkit.config import to_dict
from reidkit.errors import DataError, ImageError, unknown_name
from reidkit.evaluate.npz import Header, NpzFile, open_npz
from reidkit.imaging import available_cores, open_image
from reidkit.manifest import Tta
from reidkit.runtime import ENGINES
from reidkit.runtime.pipeline import Extraction, OnUnreadable
from reidkit.types import EmbedderSpec

LIMIT = 4 << 30
"""Bytes that a folder may take, where nobody says."""

_FORMAT = 1
_DECISIVE = ("architecture.py", "imaging.py", "models", "runtime")  # of this package
_ENTRY = re.compile(r"[0-9a-f]{64}\.npz")
_TEMPORARY = re.compile(r"\.[0-9a-f]{64}\.[a-z0-9_]{8}\.npz")  # as `tempfile` names it
_ABANDONED = 3600.0  # seconds after which a temporary file is nobody's
_LARGEST_ABOUT = 1 << 20  # bytes of JSON
_FILES_A_TASK = 64
_SETTLED = 2.0  # seconds: a file that was changed longer ago gets another time if it is changed again

_logger = logging.getLogger(__name__)
_hashed: dict[str, str] = {}  # sha256 of pictures that this process has read, by that of what the file system says


def default_folder() -> Path | None:
    """Where embeddings are kept: `embeddings` below REIDKIT_CACHE, or XDG_CACHE_HOME/reidkit, or ~/.cache/reidkit.

    None, and a warning in the log, where none of them says where, because this user has no home.
    """
    own, xdg = os.environ.get("REIDKIT_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            return Path(own).expanduser() / "embeddings"
        # The standard has a relative one ignored.
        base = Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        _logger.warning("embeddings are not kept, for want of a folder: %s Set REIDKIT_CACHE to one", error)
        return None
    return base / "reidkit" / "embeddings"


def open_cache(
    folder: Path | None, bundle: Bundle, spec: EmbedderSpec, tta: Tta, *, limit: int = LIMIT
) -> "EmbeddingCache":
    """Opens the cache of one model on one engine; nothing is read or written yet.

    Args:
        folder: that holds the entries of all models, made when there is something to write. None keeps nothing.
        bundle: that the embedder was loaded from.
        spec: of that embedder.
        tta: the test-time augmentation around it.
        limit: bytes that the folder may take; the entries that were not used for longest go first.

    Raises:
        ConfigError: no engine has the name that the spec says.
    """
    if spec.runtime not in ENGINES:
        raise unknown_name("runtime", spec.runtime, ENGINES)
    manifest = bundle.manifest
    facts = {
        "format": _FORMAT,
        "reidkit": {"version": reidkit.__version__, "sources": _sources_sha256()},
        "libraries": {"pillow": PIL.__version__} | _library_versions(bundle, ENGINES[spec.runtime].library),
        "bundle": {name: digest for name, digest in manifest.files.items() if name != GOLDEN},
        "architecture": to_dict(manifest.architecture),
        "embedder": to_dict(spec),
        "tta": tta,
    }
    return EmbeddingCache(folder, facts, spec=spec, tta=tta, limit=limit)


def _library_versions(bundle: Bundle, library: str) -> dict[str, str]:
    versions = {library: str(importlib.import_module(library).__version__)}
    architecture = bundle.manifest.architecture
    if library == "torch" and architecture is not None and architecture.backbone.family == "timm":
        versions["timm"] = importlib.metadata.version("timm")
    return versions


def _sources_sha256() -> str:
    """Of the code that makes an embedding of a picture: while it is worked on, its version stays the same."""
    package = Path(reidkit.__file__).parent
    digest = hashlib.sha256()
    for name in _DECISIVE:
        place = package / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(package).as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


class EmbeddingCache:
    """The embeddings that one model gives on one engine, by the bytes of the pictures; see `open_cache`.

    A folder that cannot be used costs a warning in the log, never an evaluation. Several processes may share one.

    Args:
        folder: of the entries; None keeps nothing.
        facts: everything but the pictures that decides an embedding, as plain values.
        spec: of the embedder, which the facts contain.
        tta: likewise.
        limit: bytes that the folder may take.
    """

    def __init__(
        self, folder: Path | None, facts: Mapping[str, Any], *, spec: EmbedderSpec, tta: Tta, limit: int
    ) -> None:
        self.spec = spec
        self.tta: Tta = tta
        self._folder = folder
        self._facts = facts
        self._limit = limit
        self._warned = False

    def fetch(
        self, files: Sequence[Path], extract: Callable[[], Extraction], *, unreadable: OnUnreadable
    ) -> Extraction:
        """Gives the embeddings of pictures: those that are kept, or new ones, which are kept.

        Pictures that were unreadable are decoded again, for the message that belongs to their path of today.

        Args:
            files: pictures, one crop each.
            extract: embeds these files; what it raises is passed on.
            unreadable: what `extract` does about a picture that cannot be decoded, and what is done here.

        Raises:
            ImageError: a picture cannot be decoded and `unreadable` is "raise".
        """
        pictures = None if self._folder is None else _pictures_sha256(files)
        if self._folder is None or pictures is None:
            return extract()  # which says what is wrong with a file that cannot be read
        about = _canonical({**self._facts, "pictures": {"count": len(files), "sha256": pictures}})
        entry = self._folder / f"{hashlib.sha256(about.encode()).hexdigest()}.npz"
        found = self._recall(entry, about, files)
        if found is not None:
            if found.unreadable and unreadable == "raise":
                raise found.unreadable[0]
            return found
        extraction = extract()
        if _pictures_sha256(files) == pictures:  # not changed while they were embedded
            self._keep(entry, about, extraction)
        return extraction

    def _recall(self, entry: Path, about: str, files: Sequence[Path]) -> Extraction | None:
        """The entry, checked; None where there is none that can be believed."""
        try:
            found = _read_entry(entry, about, files, self.spec.dim)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        except DataError as error:
            reason = error.problem if error.got is None else f"{error.problem} ({error.got})"
            _logger.warning("%s; it is removed, and the pictures are embedded again", reason)
            with suppress(OSError):
                entry.unlink()
            return None
        with suppress(OSError):
            os.utime(entry)  # used last
        return found

    def _keep(self, entry: Path, about: str, extraction: Extraction) -> None:
        embeddings, rows = extraction.embeddings, extraction.rows
        description = json.dumps({"about": about, "sha256": _arrays_sha256(embeddings, rows)}).encode()
        size = embeddings.nbytes + rows.nbytes + len(description) + 2048  # headers of the archive and its arrays
        if size > self._limit:
            _logger.info("%d bytes of embeddings are not kept: the limit is %d", size, self._limit)
            return
        about_array = np.frombuffer(description, dtype=np.uint8)
        try:
            entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # embeddings of people are theirs, too
            self._make_room(entry.parent, size)
            _write_private(entry, embeddings=embeddings, rows=rows, about=about_array)
        except OSError as error:
            self._warn(error)

    def _make_room(self, folder: Path, size: int) -> None:
        """Removes the entries that were not used for longest, and what killed processes have left."""
        entries = sorted(_entries(folder))
        total = size + sum(length for _, length, _ in entries)
        for _, length, file in entries:
            if total <= self._limit:
                return
            with suppress(OSError):  # another process may have been faster
                file.unlink()
                total -= length

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            reason = " ".join(str(error).split())
            _logger.warning("the cache of embeddings in %s cannot be used: %s", self._folder, reason)
        self._warned = True


def _canonical(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _entries(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Time of last use, bytes and path of each entry; abandoned temporary files are removed."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode):
                continue
            if _ENTRY.fullmatch(file.name):
                yield status.st_mtime_ns, status.st_size, file
            elif _TEMPORARY.fullmatch(file.name) and time.time() - status.st_mtime > _ABANDONED:
                file.unlink()


def _write_private(entry: Path, **arrays: Any) -> None:
    """Writes a file that only its owner may read, whole or not at all. A crash may harm it, which its sha256 tells."""
    handle, name = tempfile.mkstemp(prefix=f".{entry.stem}.", suffix=entry.suffix, dir=entry.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **arrays)
        Path(name).replace(entry)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _pictures_sha256(files: Sequence[Path]) -> str | None:
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


def _arrays_sha256(embeddings: np.ndarray, rows: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(embeddings).data)
    digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


def _read_entry(entry: Path, about: str, files: Sequence[Path], dim: int) -> Extraction:
    """Reads an entry that anything may have happened to.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        DataError: it is not what was written under this name.
    """
    status = entry.lstat()
    most = len(files) * (4 * dim + 8) + 2 * _LARGEST_ABOUT
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise _unbelievable(entry, "a link, or something else that is no file of its size")
    entry.open("rb").close()  # what cannot be read is not damaged
    with open_npz(entry) as arrays:
        if sorted(arrays.names) != ["about", "embeddings", "rows"]:
            raise _unbelievable(entry, f"arrays {', '.join(arrays.names)}")
        recorded = _description(entry, arrays)
        (m, *_) = arrays.header("rows").shape or (0,)
        if not 1 <= m <= len(files):
            raise _unbelievable(entry, f"{m} rows for {len(files)} pictures")
        expected = {"rows": Header((m,), np.dtype(np.int64)), "embeddings": Header((m, dim), np.dtype(np.float32))}
        for name, header in expected.items():
            if arrays.header(name) != header:
                raise _unbelievable(entry, f"{name} {arrays.header(name)}")
        embeddings, rows = arrays.read("embeddings"), arrays.read("rows")
    if recorded != {"about": about, "sha256": _arrays_sha256(embeddings, rows)}:
        raise _unbelievable(entry, "other contents than were written")
    if rows[0] < 0 or rows[-1] >= len(files) or (np.diff(rows) <= 0).any():
        raise _unbelievable(entry, "rows out of order")
    left_out = np.setdiff1d(np.arange(len(files)), rows)
    return Extraction(embeddings, rows, tuple(_decoding_error(entry, files[i]) for i in left_out.tolist()))


def _description(entry: Path, arrays: NpzFile) -> object:
    header = arrays.header("about")
    if header.dtype != np.uint8 or len(header.shape) != 1 or header.shape[0] > _LARGEST_ABOUT:
        raise _unbelievable(entry, f"about {header}")
    try:
        return json.loads(arrays.read("about").tobytes())
    except (ValueError, RecursionError) as error:
        raise _unbelievable(entry, error) from error


def _decoding_error(entry: Path, file: Path) -> ImageError:
    try:
        open_image(file)
    except ImageError as error:
        return error
    raise _unbelievable(entry, f"no embedding of {file}, which can be decoded")


def _unbelievable(entry: Path, got: object) -> DataError:
    return DataError(f"{entry} is no entry of the cache", got=got)
