"""Against the definition, pair by pair, and values by hand."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_cases import is_left_out, matrix_cases, score

from reidkit.errors import InputError
from reidkit.metrics.junk import Labels
from reidkit.metrics.ranking import Relevance
from reidkit.metrics.roc import Roc, RocScorer


def pairs(matrix, query, gallery, excluded=()):
    """Distances of the matches and of the wrong pairs, each sorted."""
    found = {True: [], False: []}
    for i, j in np.ndindex(*matrix.shape):
        if not is_left_out(i, j, query, gallery, excluded):
            found[bool(query.pids[i] == gallery.pids[j])].append(float(matrix[i, j]))
    return sorted(found[True]), sorted(found[False])


def plain_tpr(matches, wrong, allowed):
    return sum(allowed == len(wrong) or match < wrong[allowed] for match in matches) / len(matches)


ONE = Labels(np.array([0]), np.array([0]))


def one_query(matches, wrong, **options):
    """The curve of one query with matches and wrong crops at these distances."""
    labels = Labels(np.array([0] * len(matches) + [1] * len(wrong)), np.ones(len(matches) + len(wrong), dtype=int))
    matrix = np.array([[*matches, *wrong]], dtype=np.float32)
    return score(RocScorer(ONE, labels, **options), matrix, ONE, labels).roc()


def random_case(seed=0, queries=60, gallery=90, distances=400):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, distances, (queries, gallery)).astype(np.float32)
    labels = [Labels(rng.integers(least, 9, n), rng.integers(0, 3, n)) for n, least in ((queries, 0), (gallery, -1))]
    return matrix, *labels


@settings(max_examples=100, deadline=None)
@given(matrix_cases())
def test_equals_the_definition_at_every_count(case):
    matrix, query, gallery, excluded = case
    matches, wrong = pairs(matrix, query, gallery, excluded)
    scorer = score(RocScorer(query, gallery), matrix, query, gallery, excluded=excluded)
    if not matches:
        with pytest.raises(InputError, match="No query has a match"):
            scorer.roc()
        return
    roc = scorer.roc()
    assert (roc.matches, roc.wrong, roc.max_fpr) == (len(matches), len(wrong), 1)
    for allowed in range(len(wrong) + 1):
        assert roc.tpr(allowed / max(len(wrong), 1)) == plain_tpr(matches, wrong, allowed)
    rates, found = roc.curve()
    expected = [plain_tpr(matches, wrong, round(rate * len(wrong))) for rate in rates]
    np.testing.assert_array_equal(found, expected)


def test_by_hand():
    roc = one_query(matches=[1, 2, 3, 5], wrong=[2, 4, 4, 6])
    # The strictest threshold stands before the wrong pair at 2, and the match at 2 is not strictly nearer.
    assert [roc.tpr(rate) for rate in (0.0, 0.1, 0.2499)] == [0.25] * 3
    # One or two may be accepted: as far as 4, where the next one is.
    assert [roc.tpr(rate) for rate in (0.25, 0.5, 0.7)] == [0.75] * 3
    assert [roc.tpr(rate) for rate in (0.75, 1.0)] == [1, 1]
    assert (roc.matches, roc.wrong, roc.prices.tolist()) == (4, 4, [0, 1, 1, 3])


def test_a_model_that_maps_everybody_to_one_point_accepts_nobody():
    roc = one_query(matches=[1] * 3, wrong=[1] * 50)
    assert (roc.tpr(0.0), roc.tpr(0.98), roc.tpr(1.0)) == (0, 0, 1)


def test_distractors_and_queries_without_a_match_make_wrong_pairs_and_junk_makes_none():
    query, gallery = Labels(np.array([0, 7]), np.array([0, 0])), Labels(np.array([0, 0, -1, 3]), np.array([0, 1, 0, 0]))
    roc = score(RocScorer(query, gallery), np.arange(8, dtype=np.float32).reshape(2, 4), query, gallery).roc()
    assert (roc.matches, roc.wrong) == (1, 2 + 4)


@settings(max_examples=30, deadline=None)
@given(matrix_cases())
def test_only_the_order_matters(case):
    matrix, query, gallery, excluded = case
    if pairs(matrix, query, gallery, excluded)[0]:
        one, other = (
            score(RocScorer(query, gallery), values, query, gallery, excluded=excluded).roc()
            for values in (matrix, np.exp(matrix) - 7)
        )
        np.testing.assert_array_equal(one.prices, other.prices)


def test_29_of_100_at_a_rate_of_0_29():
    assert int(0.29 * 100) == 28
    roc = one_query(matches=[29.5], wrong=range(1, 101))
    assert (roc.tpr(0.29), roc.tpr(0.2899)) == (1, 0)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 1_000_000))
def test_so_many_are_allowed_as_the_decimal_number_says(ten_thousandths, wrong):
    allowed = Fraction(ten_thousandths, 10_000) * wrong // 1
    roc = Roc(2, wrong, np.array([allowed, allowed + 1]), wrong)
    assert roc.tpr(ten_thousandths / 10_000) == 0.5


@pytest.mark.parametrize("distances", [400, 12])
@pytest.mark.parametrize("kept", [1, 7, 500])
def test_keeping_the_nearest_changes_nothing_up_to_the_limit(monkeypatch, kept, distances):
    monkeypatch.setattr("reidkit.metrics.roc._KEPT", kept)
    matrix, query, gallery = random_case(distances=distances)
    matches, wrong = pairs(matrix, query, gallery)
    roc = score(RocScorer(query, gallery, max_fpr=0.02), matrix, query, gallery).roc()
    assert roc.most_accepted == max(kept - 1, int(0.02 * matrix.size))
    assert (roc.matches, roc.wrong) == (len(matches), len(wrong))
    for allowed in range(roc.most_accepted + 1):
        assert roc.tpr(allowed / len(wrong)) == plain_tpr(matches, wrong, allowed)
    assert roc.tpr(roc.max_fpr) == roc.curve()[1][-1]
    with pytest.raises(InputError, match=rf"not kept up to[^$]*0.5[^$]*expected: {roc.max_fpr:.6g} at most"):
        roc.tpr(0.5)


def test_nothing_depends_on_blocks_or_on_the_order_of_queries_and_gallery(monkeypatch):
    monkeypatch.setattr("reidkit.metrics.roc._KEPT", 50)
    matrix, query, gallery = random_case(seed=1)
    whole = score(RocScorer(query, gallery), matrix, query, gallery).roc()
    blocked = score(RocScorer(query, gallery), matrix, query, gallery, rows=3).roc()
    rows, columns = (np.random.default_rng(2).permutation(n) for n in matrix.shape)
    labels = Labels(query.pids[rows], query.camids[rows]), Labels(gallery.pids[columns], gallery.camids[columns])
    shuffled = score(RocScorer(*labels), matrix[rows][:, columns], *labels).roc()
    for other in (blocked, shuffled):
        for name in ("matches", "wrong", "most_accepted"):
            assert getattr(other, name) == getattr(whole, name)
        np.testing.assert_array_equal(other.curve(), whole.curve())


@pytest.mark.parametrize("pids", [1, 20])
def test_memory_stays_within_what_was_said(monkeypatch, pids):
    monkeypatch.setattr("reidkit.metrics.roc._KEPT", 1000)
    rng = np.random.default_rng(0)
    row = rng.random(20_000, dtype=np.float32)
    query, gallery = (Labels(rng.integers(0, pids, n), np.full(n, camera)) for camera, n in enumerate((100, 20_000)))
    score(RocScorer(query, gallery), np.broadcast_to(row, (100, 20_000)), query, gallery)  # imports and caches
    tracemalloc.start()
    scorer = RocScorer(query, gallery, max_fpr=1e-3)
    limit = scorer.bytes_needed + (64 + 2 * 4) * 20_000
    score(scorer, np.broadcast_to(row, (100, 20_000)), query, gallery, rows=2).roc()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    matches = 100 * 20_000 // pids
    assert peak < limit + 8 * 20_000 + 50_000  # of the labels' rows, and of what is small
    assert limit < 16 * matches + 3_000_000  # all pairs would take 8 MB, and as many to sort them


def test_the_rate_that_asks_for_too_much_memory_is_named():
    query, gallery = (Labels(np.zeros(n, dtype=int), np.full(n, n)) for n in (200, 10_000))
    need = 4 * 2_000_000 + 12 * 2_000_000  # every pair, and every pair is of one identity
    message = rf"false positive rate of 0\.5 does not fit [^$]*got: {need - 1} bytes\n  expected: {need} bytes at least"
    with pytest.raises(InputError, match=message):
        RocScorer(query, gallery, max_fpr=0.5, memory=need - 1)
    assert RocScorer(query, gallery, max_fpr=0.5, memory=need).bytes_needed == need


def test_the_curve_is_made_for_a_logarithmic_axis():
    matrix, query, gallery = random_case(seed=3, queries=100, gallery=1000, distances=5000)
    rates, found = score(RocScorer(query, gallery), matrix, query, gallery).roc().curve()
    assert (rates[0], rates[-1], found[-1]) == (0, 1, 1)
    assert (np.diff(rates) > 0).all()
    assert (np.diff(found) >= 0).all()
    assert (rates.dtype, found.dtype) == (np.float64, np.float64)
    for decade in (1e-4, 1e-3, 1e-2, 1e-1):
        assert 20 <= np.count_nonzero((rates >= decade) & (rates < 10 * decade)) <= 60
    assert len(rates) < 300


def test_more_pairs_than_fit_in_32_bits():
    roc = Roc(1, 3_000_000_000, np.array([2_500_000_000]), 3_000_000_000)
    assert (roc.tpr(0.8333), roc.tpr(0.8334)) == (0, 1)
    assert roc.curve()[0][-1] == 1
    many = Labels(np.arange(100_000), np.zeros(100_000, dtype=int))
    scorer = RocScorer(many, many, max_fpr=1e-6)
    row, found = np.ones(3, dtype=np.float32), np.arange(1)
    scorer.add(0, row, Relevance(found, np.empty(0, dtype=np.int64)))
    assert scorer.roc().wrong == 2


def test_without_wrong_pairs_every_match_is_accepted():
    roc = one_query(matches=[1, 2], wrong=[])
    assert (roc.wrong, roc.tpr(0.0), roc.tpr(1e-4), roc.tpr(1.0), roc.max_fpr) == (0, 1, 1, 1, 1)
    assert [points.tolist() for points in roc.curve()] == [[0], [1]]


def test_without_matches_there_is_nothing_to_verify():
    with pytest.raises(InputError, match=r"No query has a match[^$]*got: 3 pairs, all of them wrong"):
        one_query(matches=[], wrong=[1, 2, 3])


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_none(rate):
    with pytest.raises(InputError, match=rf"share of all wrong pairs\n  got: {rate}\n  expected: 0 to 1"):
        one_query(matches=[1], wrong=[2]).tpr(rate)
    with pytest.raises(InputError, match=rf"share of all wrong pairs\n  got: {rate}\n  expected: 0 to 1"):
        RocScorer(ONE, ONE, max_fpr=rate)
