"""Embeddings moved towards their neighbours before anything is ranked. Axes: `query` rows, `gallery` rows, `dim` wide.

No label is read: whoever stands near counts, junk included, because nobody knows it for junk when a real query comes.
"""

import numpy as np
from jaxtyping import Float32, Shaped

from reidkit.errors import InputError
from reidkit.index.exact import Neighbors, nearest_by
from reidkit.metrics.distance import MEMORY, EmbeddingDistances, Metric, Prepared, compare, prepare
from reidkit.metrics.junk import Exclusion
from reidkit.types import Progress, no_progress

_CACHED = 1 << 17  # values of embeddings that stay in a core's own cache while they are summed
_SHORTEST = 1e-6  # length of a sum of unit vectors, below which rounding decides where it points


def expand_queries(
    query: Shaped[np.ndarray, "..."],
    gallery: Shaped[np.ndarray, "..."],
    *,
    neighbors: int,
    alpha: float = 0.0,
    metric: Metric = "cosine",
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Float32[np.ndarray, "query dim"]:
    """Replaces each query by the weighted mean of itself and its nearest gallery embeddings (AQE, alpha-QE).

    The query has weight 1, a neighbour max(cosine, 0)**alpha, whatever the metric. Source: Chum et al., "Total Recall",
    ICCV 2007 (alpha 0: a plain mean); Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human
    Annotation", TPAMI 2018.

    Args:
        query: (n, dim), float16 or float32, to ask with.
        gallery: likewise, of the same width, to take neighbours from.
        neighbors: how many; equally near ones are taken in gallery order.
        alpha: 0 or above; the larger, the less far neighbours count.
        metric: that neighbours are near by. Under `cosine` embeddings are scaled to length 1 before the mean is taken,
            and so is the mean.
        memory: bytes that this may take, beside the embeddings, the result, and 12 for each query and neighbour.
        progress: told the number of queries whose neighbours are known.

    Raises:
        InputError: `neighbors` is below 1 or above the gallery, `alpha` is negative, the embeddings around a query
            cancel out under `cosine`, the embeddings cannot be compared (see `reidkit.metrics.distance.compare`) or,
            where alpha is above 0, one is zero and has no cosine.
    """
    asked, searched = prepare(query, metric, "query"), prepare(gallery, metric, "gallery")
    distances = compare(asked.values, searched.values, metric)
    _check(neighbors, alpha, distances.shape[1], "gallery crops")
    found = nearest_by(distances, top=neighbors, memory=memory, progress=progress)
    return _means(asked, searched, found, alpha, "query")


def augment_gallery(
    gallery: Shaped[np.ndarray, "..."],
    *,
    neighbors: int,
    alpha: float = 0.0,
    metric: Metric = "cosine",
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Float32[np.ndarray, "gallery dim"]:
    """Replaces each gallery embedding by the weighted mean of itself and its nearest others (DBA).

    As `expand_queries`, with every embedding of the gallery for a query: itself, with weight 1, and `neighbors` others.
    Source: Arandjelović and Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012;
    Gordo et al., "End-to-end Learning of Deep Visual Representations for Image Retrieval", IJCV 2017, whose weights
    fall with the rank. Here they are those of `expand_queries`.

    Args:
        gallery: (n, dim), float16 or float32.
        neighbors: how many others; equally near ones are taken in gallery order.
        alpha: 0 or above; the larger, the less far neighbours count.
        metric: as in `expand_queries`.
        memory: bytes that this may take, beside the embeddings, the result, and 12 for each embedding and neighbour.
        progress: told the number of embeddings whose neighbours are known.

    Raises:
        InputError: `neighbors` is below 1 or not below the size of the gallery; else as `expand_queries`.
    """
    prepared = prepare(gallery, metric, "gallery")
    distances = EmbeddingDistances(prepared, prepared)
    count = distances.shape[1]
    _check(neighbors, alpha, count - 1, "others in the gallery")
    itself = Exclusion((count, count), lambda row: np.array([row], dtype=np.int64))
    found = nearest_by(distances, top=neighbors, exclude=[itself], memory=memory, progress=progress)
    return _means(prepared, prepared, found, alpha, "gallery")


def _check(neighbors: int, alpha: float, available: int, what: str) -> None:
    if neighbors < 1:
        raise InputError("neighbors must be at least 1", got=neighbors)
    if neighbors > available:
        raise InputError(
            "neighbors is larger than the gallery",
            got=f"neighbors {neighbors}",
            expected=f"at most {max(available, 0)}, the number of {what}",
            fix="ask for fewer neighbours (5 to 10 are usual)",
        )
    if not 0 <= alpha < np.inf:
        raise InputError("alpha must be a finite number, 0 or above", got=alpha)


def _means(own: Prepared, others: Prepared, found: Neighbors, alpha: float, name: str) -> np.ndarray:
    """Weighted means of embeddings and their neighbours; `name` is what to call the embeddings in a message."""
    unit_own, unit_others = own, others
    if alpha and own.scales is None:
        unit_own, unit_others = prepare(own.values, "cosine", name), prepare(others.values, "cosine", "gallery")
    means = np.empty(own.values.shape, dtype=np.float32)
    rows = max(1, _CACHED // own.values.shape[1])
    for start in range(0, len(means), rows):
        part = slice(start, min(start + rows, len(means)))
        total, weights = means[part], np.ones((part.stop - start, 1), dtype=np.float32)
        total[:] = own.rows(part)
        for near in found.indices[part].T:
            weight = np.float32(1)
            if alpha:
                weight = _similarity(unit_own.rows(part), unit_others.rows(near)) ** np.float32(alpha)
            total += weight * others.rows(near)
            weights += weight
        total /= weights
    return means if own.scales is None else _to_unit_length(means, name)


def _similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines of pairs of unit vectors where above 0, as a column."""
    return np.maximum(np.einsum("nd,nd->n", one, other), 0)[:, None]


def _to_unit_length(means: np.ndarray, name: str) -> np.ndarray:
    lengths = np.sqrt(np.einsum("nd,nd->n", means, means))
    if len(means) and lengths.min() < _SHORTEST:
        raise InputError(
            f"A {name} embedding and its neighbours cancel out, so their mean points nowhere",
            got=f"row {int(np.argmin(lengths))}",
            expected="neighbours that resemble it",
            fix="take fewer neighbours, or an alpha above 0, which leaves opposite ones out",
        )
    means /= lengths[:, None]
    return means
