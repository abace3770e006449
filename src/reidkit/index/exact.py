"""Exact search: every query against every gallery embedding. Axes: `query` rows, `gallery` columns, `top` ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from reidkit.errors import InputError
from reidkit.metrics.distance import MEMORY, Distances, compare, distance_blocks
from reidkit.metrics.junk import Exclusion, check_exclusions, excluded_rows
from reidkit.metrics.prepared import Metric
from reidkit.metrics.ranking import Relevance
from reidkit.types import Progress, no_progress

NO_NEIGHBOR = -1
"""In `Neighbors.indices`: nothing is left for this rank, because the rest of the gallery is excluded for the query."""

BYTES_PER_PAIR = 28
"""Memory that `smallest` takes for each column of a row where all of them are ties."""

_GROUP = 64  # columns that share one minimum


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest gallery rows of every query, nearest first.

    Attributes:
        indices: gallery rows. Where exclusion left fewer than `top`, the rest of the row is NO_NEIGHBOR.
        distances: to them; infinite at NO_NEIGHBOR.
    """

    indices: Int64[np.ndarray, "query top"]
    distances: Float32[np.ndarray, "query top"]


def nearest(
    query: Shaped[np.ndarray, "..."],
    gallery: Shaped[np.ndarray, "..."],
    *,
    top: int = 10,
    metric: Metric = "cosine",
    exclude: Sequence[Exclusion] = (),
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Neighbors:
    """Finds the `top` nearest gallery embeddings of every query; of equally near ones, the first in gallery order.

    Args:
        query: (n, dim), float16 or float32, to ask with.
        gallery: likewise, of the same width, to be found.
        top: how many to find; a smaller gallery gives all it has.
        metric: to compare by.
        exclude: pairs that must not be found, for example `same_camera` and `same_file`; a pair is left out when any
            of them says so.
        memory: bytes that this may take, beside the embeddings and the result.
        progress: told the number of queries done.

    Raises:
        InputError: the gallery is empty, `top` is no whole number from 1, an exclusion is of another size, `memory`
            does not suffice for one query, or the embeddings cannot be compared (see
            `reidkit.metrics.distance.compare`).
    """
    distances = compare(query, gallery, metric)
    return nearest_by(distances, top=top, exclude=exclude, memory=memory, progress=progress)


def nearest_by(
    distances: Distances,
    *,
    top: int = 10,
    exclude: Sequence[Exclusion] = (),
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Neighbors:
    """`nearest` by any distances: re-ranked ones, say.

    Raises:
        InputError: as `nearest`.
    """
    queries, gallery = distances.shape
    if gallery == 0:
        raise InputError("The gallery is empty", expected="at least one embedding", fix="add pictures to the gallery")
    require_count("top", top)
    check_exclusions(exclude, distances.shape)
    top = min(int(top), gallery)
    indices = np.empty((queries, top), dtype=np.int64)
    found = np.empty((queries, top), dtype=np.float32)
    for rows, values in distance_blocks(distances, memory=memory, bytes_besides=BYTES_PER_PAIR * gallery):
        for query, row in enumerate(values, rows.start):
            row[excluded_rows(exclude, query)] = np.inf
            indices[query], found[query] = smallest(row, top)
            indices[query, np.isinf(found[query])] = NO_NEIGHBOR
        progress(rows.stop, queries)
    return Neighbors(indices, found)


class NearestScorer:
    """Notes the nearest crops of every query on a walk that takes other measures too (`ranking.walk`).

    What the walk leaves out is not found; of equally near crops, the first in gallery order is.

    Args:
        shape: number of queries, and of gallery crops.
        top: how many to note; a smaller gallery gives all it has.

    Raises:
        InputError: `top` is no whole number from 1.
    """

    def __init__(self, shape: tuple[int, int], top: int) -> None:
        require_count("top", top)
        queries, gallery = shape
        self._indices = np.full((queries, min(top, gallery)), NO_NEIGHBOR, dtype=np.int64)
        self._distances = np.full((queries, min(top, gallery)), np.inf, dtype=np.float32)

    @property
    def bytes_needed(self) -> int:
        """See `reidkit.metrics.ranking.Scorer`: what was noted."""
        return self._indices.nbytes + self._distances.nbytes

    def add(self, query: int, distances: Float32[np.ndarray, " gallery"], found: Relevance) -> None:
        """Takes note of one query; see `reidkit.metrics.ranking.Scorer`."""
        row = distances.copy()
        row[found.left_out] = np.inf
        indices, values = smallest(row, self._indices.shape[1])
        self._indices[query] = np.where(np.isinf(values), NO_NEIGHBOR, indices)
        self._distances[query] = values

    def neighbors(self) -> Neighbors:
        """What was noted."""
        return Neighbors(self._indices, self._distances)


def smallest(
    row: Float32[np.ndarray, " gallery"], top: int
) -> tuple[Int64[np.ndarray, " top"], Float32[np.ndarray, " top"]]:
    """Columns of the `top` smallest values, ascending, with the values; ties go to the first column.

    Args:
        row: without NaN.
        top: at least 1, at most the number of columns.
    """
    candidates = np.flatnonzero(row <= _bound(row, top))
    near = row[candidates]
    order = np.argsort(near, kind="stable")[:top]
    return candidates[order], near[order]


def require_count(name: str, value: object) -> None:
    """Refuses what is no number of things.

    Raises:
        InputError: `value`, an argument of that name, is no whole number or below 1.
    """
    if not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a whole number, 1 or above", got=value)


def _bound(row: np.ndarray, top: int) -> np.float32:
    """A value that at least `top` of a row do not exceed, and not many more than that."""
    # The minima of so many groups are so many values of the row. Columns of a group stand far apart: in a gallery that
    # is sorted by identity, whoever is near stands side by side, and would be hidden behind few minima.
    size = max(1, min(_GROUP, len(row) // (4 * top)))
    groups = len(row) // size
    minima = row[: size * groups].reshape(size, groups).min(axis=0)
    return np.partition(minima, top - 1)[top - 1]
