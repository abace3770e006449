"""Verification: is this pair one identity or two? The ROC curve over all pairs of a query and a gallery crop.

Axes: `query` rows, `gallery` columns, `m` matches.

Every pair that is not left out (junk, excluded) counts: a match is genuine, any other pair is wrong, distractors and
queries without a match included. A pair is accepted when it is nearer than a threshold. The false positive rate (FPR)
is the share of the wrong pairs that are accepted, the true positive rate (TPR) that of the matches.

At an FPR of f, so many of the W wrong pairs may be accepted as make a share of f at most: k of them. A match is then
accepted when it is strictly nearer than the wrong pair that comes k + 1st, or when no wrong pair is left. So ties count
against the model, and only the order of distances matters. An FPR below 1 / W allows no false acceptance at all.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from reidkit.errors import InputError
from reidkit.metrics.distance import MEMORY
from reidkit.metrics.junk import Labels
from reidkit.metrics.ranking import Relevance

_KEPT = 1 << 20
"""Wrong pairs that are kept at least: data sets with fewer of them have their whole curve."""

_POINTS_PER_DECADE = 40


@dataclass(frozen=True, slots=True)
class Roc:
    """How many matches can be accepted at what price in wrong pairs.

    Attributes:
        matches: number of pairs of one identity, at least 1.
        wrong: number of pairs of two identities.
        prices: of each match, ascending: the wrong pairs that are as near or nearer, and so are accepted with it.
            Above `most_accepted`, lower bounds.
        most_accepted: wrong pairs up to which the curve was kept; `wrong` where it is whole.
    """

    matches: int
    wrong: int
    prices: Int64[np.ndarray, " m"]
    most_accepted: int

    @property
    def max_fpr(self) -> float:
        """The largest FPR up to which the curve was kept; 1 where it is whole."""
        return self.most_accepted / self.wrong if self.most_accepted < self.wrong else 1.0

    def tpr(self, rate: float) -> float:
        """The TPR at a false positive rate, exactly; where there is no wrong pair at all it is 1.

        Args:
            rate: FPR, 0 to 1. Where it is below 1 / `wrong`, no false acceptance is allowed.

        Raises:
            InputError: the rate is none, or above what was kept.
        """
        if not 0 <= rate <= 1:
            raise InputError("A false positive rate is a share of all wrong pairs", got=rate, expected="0 to 1")
        allowed = _allowed(rate, self.wrong)
        if allowed > self.most_accepted:
            raise InputError(
                f"The ROC curve was not kept up to a false positive rate of {rate:g}",
                got=f"{rate:g}: {allowed} of {self.wrong} wrong pairs",
                expected=f"{self.max_fpr:.6g} at most: {self.most_accepted} of them",
                fix="keep more of it: RocScorer(query, gallery, max_fpr=...)",
            )
        return self._accepted(np.array([allowed])).item() / self.matches

    def curve(self) -> tuple[Float64[np.ndarray, " points"], Float64[np.ndarray, " points"]]:
        """FPR and TPR of a few hundred points, from the strictest threshold on.

        Both ascend. The first point allows no false acceptance, so its FPR is 0; the others lie evenly on a logarithmic
        axis of FPR, from one false acceptance to what was kept.
        """
        steps = math.ceil(_POINTS_PER_DECADE * math.log10(max(self.most_accepted, 1))) + 1
        spread = np.geomspace(1, max(self.most_accepted, 1), steps)
        allowed = np.unique(np.concatenate([[0], np.rint(spread).astype(np.int64)]))
        allowed = allowed[allowed <= self.most_accepted]
        return allowed / max(self.wrong, 1), self._accepted(allowed) / self.matches

    def _accepted(self, allowed: Int64[np.ndarray, " points"]) -> Int64[np.ndarray, " points"]:
        """Matches that are accepted with so many wrong pairs at most."""
        return np.searchsorted(self.prices, allowed, side="right")


class RocScorer:
    """Notes the distances of all matches, and those of the nearest wrong pairs.

    Memory: 12 bytes for each pair of one identity, 8 of them in the result, and 8 for each wrong pair that is kept.
    Those are `max_fpr` of all pairs, a million at least: 8 MiB for Market-1501, 73 MiB for MSMT17.

    Args:
        query: whom the queries show.
        gallery: likewise.
        max_fpr: up to which the curve is kept, 0 to 1. With a million wrong pairs or fewer all of it is.
        memory: bytes that this may take.

    Raises:
        InputError: `max_fpr` is no rate, or so high that `memory` does not suffice.
    """

    def __init__(self, query: Labels, gallery: Labels, *, max_fpr: float = 1e-2, memory: int = MEMORY) -> None:
        self._keep, room = _room((len(query.pids), len(gallery.pids)), max_fpr)
        crops = Counter(gallery.pids.tolist())
        matches = sum(crops[pid] for pid in query.pids.tolist())  # with junk, so a little more
        self._bytes = 4 * room + 12 * matches
        if self._bytes > memory:
            raise InputError(
                f"The ROC curve up to a false positive rate of {rate_text(max_fpr)} does not fit the limit of memory",
                got=f"{memory} bytes",
                expected=f"{self._bytes} bytes at least",
                fix="ask for lower rates, or raise the limit (--memory)",
            )
        self._nearest = np.empty(room, dtype=np.float32)
        self._filled = 0
        self._bound = np.float32(np.inf)  # no wrong pair from here on is among the nearest
        self._matches = np.empty(matches, dtype=np.float32)
        self._matched = 0
        self._wrong = 0

    @property
    def bytes_needed(self) -> int:
        """See `reidkit.metrics.ranking.Scorer`."""
        return self._bytes

    def add(self, query: int, distances: Float32[np.ndarray, " gallery"], found: Relevance) -> None:
        """Takes note of one query; see `Scorer`."""
        matched = self._matched + len(found.matches)
        self._matches[self._matched : matched] = distances[found.matches]
        self._matched = matched
        self._wrong += len(distances) - len(found.matches) - len(found.left_out)
        near = distances < self._bound
        near[found.matches] = False
        near[found.left_out] = False
        # Rows, then values: several times as fast as a mask where it is neither dense nor sparse.
        self._note(distances.take(near.nonzero()[0]))

    def roc(self) -> Roc:
        """What was noted.

        Raises:
            InputError: there was no match.
        """
        matches = self._matches[: self._matched]
        if not len(matches):
            raise InputError(
                "No query has a match in the gallery, so no pair can be verified",
                got=f"{self._wrong} pairs, all of them wrong",
                expected="at least one match",
                fix="`reid data inspect` shows identities and cameras of each subset",
            )
        self._shrink()
        nearest = self._nearest[: self._filled]
        nearest.sort()  # in place: no second copy
        matches.sort()
        prices = np.searchsorted(nearest, matches, side="right").astype(np.int64, copy=False)
        whole = self._filled == self._wrong
        return Roc(len(matches), self._wrong, prices, self._filled if whole else self._filled - 1)

    def _note(self, values: Float32[np.ndarray, " few"]) -> None:
        if self._filled + len(values) > len(self._nearest):
            self._shrink()
            values = values[values < self._bound]
        self._nearest[self._filled : self._filled + len(values)] = values
        self._filled += len(values)

    def _shrink(self) -> None:
        """Forgets all but the nearest; which of equal ones stay makes no difference."""
        if self._filled > self._keep:
            self._nearest[: self._filled].partition(self._keep - 1)
            self._filled = self._keep
            self._bound = self._nearest[self._keep - 1]


def rate_text(rate: float) -> str:
    """A false positive rate as the field writes it: "1e-4", "2.5e-3"; from 0.1 on as a plain number."""
    rate = float(f"{rate:.6g}")  # a product or a power of ten is seldom quite what it should be
    return f"{rate:g}" if rate >= 0.1 or rate == 0 else np.format_float_scientific(rate, trim="-", exp_digits=1)


def _room(shape: tuple[int, int], max_fpr: float) -> tuple[int, int]:
    """Wrong pairs to keep, and those that there has to be room for on the way."""
    if not 0 <= max_fpr <= 1:
        raise InputError("A false positive rate is a share of all wrong pairs", got=max_fpr, expected="0 to 1")
    pairs = shape[0] * shape[1]
    # One more than may be accepted: the first that may not is the threshold.
    keep = min(pairs, max(_allowed(max_fpr, pairs) + 1, _KEPT))
    return keep, min(pairs, keep + max(keep, shape[1]))


def _allowed(rate: float, pairs: int) -> int:
    """The most pairs whose share is `rate` or less: of 100, 29 at 0.29, though 0.29 * 100 is a little below 29."""
    count = min(int(rate * pairs), pairs)
    while count < pairs and (count + 1) / pairs <= rate:
        count += 1
    while count and count / pairs > rate:
        count -= 1
    return count
