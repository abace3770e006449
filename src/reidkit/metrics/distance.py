"""Distances between embeddings; smaller is closer. Axes: `query` rows, `gallery` columns, `dim` wide.

`gallery_dim` has to equal `dim`; it has a name of its own where a function checks that itself.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from reidkit.errors import InputError

Metric = Literal["cosine", "euclidean"]

_MAX_SQUARE = float(np.finfo(np.float32).max) / 4
"""Of a length: the square of a distance, (a + b)² at most, then stays finite in float32."""


def distance_matrix(
    query: Float[np.ndarray, "query dim"], gallery: Float[np.ndarray, "gallery gallery_dim"], metric: Metric = "cosine"
) -> Float32[np.ndarray, "query gallery"]:
    """Distances of every query to every gallery embedding.

    `cosine` is 1 minus the cosine, 0 to 2; `euclidean` is the length of the difference, 0 or above.

    Raises:
        InputError: widths differ, values are NaN, infinite or too large, or a zero vector under `cosine`.
    """
    q, g = prepare(query, metric, "query"), prepare(gallery, metric, "gallery")
    return prepared_distances(q, g, metric)


def prepare(embeddings: Float[np.ndarray, "n dim"], metric: Metric, name: str) -> Float32[np.ndarray, "n dim"]:
    """Checks embeddings once and brings them into the form that `prepared_distances` takes: float32, unit under cosine.

    Args:
        embeddings: as a model gave them.
        metric: that they will be compared by.
        name: what to call them in a message.

    Raises:
        InputError: not two axes, NaN or infinite values, values too large to compare in float32, or a zero vector
            under `cosine`.
    """
    if embeddings.ndim != 2:
        raise InputError(f"The {name} embeddings are no table", got=f"shape {embeddings.shape}", expected="(n, dim)")
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{int((~finite).sum())} of {len(embeddings)} {name} embeddings hold NaN or infinite values",
            got=f"the first in row {int(np.argmin(finite))}",
            expected="finite numbers",
            fix="check the model and its precision on that crop",
        )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is named below
        values = np.ascontiguousarray(embeddings, dtype=np.float32)
        small = np.einsum("nd,nd->n", values, values) <= _MAX_SQUARE
    if not small.all():
        row = int(np.argmin(small))
        raise InputError(
            f"{int((~small).sum())} of {len(values)} {name} embeddings are too large to compare in float32",
            got=f"the first in row {row}, with a value of {np.abs(embeddings[row]).max():.3g}",
            expected=f"Euclidean lengths of {_MAX_SQUARE**0.5:.0e} at most",
            fix="check the model on that crop, or scale the embeddings down",
        )
    if metric == "euclidean":
        return values
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if len(values) and lengths.min() == 0:
        raise InputError(
            f"A {name} embedding has length zero, so it has no cosine",
            got=f"row {int(np.argmin(lengths))}",
            expected="non-zero embeddings",
            fix="use the Euclidean metric, or check the model on that crop",
        )
    return values / lengths


def prepared_distances(
    query: Float32[np.ndarray, "query dim"], gallery: Float32[np.ndarray, "gallery gallery_dim"], metric: Metric
) -> Float32[np.ndarray, "query gallery"]:
    """Distances between embeddings that went through `prepare`; a block of rows at a time keeps memory bounded.

    Raises:
        InputError: the widths differ.
    """
    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            "Query and gallery embeddings differ in width",
            got=f"{query.shape[1]} and {gallery.shape[1]}",
            expected="embeddings of one model",
        )
    product = query @ gallery.T
    if metric == "cosine":
        np.subtract(1.0, product, out=product)
        return np.maximum(product, 0.0, out=product)
    squares = np.einsum("nd,nd->n", query, query)[:, None] + np.einsum("nd,nd->n", gallery, gallery)[None, :]
    np.multiply(product, -2.0, out=product)
    np.add(product, squares, out=product)
    return np.sqrt(np.maximum(product, 0.0, out=product), out=product)
