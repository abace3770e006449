"""k-reciprocal re-ranking, in memory that goes with the crops and never with their pairs.

Source: Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, as in the
code that its authors published. Axes: `crop` rows are queries and gallery together, queries first; `near` ranks.

Each crop is described by the crops that it shares neighbours with: some tens out of many thousands. What the paper
holds as dense matrices is sparse here; only distances are dense, and they are made a block of crops at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64, Shaped

from reidkit.errors import ConfigError, InputError
from reidkit.index.exact import BYTES_PER_PAIR, smallest
from reidkit.metrics.distance import MEMORY, Block, Distances, EmbeddingDistances, distance_blocks, put_distances
from reidkit.metrics.prepared import Metric, Prepared, first_of_equals, prepare_both
from reidkit.types import Progress, no_progress

_BYTES_PER_ENTRY = 100  # what one neighbour of a neighbour, or one entry to average, takes while it is worked on
_BYTES_PER_SHARED = 40  # what one entry of a query takes that it shares with a gallery crop
_MAX_ENTRIES = 1 << 19  # that are worked on at a time: more is no faster
_CACHED = 1 << 17  # values of embeddings that stay in a core's own cache while they are compared
_ROUNDING = 2e-6  # of a squared length: what a squared distance is off by; see `compare`
_NEAREST = -1  # distance of a crop to itself while crops are ranked: no rounding puts another before it


@dataclass(frozen=True, slots=True)
class KReciprocal:
    """How to re-rank; the defaults are the paper's.

    Attributes:
        k1: neighbours that have to be mutual; 1 or above.
        k2: nearest crops, itself among them, whose encodings become one crop's by their mean; 1 to k1 + 1. 1 leaves
            the encodings as they are.
        weight: of the original distance in the final one, 0 to 1; the paper's lambda.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1:
            raise ConfigError("k1 of re-ranking must be at least 1", got=self.k1)
        if not 1 <= self.k2 <= self.k1 + 1:
            raise ConfigError(
                "k2 of re-ranking is out of range",
                got=self.k2,
                expected=f"1 to {self.k1 + 1}: a crop itself and its k1 nearest",
            )
        if not 0 <= self.weight <= 1:
            raise ConfigError("The weight of re-ranking is out of range", got=self.weight, expected="0 to 1")


