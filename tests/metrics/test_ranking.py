"""Against a plain float64 loop over sorted rows, values by hand, and torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.errors import InputError
from reidkit.metrics.distance import distance_matrix
from reidkit.metrics.junk import Labels, same_file
from reidkit.metrics.ranking import has_match, match_ranks, rank_gallery
from reidkit.models.timm_backbone import import_torchvision
from reidkit.types import UNKNOWN_IDENTITY

import_torchvision()  # torchmetrics imports it, wherever it is installed
from torchmetrics.functional.retrieval import retrieval_average_precision  # noqa: E402


def loop(distances, query, gallery):
    """The protocol as it is told: sort a row, walk down it, skip junk, note the matches."""
    first, precisions, penalties = [], [], []
    for row, pid, camid in zip(distances, query.pids, query.camids, strict=True):
        items = []
        for j, distance in enumerate(row):
            same = gallery.pids[j] == pid
            if same and camid != -1 and gallery.camids[j] == camid:
                continue
            items.append((distance, bool(same)))
        items.sort()  # at equal distance False, the wrong one, comes first
        ranks = [place for place, (_, same) in enumerate(items, 1) if same]
        first.append(ranks[0] if ranks else 0)
        precisions.append(np.mean([(i + 1) / rank for i, rank in enumerate(ranks)]) if ranks else np.nan)
        penalties.append(len(ranks) / ranks[-1] if ranks else np.nan)
    return np.array(first), np.array(precisions), np.array(penalties)


@st.composite
def cases(draw):
    """Few distinct coordinates, so that distances tie; few identities and cameras, distractors, unknown cameras."""
    n_query, n_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 25))
    coordinate = st.integers(-2, 2)

    def labels(n, least_pid):
        pids = draw(st.lists(st.integers(least_pid, 3), min_size=n, max_size=n))
        camids = draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))
        return Labels(np.array(pids), np.array(camids))

    def embeddings(n):
        return np.array(draw(st.lists(st.tuples(coordinate, coordinate), min_size=n, max_size=n)), dtype=np.float32)

    return embeddings(n_query), embeddings(n_gallery), labels(n_query, 0), labels(n_gallery, -1)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_the_plain_loop(case):
    query, gallery, query_labels, gallery_labels = case
    ranking = rank_gallery(query, gallery, query_labels, gallery_labels, metric="euclidean")
    distances = distance_matrix(query, gallery, "euclidean")
    first, precision, penalty = loop(distances, query_labels, gallery_labels)
    np.testing.assert_array_equal(ranking.first_match, first)
    np.testing.assert_allclose(ranking.average_precision, precision, rtol=1e-12)
    np.testing.assert_allclose(ranking.inverse_negative_penalty, penalty, rtol=1e-12)
    np.testing.assert_array_equal(has_match(query_labels, gallery_labels), first > 0)


@settings(max_examples=100, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_gallery_order_changes_nothing(case, random):
    query, gallery, query_labels, gallery_labels = case
    order = list(range(len(gallery)))
    random.shuffle(order)
    shuffled = Labels(gallery_labels.pids[order], gallery_labels.camids[order])
    one = rank_gallery(query, gallery, query_labels, gallery_labels, metric="euclidean")
    other = rank_gallery(query, gallery[order], query_labels, shuffled, metric="euclidean")
    np.testing.assert_array_equal(one.first_match, other.first_match)
    np.testing.assert_array_equal(one.average_precision, other.average_precision)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1), st.lists(st.integers(0, 8)))
def test_only_the_order_matters(matches, wrong):
    a, b = np.array(matches, dtype=float), np.array(wrong, dtype=float)
    np.testing.assert_array_equal(match_ranks(a, b), match_ranks(np.exp(a) - 7, np.exp(b) - 7))


def test_average_precision_equals_torchmetrics():
    rng = np.random.default_rng(1)
    query, gallery = rng.normal(size=(5, 16)), rng.normal(size=(200, 16))
    labels = Labels(np.arange(5), np.zeros(5, dtype=int))
    gallery_labels = Labels(rng.integers(0, 5, 200), np.ones(200, dtype=int))
    ranking = rank_gallery(query, gallery, labels, gallery_labels)
    scores = 3 - distance_matrix(query, gallery)  # positive: torchmetrics drops targets with a score of zero or below
    for i in range(5):
        expected = retrieval_average_precision(torch.from_numpy(scores[i]), torch.from_numpy(gallery_labels.pids == i))
        assert ranking.average_precision[i] == pytest.approx(float(expected), abs=1e-6)


def test_by_hand():
    # Distances 1, 2, 3, ... to six gallery crops: junk, wrong, match, distractor, match, wrong.
    gallery = np.arange(1.0, 7.0)[:, None]
    gallery_labels = Labels(np.array([5, 6, 5, -1, 5, 7]), np.array([0, 0, 1, 1, 2, 0]))
    ranking = rank_gallery(
        np.zeros((1, 1)), gallery, Labels(np.array([5]), np.array([0])), gallery_labels, metric="euclidean"
    )
    assert ranking.first_match.tolist() == [2]
    assert ranking.mean_ap == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert ranking.mean_inp == pytest.approx(2 / 4)
    assert (ranking.cmc(1), ranking.cmc(2)) == (0.0, 1.0)


def test_an_excluded_pair_is_neither_right_nor_wrong():
    # Distances 1, 2, 3: the query's own file under a wrong identity and under its own, then a match.
    gallery = np.arange(1.0, 4.0)[:, None]
    query_labels, gallery_labels = (
        Labels(np.array([5]), np.array([0])),
        Labels(np.array([6, 5, 5]), np.array([1, 1, 1])),
    )
    query = np.zeros((1, 1))
    exclude = [same_file(["a"], ["a", "a", "b"])]
    ranking = rank_gallery(query, gallery, query_labels, gallery_labels, metric="euclidean", exclude=exclude)
    assert (ranking.first_match.tolist(), ranking.mean_ap, ranking.mean_inp) == ([1], 1.0, 1.0)
    assert has_match(query_labels, gallery_labels, exclude=exclude).tolist() == [True]
    assert has_match(query_labels, gallery_labels, exclude=[same_file("a", "aaa")]).tolist() == [False]
    with pytest.raises(InputError, match=r"exclusion does not fit[\s\S]*\(1, 2\)[\s\S]*\(1, 3\)"):
        rank_gallery(query + 1, gallery, query_labels, gallery_labels, exclude=[same_file("a", "ab")])


def test_invalid_queries_are_counted_and_left_out():
    labels = Labels(np.array([1, 2]), np.array([0, 0]))
    ranking = rank_gallery(np.ones((2, 2)), np.ones((1, 2)), labels, Labels(np.array([1]), np.array([1])))
    assert ranking.valid.tolist() == [True, False]
    assert ranking.mean_ap == 1.0


def test_ties_count_against_the_model():
    gallery_labels = Labels(np.array([1, 2, 3]), np.array([1, 1, 1]))
    ranking = rank_gallery(np.ones((1, 2)), np.ones((3, 2)), Labels(np.array([1]), np.array([0])), gallery_labels)
    assert ranking.first_match.tolist() == [3]


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(2)
    query, gallery = rng.normal(size=(37, 8)), rng.normal(size=(101, 8))
    labels, gallery_labels = (Labels(rng.integers(0, 9, n), rng.integers(0, 3, n)) for n in (37, 101))
    whole = rank_gallery(query, gallery, labels, gallery_labels)
    monkeypatch.setattr("reidkit.metrics.ranking._BLOCK_BYTES", 4 * 101 * 5)
    done = []
    blocked = rank_gallery(query, gallery, labels, gallery_labels, progress=lambda a, b: done.append((a, b)))
    np.testing.assert_array_equal(whole.first_match, blocked.first_match)
    assert done == [(min(5 * i, 37), 37) for i in range(1, 9)]


ONE = Labels(np.array([0]), np.array([0]))
STRANGER = Labels(np.array([0, UNKNOWN_IDENTITY]), np.array([1, 1]))
NONE = Labels(np.array([], dtype=int), np.array([], dtype=int))


@pytest.mark.parametrize(
    ("query", "gallery", "labels", "gallery_labels", "message"),
    [
        (np.empty((0, 2)), np.ones((1, 2)), NONE, ONE, "The query is empty"),
        (np.ones((1, 2)), np.empty((0, 2)), ONE, NONE, "The gallery is empty"),
        (np.ones((2, 2)), np.ones((1, 2)), ONE, ONE, "query embeddings and labels differ in number\n  got: 2 and 1"),
        (
            np.ones((1, 2)),
            np.ones((1, 2)),
            Labels(np.array([-1]), np.array([0])),
            ONE,
            "1 of 1 query crops have no identity",
        ),
        (np.ones((1, 2)), np.ones((2, 2)), ONE, STRANGER, "1 of 2 gallery crops have no identity[^$]*row 1[^$]*DISTR"),
    ],
)
def test_bad_input(query, gallery, labels, gallery_labels, message):
    with pytest.raises(InputError, match=message):
        rank_gallery(query, gallery, labels, gallery_labels)


def test_nothing_to_measure():
    ranking = rank_gallery(np.ones((1, 2)), np.ones((1, 2)), ONE, ONE)
    with pytest.raises(InputError, match=r"No query has a match in the gallery from another camera(.|\n)*data inspect"):
        _ = ranking.mean_ap
