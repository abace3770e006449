"""Against a plain float64 loop over sorted rows, values by hand, torchreid's definition, and torchmetrics."""

import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.errors import InputError
from reidkit.metrics.distance import compare, distance_matrix
from reidkit.metrics.distance import given as given_distances
from reidkit.metrics.junk import Exclusion, Labels, same_file
from reidkit.metrics.ranking import Relevances, has_match, rank_gallery, walk
from reidkit.models.timm_backbone import import_torchvision
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, UNKNOWN_IDENTITY

import_torchvision()  # torchmetrics imports it, wherever it is installed
from torchmetrics.functional.retrieval import retrieval_average_precision  # noqa: E402


class Case(NamedTuple):
    """Everything that a ranking depends on."""

    query: np.ndarray
    gallery: np.ndarray
    query_labels: Labels
    gallery_labels: Labels
    metric: str
    junk: bool
    excluded: np.ndarray  # query x gallery

    def rank(self, **options):
        count = len(self.query), len(self.gallery)
        exclude = [Exclusion(count, lambda row: np.flatnonzero(self.excluded[row]))]
        distances = compare(self.query, self.gallery, self.metric)
        labels = self.query_labels, self.gallery_labels
        return rank_gallery(distances, *labels, junk=self.junk, exclude=exclude, **options)

    def shuffled(self, order):
        """The same with the gallery in another order."""
        labels = Labels(self.gallery_labels.pids[order], self.gallery_labels.camids[order])
        return self._replace(gallery=self.gallery[order], gallery_labels=labels, excluded=self.excluded[:, order])


