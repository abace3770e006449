"""Distances between embeddings; smaller is closer. Axes: `query` rows, `gallery` columns, `dim` wide.

A gallery is never compared as a whole: `Distances` gives a block of query rows at a time, and `distance_blocks` makes
the blocks as large as a limit of memory allows. A matrix product rounds differently at its edges, so the last bit of a
distance can depend on the size of the blocks. Gallery embeddings of the same numbers are equally far all the same.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Shaped

from reidkit.errors import InputError
from reidkit.metrics.prepared import (
    Metric,
    Prepared,
    chunks,
    description,
    first_of_equals,
    is_table,
    prepare_both,
    rounded,
)

Block = Float32[np.ndarray, "block gallery"]
"""Distances of a block of queries to the whole gallery."""

MEMORY = 1 << 30
"""Bytes that comparing may take beside the embeddings, where nobody says."""

_MAX_PAIRS = 1 << 31
_MAX_ROWS = 1024  # a larger block is no faster, and progress would come in leaps


@runtime_checkable
class Distances(Protocol):
    """Distances of every query to every gallery crop, a block of queries at a time.

    What makes them is its own affair: embeddings (`compare`), a matrix (`given`), re-ranking (`reidkit.index`).
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Number of queries, and of gallery crops."""
        ...

    @property
    def bytes_per_query(self) -> int:
        """Memory that `block` takes at most for each row, its result included."""
        ...

    @property
    def bytes_fixed(self) -> int:
        """Memory that `block` takes besides, however many rows are asked for."""
        ...

    def block(self, rows: slice, out: Block | None = None) -> Block:
        """Distances of some queries, finite, in an array that the caller may change.

        Args:
            rows: `slice(start, stop)`, within the queries.
            out: the array to put them into, (rows, gallery); None makes one.
        """
        ...


def distance_blocks(
    distances: Distances, *, memory: int = MEMORY, bytes_besides: int = 0
) -> Iterator[tuple[slice, Block]]:
    """Goes through all distances within a limit of memory: rows of the queries, and their distances.

    Every block but the first is written over the one before: memory that is fresh costs a tenth of a matrix product.

    Args:
        distances: to go through.
        memory: bytes, beside what is there already.
        bytes_besides: that the caller itself takes.

    Raises:
        InputError: not even one query fits.
    """
    blocks = list(row_blocks(distances, memory=memory, bytes_besides=bytes_besides))
    if blocks:
        room = np.empty((blocks[0].stop, distances.shape[1]), dtype=np.float32)
        for rows in blocks:
            yield rows, distances.block(rows, room[: rows.stop - rows.start])


def row_blocks(distances: Distances, *, memory: int = MEMORY, bytes_besides: int = 0) -> Iterator[slice]:
    """Cuts the queries into blocks that keep within a limit of memory; see `distance_blocks`.

    Raises:
        InputError: not even one query fits.
    """
    count, gallery = distances.shape
    fixed, each = distances.bytes_fixed + bytes_besides, max(1, distances.bytes_per_query)
    rows = (memory - fixed) // each
    if rows < 1:
        raise InputError(
            f"The limit of memory is too small to compare one query with a gallery of {gallery} crops",
            got=f"{memory} bytes",
            expected=f"{fixed + each} bytes at least",
            fix="raise the limit (--memory)",
        )
    for start in range(0, count, min(rows, _MAX_ROWS)):
        yield slice(start, min(start + min(rows, _MAX_ROWS), count))


def compare(
    query: Shaped[np.ndarray, "..."], gallery: Shaped[np.ndarray, "..."], metric: Metric = "cosine"
) -> "EmbeddingDistances":
    """Distances of every query to every gallery embedding, computed a block at a time, in float32.

    `cosine` is 1 minus the cosine, 0 to 2. `euclidean` is the length of the difference, 0 or above. Its square is taken
    from lengths and product, and is off by up to 2 millionths of the squared lengths. So of two crops whose squared
    distances differ by less, either may come first, and a distance below about 1/700 of the lengths is rounding and
    little else. What all embeddings have in common adds to the lengths alone: where they lie far from zero and close
    together, subtract the mean of the gallery from both first.

    Args:
        query: (n, dim), float16 or float32. Copied are float64, which is rounded to float32, and rows or numbers that
            do not lie one after the other in memory (column-major, strided, reversed).
        gallery: likewise, of the same width; the two may differ in type.
        metric: to compare by.

    Raises:
        InputError: the widths differ, or what `prepare` refuses.
    """
    return EmbeddingDistances(*prepare_both(query, gallery, metric))


class EmbeddingDistances:
    """`Distances` between embeddings; made by `compare`, or directly from prepared embeddings of one width.

    Args:
        query: to ask with.
        gallery: to be found, prepared under the same metric.
    """

    def __init__(self, query: Prepared, gallery: Prepared) -> None:
        self._query, self._gallery = query, gallery
        first = first_of_equals(gallery)
        self._repeats = np.flatnonzero(first != np.arange(len(first)))
        self._originals = first[self._repeats]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of queries, and of gallery embeddings."""
        return len(self._query.values), len(self._gallery.values)

    @property
    def bytes_per_query(self) -> int:
        """Of `block`: the distances and a row of the queries."""
        return 4 * (len(self._gallery.values) + 2 * self._query.values.shape[1])

    @property
    def bytes_fixed(self) -> int:
        """Of `block`: what conversion takes, and the distances of repeats in one row."""
        return self._gallery.bytes_converted + 4 * len(self._repeats)

    def block(self, rows: slice, out: Block | None = None) -> Block:
        """Distances of some queries; see `Distances`."""
        count = rows.stop - rows.start
        distances = np.empty((count, self.shape[1]), dtype=np.float32) if out is None else out
        put_distances(self._query, rows, self._gallery, distances)
        if len(self._repeats):
            for row in distances:
                row[self._repeats] = row[self._originals]
        return distances


