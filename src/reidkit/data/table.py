"""A data set described by a CSV: UTF-8, commas, a header with `path,pid,camid,subset` in any order.

    path      of the picture, relative to the CSV's folder or absolute
    pid       identity: any text
    camid     camera: any text. Without this column, or where it is empty, the camera is unknown: then no gallery crop
              is junk for its camera; a query's own file is never ranked for it
    subset    train, query or gallery. One picture may be in several subsets, once in each

Spaces around a value are dropped. Any text is an identity, so there are no distractors: an identity that only the
gallery has counts as wrong all the same.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from reidkit.data.naming import Sighting, count, first_few, make_split, missing_files
from reidkit.errors import DataError
from reidkit.types import SUBSETS, Split, Subset

LAYOUT: str = "a file .csv with the columns path,pid,camid,subset (camid may be absent)"

COLUMNS = ("path", "pid", "camid", "subset")
_REQUIRED = ("path", "pid", "subset")


class _Row(NamedTuple):
    line: int
    path: Path
    pid: str
    camid: str | None
    subset: Subset


def claims(root: Path) -> bool:
    """Whether this is a file named as a CSV."""
    return root.suffix.lower() == ".csv" and root.is_file()


def load(root: Path) -> Split:
    """Parses a data set described by a CSV.

    Args:
        root: the CSV file.

    Raises:
        DataError: not UTF-8, a column is missing or unknown, a row is short or long, has no path or pid or an unknown
            subset, says the same as another or contradicts it; or pictures are not there.
    """
    rows = list(_read_rows(root))
    _check_repeats(root, rows)
    missing = missing_files(dict.fromkeys(row.path for row in rows))
    if missing:
        raise DataError(
            f"{count(len(missing), 'file')} named in {root} cannot be found",
            got=first_few(missing),
            expected="paths relative to the CSV's folder, or absolute",
            fix="correct the paths, or move the CSV",
        )
    subsets: dict[Subset, list[Sighting]] = {subset: [] for subset in SUBSETS}
    for row in rows:
        subsets[row.subset].append(Sighting(row.path, row.pid, row.camid))
    return make_split("table", root, **subsets)


def _read_rows(file: Path) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(_decode(file), newline=""), skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(file, header)
        for values in reader:
            if values:
                yield _read_row(file, reader.line_num, header, values)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not CSV", got=error, fix="check the quotes") from error


def _decode(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read", got=error.strerror, expected="a CSV file") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: not UTF-8",
            got=f"byte 0x{data[error.start]:02x}",
            expected="text in UTF-8",
            fix="save the table as UTF-8",
        ) from error


def _check_header(file: Path, header: Sequence[str]) -> None:
    got = ",".join(header) or "an empty first line"
    expected = f"the header {','.join(COLUMNS)} (camid may be absent)"
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise DataError(
            f"{file} has no column {' and no column '.join(missing)}",
            got=got,
            expected=expected,
            fix="name the columns in the first line, separated by commas",
        )
    if len(set(header)) < len(header):
        raise DataError(f"{file} has a column twice", got=got, expected=expected)
    unknown = [name for name in header if name not in COLUMNS]
    if unknown:
        # Ignored, a misspelt camid would change the score and nobody would know.
        raise DataError(
            f"{file} has an unknown column {unknown[0]!r}", got=got, expected=expected, fix="rename or remove it"
        )


def _read_row(file: Path, line: int, header: Sequence[str], values: Sequence[str]) -> _Row:
    where = f"{file}, line {line}"
    if len(values) != len(header):
        raise DataError(
            f"{where}: the row does not fit the header",
            got=count(len(values), "value"),
            expected=f"{len(header)} ({','.join(header)})",
            fix="put a value with commas in double quotes",
        )
    row = {name: value.strip() for name, value in zip(header, values, strict=True)}
    for name in ("path", "pid"):
        if not row[name]:
            raise DataError(f"{where}: {name} is empty", got=",".join(values), fix=f"fill in {name} or remove the row")
    for subset in SUBSETS:
        if row["subset"] == subset:
            return _Row(line, file.parent / row["path"], row["pid"], row.get("camid") or None, subset)
    raise DataError(f"{where}: unknown subset", got=repr(row["subset"]), expected=" or ".join(SUBSETS))


def _check_repeats(file: Path, rows: Sequence[_Row]) -> None:
    seen: dict[tuple[Path, Subset], _Row] = {}
    told: dict[Path, _Row] = {}
    for row in rows:
        other = told.setdefault(row.path, row)
        if (row.pid, row.camid) != (other.pid, other.camid):
            raise DataError(
                f"{file}, line {row.line}: {row.path} has another identity or camera in line {other.line}",
                got=f"pid {row.pid}, camid {row.camid} against pid {other.pid}, camid {other.camid}",
                expected="one identity and one camera for each picture",
            )
        twin = seen.setdefault((row.path, row.subset), row)
        if twin is not row:
            raise DataError(
                f"{file}, line {row.line}: repeats line {twin.line}",
                got=f"{row.path} in {row.subset}",
                expected="each picture once in a subset",
                fix="remove one of the rows",
            )
