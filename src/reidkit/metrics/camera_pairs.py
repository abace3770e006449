"""How well crops of one camera find those of another: mAP from camera to camera.

A query of camera a is ranked among the gallery crops of camera b alone, for every b. Matches, wrong crops, junk and
ties are those of the ranking (see `reidkit.metrics.ranking`), and a distractor counts in the camera that saw it.
Source: the "confusion between cameras" of Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015.

Axes: `rows` cameras of queries, `columns` cameras of the gallery; each ascending.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from reidkit.errors import InputError
from reidkit.metrics.junk import NO_ROWS, GalleryRows, Labels
from reidkit.metrics.ranking import Relevance, match_ranks
from reidkit.types import UNKNOWN_CAMERA


@dataclass(frozen=True, slots=True)
class CameraPairs:
    """MAP from each camera to each camera.

    Attributes:
        query_cameras: camids that ask, ascending.
        gallery_cameras: camids that are asked, ascending.
        mean_ap: mAP over the valid queries, 0 to 1; NaN where there is none.
        queries: number of valid queries: those with a match in that camera.
    """

    query_cameras: Int64[np.ndarray, " rows"]
    gallery_cameras: Int64[np.ndarray, " columns"]
    mean_ap: Float64[np.ndarray, "rows columns"]
    queries: Int64[np.ndarray, "rows columns"]

    def as_list(self, names: Mapping[int, str]) -> list[dict[str, Any]]:
        """Plain values, pair by pair; pairs without a valid query are left out.

        Args:
            names: how the data set itself writes a camera. One that is not in it is written as its number.
        """
        asking, asked = (
            [names.get(camid, str(camid)) for camid in cameras.tolist()]
            for cameras in (self.query_cameras, self.gallery_cameras)
        )
        return [
            {
                "query_camera": asking[row],
                "gallery_camera": asked[column],
                "mAP": float(self.mean_ap[row, column]),
                "queries": int(self.queries[row, column]),
            }
            for row, column in np.argwhere(self.queries > 0).tolist()
        ]


class CameraPairScorer:
    """Ranks each query among the crops of each camera that has a match for it.

    Memory: 24 bytes for each gallery crop, and 8 for each query.

    Args:
        query: where the queries were seen.
        gallery: likewise.

    Raises:
        InputError: the camera of a crop is unknown.
    """

    def __init__(self, query: Labels, gallery: Labels) -> None:
        for name, camids in (("query", query.camids), ("gallery", gallery.camids)):
            _check_known(camids == UNKNOWN_CAMERA, name)
        self._query_cameras, self._row = np.unique(query.camids, return_inverse=True)
        self._gallery_cameras, self._column = np.unique(gallery.camids, return_inverse=True)
        order = np.argsort(self._column, kind="stable")
        counts = np.bincount(self._column, minlength=len(self._gallery_cameras))
        starts = np.cumsum(counts) - counts
        self._crops = np.split(order, starts[1:])
        self._place = np.empty_like(order)  # of a gallery row among the crops of its camera
        self._place[order] = np.arange(len(order)) - np.repeat(starts, counts)
        shape = len(self._query_cameras), len(self._gallery_cameras)
        self._sums = np.zeros(shape)
        self._counts = np.zeros(shape, dtype=np.int64)

    @property
    def bytes_needed(self) -> int:
        """See `reidkit.metrics.ranking.Scorer`; the result is of the size of the sums."""
        return self._row.nbytes + self._column.nbytes + 2 * self._place.nbytes + 4 * self._sums.nbytes

    def add(self, query: int, distances: Float32[np.ndarray, " gallery"], found: Relevance) -> None:
        """Takes note of one query; see `reidkit.metrics.ranking.Scorer`."""
        matches, left_out = self._by_camera(found.matches), self._by_camera(found.left_out)
        row = self._row[query]
        for column, places in matches.items():
            there = Relevance(places, left_out.get(column, NO_ROWS))
            ranks = match_ranks(distances[self._crops[column]], there)
            self._sums[row, column] += (np.arange(1, len(ranks) + 1) / ranks).sum() / len(ranks)
            self._counts[row, column] += 1

    def camera_pairs(self) -> CameraPairs:
        """What was noted."""
        missing = np.full(self._sums.shape, np.nan)
        mean_ap = np.divide(self._sums, self._counts, out=missing, where=self._counts > 0)
        return CameraPairs(self._query_cameras, self._gallery_cameras, mean_ap, self._counts.copy())

    def _by_camera(self, rows: GalleryRows) -> dict[int, GalleryRows]:
        """Of gallery rows, the places among the crops of their camera, by its column; ascending."""
        columns, places = self._column[rows], self._place[rows]
        return {column: places[columns == column] for column in set(columns.tolist())}


def _check_known(unknown: np.ndarray, name: str) -> None:
    if unknown.any():
        raise InputError(
            f"{int(unknown.sum())} of {len(unknown)} {name} crops have no known camera, so none can be told apart",
            got=f"the first in row {int(np.argmax(unknown))}",
            expected="a camid of 0 or above for every crop",
            fix="measure without pairs of cameras",
        )
