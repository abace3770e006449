"""Embeddings moved towards their neighbours before anything is ranked. Axes: `query` rows, `gallery` rows, `dim` wide.

No label is read: whoever stands near counts, junk included, because nobody knows it for junk when a real query comes.
"""

import numpy as np
from jaxtyping import Float32, Shaped

from reidkit.errors import InputError
from reidkit.index.exact import Neighbors, nearest_by, require_count
from reidkit.metrics.distance import MEMORY, EmbeddingDistances
from reidkit.metrics.junk import Exclusion
from reidkit.metrics.prepared import Metric, Prepared, prepare, prepare_both, to_unit_length
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
        InputError: `neighbors` is no whole number from 1 to the size of the gallery, `alpha` is negative, the
            embeddings around a query cancel out under `cosine`, the embeddings cannot be compared (see
            `reidkit.metrics.distance.compare`) or, where alpha is above 0, one is zero and has no cosine.
    """
    asked, searched = prepare_both(query, gallery, metric)
    _check(neighbors, alpha, len(gallery), "gallery crops")
    directions = (to_unit_length(asked, "query"), to_unit_length(searched, "gallery")) if alpha else None
    distances = EmbeddingDistances(asked, searched)
    found = nearest_by(distances, top=neighbors, memory=memory, progress=progress)
    return _means((asked, searched), directions, alpha, found, "query")


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
        InputError: `neighbors` is no whole number from 1 to below the size of the gallery; else as `expand_queries`.
    """
    prepared = prepare(gallery, metric, "gallery")
    count = len(gallery)
    _check(neighbors, alpha, count - 1, "others in the gallery")
    direction = to_unit_length(prepared, "gallery") if alpha else None
    itself = Exclusion((count, count), lambda row: np.array([row], dtype=np.int64))
    distances = EmbeddingDistances(prepared, prepared)
    found = nearest_by(distances, top=neighbors, exclude=[itself], memory=memory, progress=progress)
    return _means((prepared, prepared), direction and (direction, direction), alpha, found, "gallery")


def _check(neighbors: int, alpha: float, available: int, what: str) -> None:
    require_count("neighbors", neighbors)
    if neighbors > available:
        raise InputError(
            "neighbors is larger than the gallery",
            got=f"neighbors {neighbors}",
            expected=f"at most {max(available, 0)}, the number of {what}",
            fix="ask for fewer neighbours (5 to 10 are usual)",
        )
    if not 0 <= alpha < np.inf:
        raise InputError("alpha must be a finite number, 0 or above", got=alpha)


def _means(
    tables: tuple[Prepared, Prepared],
    directions: tuple[Prepared, Prepared] | None,
    alpha: float,
    found: Neighbors,
    name: str,
) -> np.ndarray:
    """Weighted means of embeddings and their neighbours.

    Args:
        tables: the embeddings, and the others that `found` numbers.
        directions: both of length 1, to weigh neighbours by; None weighs all alike.
        alpha: the power of a weight.
        found: the neighbours.
        name: what to call the embeddings in a message.
    """
    own, others = tables
    means = np.empty(own.values.shape, dtype=np.float32)
    rows = max(1, _CACHED // own.values.shape[1])
    for start in range(0, len(means), rows):
        part = slice(start, min(start + rows, len(means)))
        total, weights = means[part], np.ones((part.stop - start, 1))
        total[:] = own.rows(part)
        for near in found.indices[part].T:
            weight = np.ones_like(weights)
            if directions is not None:
                weight = _weights(directions[0].rows(part), directions[1].rows(near), alpha)
            total += weight.astype(np.float32) * others.rows(near)
            weights += weight
        total /= weights
    return means if own.scales is None else _to_unit_length(means, name)


def _weights(one: np.ndarray, other: np.ndarray, alpha: float) -> np.ndarray:
    """Powers of the cosines of pairs of unit vectors, 0 where they are not above 0, as a column."""
    cosines = np.einsum("nd,nd->n", one, other).astype(np.float64)
    np.minimum(cosines, 1, out=cosines)  # rounding would grow with alpha
    return np.power(cosines, alpha, out=np.zeros_like(cosines), where=cosines > 0)[:, None]


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
