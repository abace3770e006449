"""Embeddings that were extracted once: a second metric, protocol or re-ranking costs no second extraction.

    FOLDER/<sha256 of everything that decides the embeddings>.npz
        embeddings   float32, a row per picture that could be read
        rows         which of the pictures those are
        about        what the name is the sha256 of, and the sha256 of the arrays, as JSON

What decides an embedding is the bundle's graph and weights and what the manifest says of them (not its measurements),
the engine with its version, precision and device, and, where it runs what was made of them (quantised or built), the
digest of that; test-time augmentation, Pillow, this package, and the bytes of every picture (`reidkit.cache`). The
batch size does not: `reid verify` holds every engine to the same embeddings crop by crop and batched. Nor do threads,
hints and the optimization of a graph, to rounding. In int8 rounding is coarse: OpenVINO takes other kernels for other
batches, and a value of a map that lies between two levels may come to the next one.

An entry is written when a whole subset is embedded: of an extraction that was stopped, or that an unreadable picture
ended, nothing is kept.

The sha256 finds damage, not forgery: whoever may write to the folder can write other numbers, but nothing that runs.
"""

import hashlib
import importlib
import importlib.metadata
import json
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

import reidkit
from reidkit import cache
from reidkit.bundle import GRAPH_FILES, WEIGHTS, Bundle
from reidkit.cache import CacheFolder, canonical, pictures_sha256
from reidkit.config import to_dict
from reidkit.errors import DataError, ImageError, unknown_name
from reidkit.evaluate.npz import Header, NpzFile, open_npz
from reidkit.imaging import open_image
from reidkit.manifest import Tta
from reidkit.runtime import ENGINES, Engine
from reidkit.runtime.pipeline import Extraction, OnUnreadable
from reidkit.types import EmbedderSpec

LIMIT = 4 << 30
"""Bytes that a folder may take, where nobody says."""

_FORMAT = 1
_DECISIVE = ("architecture.py", "decoding.py", "imaging.py", "models", "runtime")  # of this package
_LARGEST_ABOUT = 1 << 20  # bytes of JSON


def default_folder() -> Path | None:
    """Where embeddings are kept where nobody says, as `reidkit.cache.default_folder` has it."""
    return cache.default_folder("embeddings")


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
    known: dict[str, Engine] = {**ENGINES}
    runtimes = spec.runtime.split("+")  # several, where each has its batches
    for runtime in runtimes:
        if runtime not in known:
            raise unknown_name("runtime", runtime, known)
    manifest = bundle.manifest
    sources = cache.sources_sha256(Path(reidkit.__file__).parent, _DECISIVE)
    facts = {
        "format": _FORMAT,
        "reidkit": {"version": reidkit.__version__, "sources": sources},
        "libraries": {"pillow": PIL.__version__}
        | _library_versions(bundle, {known[name].library for name in runtimes}),
        # Of a quantised graph the spec has the digest: a new calibration costs no embedding of the float graph.
        "bundle": {
            name: digest
            for name, digest in manifest.files.items()
            if name in (*GRAPH_FILES[bundle.graph_format], WEIGHTS)
        },
        "architecture": to_dict(manifest.architecture),
        "embedder": to_dict(spec),
        "tta": tta,
    }
    return EmbeddingCache(folder, facts, spec=spec, tta=tta, limit=limit)


def _library_versions(bundle: Bundle, libraries: Collection[str]) -> dict[str, str]:
    versions = {library: str(importlib.import_module(library).__version__) for library in sorted(libraries)}
    architecture = bundle.manifest.architecture
    if "torch" in libraries and architecture is not None and architecture.backbone.family == "timm":
        versions["timm"] = importlib.metadata.version("timm")
    return versions


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
        self._facts = facts
        self._folder = None
        if folder is not None:
            self._folder = CacheFolder(folder, suffix=".npz", limit=limit, holds="embeddings", made="embedded")

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
        folder = self._folder
        pictures = None if folder is None else pictures_sha256(files)
        if folder is None or pictures is None:
            return extract()  # which says what is wrong with a file that cannot be read
        about = canonical({**self._facts, "pictures": {"count": len(files), "sha256": pictures}})
        entry = folder.entry(about)
        found = folder.recall(entry, lambda: _read_entry(entry, about, files, self.spec.dim))
        if found is not None:
            if found.unreadable and unreadable == "raise":
                raise found.unreadable[0]
            return found
        extraction = extract()
        if pictures_sha256(files) == pictures:  # not changed while they were embedded
            _keep(folder, entry, about, extraction)
        return extraction


def _keep(folder: CacheFolder, entry: Path, about: str, extraction: Extraction) -> None:
    embeddings, rows = extraction.embeddings, extraction.rows
    description = json.dumps({"about": about, "sha256": _arrays_sha256(embeddings, rows)}).encode()
    size = embeddings.nbytes + rows.nbytes + len(description) + 2048  # headers of the archive and its arrays
    if not folder.takes(size):
        return
    about_array = np.frombuffer(description, dtype=np.uint8)
    try:
        with folder.new_entry(entry, size) as stream:
            np.savez(stream, embeddings=embeddings, rows=rows, about=about_array)
    except OSError as error:
        folder.warn(error)


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
