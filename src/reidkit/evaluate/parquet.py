"""Parquet tables that nobody vouches for: types and sizes are looked at before anything is decoded.

A column may become 1032 times as many bytes as the whole file has: what a compressed .npz may become, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from reidkit.errors import DataError

_EXPANDS = 1032
_LARGEST_VALUE = 8  # bytes of a number


class ParquetTable:
    """The columns of an open table, read one at a time."""

    def __init__(self, path: Path, file: Any, size: int) -> None:  # pyarrow has no types
        self._path = path
        self._file = file
        self._size = size

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return self._file.schema_arrow.names

    def read(self, name: str) -> np.ndarray:
        """Reads a column: numbers; text, as objects, where an empty row is an empty text; or rows of numbers.

        Raises:
            DataError: it holds something else, decodes to more than such a file can hold, is damaged, or has gaps.
        """
        import pyarrow as pa

        kind = self._file.schema_arrow.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type  # as `open_parquet` asks for
        if pa.types.is_string(kind):
            convert = _texts
        elif _is_number(kind):
            convert = _numbers
        elif _is_list(kind) and _is_number(kind.value_type):
            convert = _vectors
        else:
            raise self._refused(name, f"values of type {kind}", "numbers, text, or a list of numbers in every row")
        decoded = self._decoded(name)
        if decoded > _EXPANDS * self._size:
            raise self._refused(name, f"{decoded:,} bytes of values in a file of {self._size:,}", "values of its own")
        try:
            column = self._file.read(columns=[name]).column(name)
            if convert is not _texts and column.null_count:
                raise self._refused(name, f"{column.null_count} empty rows of {len(column)}", "a value in every row")
            values = convert(column)
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise _no_parquet(self._path, error) from error
        if values is None:
            raise self._refused(name, "rows of different widths, or with gaps", "as many numbers in every row")
        return values

    def _decoded(self, name: str) -> int:
        """Bytes that the column becomes, as the file itself says; text stays a dictionary until its end."""
        metadata = self._file.metadata
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        leaves = (group.column(i) for group in groups for i in range(group.num_columns))
        return sum(
            max(leaf.total_uncompressed_size, leaf.num_values * _LARGEST_VALUE)
            for leaf in leaves
            if leaf.path_in_schema.split(".")[0] == name
        )

    def _refused(self, name: str, got: str, expected: str) -> DataError:
        return DataError(f"The column {name} of {self._path} cannot be used", got=got, expected=expected)


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetTable]:
    """Opens a table for the block.

    Raises:
        DataError: no such file, or no Parquet.
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not path.exists():
        raise DataError(f"No such file: {path}", fix="check the path")
    if not path.is_file():
        raise DataError(f"{path} is no plain file", expected="a file .parquet", fix="check the path")
    try:
        with parquet.ParquetFile(path) as file:
            leaves = {leaf.path for leaf in file.metadata.schema}
            plain = leaves.intersection(file.schema_arrow.names)
        # All text as a dictionary: each word once, however many rows repeat it.
        file = parquet.ParquetFile(path, read_dictionary=sorted(plain))
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise _no_parquet(path, error) from error
    with file:
        yield ParquetTable(path, file, path.stat().st_size)


def _no_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read", got=error, expected="a Parquet table; see `reid embed`")


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _texts(column: Any) -> np.ndarray:
    found = [np.empty(0, dtype=object)]
    for chunk in column.chunks:
        words = np.array([word or "" for word in chunk.dictionary.to_pylist()] + [""], dtype=object)
        found.append(words[chunk.indices.fill_null(len(words) - 1).to_numpy()])
    return np.concatenate(found)


def _numbers(column: Any) -> np.ndarray:
    return column.to_numpy()


def _vectors(column: Any) -> np.ndarray | None:
    """None where the rows differ in width or have gaps."""
    widths = {int(width) for chunk in column.chunks for width in np.unique(chunk.value_lengths())}
    values = [chunk.flatten() for chunk in column.chunks if len(chunk)]
    if len(widths) > 1 or any(value.null_count for value in values):
        return None
    if not values:
        return np.empty((0, 0), dtype=np.float32)
    return np.concatenate([value.to_numpy(zero_copy_only=False) for value in values]).reshape(len(column), -1)