def defined(query, gallery, metric):
    """Both metrics as they are told, in float64."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(((query[:, None] - gallery[None]) ** 2).sum(axis=-1))
    lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    return 1 - query @ gallery.T / lengths


def loop(case):
    """The protocol as it is told: sort a row, walk down it, skip what is not ranked, note the matches."""
    first, precisions, penalties = [], [], []
    distances = defined(case.query, case.gallery, case.metric)
    gallery = list(zip(case.gallery_labels.pids.tolist(), case.gallery_labels.camids.tolist(), strict=True))
    for i, (pid, camid) in enumerate(zip(case.query_labels.pids, case.query_labels.camids, strict=True)):
        items = []
        for j, (its_pid, its_camid) in enumerate(gallery):
            of_one_camera = its_pid == pid and camid != UNKNOWN_CAMERA and its_camid == camid
            if not case.excluded[i, j] and not (case.junk and of_one_camera):
                items.append((distances[i, j], its_pid == pid))
        items.sort()  # at equal distance False, the wrong one, comes first
        ranks = [place for place, (_, same) in enumerate(items, 1) if same]
        first.append(ranks[0] if ranks else 0)
        precisions.append(sum((i + 1) / rank for i, rank in enumerate(ranks)) / len(ranks) if ranks else np.nan)
        penalties.append(len(ranks) / ranks[-1] if ranks else np.nan)
    return np.array(first), np.array(precisions), np.array(penalties)


@st.composite
def cases(draw):
    """Coordinates so few and so round that distances tie, exactly, in float16 and float32 as in float64."""
    n_query, n_gallery, people = draw(st.integers(1, 15)), draw(st.integers(1, 30)), draw(st.integers(1, 4))
    metric, types = (
        draw(st.sampled_from(["euclidean", "cosine"])),
        draw(st.tuples(*[st.sampled_from(["f2", "f4"])] * 2)),
    )
    share = draw(st.sampled_from([0, 0.1, 0.5, 1]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def embeddings(n, dtype):
        if metric == "euclidean":
            return random.integers(-2, 3, (n, draw_dim)).astype(dtype)
        # Lengths 2, 4 and 8: a cosine is a whole number over four.
        return (random.choice([-1, 1], (n, 4)) * random.choice([1, 2, 4], (n, 1))).astype(dtype)

    draw_dim = draw(st.integers(1, 3))
    return Case(
        embeddings(n_query, types[0]),
        embeddings(n_gallery, types[1]),
        Labels(random.integers(0, people, n_query), random.integers(UNKNOWN_CAMERA, 3, n_query)),
        Labels(random.integers(DISTRACTOR, people, n_gallery), random.integers(UNKNOWN_CAMERA, 3, n_gallery)),
        metric,
        draw(st.booleans()),
        random.random((n_query, n_gallery)) < share,
    )


@settings(max_examples=500, deadline=None)
@given(cases())
def test_equals_the_plain_loop(case):
    ranking = case.rank()
    first, precision, penalty = loop(case)
    np.testing.assert_array_equal(ranking.first_match, first)
    np.testing.assert_allclose(ranking.average_precision, precision, rtol=1e-12)
    np.testing.assert_allclose(ranking.inverse_negative_penalty, penalty, rtol=1e-12)
    if not (first > 0).any():
        return
    assert ranking.mean_ap == pytest.approx(np.nanmean(precision), rel=1e-12)
    assert ranking.mean_inp == pytest.approx(np.nanmean(penalty), rel=1e-12)
    curve = [np.mean(first[first > 0] <= rank) for rank in range(1, 40)]
    np.testing.assert_allclose(ranking.cmc_curve(39), curve, rtol=1e-12)
    assert [ranking.cmc(rank) for rank in (1, 5, 39)] == pytest.approx([curve[0], curve[4], curve[38]])


def least_memory(distances):
    """Of one query at a time: 24 bytes to note each of them, and 64 to look at each gallery crop."""
    queries, gallery = distances.shape
    return distances.bytes_fixed + distances.bytes_per_query + 24 * queries + 64 * gallery


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 7), st.integers(0, 15))
def test_the_limit_of_memory_changes_nothing(case, rows, spare):
    distances = compare(case.query, case.gallery, case.metric)
    done = []
    memory = least_memory(distances) + (rows - 1) * distances.bytes_per_query + spare
    blocked = case.rank(memory=memory, progress=lambda *at: done.append(at))
    first, precision, _ = loop(case)
    np.testing.assert_array_equal(blocked.first_match, first)
    np.testing.assert_allclose(blocked.average_precision, precision, rtol=1e-12)
    queries = len(case.query)
    assert done[-1] == (queries, queries)
    assert len(done) >= queries / (rows + spare)


@settings(max_examples=100, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_gallery_order_changes_nothing(case, random):
    order = list(range(len(case.gallery)))
    random.shuffle(order)
    one, other = case.rank(), case.shuffled(order).rank()
    np.testing.assert_array_equal(one.first_match, other.first_match)
    np.testing.assert_array_equal(one.average_precision, other.average_precision)
    np.testing.assert_array_equal(one.inverse_negative_penalty, other.inverse_negative_penalty)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_of_real_valued_embeddings_too_up_to_a_last_bit(metric):
    random = np.random.default_rng(0)
    pids = random.integers(0, 30, 60), random.integers(-1, 30, 1501)
    centers = random.normal(size=(31, 67))
    query, gallery = ((0.3 * centers[rows] + random.normal(size=(len(rows), 67))).astype(np.float32) for rows in pids)
    gallery[100:120] = gallery[200:220]
    labels, gallery_labels = (Labels(rows, np.full(len(rows), camera)) for camera, rows in enumerate(pids))
    case = Case(query, gallery, labels, gallery_labels, metric, True, np.zeros((60, 1501), dtype=bool))
    whole = case.rank()
    first, precision, _ = loop(case)
    assert 0.05 < whole.mean_ap < 0.95
    np.testing.assert_array_equal(whole.first_match, first)
    least = least_memory(compare(query, gallery, metric))
    one_by_one, shuffled = case.rank(memory=least), case.shuffled(random.permutation(1501)).rank()
    for other in (one_by_one, shuffled):
        assert other.mean_ap == pytest.approx(np.mean(precision), abs=1e-6)
        assert other.mean_inp == pytest.approx(whole.mean_inp, abs=1e-6)


TRANSFORMS = {
    "scaled": lambda d: 3 * d - 7,
    "cubed": lambda d: d**3,
    "exponential": np.exp,
    "negative inverse": lambda d: -1 / (1 + d),
    "float16": lambda d: d.astype(np.float16),
}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from(sorted(TRANSFORMS)))
def test_only_the_order_matters(seed, n_gallery, transform):
    random = np.random.default_rng(seed)
    matrix = random.integers(0, 9, (4, n_gallery)).astype(np.float32)
    labels = Labels(random.integers(0, 3, 4), random.integers(-1, 2, 4))
    gallery_labels = Labels(random.integers(-1, 3, n_gallery), random.integers(-1, 2, n_gallery))
    one = rank_gallery(given_distances(matrix), labels, gallery_labels)
    other = rank_gallery(given_distances(TRANSFORMS[transform](matrix)), labels, gallery_labels)
    np.testing.assert_array_equal(one.first_match, other.first_match)
    np.testing.assert_array_equal(one.average_precision, other.average_precision)


def torchreid_market1501(matrix, query, gallery, max_rank):
    """What torchreid's `eval_market1501` says it computes (torchreid/metrics/rank.py), row by row.

    It orders a row by an argsort that is not stable, so ties fall as they fall; here the wrong crop comes first. A
    camera is a number like any other to it: it knows no unknown ones.
    """
    curves, precisions = [], []
    for row, pid, camid in zip(matrix, query.pids, query.camids, strict=True):
        order = np.argsort(row)
        order = order[(gallery.pids[order] != pid) | (gallery.camids[order] != camid)]
        hits = gallery.pids[order] == pid
        if hits.any():
            found = np.cumsum(hits)
            curves.append(np.minimum(found, 1)[:max_rank])
            precisions.append((found / np.arange(1, len(order) + 1))[hits].mean())
    return np.mean(curves, axis=0), np.mean(precisions)


@pytest.mark.parametrize("seed", range(50))
def test_equals_torchreids_definition_where_nothing_ties(seed):
    random = np.random.default_rng(seed)
    n_query, n_gallery = random.integers(1, 30), random.integers(80, 300)
    matrix = random.permutation(n_query * n_gallery).reshape(n_query, n_gallery).astype(np.float32)
    labels = Labels(random.integers(0, 8, n_query), random.integers(0, 3, n_query))
    gallery_labels = Labels(random.integers(-1, 7, n_gallery), random.integers(0, 3, n_gallery))
    labels.pids[0] = gallery_labels.pids[0] = 0  # one match at least
    gallery_labels.camids[0] = labels.camids[0] + 1
    ranking = rank_gallery(given_distances(matrix), labels, gallery_labels)
    curve, mean_ap = torchreid_market1501(matrix, labels, gallery_labels, 20)
    np.testing.assert_allclose(ranking.cmc_curve(20), curve, rtol=1e-12)
    assert ranking.mean_ap == pytest.approx(mean_ap, rel=1e-12)


def test_average_precision_equals_torchmetrics():
    rng = np.random.default_rng(1)
    query, gallery = rng.normal(size=(5, 16)), rng.normal(size=(200, 16))
    labels = Labels(np.arange(5), np.zeros(5, dtype=int))
    gallery_labels = Labels(rng.integers(0, 5, 200), np.ones(200, dtype=int))
    ranking = rank_gallery(compare(query, gallery), labels, gallery_labels)
    scores = 3 - distance_matrix(query, gallery)  # positive: torchmetrics drops targets with a score of zero or below
    for i in range(5):
        expected = retrieval_average_precision(torch.from_numpy(scores[i]), torch.from_numpy(gallery_labels.pids == i))
        assert ranking.average_precision[i] == pytest.approx(float(expected), abs=1e-6)


ORIGIN = np.zeros((1, 1))
ONE = Labels(np.array([5]), np.array([0]))


def places(count):
    """Gallery embeddings at the distances 1, 2, 3 and so on from the origin."""
    return compare(ORIGIN, np.arange(1.0, count + 1)[:, None], "euclidean")


def test_by_hand():
    # Junk, wrong, match, distractor, match, wrong.
    gallery_labels = Labels(np.array([5, 6, 5, DISTRACTOR, 5, 7]), np.array([0, 0, 1, 1, 2, 0]))
    ranking = rank_gallery(places(6), ONE, gallery_labels)
    assert ranking.first_match.tolist() == [2]
    assert ranking.mean_ap == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert ranking.mean_inp == pytest.approx(2 / 4)
    assert (ranking.cmc(1), ranking.cmc(2)) == (0.0, 1.0)
    assert ranking.cmc_curve(4).tolist() == [0, 1, 1, 1]
    # The same without junk: match, wrong, match, distractor, match, wrong.
    ranking = rank_gallery(places(6), ONE, gallery_labels, junk=False)
    assert ranking.mean_ap == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert ranking.mean_inp == pytest.approx(3 / 5)


def test_average_precision_is_the_mean_of_precisions_not_market1501s_trapezoids():
    ranking = rank_gallery(places(4), ONE, Labels(np.array([6, 5, DISTRACTOR, 5]), np.ones(4, dtype=int)))
    assert ranking.mean_ap == (1 / 2 + 2 / 4) / 2
    # Its MATLAB code: the mean of the precision at each match and just before it.
    trapezoids = ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2
    assert trapezoids == pytest.approx(1 / 3)


def test_an_excluded_pair_is_neither_right_nor_wrong():
    # The query's own file under a wrong identity and under its own, then a match.
    gallery_labels = Labels(np.array([6, 5, 5]), np.array([1, 1, 1]))
    exclude = [same_file(["a"], ["a", "a", "b"])]
    ranking = rank_gallery(places(3), ONE, gallery_labels, exclude=exclude)
    assert (ranking.first_match.tolist(), ranking.mean_ap, ranking.mean_inp) == ([1], 1.0, 1.0)
    assert has_match(Relevances(ONE, gallery_labels, exclude=exclude)).tolist() == [True]
    assert has_match(Relevances(ONE, gallery_labels, exclude=[same_file("a", "aaa")])).tolist() == [False]


def test_invalid_queries_are_counted_and_left_out():
    labels = Labels(np.array([1, 2, 1]), np.array([0, 0, 1]))
    gallery_labels = Labels(np.array([1]), np.array([1]))
    ranking = rank_gallery(compare(np.ones((3, 2)), np.ones((1, 2))), labels, gallery_labels)
    assert ranking.valid.tolist() == [True, False, False]
    assert has_match(Relevances(labels, gallery_labels)).tolist() == [True, False, False]
    assert (ranking.mean_ap, ranking.cmc(1)) == (1.0, 1.0)
    assert np.isnan(ranking.average_precision[1:]).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_model_that_maps_everybody_to_one_point_ranks_every_match_last(metric):
    # 315 gallery crops of 128 numbers, one query at a time: a bare matrix product gives most of them two distances.
    gallery_labels = Labels(np.arange(315) // 3, np.ones(315, dtype=int))
    for point in np.random.default_rng(0).normal(size=(50, 1, 128)).astype(np.float32):
        ranking = rank_gallery(compare(point, np.repeat(point, 315, axis=0), metric), ONE, gallery_labels)
        assert ranking.first_match.tolist() == [313]
        assert ranking.mean_ap == pytest.approx((1 / 313 + 2 / 314 + 3 / 315) / 3)


def test_every_scorer_sees_every_query_once_and_in_order():
    class Notes:
        bytes_needed = 1000

        def __init__(self):
            self.seen = []

        def add(self, query, distances, found):
            self.seen.append((query, distances.tolist(), found.matches.tolist(), found.left_out.tolist()))

    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    labels = Labels(np.array([0, 1, 2]), np.array([0, 0, 0]))
    scorers = [Notes(), Notes()]
    relevances = Relevances(labels, Labels(np.array([1, 0]), np.array([1, 0])))
    memory = 2 * 1000 + 2 * 64 + 2 * 4
    walk(given_distances(matrix), relevances, scorers, memory=memory)
    expected = [(0, [0, 1], [], [1]), (1, [2, 3], [0], []), (2, [4, 5], [], [])]
    assert scorers[0].seen == scorers[1].seen == expected
    with pytest.raises(InputError, match=rf"got: {memory - 1} bytes\n  expected: {memory} bytes at least"):
        walk(given_distances(matrix), relevances, scorers, memory=memory - 1)


class AllAlike:
    """Queries that are all as far from the gallery."""

    bytes_per_query = bytes_fixed = 0

    def __init__(self, queries, row):
        self.shape = queries, len(row)
        self._row = row

    def block(self, rows, out=None):
        return np.broadcast_to(self._row, (rows.stop - rows.start, len(self._row)))


@pytest.mark.slow
def test_more_than_two_to_the_31_pairs():
    queries, crops, people = 2_100, 1_050_000, 50
    distance = np.random.default_rng(0).permutation(crops) + 1
    # The crop at distance 1 shows identity 0, and so on; who stands farther than any match is a distractor.
    gallery_labels = Labels(np.where(distance <= people, distance - 1, DISTRACTOR), np.ones(crops, dtype=int))
    pids = np.arange(queries) % people
    distances = AllAlike(queries, distance.astype(np.float32))
    assert distances.shape[0] * distances.shape[1] > 1 << 31
    ranking = rank_gallery(distances, Labels(pids, np.zeros(queries, dtype=int)), gallery_labels)
    np.testing.assert_array_equal(ranking.first_match, pids + 1)


@pytest.mark.parametrize("people", [1, 1000])
def test_memory_stays_within_the_limit(people):
    random = np.random.default_rng(0)
    query, gallery = random.normal(size=(60, 8)).astype(np.float32), random.normal(size=(10_000, 8)).astype(np.float32)
    labels = [
        Labels(random.integers(0, people, len(rows)), random.integers(0, 3, len(rows))) for rows in (query, gallery)
    ]
    distances = compare(query, gallery)
    limit = least_memory(distances) + 4 * distances.bytes_per_query
    rank_gallery(distances, *labels)  # imports and caches
    tracemalloc.start()
    rank_gallery(distances, *labels, memory=limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Of the labels' rows: 8 bytes for each gallery crop and 250 for each identity; and what is small.
    assert peak < limit + 8 * 10_000 + 250 * people + 50_000


NONE = Labels(np.array([], dtype=int), np.array([], dtype=int))
STRANGER = Labels(np.array([0, UNKNOWN_IDENTITY]), np.array([1, 1]))
UNNAMED = Labels(np.array([5, DISTRACTOR]), np.array([0, 0]))


@pytest.mark.parametrize(
    ("queries", "gallery", "labels", "gallery_labels", "message"),
    [
        (0, 1, NONE, ONE, "The query is empty\n  got: 0 embeddings"),
        (1, 0, ONE, NONE, "The gallery is empty\n  got: 0 embeddings"),
        (2, 1, ONE, ONE, "The query embeddings and labels differ in number\n  got: 2 and 1"),
        (1, 1, ONE, STRANGER, "1 of 2 gallery crops have no identity[^$]*row 1[^$]*DISTRACTOR"),
        (1, 3, ONE, ONE, "The gallery embeddings and labels differ in number\n  got: 3 and 1"),
        (2, 1, UNNAMED, ONE, "1 of 2 query crops have no identity[^$]*row 1[^$]*pid 0 or above"),
    ],
)
def test_bad_input(queries, gallery, labels, gallery_labels, message):
    distances = compare(np.ones((queries, 2)), np.ones((gallery, 2)))
    with pytest.raises(InputError, match=message):
        rank_gallery(distances, labels, gallery_labels)


def test_a_limit_below_one_query():
    with pytest.raises(InputError, match="too small to compare one query with a gallery of 3 crops\n  got: 235 bytes"):
        rank_gallery(places(3), ONE, Labels(np.array([5, 6, 7]), np.array([1, 1, 1])), memory=235)


def test_exclusions_of_another_size():
    with pytest.raises(InputError, match=r"exclusion does not fit[\s\S]*\(1, 2\)[\s\S]*\(1, 1\)"):
        rank_gallery(places(1), ONE, ONE, exclude=[same_file("a", "ab")])


@pytest.mark.parametrize(
    "measure", [lambda r: r.mean_ap, lambda r: r.mean_inp, lambda r: r.cmc(1), lambda r: r.cmc_curve(5)]
)
def test_nothing_to_measure(measure):
    ranking = rank_gallery(places(1), ONE, ONE)
    assert ranking.valid.tolist() == [False]
    with pytest.raises(InputError, match=r"No query has a match in the gallery, so(.|\n)*data inspect"):
        measure(ranking)
    with pytest.raises(InputError, match="No query has a match from another camera, so nothing can be measured"):
        ranking.require_valid("from another camera")
