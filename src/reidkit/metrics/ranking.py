"""CMC, mAP and mINP under the field's protocol. Axes: `query` rows, `gallery` columns, `dim` embedding width.

The protocol (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): for each query, gallery crops
of the same identity seen by the same camera are junk, ranked nowhere. The others of the same identity are its matches,
and everybody else, distractors included, is wrong. A query without a match is invalid: counted, but not measured.

Only the order of distances matters. Where a wrong crop is exactly as far as a match, the wrong one ranks first: a model
that cannot tell them apart gains nothing from it, and the result does not depend on the order of the gallery.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from reidkit.errors import InputError
from reidkit.metrics.distance import Metric, prepare, prepared_distances
from reidkit.metrics.junk import Exclude, Labels, excluded_pairs, same_camera
from reidkit.types import UNKNOWN_IDENTITY, Progress, no_progress

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where each query's matches stand in its ranking of the gallery.

    Reading a measure raises InputError where no query is valid.

    Attributes:
        first_match: rank of the nearest match, from 1; 0 for an invalid query.
        average_precision: mean over its matches of the precision at their rank; NaN for an invalid query.
        inverse_negative_penalty: matches over the rank of the last one; NaN for an invalid query.
    """

    first_match: Int64[np.ndarray, " query"]
    average_precision: Float64[np.ndarray, " query"]
    inverse_negative_penalty: Float64[np.ndarray, " query"]

    @property
    def valid(self) -> Bool[np.ndarray, " query"]:
        """Queries that have a match."""
        return self.first_match > 0

    def require_valid(self) -> None:
        """Refuses a ranking in which nothing can be measured.

        Raises:
            InputError: no query is valid.
        """
        if not self.valid.any():
            raise InputError(
                "No query has a match in the gallery from another camera, so nothing can be measured",
                got=f"{len(self.valid)} queries",
                expected="at least one query with a match",
                fix="`reid data inspect` shows identities and cameras of each subset",
            )

    def cmc(self, rank: int) -> float:
        """Share of the valid queries whose nearest match is among the first `rank`, 0 to 1."""
        return self._mean(self.first_match <= rank)

    @property
    def mean_ap(self) -> float:
        """MAP over the valid queries, 0 to 1."""
        return self._mean(self.average_precision)

    @property
    def mean_inp(self) -> float:
        """MINP over the valid queries, 0 to 1 (Ye et al., "Deep Learning for Person Re-identification", TPAMI 2021)."""
        return self._mean(self.inverse_negative_penalty)

    def _mean(self, values: np.ndarray) -> float:
        self.require_valid()
        return float(values[self.valid].mean())


def rank_gallery(
    query: Float[np.ndarray, "query dim"],
    gallery: Float[np.ndarray, "gallery dim"],
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    metric: Metric = "cosine",
    exclude: Sequence[Exclude] = (),
    progress: Progress = no_progress,
) -> Ranking:
    """Ranks the gallery for every query and notes where the matches stand.

    Distances are made for a block of queries at a time (64 MB), and no row is sorted: a match's rank is one more than
    the number of wrong crops at its distance or nearer, plus the matches before it.

    Args:
        query: embeddings to ask with.
        gallery: embeddings to be found.
        query_labels: whom the queries show, and where.
        gallery_labels: likewise; DISTRACTOR is nobody who is asked for.
        metric: to compare by.
        exclude: pairs that are ranked nowhere, besides junk; for example `same_file`.
        progress: told the number of queries done.

    Raises:
        InputError: an empty query set or gallery, embeddings and labels that differ in number, queries without an
            identity, a gallery crop of UNKNOWN_IDENTITY, an exclusion of another size, or what `distance_matrix`
            refuses.
    """
    _check(query, query_labels, "query")
    _check(gallery, gallery_labels, "gallery")
    _check_identities(query_labels.pids < 0, "query", "an identity (pid 0 or above) for every query")
    _check_identities(gallery_labels.pids == UNKNOWN_IDENTITY, "gallery", "an identity, or DISTRACTOR, for every crop")
    exclude = (same_camera(query_labels, gallery_labels), *exclude)
    q, g = prepare(query, metric, "query"), prepare(gallery, metric, "gallery")
    first = np.zeros(len(q), dtype=np.int64)
    precision = np.full(len(q), np.nan)
    penalty = np.full(len(q), np.nan)
    block = max(1, _BLOCK_BYTES // (4 * len(g)))
    for start in range(0, len(q), block):
        rows = slice(start, min(start + block, len(q)))
        distances = prepared_distances(q[rows], g, metric)
        left_out = excluded_pairs(exclude, rows, distances.shape)
        for i, row, out in zip(range(rows.start, rows.stop), distances, left_out, strict=True):
            same = gallery_labels.pids == query_labels.pids[i]
            ranks = match_ranks(row[same & ~out], row[~(same | out)])
            if len(ranks):
                first[i] = ranks[0]
                precision[i] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
                penalty[i] = len(ranks) / ranks[-1]
        progress(rows.stop, len(q))
    return Ranking(first, precision, penalty)


def has_match(query: Labels, gallery: Labels, *, exclude: Sequence[Exclude] = ()) -> Bool[np.ndarray, " query"]:
    """Queries that have a match in the gallery, told by the labels alone: those that `rank_gallery` would find valid.

    Raises:
        InputError: an exclusion is of another size.
    """
    found = np.zeros(len(query.pids), dtype=bool)
    exclude = (same_camera(query, gallery), *exclude)
    block = max(1, _BLOCK_BYTES // (4 * max(1, len(gallery.pids))))
    for start in range(0, len(found), block):
        rows = slice(start, min(start + block, len(found)))
        same = query.pids[rows, None] == gallery.pids
        found[rows] = (same & ~excluded_pairs(exclude, rows, same.shape)).any(axis=1)
    return found


def match_ranks(matches: Float[np.ndarray, " m"], wrong: Float[np.ndarray, " w"]) -> Int64[np.ndarray, " m"]:
    """Ranks of the matches, from 1 and ascending, among the wrong crops; ties put the wrong crop first.

    Args:
        matches: distances of the true matches.
        wrong: distances of everybody else.
    """
    matches = np.sort(matches)
    # Each wrong crop stands before every match that is not nearer than itself.
    before = np.searchsorted(matches, wrong, side="left")
    counts = np.bincount(before, minlength=len(matches) + 1)[: len(matches)]
    return np.cumsum(counts) + np.arange(1, len(matches) + 1)


def _check(embeddings: Float[np.ndarray, "n dim"], labels: Labels, name: str) -> None:
    if len(embeddings) == 0:
        raise InputError(f"The {name} is empty", got="0 embeddings", expected="at least one")
    if len(embeddings) != len(labels.pids):
        raise InputError(
            f"The {name} embeddings and labels differ in number",
            got=f"{len(embeddings)} and {len(labels.pids)}",
            expected="one label per embedding",
        )


def _check_identities(unknown: Bool[np.ndarray, " n"], name: str, expected: str) -> None:
    if unknown.any():
        raise InputError(
            f"{int(unknown.sum())} of {len(unknown)} {name} crops have no identity, so nothing can be right or wrong",
            got=f"the first in row {int(np.argmax(unknown))}",
            expected=expected,
            fix="leave them out, or search without measuring",
        )
