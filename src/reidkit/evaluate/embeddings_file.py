"""Saved embeddings, with whom and which camera each shows: what `reid embed` writes, and what others write by hand.

    embedding   floating-point numbers, n x dim; also called embeddings or features
    pid         whole numbers, n; also called pids. -1 is a distractor, -2 an unknown identity
    camid       whole numbers, n; also called camids. -1, or no such array: the camera is unknown
    path        text, n; also called paths. Each row has its own. Where there is none, a row is a picture of its own
    identity    text, n: how the data set itself writes the pid; may be missing, or empty
    camera      text, n: how it writes the camid; likewise

That is what `reid embed` writes. Its pid and camid are the numbers in the names, so the files of a query and of a
gallery of one data set go together.

A file that nobody vouches for may hold as many rows as it has bytes; for what a column may take, see the files `npz`
and `parquet` of this room.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from reidkit.data.labels import own_numbers
from reidkit.errors import ConfigError, DataError
from reidkit.evaluate.embedding import EmbeddedCrops
from reidkit.evaluate.npz import open_npz
from reidkit.evaluate.parquet import open_parquet
from reidkit.types import UNKNOWN_CAMERA, UNKNOWN_IDENTITY, Crop, Split


class _Numbers(NamedTuple):
    """Names of a column of whole numbers, what they number, and what may be below 0."""

    names: tuple[str, ...]
    what: str
    least: int
    special: str


class _Saved(NamedTuple):
    """What a file holds; identities and cameras as the data set writes them, "" where the file does not say."""

    path: Path
    embedded: EmbeddedCrops
    identities: list[str]
    cameras: list[str]


_EMBEDDINGS = ("embedding", "embeddings", "features")
_PATHS = ("path", "paths")
_PIDS = _Numbers(("pid", "pids"), "identities", UNKNOWN_IDENTITY, "-1 for a distractor, or -2 for an unknown identity")
_CAMIDS = _Numbers(("camid", "camids"), "cameras", UNKNOWN_CAMERA, "-1 for an unknown camera")
_IDENTITIES = ("identity",)
_CAMERAS = ("camera",)
_COLUMNS = (_EMBEDDINGS, _PIDS.names, _CAMIDS.names, _PATHS, _IDENTITIES, _CAMERAS)
_KNOWN = tuple(name for names in _COLUMNS for name in names)
_TEXT = "USO"  # kinds of numpy; as objects, where it comes out of Parquet
_LONGEST_PATH = 4096  # characters
_NO_NAMES: Mapping[int, str] = MappingProxyType({})


def check_format(path: Path) -> None:
    """Refuses a table that cannot be written here: asked first, it spares the embedding.

    Raises:
        ConfigError: the suffix is neither .npz nor .parquet.
        ModuleNotFoundError: pyarrow, for .parquet, is not installed.
    """
    match path.suffix.lower():
        case ".npz":
            pass
        case ".parquet":
            import pyarrow as pa  # noqa: F401
        case suffix:
            raise ConfigError(f"Cannot write {path.name}", got=suffix or "no suffix", expected=".npz or .parquet")


def check_names(path: Path, names: Iterable[str]) -> None:
    """Refuses names that are no Unicode (bytes from another system) where the table cannot hold them: in Parquet.

    Raises:
        DataError: one is not.
    """
    if not _is_parquet(path):
        return
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"A Parquet table cannot hold the name {name!r}",
                expected="names in UTF-8",
                fix="write .npz, or rename the file",
            ) from None


def write_embeddings(
    path: Path,
    embedded: EmbeddedCrops,
    *,
    pid_names: Mapping[int, str] = _NO_NAMES,
    camera_names: Mapping[int, str] = _NO_NAMES,
) -> None:
    """Writes embeddings as a table, in place: put `reidkit.atomic.output_file` around it.

    Args:
        path: .npz or .parquet; see `check_format` and `check_names`.
        embedded: crops and their embeddings.
        pid_names: how the data set itself writes an identity. Where all of them are numbers, so will pid be.
        camera_names: likewise.
    """
    crops, labels = embedded.crops, embedded.labels
    table = {
        "path": np.array([str(crop.path) for crop in crops]),
        "pid": _numbered(labels.pids, pid_names),
        "camid": _numbered(labels.camids, camera_names),
        "identity": np.array([pid_names.get(crop.pid, "") for crop in crops]),
        "camera": np.array([camera_names.get(crop.camid, "") for crop in crops]),
        "embedding": embedded.embeddings,
    }
    (_write_parquet if _is_parquet(path) else _write_npz)(path, table)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _numbered(values: Int64[np.ndarray, " n"], names: Mapping[int, str]) -> Int64[np.ndarray, " n"]:
    own = own_numbers(names)
    return np.array([own.get(value, value) for value in values.tolist()], dtype=np.int64)


def _write_npz(path: Path, table: dict[str, Any]) -> None:  # np.ndarray would not fit np.savez's other arguments
    with path.open("wb") as stream:
        np.savez(stream, **table)


def _write_parquet(path: Path, table: dict[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    embeddings = table["embedding"]
    columns = {name: pa.array(values.tolist()) for name, values in table.items() if name != "embedding"}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    parquet.write_table(pa.table(columns), path)


def read_embeddings(path: Path, *, name: str) -> EmbeddedCrops:
    """Reads saved embeddings: .npz, or .parquet by its suffix.

    float16 and float32 stay as they are, float64 is rounded to float32. Where the file names no pictures, a crop's
    path is the file's with the row behind it, so that no two rows are ever taken for the same picture.

    Args:
        path: of the file; nothing in it is unpickled.
        name: what to call the embeddings in a message: "query", "gallery".

    Raises:
        DataError: no such file, damaged or of another kind; no embeddings or no identities; identities or cameras that
            are no whole numbers, or out of range; paths or names that are no text; a path twice, or one that no file
            can have; arrays of another rank or number of rows; no rows, or more than the file has bytes.
    """
    return _read(path, name).embedded


def read_split(query: Path, gallery: Path) -> tuple[EmbeddedCrops, EmbeddedCrops, Split]:
    """Reads the saved embeddings of a query and of a gallery, and the data set that they make.

    Args:
        query: of the file; see `read_embeddings`.
        gallery: likewise.

    Returns:
        Query, gallery, and a split that bears the names of both files and knows those of identities and cameras.

    Raises:
        DataError: as `read_embeddings`; or a pid or camid goes by two names, as in files of two data sets.
    """
    saved = _read(query, "query"), _read(gallery, "gallery")
    asked, searched = (file.embedded for file in saved)
    split = Split(
        "embeddings",
        query,
        query=asked.crops,
        gallery=searched.crops,
        pid_names=_names("pid", [(file.path, file.embedded.labels.pids, file.identities) for file in saved]),
        camera_names=_names("camid", [(file.path, file.embedded.labels.camids, file.cameras) for file in saved]),
        variant=gallery.name,
    )
    return asked, searched, split


def _names(column: str, files: Iterable[tuple[Path, np.ndarray, list[str]]]) -> Mapping[int, str]:
    found: dict[int, tuple[str, Path]] = {}
    for path, numbers, texts in files:
        for number, text in zip(numbers.tolist(), texts, strict=True):
            if number < 0 or not text:
                continue
            known, place = found.setdefault(number, (text, path))
            if known != text:
                raise DataError(
                    f"{column} {number} goes by two names",
                    got=f"{known!r} in {place}, {text!r} in {path}",
                    expected="a number that means the same in the query and in the gallery file",
                    fix="embed the query and the gallery of one data set with `reid embed --data`",
                )
    return MappingProxyType({number: text for number, (text, _) in found.items()})


def _read(path: Path, name: str) -> _Saved:
    path = Path(path)
    table = _read_table(path)
    embeddings = _embeddings(table, path, name)
    n, size = len(embeddings), path.stat().st_size
    if n > size:  # each becomes a crop with a path, which takes far more
        raise DataError(
            f"{path} holds more rows than bytes",
            got=f"{n:,} rows in {size:,} bytes",
            expected="embeddings that differ",
            fix="copy the file again, or write it again",
        )
    pids = _whole_numbers(table, _PIDS, path, name, n)
    if pids is None:
        raise DataError(
            f"The {name} embeddings have no labels: {path} has no array pid or pids",
            got=f"arrays {', '.join(sorted(table))}",
            expected="pid, whom each row shows, as whole numbers",
            fix="save pid with them; `reid embed` does, where the data set or the file names tell it",
        )
    camids = _whole_numbers(table, _CAMIDS, path, name, n)
    if camids is None:
        camids = np.full(n, UNKNOWN_CAMERA, dtype=np.int64)
    paths, identities, cameras = (_texts(table, known, path, name, n) for known in (_PATHS, _IDENTITIES, _CAMERAS))
    rows = zip(_crop_paths(paths, path, name), pids.tolist(), camids.tolist(), strict=True)
    return _Saved(path, EmbeddedCrops(tuple(Crop(*row) for row in rows), embeddings), identities, cameras)


def _read_table(path: Path) -> dict[str, np.ndarray]:
    with (open_parquet if _is_parquet(path) else open_npz)(path) as table:
        if not table.names:
            raise DataError(f"{path} holds no arrays", got="none", expected="a file of np.savez, or of `reid embed`")
        _check_columns(path, table.names)
        return {name: table.read(name) for name in _KNOWN if name in table.names}


def _check_columns(path: Path, names: Sequence[str]) -> None:
    for known in _COLUMNS:
        found = [name for name in names if name in known]
        if len(found) > 1:
            raise DataError(
                f"{path} holds more than one {known[0]}",
                got=f"arrays {', '.join(found)}",
                expected=f"one of {', '.join(known)}",
                fix="leave out those that are not meant",
            )
    if not any(name in _EMBEDDINGS for name in names):
        raise DataError(
            f"{path} holds no embeddings",
            got=f"arrays {', '.join(names)}",
            expected=f"an array {' or '.join(_EMBEDDINGS)}",
            fix="rename the array that holds them",
        )


def _found(table: Mapping[str, np.ndarray], known: Sequence[str]) -> tuple[str, np.ndarray | None]:
    return next(((name, table[name]) for name in known if name in table), ("", None))


def _dtype(values: np.ndarray) -> str:
    return "text" if values.dtype.kind in _TEXT else str(values.dtype)


def _embeddings(table: Mapping[str, np.ndarray], path: Path, name: str) -> Float[np.ndarray, "n dim"]:
    column, values = _found(table, _EMBEDDINGS)
    assert values is not None
    if values.ndim != 2 or values.dtype.kind != "f":
        raise DataError(
            f"The {name} embeddings in {path} are no table of floating-point numbers",
            got=f"{column}: {_dtype(values)} {values.shape}",
            expected="float16, float32 or float64 (n, dim)",
            fix="save one row of numbers per crop",
        )
    if values.size == 0:
        raise DataError(
            f"The {name} embeddings in {path} are empty, so nothing can be measured",
            got=f"{column}: {values.dtype} {values.shape}",
            expected="at least one row",
        )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and no metric takes that
        return values.astype(np.float16 if values.dtype.itemsize == 2 else np.float32, copy=False)


def _whole_numbers(
    table: Mapping[str, np.ndarray], numbers: _Numbers, path: Path, name: str, n: int
) -> Int64[np.ndarray, " n"] | None:
    """Identities or cameras; None where the file has none."""
    column, values = _found(table, numbers.names)
    if values is None:
        return None
    if values.dtype.kind not in "iu":
        together = "number them over query and gallery together: np.unique(names, return_inverse=True)"
        raise DataError(
            f"The {numbers.what} of the {name} embeddings in {path} are no whole numbers",
            got=f"{column}: {_dtype(values)}" + (f", such as {values.flat[0]!s}" if values.size else ""),
            expected="integers that mean the same in the query and in the gallery file",
            fix=f"save {column}.astype(int)"
            if values.dtype.kind == "f"
            else f"{together}; or take the column {numbers.names[0]} that `reid embed` writes",
        )
    _check_rows(values, column, path, name, n)
    wrong = np.flatnonzero((values < numbers.least) | (values > np.iinfo(np.int64).max))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} of {n} {numbers.what} of the {name} embeddings in {path} are out of range",
            got=f"{column} {values[wrong[0]]} in row {wrong[0]}",
            expected=f"0 or above, {numbers.special}",
        )
    return values.astype(np.int64)


def _check_rows(values: np.ndarray, column: str, path: Path, name: str, n: int) -> None:
    if values.shape != (n,):
        raise DataError(
            f"{column} does not fit the {name} embeddings in {path}",
            got=f"{column} of shape {values.shape} for {n} embeddings",
            expected=f"shape ({n},): one for each row",
        )


def _texts(table: Mapping[str, np.ndarray], known: Sequence[str], path: Path, name: str, n: int) -> list[str]:
    """A column of text; empty ones where the file has none."""
    column, values = _found(table, known)
    if values is None:
        return [""] * n
    if values.dtype.kind not in _TEXT:
        raise DataError(
            f"{column} of the {name} embeddings in {path} is no text",
            got=f"{column}: {values.dtype}",
            expected="np.array(list_of_str), or no such array",
        )
    _check_rows(values, column, path, name, n)
    return [os.fsdecode(text) for text in values.tolist()]


def _crop_paths(texts: Sequence[str], path: Path, name: str) -> list[Path]:
    rows: dict[Path, int] = {}
    for row, text in enumerate(texts):
        if len(text) > _LONGEST_PATH or not _is_writable(text):
            raise DataError(
                f"Row {row} of the {name} embeddings in {path} has a path that no file can have",
                got=repr(text[:60]) + (f"... of {len(text):,} characters" if len(text) > 60 else ""),
                expected=f"at most {_LONGEST_PATH} characters that this system can write, and no NUL",
                fix="write it again; or leave the paths out",
            )
        place = Path(text) if text else path / f"row {row}"
        first = rows.setdefault(place, row)
        if first != row:
            raise DataError(
                f"{place} is the path of several rows of the {name} embeddings in {path}",
                got=f"rows {first} and {row}",
                expected="a path of its own in every row: rows of one path are taken for the same picture",
                fix="leave the paths out where they name videos or tracklets; a row is then a picture of its own",
            )
    return list(rows)


def _is_writable(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a character
        return False
