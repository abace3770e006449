"""Embeddings that are ready to be compared: checked once, their lengths known, and which of them are equal.

Axes: `n` and `m` rows of embeddings, `dim` wide.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped, UInt64

from reidkit.errors import InputError, require_one_of

Metric = Literal["cosine", "euclidean"]

_ZERO = np.float32(0)  # added to -0.0 it makes 0.0, which has other bits
_CHUNK = 16 << 20  # bytes of embeddings that are converted at a time
_LARGEST_SQUARE = float(np.finfo(np.float32).max) / 5  # of a length: (a + b)² at most has to stay finite in float32
_SMALLEST_SQUARE = 1e-30  # of a length; below it float32 loses digits or all of it
_SHORTEST = {
    "cosine": 1e-30,
    "euclidean": 1e-15,
}  # length but 0; products with a shorter one, or its square, lose digits


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
    if not is_table(embeddings) or embeddings.shape[1] == 0:
        raise InputError(
            f"The {name} embeddings are no table of floating-point numbers",
            got=description(embeddings),
            expected="float16 or float32 (n, dim)",
        )
    values = np.ascontiguousarray(embeddings if embeddings.dtype.itemsize <= 4 else rounded(embeddings))
    squares, sums = np.empty(len(values), dtype=np.float32), np.empty(len(values), dtype=np.uint64)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in chunks(values):
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


def chunks(values: Float[np.ndarray, "n dim"]) -> Iterator[slice]:
    """Parts of embeddings of which each is small in float32."""
    rows = max(1, _CHUNK // (4 * max(1, values.shape[1])))
    for start in range(0, len(values), rows):
        yield slice(start, min(start + rows, len(values)))


def rounded(values: Float[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """The numbers in float32; what leaves it becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def is_table(values: object) -> bool:
    """Whether it is an array of floating-point numbers with two axes."""
    return isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind == "f"


def description(values: object) -> str:
    """What to say of something that should have been a table, in a message."""
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
