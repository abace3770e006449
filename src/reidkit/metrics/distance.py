"""Distances between embeddings; smaller is closer. Axes: `query` rows, `gallery` columns, `dim` wide.

A gallery is never compared as a whole: `Distances` gives a block of query rows at a time, and `distance_blocks`
makes the blocks as large as a limit of memory allows. A matrix product rounds differently at its edges, so the last bit of a
distance can depend on the size of the blocks. Gallery embeddings that are equal, bit for bit, are equally far all the
same.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Shaped

from reidkit.errors import InputError, require_one_of

Metric = Literal["cosine", "euclidean"]
Block = Float32[np.ndarray, "block gallery"]
"""Distances of a block of queries to the whole gallery."""

MEMORY = 1 << 30
"""Bytes that comparing may take beside the embeddings, where nobody says."""

_MAX_PAIRS = 1 << 31
_MAX_ROWS = 1024  # a larger block is no faster, and progress would come in leaps
_CHUNK = 16 << 20  # bytes of embeddings that are converted at a time
_LARGEST_SQUARE = float(np.finfo(np.float32).max) / 5  # of a length: (a + b)² at most has to stay finite in float32
_SMALLEST_SQUARE = 1e-30  # of a length; below it float32 loses digits or all of it
_SHORTEST = 1e-30  # length that has a cosine: the products with a shorter one lose digits


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
    """

    values: Float[np.ndarray, "n dim"]
    scales: Float32[np.ndarray, " n"] | None

    @property
    def converts(self) -> bool:
        """Whether `rows` is a copy because the values are float16."""
        return self.values.dtype != np.float32

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
            float32, or, under `cosine`, a vector that is zero or next to it.
    """
    require_one_of("metric", metric, get_args(Metric))
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or embeddings.dtype.kind != "f":
        raise InputError(
            f"The {name} embeddings are no table of floating-point numbers",
            got=f"{embeddings.dtype} {embeddings.shape}",
            expected="float16 or float32 (n, dim)",
        )
    values = np.ascontiguousarray(embeddings if embeddings.dtype.itemsize <= 4 else _rounded(embeddings))
    squares = squared_lengths(values)
    usable = squares <= _LARGEST_SQUARE
    if not usable.all():
        raise _unusable(embeddings, usable, name)
    return Prepared(values, None if metric == "euclidean" else 1 / _lengths(values, squares, name))


def squared_lengths(values: Float[np.ndarray, "n dim"]) -> Float32[np.ndarray, " n"]:
    """Squares of the Euclidean lengths of rows; not finite where a value is not, or the square leaves float32."""
    found = np.empty(len(values), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _chunks(values):
            piece = values[part].astype(np.float32, copy=False)
            np.einsum("nd,nd->n", piece, piece, out=found[part])
    return found


def compare(
    query: Shaped[np.ndarray, "..."], gallery: Shaped[np.ndarray, "..."], metric: Metric = "cosine"
) -> "EmbeddingDistances":
    """Distances of every query to every gallery embedding, computed a block at a time, in float32.

    `cosine` is 1 minus the cosine, 0 to 2. `euclidean` is the length of the difference, 0 or above, taken from lengths
    and product: one below about 1/1000 of the lengths is rounding and little else.

    Args:
        query: (n, dim), float16 or float32; not copied.
        gallery: likewise, of the same width; the two may differ in type.
        metric: to compare by.

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
    return EmbeddingDistances(asked, searched)


class EmbeddingDistances:
    """`Distances` between embeddings; made by `compare`, or directly from prepared embeddings of one width.

    Args:
        query: to ask with.
        gallery: to be found, prepared under the same metric.
    """

    def __init__(self, query: Prepared, gallery: Prepared) -> None:
        self._query, self._gallery = query, gallery
        self._squares = squared_lengths(gallery.values) if gallery.scales is None else np.empty(0, dtype=np.float32)
        self._repeats, self._originals = _repeats(gallery.values)

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
        """Of `block`: a part of the gallery in float32, where it has to be converted."""
        return min(_CHUNK, 4 * self._gallery.values.size) if self._gallery.converts else 0

    def block(self, rows: slice, out: Block | None = None) -> Block:
        """Distances of some queries; see `Distances`."""
        query, gallery = self._query.rows(rows), self._gallery.values
        distances = np.empty((len(query), len(gallery)), dtype=np.float32) if out is None else out
        for part in _chunks(gallery) if self._gallery.converts else [slice(None)]:
            np.matmul(query, gallery[part].astype(np.float32, copy=False).T, out=distances[:, part])
        for row, square in zip(distances, squared_lengths(query), strict=True):  # a row at a time stays in the cache
            if self._gallery.scales is None:
                _to_euclidean(row, square, self._squares)
            else:
                _to_cosine(row, self._gallery.scales)
            if len(self._repeats):
                row[self._repeats] = row[self._originals]
        return distances


def given(matrix: Shaped[np.ndarray, "..."]) -> "GivenDistances":
    """Distances that somebody else has computed, whatever their measure; they may be negative.

    Args:
        matrix: (query, gallery), smaller is closer. Float64 is rounded to float32, where what differs less is a tie.

    Raises:
        InputError: not two axes, no floating-point numbers, empty, or NaN or infinite values, in float32.
    """
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or matrix.size == 0:
        raise InputError(
            "The distances are no table of floating-point numbers",
            got=f"{matrix.dtype} {matrix.shape}",
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


def _lengths(values: np.ndarray, squares: np.ndarray, name: str) -> np.ndarray:
    """Euclidean lengths of rows, none so short that it has no cosine."""
    lengths = np.sqrt(squares)
    for row in np.flatnonzero(squares < _SMALLEST_SQUARE):
        lengths[row] = np.linalg.norm(values[row].astype(np.float64))
        if lengths[row] == 0:
            raise InputError(
                f"A {name} embedding has length zero, so it has no cosine",
                got=f"row {row}",
                expected="non-zero embeddings",
                fix="use the Euclidean metric, or check the model on that crop",
            )
        if lengths[row] < _SHORTEST:
            raise InputError(
                f"A {name} embedding is too short to have a cosine in float32",
                got=f"row {row}, of length {lengths[row]:.3g}",
                expected=f"lengths of {_SHORTEST:.0e} at least",
                fix="check the model on that crop, or scale the embeddings up",
            )
    return lengths


def _repeats(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that repeat an earlier one, bit for bit, and the first such row of each."""
    # Whole numbers have one sum in whatever order they are added. Only rows of one sum are looked at in full.
    sums = values.view(f"u{values.itemsize}").sum(axis=1, dtype=np.uint64)
    _, group, sizes = np.unique(sums, return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    pairs = []
    for row in np.flatnonzero(sizes[group] > 1).tolist():
        original = first.setdefault(hashlib.blake2b(values[row], digest_size=16).digest(), row)
        if original != row:
            pairs.append((row, original))
    repeats, originals = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return repeats, originals


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