def rerank(
    query: Shaped[np.ndarray, "..."],
    gallery: Shaped[np.ndarray, "..."],
    how: KReciprocal = KReciprocal(),
    *,
    metric: Metric = "cosine",
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Distances:
    """Re-ranks the gallery of every query by the neighbours that they share, labels unseen.

    With d the squared Euclidean distance over the largest that a crop has to any other, so 0 to 1, and N(p, k) the crop
    p, always the first, and its k nearest others among queries and gallery:

    - R(p, k) are the crops of N(p, k) that have p in theirs; R*(p) is R(p, k1), joined by every R(c, k1 / 2) of a c in
      it that overlaps with it by more than two thirds (half of an odd k1 is rounded to even).
    - The encoding of p is exp(-d) on R*(p), divided by its sum; then the mean of those of its k2 nearest, p among them.
    - The final distance is (1 - weight) * Jaccard distance of the encodings + weight * d, 0 to 1.

    Equally near crops are ranked by row, queries first. Crops of the same numbers, among queries and gallery,
    are at distance 0 and equally far from any other. The published code leaves ties to an unstable sort, so that a crop
    may miss among its own neighbours, and divides by zero where all embeddings are equal; here d is 0 where the largest
    distance is within rounding. What is equally near is told in float32; see `compare`.

    It takes one comparison of all crops with each other, and keeps 14 bytes for each crop and neighbour, and 32 for
    each value of an encoding, beside what `memory` bounds. Encodings have some tens of values with the defaults.

    Args:
        query: (n, dim), float16 or float32; not copied.
        gallery: likewise, of the same width.
        how: parameters.
        metric: `cosine` scales the embeddings to length 1 first.
        memory: bytes that a step may take, beside the embeddings, what it keeps, and 4 MiB.
        progress: over twice the crops: while they are ranked, and while they are encoded.

    Returns:
        The final distances, d in them off by what `compare` is off by, over the largest. One query's share of them
        takes 40 bytes for each value of an encoding that it shares with the gallery.

    Raises:
        InputError: k1 leaves no such neighbours, `memory` does not suffice for one crop and its k1 * k1 / 2 neighbours
            of neighbours, or the embeddings cannot be compared (see `reidkit.metrics.distance.compare`).
    """
    crops = _Crops(*prepare_both(query, gallery, metric))
    count = crops.shape[0]
    if how.k1 > count - 1:
        raise InputError(
            "k1 of re-ranking is larger than the gallery",
            got=f"k1 {how.k1} with {len(query)} queries and {len(gallery)} gallery crops",
            expected=f"{max(count - 1, 0)} at most: the neighbours that a crop has among queries and gallery",
            fix="lower k1 (20 is usual; the number of crops of an identity is a good guess), or do not re-rank",
        )
    half = round(how.k1 / 2) + 1
    together = _rows_at_a_time((how.k1 + 1) * half, memory)
    ranked, farthest = _initial_ranking(crops, how.k1 + 1, memory, lambda done, _: progress(done, 2 * count))
    nearness = _nearness(crops, farthest)
    encodings = _encode(crops, ranked, nearness, half, together, progress)
    if how.k2 > 1:
        encodings = _averaged(encodings, ranked[:, : how.k2], memory)
    return _RerankedDistances(crops, encodings, nearness, how.weight)


class _RerankedDistances:
    """`Distances` of queries to gallery after re-ranking.

    Args:
        crops: queries and gallery.
        encodings: of all crops.
        nearness: for each crop, 1 over its largest squared distance.
        weight: of the original distance.
    """

    def __init__(
        self, crops: "_Crops", encodings: "_Sparse", nearness: Float32[np.ndarray, " crop"], weight: float
    ) -> None:
        self._between = EmbeddingDistances(crops.query, crops.gallery)
        queries, gallery = self._between.shape
        self._cosine = crops.query.scales is not None
        self._first, self._gallery_first = crops.first[:queries], crops.first[queries:]
        self._nearness, self._weight = nearness[:queries], weight
        self._queries = encodings.part(0, queries)
        self._found_by = encodings.part(queries, queries + gallery).by_column(queries + gallery)
        lengths = np.append(0, np.cumsum(np.diff(self._found_by.starts)[self._queries.columns]))
        self._most_entries = int(np.diff(lengths[self._queries.starts]).max(initial=0))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of queries, and of gallery embeddings."""
        return self._between.shape

    @property
    def bytes_per_query(self) -> int:
        """Of `block`: what the original distances take."""
        return self._between.bytes_per_query

    @property
    def bytes_fixed(self) -> int:
        """Of `block`: the entries that one query shares with the gallery, and their sums."""
        return self._between.bytes_fixed + _BYTES_PER_SHARED * self._most_entries + 40 * self.shape[1]

    def block(self, rows: slice, out: Block | None = None) -> Block:
        """Re-ranked distances of some queries, 0 to 1; see `Distances`."""
        distances = self._between.block(rows, out)
        for query, row in zip(range(rows.start, rows.stop), distances, strict=True):
            # The squared distance of unit vectors is twice 1 - cosine.
            np.multiply(row, 2 if self._cosine else row, out=row)
            np.multiply(row, self._weight * self._nearness[query], out=row)
            row[self._gallery_first == self._first[query]] = 0
            shared = self._shared(query)
            np.add(row, (1 - self._weight) * (1 - shared / (2 - shared)), out=row)
        return distances

    def _shared(self, query: int) -> np.ndarray:
        """Sums of the smaller values of the query's encoding and of each gallery crop's, 0 to 1."""
        own = slice(self._queries.starts[query], self._queries.starts[query + 1])
        lengths, places = self._found_by.places(self._queries.columns[own])
        smaller = np.minimum(np.repeat(self._queries.values[own], lengths), self._found_by.values[places])
        sums = np.bincount(self._found_by.columns[places], weights=smaller, minlength=self.shape[1])
        return np.minimum(sums, 1)


class _Crops:
    """`Distances` among queries and gallery together, queries first; nobody is copied.

    Attributes:
        query: the queries.
        gallery: the gallery.
        first: for each crop, the first that is equal to it, or itself.
    """

    def __init__(self, query: Prepared, gallery: Prepared) -> None:
        self.query, self.gallery = query, gallery
        self.first = first_of_equals(query, gallery)
        self._repeats = np.flatnonzero(self.first != np.arange(len(self.first)))
        self._originals = self.first[self._repeats]
        self._parts = ((0, query), (len(query.values), gallery))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of crops, twice."""
        return len(self.first), len(self.first)

    @property
    def bytes_per_query(self) -> int:
        """Of `block`: the distances and a row of the crops."""
        return 4 * (len(self.first) + 2 * self.query.values.shape[1])

    @property
    def bytes_fixed(self) -> int:
        """Of `block`: what conversion takes, and the distances of repeats in one row."""
        return max(self.query.bytes_converted, self.gallery.bytes_converted) + 4 * len(self._repeats)

    def block(self, rows: slice, out: Block | None = None) -> Block:
        """Distances of some crops, -1 to itself and its equals; see `Distances`."""
        distances = np.empty((rows.stop - rows.start, self.shape[0]), dtype=np.float32) if out is None else out
        for row, part in self._parts:
            first, last = max(rows.start, row), min(rows.stop, row + len(part.values))
            for column, other in self._parts if first < last else ():
                some = distances[first - rows.start : last - rows.start, column : column + len(other.values)]
                put_distances(part, slice(first - row, last - row), other, some)
        for crop, row in enumerate(distances, rows.start):
            row[self.first[crop]] = _NEAREST
            row[self._repeats] = row[self._originals]
        return distances

    def rows(self, which: np.ndarray) -> Float32[np.ndarray, "m dim"]:
        """Some embeddings, of length 1 under cosine."""
        found = np.empty((len(which), self.query.values.shape[1]), dtype=np.float32)
        queries = len(self.query.values)
        asked = which < queries
        found[asked] = self.query.rows(which[asked])
        found[~asked] = self.gallery.rows(which[~asked] - queries)
        return found


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A matrix that is mostly zeros: the columns and values of row r stand at `starts[r]` to `starts[r + 1]`."""

    starts: Int64[np.ndarray, " rows_and_one"]
    columns: Int32[np.ndarray, " entries"]
    values: Float32[np.ndarray, " entries"]

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many entries each of some rows has, and where they all stand, one row after the other."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        before = np.cumsum(lengths) - lengths
        return lengths, np.arange(lengths.sum()) + np.repeat(self.starts[rows] - before, lengths)

    def part(self, first: int, last: int) -> "_Sparse":
        """The rows from `first` to before `last`."""
        own = slice(self.starts[first], self.starts[last])
        return _Sparse(self.starts[first : last + 1] - self.starts[first], self.columns[own], self.values[own])

    def by_column(self, count: int) -> "_Sparse":
        """The same entries, column by column; there are `count` columns."""
        order = np.argsort(self.columns, kind="stable")
        rows = np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))
        starts = np.append(0, np.cumsum(np.bincount(self.columns, minlength=count)))
        return _Sparse(starts, rows[order], self.values[order])


def _initial_ranking(
    crops: _Crops, top: int, memory: int, progress: Progress
) -> tuple[Int32[np.ndarray, "crop near"], Float32[np.ndarray, " crop"]]:
    """The nearest crops of each crop, itself first, and its largest distance."""
    count = crops.shape[0]
    ranked = np.empty((count, top), dtype=np.int32)
    farthest = np.empty(count, dtype=np.float32)
    for rows, distances in distance_blocks(crops, memory=memory, bytes_besides=BYTES_PER_PAIR * count):
        for crop, row in enumerate(distances, rows.start):
            original = crops.first[crop]
            if original == crop:
                ranked[crop], farthest[crop] = smallest(row, top)[0], max(row.max(), 0)
            else:  # a row of another block is rounded otherwise
                near = ranked[original]
                ranked[crop, 0], ranked[crop, 1:] = crop, near[near != crop][: top - 1]
                farthest[crop] = farthest[original]
        progress(rows.stop, count)
    return ranked, farthest


def _nearness(crops: _Crops, farthest: Float32[np.ndarray, " crop"]) -> Float32[np.ndarray, " crop"]:
    """1 over the largest squared distance of each crop, 0 where that is nothing but rounding."""
    squared = farthest**2 if crops.query.scales is None else 2 * farthest
    bound = np.full_like(squared, _ROUNDING)
    if crops.query.scales is None:
        bound *= np.concatenate([crops.query.squares, crops.gallery.squares])
    far = squared > np.maximum(bound, np.finfo(np.float32).tiny)
    return np.divide(1, squared, out=np.zeros_like(squared), where=far)


def _encode(
    crops: _Crops, ranked: np.ndarray, nearness: np.ndarray, half: int, together: int, progress: Progress
) -> _Sparse:
    """The encoding of each crop: how near it is to those that it shares neighbours with; so many crops at a time."""
    count = len(ranked)
    mutual, mutual_half = _mutual(ranked, together), _mutual(ranked[:, :half], together)
    lengths, columns, values = [], [], []
    for rows in _chunks(count, together):
        of, members = _expanded(ranked, mutual, mutual_half, rows)
        own = of + rows.start
        weights = np.exp(-nearness[own] * _squared_distances(crops, own, members))
        sums = np.bincount(of, weights=weights, minlength=rows.stop - rows.start)
        lengths.append(np.bincount(of, minlength=rows.stop - rows.start))
        columns.append(members.astype(np.int32))
        values.append((weights / sums[of]).astype(np.float32))
        progress(count + rows.stop, 2 * count)
    starts = np.append(0, np.cumsum(np.concatenate(lengths)))
    return _Sparse(starts, np.concatenate(columns), np.concatenate(values))


def _mutual(ranked: np.ndarray, together: int) -> np.ndarray:
    """Whether each of a crop's nearest has it among as many nearest ones; R(p, k) of the paper."""
    count = len(ranked)
    # A crop and one of its nearest in one number, all ascending.
    pairs = ranked.astype(np.int64)
    pairs.sort(axis=1)
    pairs += np.arange(count)[:, None] * count
    pairs = pairs.ravel()
    mutual = np.empty(ranked.shape, dtype=bool)
    for rows in _chunks(count, together):
        turned = ranked[rows] * np.int64(count) + np.arange(rows.start, rows.stop)[:, None]
        places = np.minimum(np.searchsorted(pairs, turned), len(pairs) - 1)
        mutual[rows] = pairs[places] == turned
    return mutual


def _expanded(
    ranked: np.ndarray, mutual: np.ndarray, mutual_half: np.ndarray, rows: slice
) -> tuple[np.ndarray, np.ndarray]:
    """R*(p) of the paper for some crops: which of them, from 0, and its members; both ascending."""
    count = len(ranked)
    of, rank = np.nonzero(mutual[rows])
    reciprocal = ranked[rows][of, rank]
    # A crop and a member in one number: sets of many crops are sorted, searched and joined at once.
    base = of * count
    sets = np.sort(base + reciprocal)
    joining = base[:, None] + ranked[reciprocal, : mutual_half.shape[1]]
    belongs = mutual_half[reciprocal]
    shared = belongs & (np.append(sets, -1)[np.searchsorted(sets, joining)] == joining)
    joins = 3 * shared.sum(axis=1) > 2 * belongs.sum(axis=1)
    sets = np.unique(np.concatenate([sets, joining[joins][belongs[joins]]]))
    return sets // count, sets % count


def _squared_distances(crops: _Crops, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of pairs of crops, by their differences: none is lost to cancellation."""
    found = np.empty(len(one), dtype=np.float32)
    step = max(1, _CACHED // crops.query.values.shape[1])
    for start in range(0, len(one), step):
        part = slice(start, start + step)
        difference = crops.rows(one[part])
        difference -= crops.rows(other[part])
        np.einsum("nd,nd->n", difference, difference, out=found[part])
    return found


def _averaged(encodings: _Sparse, near: np.ndarray, memory: int) -> _Sparse:
    """For each crop, the mean of the encodings of its nearest ones; local query expansion in the paper."""
    count, k2 = near.shape
    longest = int(np.diff(encodings.starts).max())
    lengths, columns, values = [], [], []
    for rows in _chunks(count, _rows_at_a_time(k2 * longest, memory)):
        each, places = encodings.places(near[rows].ravel())
        of = np.repeat(np.repeat(np.arange(rows.stop - rows.start), k2), each)
        keys, which = np.unique(of * count + encodings.columns[places], return_inverse=True)
        sums = np.bincount(which, weights=encodings.values[places])
        lengths.append(np.bincount(keys // count, minlength=rows.stop - rows.start))
        columns.append((keys % count).astype(np.int32))
        values.append((sums / k2).astype(np.float32))
    starts = np.append(0, np.cumsum(np.concatenate(lengths)))
    return _Sparse(starts, np.concatenate(columns), np.concatenate(values))


def _rows_at_a_time(entries_each: int, memory: int) -> int:
    """How many crops are worked on at a time.

    Raises:
        InputError: not even one fits.
    """
    rows = min(_MAX_ENTRIES, memory // _BYTES_PER_ENTRY) // entries_each
    if memory < _BYTES_PER_ENTRY * entries_each:
        raise InputError(
            "The limit of memory is too small to re-rank with as many neighbours",
            got=f"{memory} bytes",
            expected=f"{_BYTES_PER_ENTRY * entries_each} bytes at least",
            fix="raise the limit (--memory), or lower k1",
        )
    return max(1, rows)


def _chunks(count: int, rows: int) -> Iterator[slice]:
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))
