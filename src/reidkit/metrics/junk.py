"""Whom an embedding shows, and which pairs of a query and a gallery crop are not ranked.

Axes: `query` rows, `gallery` columns, `block` of query rows. The room of the data sets does not know this one:
`reidkit.data.inspection` applies the same rule to single crops.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from reidkit.errors import InputError
from reidkit.types import UNKNOWN_CAMERA, Crop

Exclude = Callable[[slice], Bool[np.ndarray, "block gallery"]]
"""Given a block of query rows, says which gallery columns must not be found for each of them."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Identity and camera of each row of a set of embeddings; the values are those of `Crop`."""

    pids: Int[np.ndarray, " n"]
    camids: Int[np.ndarray, " m"]  # m is n: checked below, with a message

    def __post_init__(self) -> None:
        if self.pids.shape != self.camids.shape or self.pids.ndim != 1:
            raise InputError(
                "Identities and cameras differ in number",
                got=f"{self.pids.shape} and {self.camids.shape}",
                expected="one each per crop",
            )


def labels_of(crops: Sequence[Crop]) -> Labels:
    """Identities and cameras of crops, as arrays."""
    pids = np.array([crop.pid for crop in crops], dtype=np.int64)
    return Labels(pids, np.array([crop.camid for crop in crops], dtype=np.int64))


def same_camera(query: Labels, gallery: Labels) -> Exclude:
    """Excludes junk under the Market-1501 protocol: the same identity, seen by the same camera, both of them known.

    Args:
        query: of the query embeddings, in their order.
        gallery: likewise.
    """

    def excluded(rows: slice) -> np.ndarray:
        pids, camids = query.pids[rows, None], query.camids[rows, None]
        known = (pids >= 0) & (camids != UNKNOWN_CAMERA)
        return known & (pids == gallery.pids) & (camids == gallery.camids)

    return excluded


def same_file(query: Sequence[Path | str], gallery: Sequence[Path | str]) -> Exclude:
    """Excludes the query's own file, wherever the gallery holds it: its distance of zero teaches nobody anything.

    Links are followed, so the same file is known under any of its names.

    Args:
        query: the files that the query embeddings were made of, in their order.
        gallery: likewise.
    """
    numbers: dict[str, int] = {}
    asked, searched = (
        np.array([numbers.setdefault(os.path.realpath(path), len(numbers)) for path in paths], dtype=np.int64)
        for paths in (query, gallery)
    )
    return lambda rows: asked[rows, None] == searched


def excluded_pairs(
    exclude: Sequence[Exclude], rows: slice, shape: tuple[int, int]
) -> Bool[np.ndarray, "block gallery"]:
    """Pairs that any of the exclusions leaves out, for a block of query rows.

    Args:
        exclude: of the same queries and gallery as the embeddings.
        rows: the block.
        shape: number of queries in the block, and of gallery crops.

    Raises:
        InputError: an exclusion is of another size.
    """
    found = np.zeros(shape, dtype=bool)
    for excluded in exclude:
        pairs = excluded(rows)
        if pairs.shape != shape:
            raise InputError(
                "An exclusion does not fit the embeddings",
                got=f"{pairs.shape} for queries {rows.start} to {rows.stop - 1}",
                expected=f"{shape} (queries, gallery)",
                fix="make it from the same queries and gallery as the embeddings, in their order",
            )
        found |= pairs
    return found
