"""What a search found, as people look at it: labelled pictures, what is right, and which queries are worth a look."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from reidkit.errors import InputError
from reidkit.index import NO_NEIGHBOR, Neighbors
from reidkit.metrics.ranking import Ranking
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, Crop

Verdict = Literal["right", "wrong", "unknown"]

_NO_NAMES: Mapping[int, str] = MappingProxyType({})

UNKNOWN = "not known"
"""What stands where nothing is known: nothing is invented."""


class Picture(NamedTuple):
    """A picture file and, where known, whom it shows and which camera took it."""

    path: Path
    pid: int | str | None = None
    camid: int | str | None = None


class QueryScore(NamedTuple):
    """How one query fared over the whole gallery.

    Attributes:
        average_precision: a fraction of 1.
        first_match: rank of the first right picture; 1 is the best.
    """

    average_precision: float
    first_match: int


class Hit(NamedTuple):
    """One picture that was found.

    Attributes:
        rank: 1 is the nearest.
        row: of the gallery.
        distance: to the query.
        verdict: whether it shows whom the query shows.
    """

    rank: int
    row: int
    distance: float
    verdict: Verdict


class Chapter(NamedTuple):
    """Queries that belong together: rows of the query set, in the order they are to be shown."""

    name: Literal["all", "hardest", "between", "easiest", "unmatched"]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SearchResults:
    """A finished search, ready to be shown.

    Attributes:
        queries: what was asked.
        gallery: what was searched.
        neighbors: what was found.
        scores: by query, None for a query without a right answer in the gallery; or None where nothing was scored.

    Raises:
        InputError: there are no queries, or the parts do not fit each other.
    """

    queries: Sequence[Picture]
    gallery: Sequence[Picture]
    neighbors: Neighbors
    scores: Sequence[QueryScore | None] | None = None

    def __post_init__(self) -> None:
        indices = self.neighbors.indices
        if not self.queries:
            raise InputError("There are no queries to show", expected="at least one")
        for name, count in (
            ("neighbours", len(indices)),
            ("scores", len(self.queries) if self.scores is None else len(self.scores)),
        ):
            if count != len(self.queries):
                raise InputError(f"The {name} do not belong to the queries", got=count, expected=len(self.queries))
        if indices.size and not NO_NEIGHBOR <= int(indices.min()) <= int(indices.max()) < len(self.gallery):
            raise InputError(
                "The neighbours do not belong to the gallery",
                got=f"gallery rows {int(indices.min())} to {int(indices.max())}",
                expected=f"0 to {len(self.gallery) - 1}",
                fix="give the gallery that was searched, in its order",
            )
        for query, score in enumerate(self.scores or ()):
            if score is not None and not 0 <= score.average_precision <= 1:
                raise InputError(
                    f"The average precision of query {query} cannot be shown",
                    got=score.average_precision,
                    expected="a fraction of 1, or None for a query without a right answer in the gallery",
                )

    @property
    def top(self) -> int:
        """The number of ranks that were asked for."""
        return self.neighbors.indices.shape[1]

    def hits(self, query: int) -> list[Hit]:
        """What was found for one query, nearest first."""
        asked = self.queries[query]
        pairs = zip(self.neighbors.indices[query].tolist(), self.neighbors.distances[query].tolist(), strict=True)
        return [
            Hit(rank, row, distance, _verdict(asked, self.gallery[row]))
            for rank, (row, distance) in enumerate(pairs, start=1)
            if row != NO_NEIGHBOR
        ]


def pictures(
    crops: Sequence[Crop], *, pid_names: Mapping[int, str] = _NO_NAMES, camera_names: Mapping[int, str] = _NO_NAMES
) -> list[Picture]:
    """The crops of a split as labelled pictures, under the names that the data set itself uses where it has some."""
    return [
        Picture(
            crop.path,
            crop.pid if crop.pid == DISTRACTOR else pid_names.get(crop.pid, crop.pid),
            None if crop.camid == UNKNOWN_CAMERA else camera_names.get(crop.camid, crop.camid),
        )
        for crop in crops
    ]


def scores(ranking: Ranking) -> list[QueryScore | None]:
    """How each query of a ranking fared; None for one without a match."""
    pairs = zip(ranking.average_precision.tolist(), ranking.first_match.tolist(), strict=True)
    return [QueryScore(precision, first) if first else None for precision, first in pairs]


def chapters(results: SearchResults, limit: int) -> tuple[Chapter, ...]:
    """At most `limit` queries worth a look: all of them, or the hardest, the easiest and some in between.

    Hard is a low average precision; at equal precision or without scores, a first right picture far down or not among
    those found, then few right ones. The easiest come easiest first, all others hardest first. Without labels there is
    neither hard nor easy, and queries are taken evenly, in their own order.

    Raises:
        InputError: `limit` is below 1.
    """
    if limit < 1:
        raise InputError("The number of queries to show must be at least 1", got=limit)
    everyone = range(len(results.queries))
    found = [results.hits(query) for query in everyone]
    if results.scores is None and all(hit.verdict == "unknown" for hits in found for hit in hits):
        return (Chapter("all", _evenly(everyone, limit)),)
    # Without scores all are equal there, and what is visible decides.
    scores = results.scores or [QueryScore(0.0, 0)] * len(everyone)
    scored = {query: score for query, score in enumerate(scores) if score is not None}
    unmatched = [query for query in everyone if query not in scored]
    ranked = sorted(scored, key=lambda query: (scored[query].average_precision, *_visible_quality(found[query])))
    if len(everyone) <= limit:
        parts = [Chapter("all", tuple(ranked)), Chapter("unmatched", tuple(unmatched))]
    else:
        few = min(len(unmatched), max(limit // 6, limit - len(ranked)))
        parts = [*_three_parts(ranked, limit - few), Chapter("unmatched", _evenly(unmatched, few))]
    return tuple(part for part in parts if part.rows)


def _three_parts(ranked: Sequence[int], limit: int) -> list[Chapter]:
    if len(ranked) <= limit:
        return [Chapter("all", tuple(ranked))]
    third = limit // 3
    hard, easy = limit - 2 * third, third
    rest = ranked[hard : len(ranked) - easy]
    return [
        Chapter("hardest", tuple(ranked[:hard])),
        Chapter("between", _evenly(rest, third)),
        Chapter("easiest", tuple(reversed(ranked[len(ranked) - easy :]))),
    ]


def _evenly(rows: Sequence[int], count: int) -> tuple[int, ...]:
    if len(rows) <= count:
        return tuple(rows)
    # The middle of each of `count` equal stretches.
    return tuple(rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count))


def _visible_quality(hits: Sequence[Hit]) -> tuple[float, int]:
    right = [hit.rank for hit in hits if hit.verdict == "right"]
    return (-float(min(right, default=math.inf)), len(right))


def _verdict(asked: Picture, found: Picture) -> Verdict:
    if asked.pid is None or found.pid is None:
        return "unknown"
    return "right" if asked.pid == found.pid != DISTRACTOR else "wrong"


def printable(text: object) -> str:
    """Text that can be shown and written anywhere: what is no visible character becomes a replacement mark.

    File names can hold line breaks, marks that turn the writing direction, and bytes that are no text at all.
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))


def labels(picture: Picture) -> list[str]:
    """What is known of a picture, in words: `["id 12", "camera 3"]`."""
    who = [] if picture.pid is None else ["distractor" if picture.pid == DISTRACTOR else f"id {picture.pid}"]
    where = [] if picture.camid is None else [f"camera {picture.camid}"]
    return [printable(part) for part in who + where]


def distance_text(distance: float) -> str:
    """A distance as it is written under a picture."""
    return f"{distance:.3f}" if distance < 10 else f"{distance:.1f}"
