"""Whom an embedding shows, and which pairs of a query and a gallery crop are not ranked.

Axes: `n` crops, `query` rows, `gallery` columns. The room of the data sets does not know this one:
`reidkit.data.inspection` applies the same rule to single crops.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from reidkit.errors import InputError
from reidkit.types import UNKNOWN_CAMERA, Crop

GalleryRows = Int64[np.ndarray, "_"]  # any number of them: each query has its own

NO_ROWS: GalleryRows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Labels:
    """Identity and camera of each row of a set of embeddings; the values are those of `Crop`.

    Attributes:
        pids: whole numbers of any type, one per crop; held as int64.
        camids: likewise.

    Raises:
        InputError: they are no whole numbers (names, say), too large, have more than one axis, or differ in number.
    """

    pids: Shaped[np.ndarray, "..."]
    camids: Shaped[np.ndarray, "..."]

    def __post_init__(self) -> None:
        for name, values in (("identities", self.pids), ("cameras", self.camids)):
            if not isinstance(values, np.ndarray):
                raise InputError(f"The {name} are no array", got=type(values).__name__, expected="integers (n,)")
            if values.ndim != 1 or values.dtype.kind not in "iu":
                example = "".join(f", such as {value!r}" for value in values.ravel()[:1].tolist())
                raise InputError(
                    f"The {name} are no row of whole numbers",
                    got=f"{values.dtype} {values.shape}{example}",
                    expected="integers (n,)",
                    fix="number them over query and gallery together: np.unique(names, return_inverse=True)",
                )
            if len(values) and values.max() > np.iinfo(np.int64).max:
                raise InputError(
                    f"The {name} are too large for 64 bits",
                    got=values.max(),
                    expected="numbers below 2^63",
                    fix="number them over query and gallery together: np.unique(names, return_inverse=True)",
                )
        # Numbers of two types are compared as float64, which takes some for equal that are not.
        object.__setattr__(self, "pids", self.pids.astype(np.int64, copy=False))
        object.__setattr__(self, "camids", self.camids.astype(np.int64, copy=False))
        if len(self.pids) != len(self.camids):
            raise InputError(
                "Identities and cameras differ in number",
                got=f"{len(self.pids)} and {len(self.camids)}",
                expected="one each per crop",
            )


def labels_of(crops: Sequence[Crop]) -> Labels:
    """Identities and cameras of crops, as arrays."""
    pids = np.array([crop.pid for crop in crops], dtype=np.int64)
    return Labels(pids, np.array([crop.camid for crop in crops], dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Pairs that are ranked nowhere, query by query: memory goes with the gallery, never with all pairs.

    Attributes:
        shape: number of queries, and of gallery crops, that it was made for.
        of: the gallery rows that must not be found for a query row; ascending, each once.
    """

    shape: tuple[int, int]
    of: Callable[[int], GalleryRows]


def rows_by_identity(labels: Labels) -> Mapping[int, GalleryRows]:
    """The rows of each identity, ascending."""
    order = np.argsort(labels.pids, kind="stable")
    pids, starts = np.unique(labels.pids[order], return_index=True)
    return dict(zip(pids.tolist(), np.split(order, starts)[1:], strict=True))


def same_camera(query: Labels, gallery: Labels, identities: Mapping[int, GalleryRows] | None = None) -> Exclusion:
    """Excludes junk under the Market-1501 protocol: the same identity, seen by the same camera, both of them known.

    Args:
        query: of the query embeddings, in their order.
        gallery: likewise.
        identities: `rows_by_identity` of the gallery; None makes them.
    """
    of = partial(_same_camera, query, gallery, rows_by_identity(gallery) if identities is None else identities)
    return Exclusion((len(query.pids), len(gallery.pids)), of)


def _same_camera(query: Labels, gallery: Labels, identities: Mapping[int, GalleryRows], row: int) -> GalleryRows:
    pid, camid = int(query.pids[row]), query.camids[row]
    if pid < 0 or camid == UNKNOWN_CAMERA:
        return NO_ROWS
    rows = identities.get(pid, NO_ROWS)
    return rows[gallery.camids[rows] == camid]


def same_file(query: Sequence[Path | str], gallery: Sequence[Path | str]) -> Exclusion:
    """Excludes the query's own file, wherever the gallery holds it: its distance of zero teaches nobody anything.

    Links are followed, so the same file is known under any of its names.

    Args:
        query: the files that the query embeddings were made of, in their order.
        gallery: likewise.
    """
    places: dict[str, list[int]] = {}
    for row, path in enumerate(gallery):
        places.setdefault(os.path.realpath(path), []).append(row)
    asked = [os.path.realpath(path) for path in query]
    return Exclusion((len(query), len(gallery)), lambda row: np.array(places.get(asked[row], []), dtype=np.int64))


def excluded_rows(exclude: Sequence[Exclusion], row: int) -> GalleryRows:
    """Gallery rows that any of the exclusions leaves out for a query; ascending, each once.

    Raises:
        InputError: what an exclusion gives is no such rows.
    """
    found = [rows for rows in (_checked_rows(exclusion, row) for exclusion in exclude) if len(rows)]
    if len(found) > 1:
        return np.unique(np.concatenate(found))
    return found[0] if found else NO_ROWS


def _checked_rows(exclusion: Exclusion, row: int) -> GalleryRows:
    rows, gallery = exclusion.of(row), exclusion.shape[1]
    if len(rows) and (rows[0] < 0 or rows[-1] >= gallery or (rows[1:] <= rows[:-1]).any()):
        raise InputError(
            f"An exclusion gives no ascending gallery rows for query row {row}",
            got=np.array2string(rows, threshold=8),
            expected=f"rows from 0 to {gallery - 1}, ascending, each once",
            fix="np.unique(rows)",
        )
    return rows


def check_exclusions(exclude: Sequence[Exclusion], shape: tuple[int, int]) -> None:
    """Refuses exclusions that belong to other embeddings.

    Raises:
        InputError: one was made for other numbers of queries or gallery crops.
    """
    for exclusion in exclude:
        if exclusion.shape != shape:
            raise InputError(
                "An exclusion does not fit the embeddings",
                got=f"one for {exclusion.shape} (queries, gallery)",
                expected=f"{shape}",
                fix="make it from the same queries and gallery as the embeddings, in their order",
            )
