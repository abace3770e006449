"""CMC, mAP and mINP under the field's protocol, and the one walk over queries that every measure is taken on.

Axes: `query` rows, `gallery` columns, `m` rows of the gallery.

The protocol (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): for each query, gallery crops
of the same identity seen by the same camera are junk, ranked nowhere. The others of the same identity are its matches,
and everybody else, distractors included, is wrong. A query without a match is invalid: counted, but not measured.

Only the order of distances matters. Where a wrong crop is exactly as far as a match, the wrong one ranks first: a model
that cannot tell them apart gains nothing from it, and the result does not depend on the order of the gallery.

Average precision is the mean of the precision at the matches, as torchreid and fast-reid have it. The MATLAB code that
came with Market-1501 joins the points of the curve of precision over recall by straight lines (the trapezoid rule): at
each match it takes the mean of the precision there and just before it, 1 before the first crop. That is never more
than ours, and less wherever a wrong crop stands before a match: mAPs of the two kinds cannot be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from reidkit.errors import InputError
from reidkit.metrics.distance import MEMORY, Distances, distance_blocks
from reidkit.metrics.junk import (
    NO_ROWS,
    Exclusion,
    GalleryRows,
    Labels,
    check_exclusions,
    excluded_rows,
    rows_by_identity,
    same_camera,
)
from reidkit.types import UNKNOWN_IDENTITY, Progress, no_progress

_FEW = 8
"""Picking one row in so many out is faster than sorting all of them."""

_BYTES_PER_CROP = 64
"""That a scorer may take for each gallery crop while it looks at a query."""


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

    def require_valid(self, where: str = "in the gallery") -> None:
        """Refuses a ranking in which nothing can be measured.

        Args:
            where: a match is looked for, under the protocol; for the message.

        Raises:
            InputError: no query is valid.
        """
        if not self.valid.any():
            raise InputError(
                f"No query has a match {where}, so nothing can be measured",
                got=f"{len(self.valid)} queries",
                expected="at least one query with a match",
                fix="`reid data inspect` shows identities and cameras of each subset",
            )

    def cmc(self, rank: int) -> float:
        """Share of the valid queries whose nearest match is among the first `rank`, 0 to 1."""
        return self._mean(self.first_match <= rank)

    def cmc_curve(self, ranks: int) -> Float64[np.ndarray, " ranks"]:
        """`cmc` at the ranks 1 to `ranks`."""
        self.require_valid()
        first = self.first_match[self.valid]
        counts = np.bincount(np.minimum(first, ranks + 1), minlength=ranks + 2)
        return np.cumsum(counts)[1 : ranks + 1] / len(first)

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


@runtime_checkable
class Scorer(Protocol):
    """A measure that is taken while one walks over the queries; its result is its own affair."""

    @property
    def bytes_needed(self) -> int:
        """Memory that it takes from the first query to its result, at most; known before the first.

        What it takes for a moment to look at one query need not be in it, up to 64 bytes for each gallery crop.
        """
        ...

    def add(self, query: int, distances: Float32[np.ndarray, " gallery"], found: "Relevance") -> None:
        """Takes note of one query.

        Args:
            query: its row.
            distances: to every gallery crop; not to be changed, and not to be kept, since others take their place.
            found: which of them are matches, and which are ranked nowhere.
        """
        ...


@dataclass(frozen=True, slots=True)
class Relevance:
    """What the gallery is to one query: rows ascending, each once. Every other row is wrong.

    Attributes:
        matches: crops of its identity that are to be found.
        left_out: junk and excluded ones, whoever they show.
    """

    matches: GalleryRows
    left_out: GalleryRows


class Relevances:
    """What the gallery is to each query.

    Memory: about 8 bytes for each gallery crop, and 250 for each of its identities.

    Args:
        query: whom the queries show, and where.
        gallery: likewise; DISTRACTOR is nobody who is asked for.
        junk: whether crops of the query's identity by its own camera are left out.
        exclude: pairs that are ranked nowhere besides; for example `same_file`.

    Raises:
        InputError: queries without an identity, a gallery crop of UNKNOWN_IDENTITY, or an exclusion of another size.
    """

    def __init__(self, query: Labels, gallery: Labels, *, junk: bool = True, exclude: Sequence[Exclusion] = ()) -> None:
        _check_identities(query.pids < 0, "query", "an identity (pid 0 or above) for every query")
        _check_identities(gallery.pids == UNKNOWN_IDENTITY, "gallery", "an identity, or DISTRACTOR, for every crop")
        self.shape = (len(query.pids), len(gallery.pids))
        self._pids = query.pids
        self._identities = rows_by_identity(gallery)
        self._exclude = (*((same_camera(query, gallery, self._identities),) if junk else ()), *exclude)
        check_exclusions(self._exclude, self.shape)

    def of(self, query: int) -> Relevance:
        """What the gallery is to one query row.

        Raises:
            InputError: an exclusion gives no gallery rows, or not in ascending order.
        """
        same = self._identities.get(int(self._pids[query]), NO_ROWS)
        left_out = excluded_rows(self._exclude, query)
        if len(left_out) and len(same):
            same = same[left_out.take(left_out.searchsorted(same), mode="clip") != same]
        return Relevance(same, left_out)


def walk(
    distances: Distances,
    relevances: Relevances,
    scorers: Sequence[Scorer],
    *,
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> None:
    """Shows every query to every scorer, in order; the distances are made once, a block of queries at a time.

    The last bit of a distance of real-valued embeddings can depend on the size of the blocks (see
    `reidkit.metrics.distance`), and so on the limit of memory: of two crops that are equally far but for that bit,
    either may come first.

    Args:
        distances: of the queries to the gallery.
        relevances: of the same queries and gallery.
        scorers: that take note.
        memory: bytes that a block of distances and the scorers may take, beside embeddings and labels.
        progress: told the number of queries done.

    Raises:
        InputError: no queries or no gallery, distances and labels that differ in number, an exclusion that gives no
            rows, or a limit of memory that does not suffice for the scorers and one query.
    """
    for name, count, labels in zip(("query", "gallery"), distances.shape, relevances.shape, strict=True):
        if count == 0:
            raise InputError(f"The {name} is empty", got="0 embeddings", expected="at least one")
        if count != labels:
            raise InputError(
                f"The {name} embeddings and labels differ in number",
                got=f"{count} and {labels}",
                expected="one label per embedding",
            )
    besides = sum(scorer.bytes_needed for scorer in scorers) + _BYTES_PER_CROP * distances.shape[1]
    for rows, block in distance_blocks(distances, memory=memory, bytes_besides=besides):
        for query, row in enumerate(block, rows.start):
            found = relevances.of(query)
            for scorer in scorers:
                scorer.add(query, row, found)
        progress(rows.stop, distances.shape[0])


class RankScorer:
    """Notes where the matches of each query stand.

    Args:
        queries: number of them.
    """

    def __init__(self, queries: int) -> None:
        self._first = np.zeros(queries, dtype=np.int64)
        self._precision = np.full(queries, np.nan)
        self._penalty = np.full(queries, np.nan)

    @property
    def bytes_needed(self) -> int:
        """See `Scorer`: 24 bytes for each query."""
        return self._first.nbytes + self._precision.nbytes + self._penalty.nbytes

    def add(self, query: int, distances: Float32[np.ndarray, " gallery"], found: Relevance) -> None:
        """Takes note of one query; see `Scorer`."""
        if len(found.matches):
            ranks = match_ranks(distances, found)
            self._first[query] = ranks[0]
            self._precision[query] = (np.arange(1, len(ranks) + 1) / ranks).sum() / len(ranks)
            self._penalty[query] = len(ranks) / ranks[-1]

    def ranking(self) -> Ranking:
        """What was noted."""
        return Ranking(self._first, self._precision, self._penalty)


def rank_gallery(
    distances: Distances,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    junk: bool = True,
    exclude: Sequence[Exclusion] = (),
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Ranking:
    """Ranks the gallery for every query and notes where the matches stand.

    No row is sorted where counting suffices: a match's rank is one more than the number of wrong crops at its distance
    or nearer, plus the matches before it. What it says of real-valued embeddings can depend on the limit of memory in
    the last bit of a distance; see `walk`.

    Args:
        distances: of the queries to the gallery; see `reidkit.metrics.distance.compare`.
        query_labels: whom the queries show, and where.
        gallery_labels: likewise; DISTRACTOR is nobody who is asked for.
        junk: whether crops of the query's identity by its own camera are left out.
        exclude: pairs that are ranked nowhere, besides junk; for example `same_file`.
        memory: bytes that a block of distances and what is noted may take, beside embeddings and labels.
        progress: told the number of queries done.

    Raises:
        InputError: as `Relevances` and `walk`.
    """
    scorer = RankScorer(len(query_labels.pids))
    relevances = Relevances(query_labels, gallery_labels, junk=junk, exclude=exclude)
    walk(distances, relevances, [scorer], memory=memory, progress=progress)
    return scorer.ranking()


def has_match(relevances: Relevances) -> Bool[np.ndarray, " query"]:
    """Queries that have a match in the gallery, told by the labels alone: those that a ranking would find valid."""
    return np.array([len(relevances.of(query).matches) > 0 for query in range(relevances.shape[0])], dtype=bool)


def match_ranks(distances: Float32[np.ndarray, " gallery"], found: Relevance) -> Int64[np.ndarray, " m"]:
    """Ranks of the matches of one query, from 1 and ascending; ties put the wrong crop first."""
    matches = distances[found.matches]
    matches.sort()
    # Those behind the last match do not matter; picking out the others pays where they are few.
    candidates = (distances <= matches[-1]).nonzero()[0]
    few = _FEW * len(candidates) < len(distances)
    nearer = _as_near(distances.take(candidates) if few else distances.copy(), matches)
    nearer -= _as_near(matches, matches)
    if len(found.left_out):
        nearer -= _as_near(distances[found.left_out], matches)
    return nearer + np.arange(1, len(matches) + 1)


def _as_near(distances: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """How many of the distances, which this sorts in place, are no greater than each match."""
    distances.sort()
    return distances.searchsorted(matches, side="right")


def _check_identities(unknown: Bool[np.ndarray, " n"], name: str, expected: str) -> None:
    if unknown.any():
        raise InputError(
            f"{int(unknown.sum())} of {len(unknown)} {name} crops have no identity, so nothing can be right or wrong",
            got=f"the first in row {int(np.argmax(unknown))}",
            expected=expected,
            fix="leave them out, or search without measuring",
        )