def put_distances(query: Prepared, rows: slice, gallery: Prepared, out: Block) -> None:
    """Puts the distances of some queries to the whole gallery into an array; equal embeddings may differ by rounding.

    It takes 8 bytes for each value of the queries, and the gallery's `bytes_converted`.
    """
    values, asked = gallery.values, query.rows(rows)
    for part in chunks(values) if gallery.converts else [slice(None)]:
        np.matmul(asked, values[part].astype(np.float32, copy=False).T, out=out[:, part])
    for row, square in zip(out, query.squares[rows], strict=True):  # a row at a time stays in the cache
        if gallery.scales is None:
            _to_euclidean(row, square, gallery.squares)
        else:
            _to_cosine(row, gallery.scales)


def given(matrix: Shaped[np.ndarray, "..."]) -> "GivenDistances":
    """Distances that somebody else has computed, whatever their measure; they may be negative.

    Args:
        matrix: (query, gallery), smaller is closer. Float64 is rounded to float32, where what differs less is a tie.

    Raises:
        InputError: not two axes, no floating-point numbers, empty, or NaN or infinite values, in float32.
    """
    if not is_table(matrix) or matrix.size == 0:
        raise InputError(
            "The distances are no table of floating-point numbers",
            got=description(matrix),
            expected="float32 (query, gallery), at least one each",
        )
    for row, values in enumerate(matrix):
        if not np.isfinite(rounded(values)).all():
            raise InputError(
                "The distances hold NaN or infinite values",
                got=f"the first in row {row}",
                expected="numbers that are finite in float32",
            )
    return GivenDistances(matrix)


class GivenDistances:
    """`Distances` out of a matrix; made by `given`.

    Args:
        matrix: finite.
    """

    def __init__(self, matrix: Float[np.ndarray, "query gallery"]) -> None:
        self._matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Number of queries, and of gallery crops."""
        return self._matrix.shape[0], self._matrix.shape[1]

    @property
    def bytes_per_query(self) -> int:
        """Of `block`: a copy."""
        return 4 * self._matrix.shape[1]

    @property
    def bytes_fixed(self) -> int:
        """Of `block`: nothing."""
        return 0

    def block(self, rows: slice, out: Block | None = None) -> Block:
        """Distances of some queries; see `Distances`."""
        if out is None:
            return self._matrix[rows].astype(np.float32)
        out[:] = self._matrix[rows]
        return out


def distance_matrix(
    query: Shaped[np.ndarray, "..."], gallery: Shaped[np.ndarray, "..."], metric: Metric = "cosine"
) -> Float32[np.ndarray, "query gallery"]:
    """All distances at once, for small sets; see `compare`.

    Raises:
        InputError: more than 2^31 pairs, or as `compare`.
    """
    pairs = len(query) * len(gallery)
    if pairs > _MAX_PAIRS:
        raise InputError(
            "The matrix of distances would be too large to hold",
            got=f"{len(query)} x {len(gallery)} = {pairs} pairs, {4 * pairs / 2**30:.1f} GiB",
            expected=f"{_MAX_PAIRS} pairs at most",
            fix="rank or search with `compare`, which goes through it in blocks",
        )
    return compare(query, gallery, metric).block(slice(0, len(query)))


def _to_cosine(products: np.ndarray, scales: np.ndarray) -> None:
    np.multiply(products, scales, out=products)
    np.subtract(1, products, out=products)
    np.maximum(products, 0, out=products)


def _to_euclidean(products: np.ndarray, square: np.float32, squares: np.ndarray) -> None:
    np.multiply(products, -2, out=products)
    np.add(products, squares, out=products)
    np.add(products, square, out=products)
    np.maximum(products, 0, out=products)
    np.sqrt(products, out=products)
