"""Saved embeddings, with whom and which camera each shows: what `reid embed` writes, and what others write by hand.

    embedding   floating-point numbers, n x dim; also called embeddings or features
    pid         whole numbers, n; also called pids. -1 is a distractor, -2 an unknown identity
    camid       whole numbers, n; also called camids. -1, or no such array: the camera is unknown
    path        text, n; also called paths. Where there is none, a row is a picture of its own

`reid embed` adds identity and camera: the names that the data set itself uses. Its pid and camid are the numbers in
those names, so the files of a query and of a gallery of one data set go together.
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
from reidkit.types import UNKNOWN_CAMERA, UNKNOWN_IDENTITY, Crop


class _Numbers(NamedTuple):
    """Names of a column of whole numbers, what they number, and what may be below 0."""

    names: tuple[str, ...]
    what: str
    least: int
    special: str


_EMBEDDINGS = ("embedding", "embeddings", "features")
_PATHS = ("path", "paths")
_PIDS = _Numbers(("pid", "pids"), "identities", UNKNOWN_IDENTITY, "-1 for a distractor, or -2 for an unknown identity")
_CAMIDS = _Numbers(("camid", "camids"), "cameras", UNKNOWN_CAMERA, "-1 for an unknown camera")
_COLUMNS = (_EMBEDDINGS, _PIDS.names, _CAMIDS.names, _PATHS)
_KNOWN = tuple(name for names in _COLUMNS for name in names)
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
            are no whole numbers, or out of range; arrays of another rank or number of rows; no rows.
    """
    path = Path(path)
    table = _read_parquet(path) if _is_parquet(path) else _read_npz(path)
    embeddings = _embeddings(table, path, name)
    n = len(embeddings)
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
    rows = zip(_crop_paths(table, path, name, n), pids.tolist(), camids.tolist(), strict=True)
    return EmbeddedCrops(tuple(Crop(*row) for row in rows), embeddings)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with open_npz(path) as arrays:
        if not arrays.names:
            raise DataError(f"{path} holds no arrays", got="a zip archive without any", expected="a file of np.savez")
        _check_columns(path, arrays.names)
        return {name: arrays.read(name) for name in _KNOWN if name in arrays.names}


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    import pyarrow as pa
    from pyarrow import parquet

    if not path.exists():
        raise DataError(f"No such file: {path}", fix="check the path")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names)
            table = file.read(columns=[name for name in _KNOWN if name in names])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read", got=error, expected="a Parquet table; see `reid embed`") from error
    return {name: _column(table.column(name), path, name) for name in table.column_names}


def _column(column: Any, path: Path, name: str) -> np.ndarray:  # pyarrow has no types
    def refuse(got: str, expected: str) -> DataError:
        return DataError(f"The column {name} of {path} cannot be used", got=got, expected=expected)

    if name in _PATHS:
        return np.array([value or "" for value in column.to_pylist()])
    if column.null_count:
        raise refuse(f"{column.null_count} empty rows of {len(column)}", "a value in every row")
    if name not in _EMBEDDINGS:
        return np.array(column.to_pylist())
    if not hasattr(column.type, "value_type"):
        raise refuse(f"values of type {column.type}", "a list of numbers in every row")
    widths = {int(width) for chunk in column.chunks for width in np.unique(chunk.value_lengths())}
    values = [chunk.flatten() for chunk in column.chunks if len(chunk)]
    if len(widths) > 1 or any(value.null_count for value in values):
        raise refuse("rows of different widths, or with gaps", "as many numbers in every row")
    if not values:
        return np.empty((0, 0), dtype=np.float32)
    return np.concatenate([value.to_numpy(zero_copy_only=False) for value in values]).reshape(len(column), -1)


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


def _embeddings(table: Mapping[str, np.ndarray], path: Path, name: str) -> Float[np.ndarray, "n dim"]:
    column, values = _found(table, _EMBEDDINGS)
    assert values is not None
    if values.ndim != 2 or values.dtype.kind != "f":
        raise DataError(
            f"The {name} embeddings in {path} are no table of floating-point numbers",
            got=f"{column}: {values.dtype} {values.shape}",
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
            got=f"{column}: {values.dtype}" + (f", such as {values.flat[0]!s}" if values.size else ""),
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


def _crop_paths(table: Mapping[str, np.ndarray], path: Path, name: str, n: int) -> list[Path]:
    column, values = _found(table, _PATHS)
    stand_ins = [path / f"row {row}" for row in range(n)]
    if values is None:
        return stand_ins
    if values.dtype.kind not in "US":
        raise DataError(
            f"The paths of the {name} embeddings in {path} are no text",
            got=f"{column}: {values.dtype}",
            expected="np.array(list_of_str), or no such array",
        )
    _check_rows(values, column, path, name, n)
    texts = [os.fsdecode(text) for text in values.tolist()]
    return [Path(text) if text else stand_in for text, stand_in in zip(texts, stand_ins, strict=True)]
