"""Files .npz that nobody vouches for: nothing is unpickled, and nothing is allocated that the file cannot hold."""

import io
import math
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from reidkit.errors import DataError

_SUFFIX = ".npy"
_EXPANDS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}  # a byte, at most; numpy compresses in no other way
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_COPY_AGAIN = "copy the file again, or write it again"


class Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype


class NpzFile:
    """The arrays of an open file, read one at a time."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self._path = path
        self._archive = archive
        self._size = size

    @property
    def names(self) -> list[str]:
        """Of the arrays, as `np.savez` was given them."""
        return [name.removesuffix(_SUFFIX) for name in self._archive.namelist() if name.endswith(_SUFFIX)]

    def header(self, name: str) -> Header:
        """Shape and type of an array, held against the bytes that the file has for it; its values are not read.

        Raises:
            DataError: it is pickled, damaged, or claims to be larger or smaller than it is.
        """
        info = self._archive.getinfo(name + _SUFFIX)
        most = self._size * _EXPANDS.get(info.compress_type, 0)
        if info.file_size > most:
            raise self._damaged(name, f"{info.file_size:,} bytes in a file of {self._size:,}")
        try:
            with self._archive.open(info) as stream:
                header, start = _read_header(stream), stream.tell()
        except Exception as error:  # numpy and zipfile raise almost anything on what is not theirs
            raise self._damaged(name, error) from error
        if header.dtype.hasobject:
            raise DataError(
                f"{self._path} cannot be read: its array {name!r} holds pickled Python objects, which could run code",
                got="dtype object",
                expected="numbers, or text as np.array(list_of_str)",
                fix="save plain arrays",
            )
        claimed = math.prod(header.shape) * header.dtype.itemsize
        if claimed != info.file_size - start or header.dtype.itemsize == 0:
            raise self._damaged(name, f"{header.dtype} {header.shape} in {info.file_size - start:,} bytes")
        return header

    def read(self, name: str) -> np.ndarray:
        """Reads an array.

        Raises:
            DataError: as `header`.
        """
        self.header(name)
        try:
            with self._archive.open(name + _SUFFIX) as stream:
                values = npy.read_array(stream, allow_pickle=False)
                stream.read(1)  # past the end: only there the sum of the bytes is checked
            _check_text(values)
        except MemoryError:
            raise  # an honest array, and too large for this machine
        except Exception as error:
            raise self._damaged(name, error) from error
        return values

    def _damaged(self, name: str, got: object) -> DataError:
        return DataError(
            f"{self._path} is truncated or damaged at its array {name!r}",
            got=got,
            expected="a file of np.savez",
            fix=_COPY_AGAIN,
        )


def _check_text(values: np.ndarray) -> None:
    """Refuses what Python could not even name in a message."""
    if values.dtype.kind == "U" and (values.ravel().view(values.dtype.byteorder + "u4") > sys.maxunicode).any():
        raise ValueError("text that is no Unicode")


def _read_header(stream: IO[bytes] | io.BufferedIOBase) -> Header:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the .npy format, which plain arrays do not need")
    shape, _, dtype = _HEADERS[version](stream)
    if any(length < 0 for length in shape):
        raise ValueError(f"a shape {shape}")
    return Header(shape, dtype)


@contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Opens a file of arrays for the block.

    Raises:
        DataError: no such file, or no .npz.
    """
    if not path.exists():
        raise DataError(f"No such file: {path}", fix="check the path")
    if not path.is_file():
        raise DataError(f"{path} is no plain file", expected="a file .npz", fix="check the path")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read", got=error.strerror, expected="a file .npz") from error
    with stream:
        try:
            archive = zipfile.ZipFile(stream)
        except Exception as error:
            raise _no_npz(path, stream, error) from error
        with archive:
            yield NpzFile(path, archive, os.fstat(stream.fileno()).st_size)


def _no_npz(path: Path, stream: IO[bytes], error: Exception) -> DataError:
    stream.seek(0)
    start = stream.read(6)
    expected = "a file of np.savez: several arrays, each with its name"
    if start == npy.MAGIC_PREFIX:
        return DataError(f"{path} holds a single array", got="a file of np.save", expected=expected)
    if start.startswith(b"PK"):
        return DataError(f"{path} is truncated or damaged", got=error, expected=expected, fix=_COPY_AGAIN)
    return DataError(f"{path} is no .npz file", got=error if start else "an empty file", expected=expected)
