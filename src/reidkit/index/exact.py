"""Exact search: every query against every gallery embedding. Axes: `query` rows, `gallery` columns, `top` ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from reidkit.errors import InputError
from reidkit.metrics.distance import Metric, prepare, prepared_distances
from reidkit.metrics.junk import Exclude, excluded_pairs
from reidkit.types import Progress, no_progress

NO_NEIGHBOR = -1
"""In `Neighbors.indices`: nothing is left for this rank, because the rest of the gallery is excluded for the query."""

_BLOCK_BYTES = 256 << 20
_BYTES_PER_PAIR = 24  # distances, keys and their temporaries


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
    query: Float[np.ndarray, "query dim"],
    gallery: Float[np.ndarray, "gallery dim"],
    *,
    top: int = 10,
    metric: Metric = "cosine",
    exclude: Sequence[Exclude] = (),
    block: int | None = None,
    progress: Progress = no_progress,
) -> Neighbors:
    """Finds the `top` nearest gallery embeddings of every query; of equally near ones, the first in gallery order.

    Args:
        query: embeddings to ask with.
        gallery: embeddings to be found.
        top: how many to find; a smaller gallery gives all it has.
        metric: to compare by.
        exclude: pairs that must not be found, for example `same_camera` and `same_file`; a pair is left out when any
            of them says so.
        block: queries compared at a time; None takes as many as keep a block within 256 MiB.
        progress: told the number of queries done.

    Raises:
        InputError: the gallery is empty, `top` or `block` is below 1, an exclusion is of another size, or the
            embeddings cannot be compared (see `distance_matrix`).
    """
    if len(gallery) == 0:
        raise InputError("The gallery is empty", expected="at least one embedding", fix="add pictures to the gallery")
    for name, value in (("top", top), ("block", block)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1", got=value)
    q, g = prepare(query, metric, "query"), prepare(gallery, metric, "gallery")
    top = min(top, len(g))
    block = block or max(1, _BLOCK_BYTES // (_BYTES_PER_PAIR * len(g)))
    indices = np.empty((len(q), top), dtype=np.int64)
    distances = np.empty((len(q), top), dtype=np.float32)
    for start in range(0, len(q), block):
        rows = slice(start, min(start + block, len(q)))
        values = prepared_distances(q[rows], g, metric)
        values[excluded_pairs(exclude, rows, values.shape)] = np.inf
        indices[rows], distances[rows] = _smallest(values, top)
        progress(rows.stop, len(q))
    indices[np.isinf(distances)] = NO_NEIGHBOR
    return Neighbors(indices, distances)


def _smallest(values: Float32[np.ndarray, "block gallery"], top: int) -> tuple[np.ndarray, np.ndarray]:
    # The bits of a float that is not negative sort like the float. With the gallery row below them in one integer,
    # ties are settled by gallery order, no two keys are equal, and a partition cannot pick the wrong one of a tie.
    bits = (values + np.float32(0)).view(np.uint32)  # adding zero turns -0 into 0
    keys = bits.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(values.shape[1], dtype=np.uint64)
    keys.partition(top - 1, axis=1)
    found = np.sort(keys[:, :top], axis=1)
    return (found & np.uint64(0xFFFFFFFF)).astype(np.int64), (found >> np.uint64(32)).astype(np.uint32).view(np.float32)
