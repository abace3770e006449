"""Protocols that draw a gallery at random: CUHK03 single-shot and VehicleID. One ranking for each draw.

Both stand one crop of each identity to be found, together with every distractor, which shows nobody.

"per query" (Li et al., "DeepReID", CVPR 2014, as torchreid measures it): once junk is left out, one of the crops that
stay is drawn of each identity, anew for each query and draw. The CMC is of that gallery; average precision and inverse
negative penalty are of the whole gallery, with all matches, and so the same in every draw. torchreid draws one of all
distractors together; they would be one identity there.

"gallery" (Liu et al., "Deep Relative Distance Learning", CVPR 2016): in each draw one crop of each identity is the
gallery of all queries. A query whose identity is there by a crop that is left out, such as its own picture, is invalid
in that draw. There is one match, so average precision and inverse negative penalty are 1 over its rank.

Wrong crops as far as a match rank before it, as everywhere. What is drawn depends on the seed, the query and the order
of the gallery's rows, and on nothing else; the mean over many draws does not depend on that order.

Axes: `draws`, `identities` of the gallery, `query` rows, `gallery` columns, `distractors` in the gallery.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from reidkit.errors import InputError
from reidkit.metrics.junk import GalleryRows, Labels
from reidkit.metrics.protocol import Protocol
from reidkit.metrics.ranking import Ranking, RankScorer, Relevance
from reidkit.types import DISTRACTOR


class DrawnScorer:
    """Notes where the match of each query stands in every drawn gallery.

    Memory: 16 bytes for each query and draw, 24 for each identity and draw, and 8 for each gallery crop.

    Args:
        query: whom the queries show.
        gallery: likewise.
        protocol: one that draws.
        seed: of the random numbers.

    Raises:
        InputError: the protocol draws nothing, or the seed is negative.
    """

    def __init__(self, query: Labels, gallery: Labels, protocol: Protocol, *, seed: int = 0) -> None:
        if protocol.draw == "nothing" or protocol.draws < 1:
            raise InputError(
                f"The protocol {protocol.name} draws nothing",
                got=f"draw {protocol.draw!r}, {protocol.draws} times",
                expected="'per query' or 'gallery', once or more",
                fix="measure it with reidkit.metrics.ranking.RankScorer",
            )
        if seed < 0:
            raise InputError("The seed of random numbers must be 0 or above", got=seed)
        self._crops = _crops_by_identity(gallery)
        self._pids = query.pids
        self._draws, self._seed = protocol.draws, seed
        self._first = np.zeros((protocol.draws, len(query.pids)), dtype=np.int64)
        self._whole = RankScorer(len(query.pids))  # of the gallery, for "per query"
        everywhere = protocol.draw == "gallery"
        self._gallery = self._crops.draw(np.random.default_rng(seed), protocol.draws) if everywhere else None

    @property
    def bytes_needed(self) -> int:
        """See `reidkit.metrics.ranking.Scorer`."""
        drawing = 24 * self._draws * len(self._crops.pids)
        return 2 * self._first.nbytes + self._whole.bytes_needed + self._crops.rows.nbytes + drawing

    @property
    def gallery(self) -> int:
        """Crops that stand to be found in one draw: one of each identity, and every distractor."""
        return len(self._crops.pids) + len(self._crops.distractors)

    def add(self, query: int, distances: Float32[np.ndarray, " gallery"], found: Relevance) -> None:
        """Takes note of one query; see `reidkit.metrics.ranking.Scorer`."""
        if not len(found.matches):
            return
        crops, drawn = self._crops, self._gallery
        if drawn is None:
            self._whole.add(query, distances, found)
            crops = crops.without(found.left_out, len(distances))
            drawn = crops.draw(np.random.default_rng([self._seed, query]), self._draws)
        if len(found.left_out):
            distances = distances.copy()
            distances[found.left_out] = np.inf  # behind every match
        own = drawn[:, np.searchsorted(crops.pids, self._pids[query])]
        self._first[:, query] = _drawn_ranks(distances, drawn, own, crops.distractors)

    def rankings(self) -> tuple[Ranking, ...]:
        """What was noted, draw by draw."""
        if self._gallery is None:
            whole = self._whole.ranking()
            shares = [(whole.average_precision, whole.inverse_negative_penalty)] * self._draws
        else:
            inverse = np.divide(1, self._first, out=np.full(self._first.shape, np.nan), where=self._first > 0)
            shares = [(share, share) for share in inverse]
        return tuple(Ranking(first, *share) for first, share in zip(self._first, shares, strict=True))


@dataclass(frozen=True, slots=True)
class _CropsByIdentity:
    """Gallery rows, those of one identity together.

    Attributes:
        pids: ascending; distractors have none.
        counts: crops of each, at least 1.
        rows: identity by identity.
        distractors: gallery rows.
    """

    pids: Int64[np.ndarray, " identities"]
    counts: Int64[np.ndarray, " identities"]
    rows: GalleryRows
    distractors: Int64[np.ndarray, " distractors"]

    def draw(self, rng: np.random.Generator, draws: int) -> Int64[np.ndarray, "draws identities"]:
        """Gallery rows: one crop of each identity, each equally likely."""
        starts = np.cumsum(self.counts) - self.counts
        picked = (rng.random((draws, len(self.counts))) * self.counts).astype(np.int64)
        return self.rows[starts + picked]

    def without(self, left_out: GalleryRows, gallery: int) -> "_CropsByIdentity":
        """The crops that may be drawn when some are left out; an identity without any is gone."""
        if not len(left_out):
            return self
        stays = np.ones(gallery, dtype=bool)
        stays[left_out] = False
        kept = stays[self.rows]
        counts = np.add.reduceat(kept, np.cumsum(self.counts) - self.counts, dtype=np.int64)
        return _CropsByIdentity(self.pids[counts > 0], counts[counts > 0], self.rows[kept], self.distractors)


def _crops_by_identity(gallery: Labels) -> _CropsByIdentity:
    order = np.argsort(gallery.pids, kind="stable")
    nobody = gallery.pids[order] == DISTRACTOR
    rows = order[~nobody]
    pids, counts = np.unique(gallery.pids[rows], return_counts=True)
    return _CropsByIdentity(pids, counts, rows, order[nobody])


def _drawn_ranks(
    distances: Float32[np.ndarray, " gallery"],
    drawn: Int64[np.ndarray, "draws identities"],
    own: Int64[np.ndarray, " draws"],
    distractors: Int64[np.ndarray, " distractors"],
) -> Int64[np.ndarray, " draws"]:
    """Ranks of the query's own crop in each draw, 0 where it is infinitely far; ties put the wrong crop first."""
    match = distances[own]
    ranks = (distances.take(drawn) <= match[:, None]).sum(axis=1)  # its own crop is one of them
    ranks += np.sort(distances.take(distractors)).searchsorted(match, side="right")
    ranks[np.isinf(match)] = 0
    return ranks
