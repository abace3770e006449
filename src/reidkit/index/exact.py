"""Exact search: every query against every gallery embedding. Axes: `query` rows, `gallery` columns, `top` ranks."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from reidkit.errors import InputError
from reidkit.metrics.distance import Metric, prepare, prepared_distances
from reidkit.types import UNKNOWN_CAMERA, Crop, Progress, no_progress

NO_NEIGHBOR = -1
"""In `Neighbors.indices`: nothing is left for this rank, because the rest of the gallery is excluded for the query."""

Exclude = Callable[[slice], Bool[np.ndarray, "block gallery"]]
"""Given a block of query rows, says which gallery columns must not be found for each of them."""

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
            embeddings cannot be compared (other widths, NaN or infinite values, a zero vector under `cosine`).
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
        for excluded in exclude:
            pairs = excluded(rows)
            if pairs.shape != values.shape:
                raise InputError(
                    "An exclusion does not fit the embeddings",
                    got=f"{pairs.shape} for queries {rows.start} to {rows.stop - 1}",
                    expected=f"{values.shape} (queries, gallery)",
                    fix="make it from the same queries and gallery as the embeddings, in their order",
                )
            values[pairs] = np.inf
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


def same_camera(query: Sequence[Crop], gallery: Sequence[Crop]) -> Exclude:
    """Excludes junk under the Market-1501 protocol: the same identity, seen by the same (known) camera.

    Args:
        query: what the query embeddings were made of, in their order.
        gallery: likewise.
    """
    query_pids, query_camids = _labels(query)
    gallery_pids, gallery_camids = _labels(gallery)

    def excluded(rows: slice) -> np.ndarray:
        known = query_camids[rows, None] != UNKNOWN_CAMERA
        same_pid = query_pids[rows, None] == gallery_pids
        return known & same_pid & (query_camids[rows, None] == gallery_camids)

    return excluded


def same_file(query: Sequence[Path | str], gallery: Sequence[Path | str]) -> Exclude:
    """Excludes the query's own file, wherever the gallery holds it: its distance of zero teaches nobody anything.

    Args:
        query: the files that the query embeddings were made of, in their order.
        gallery: likewise.
    """
    numbers: dict[str, int] = {}
    query_files = np.array([numbers.setdefault(os.path.realpath(path), len(numbers)) for path in query], dtype=np.int64)
    gallery_files = np.array([numbers.setdefault(os.path.realpath(path), len(numbers)) for path in gallery], np.int64)
    return lambda rows: query_files[rows, None] == gallery_files


def _labels(crops: Sequence[Crop]) -> tuple[np.ndarray, np.ndarray]:
    pids = np.array([crop.pid for crop in crops], dtype=np.int64)
    return pids, np.array([crop.camid for crop in crops], dtype=np.int64)
