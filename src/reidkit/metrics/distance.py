"""Distances between embeddings; smaller is closer. Axes: `query` rows, `gallery` columns, `dim` wide.

A gallery is never compared as a whole: `Distances` gives a block of query rows at a time, and `distance_blocks`
makes the blocks as large as a limit of memory allows. A matrix product rounds differently at its edges, so the last bit
of a distance can depend on the size of the blocks. Gallery embeddings of the same numbers are equally far all
the same.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped, UInt64

from reidkit.errors import InputError, require_one_of

Metric = Literal["cosine", "euclidean"]
Block = Float32[np.ndarray, "block gallery"]
"""Distances of a block of queries to the whole gallery."""

MEMORY = 1 << 30
"""Bytes that comparing may take beside the embeddings, where nobody says."""

_MAX_PAIRS = 1 << 31
_MAX_ROWS = 1024  # a larger block is no faster, and progress would come in leaps
_ZERO = np.float32(0)  # added to -0.0 it makes 0.0, which has other bits
_CHUNK = 16 << 20  # bytes of embeddings that are converted at a time
_LARGEST_SQUARE = float(np.finfo(np.float32).max) / 5  # of a length: (a + b)² at most has to stay finite in float32
_SMALLEST_SQUARE = 1e-30  # of a length; below it float32 loses digits or all of it
_SHORTEST = {
    "cosine": 1e-30,
    "euclidean": 1e-15,
}  # length but 0; products with a shorter one, or its square, lose digits


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """Embeddings that were checked once and not copied, with what each row is multiplied by to be compared.

    Attributes:
        values: float16 or float32, as they came; float64 is rounded.
        scales: 1 over the Euclidean length of each row under cosine; None where lengths count.
        squares: of the length of each row as it came.
        sums: of the bits of each row in float32; rows of equal numbers have one sum, and few others have.
    """

    values: Float[np.ndarray, "n dim"]
    scales: Float32[np.ndarray, " n"] | None
    squares: Float32[np.ndarray, " n"]
    sums: UInt64[np.ndarray, " n"]

    @property
    def converts(self) -> bool:
        """Whether `rows` is a copy because the values are float16."""
        return self.values.dtype != np.float32

    @property
    def bytes_converted(self) -> int:
        """Memory that `put_distances` to all rows takes: for a part of them in float32, where they are converted."""
        return min(_CHUNK, 4 * self.values.size) if self.converts else 0

    def rows(self, which: slice | np.ndarray) -> Float32[np.ndarray, "m dim"]:
        """Some rows in float32, of length 1 under cosine; not to be changed."""
        values = self.values[which].astype(np.float32, copy=False)
        return values if self.scales is None else values * self.scales[which, None]


def prepare(embeddings: Shaped[np.ndarray, "..."], metric: Metric, name: str) -> Prepared:
    """Checks embeddings once, and notes their lengths.

    Args:
        embeddings: (n, dim), float16 or float32, as a model gave them.
        metric: that they will be compared by.
        name: what to call them in a message.

    Raises:
        ConfigError: there is no such metric.
        InputError: not two axes, no floating-point numbers, NaN or infinite values, values too large to compare in
            float32, vectors too short for it, or, under `cosine`, zero ones.
    """
    require_one_of("metric", metric, get_args(Metric))
    if not _is_table(embeddings) or embeddings.shape[1] == 0:
        raise InputError(
            f"The {name} embeddings are no table of floating-point numbers",
            got=_description(embeddings),
            expected="float16 or float32 (n, dim)",
        )
    values = np.ascontiguousarray(embeddings if embeddings.dtype.itemsize <= 4 else _rounded(embeddings))
    squares, sums = np.empty(len(values), dtype=np.float32), np.empty(len(values), dtype=np.uint64)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _chunks(values):
            piece = values[part].astype(np.float32, copy=False)
            np.einsum("nd,nd->n", piece, piece, out=squares[part])
            np.sum((piece + _ZERO).view(np.uint32), axis=1, dtype=np.uint64, out=sums[part])
    usable = squares <= _LARGEST_SQUARE
    if not usable.all():
        raise _unusable(embeddings, usable, name)
    lengths = _lengths(embeddings, squares, metric, name)
    return Prepared(values, 1 / lengths if metric == "cosine" else None, squares, sums)


def to_unit_length(prepared: Prepared, name: str) -> Prepared:
    """The same embeddings under cosine.

    Raises:
        InputError: one has length zero, or is too short.
    """
    return replace(prepared, scales=1 / _lengths(prepared.values, prepared.squares, "cosine", name))


def prepare_both(
    query: Shaped[np.ndarray, "..."], gallery: Shaped[np.ndarray, "..."], metric: Metric
) -> tuple[Prepared, Prepared]:
    """Checks embeddings that are to be compared with each other; see `compare`.

    Raises:
        InputError: the widths differ, or what `prepare` refuses.
    """
    asked, searched = prepare(query, metric, "query"), prepare(gallery, metric, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            "Query and gallery embeddings differ in width",
            got=f"{query.shape[1]} and {gallery.shape[1]}",
            expected="embeddings of one model",
        )
    return asked, searched


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
    for part in _chunks(values) if gallery.converts else [slice(None)]:
        np.matmul(asked, values[part].astype(np.float32, copy=False).T, out=out[:, part])
    for row, square in zip(out, query.squares[rows], strict=True):  # a row at a time stays in the cache
        if gallery.scales is None:
            _to_euclidean(row, square, gallery.squares)
        else:
            _to_cosine(row, gallery.scales)


def first_of_equals(*tables: Prepared) -> Int64[np.ndarray, " rows"]:
    """For each row of tables, one after the other, the first row of the same numbers in float32, or itself."""
    sums = np.concatenate([table.sums for table in tables])
    _, group, sizes = np.unique(sums, return_inverse=True, return_counts=True)
    candidates = sizes[group] > 1  # only rows of one sum are looked at in full
    first = np.arange(len(sums))
    seen: dict[bytes, int] = {}
    start = 0
    for table in tables:
        for row in np.flatnonzero(candidates[start : start + len(table.values)]).tolist():
            values = table.values[row].astype(np.float32) + _ZERO
            first[start + row] = seen.setdefault(hashlib.blake2b(values, digest_size=16).digest(), start + row)
        start += len(table.values)
    return first


def given(matrix: Shaped[np.ndarray, "..."]) -> "GivenDistances":
    """Distances that somebody else has computed, whatever their measure; they may be negative.

    Args:
        matrix: (query, gallery), smaller is closer. Float64 is rounded to float32, where what differs less is a tie.

    Raises:
        InputError: not two axes, no floating-point numbers, empty, or NaN or infinite values, in float32.
    """
    if not _is_table(matrix) or matrix.size == 0:
        raise InputError(
            "The distances are no table of floating-point numbers",
            got=_description(matrix),
            expected="float32 (query, gallery), at least one each",
        )
    for row, values in enumerate(matrix):
        if not np.isfinite(_rounded(values)).all():
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


def _chunks(values: np.ndarray) -> Iterator[slice]:
    rows = max(1, _CHUNK // (4 * max(1, values.shape[1])))
    for start in range(0, len(values), rows):
        yield slice(start, min(start + rows, len(values)))


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


def _rounded(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused
        return values.astype(np.float32, copy=False)


def _is_table(values: object) -> bool:
    return isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind == "f"


def _description(values: object) -> str:
    return f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else f"{type(values).__name__}, no array"


def _lengths(embeddings: np.ndarray, squares: np.ndarray, metric: Metric, name: str) -> np.ndarray:
    """Euclidean lengths of rows, none so short that float32 cannot compare it."""
    lengths = np.sqrt(squares)
    for row in np.flatnonzero(squares < _SMALLEST_SQUARE):
        # In float64, of the numbers as they came: those that float32 takes for zero may not be.
        lengths[row] = length = math.hypot(*embeddings[row].tolist())
        if length == 0 and metric == "cosine":
            raise InputError(
                f"A {name} embedding has length zero, so it has no cosine",
                got=f"row {row}",
                expected="non-zero embeddings",
                fix="use the Euclidean metric, or check the model on that crop",
            )
        if 0 < length < _SHORTEST[metric]:
            raise InputError(
                f"A {name} embedding is too short to compare in float32 ({metric})",
                got=f"row {row}, of length {length:.3g}",
                expected=f"lengths of {_SHORTEST[metric]:.0e} at least",
                fix="check the model on that crop, or scale the embeddings up",
            )
    return lengths


def _unusable(embeddings: np.ndarray, usable: np.ndarray, name: str) -> InputError:
    """Says whether rows hold no numbers, or numbers that are too large."""
    rows = np.flatnonzero(~usable)
    broken = [row for row in rows.tolist() if not np.isfinite(embeddings[row]).all()]
    if broken:
        return InputError(
            f"{len(broken)} of {len(embeddings)} {name} embeddings hold NaN or infinite values",
            got=f"the first in row {broken[0]}",
            expected="finite numbers",
            fix="check the model and its precision on that crop",
        )
    return InputError(
        f"{len(rows)} of {len(embeddings)} {name} embeddings are too large to compare in float32",
        got=f"the first in row {rows[0]}, with a value of {np.abs(embeddings[rows[0]]).max():.3g}",
        expected=f"Euclidean lengths of {_LARGEST_SQUARE**0.5:.0e} at most",
        fix="check the model on that crop, or scale the embeddings down",
    )
