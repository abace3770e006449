"""Against every draw there can be, exact expectations by enumeration, torchreid's definition, and values by hand."""

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from matrix_cases import is_left_out, matrix_cases, score

from reidkit.errors import InputError
from reidkit.metrics.drawn import DrawnScorer
from reidkit.metrics.junk import Labels
from reidkit.metrics.protocol import PROTOCOLS, Protocol

SEED = 3
CUHK03, VEHICLEID = PROTOCOLS["cuhk03-single-shot"], PROTOCOLS["vehicleid"]


def rankings(matrix, query, gallery, protocol, *, seed=SEED, **options):
    scorer = DrawnScorer(query, gallery, protocol, seed=seed)
    return score(scorer, matrix, query, gallery, junk=protocol.junk, **options).rankings()


def often(protocol, draws):
    return Protocol(protocol.name, protocol.junk, protocol.draw, draws, protocol.source)


def rank_among(row, standing, pid, pids):
    """Rank of the first match among gallery rows; at equal distance the wrong one comes first."""
    items = sorted((row[j], bool(pids[j] == pid)) for j in standing)
    return next((rank for rank, (_, same) in enumerate(items, 1) if same), 0)


def whole_gallery(row, kept, pid, pids):
    """Average precision and inverse negative penalty with all matches."""
    items = sorted((row[j], bool(pids[j] == pid)) for j in kept)
    ranks = [rank for rank, (_, same) in enumerate(items, 1) if same]
    return np.mean([n / rank for n, rank in enumerate(ranks, 1)]), len(ranks) / ranks[-1]


def expected_ranks(row, groups, distractors, pid):
    """Probability of each rank: every combination of one crop from each identity is equally likely."""
    pids = {j: p for p, group in groups.items() for j in group} | dict.fromkeys(distractors, -1)
    counts = Counter(
        rank_among(row, [*drawn, *distractors], pid, pids) for drawn in itertools.product(*groups.values())
    )
    return {rank: count / counts.total() for rank, count in counts.items()}


def by_identity(rows, pids):
    """The rows of each identity, and the distractors."""
    groups = {pid: [j for j in rows if pids[j] == pid] for pid in sorted({int(pids[j]) for j in rows} - {-1})}
    return groups, [j for j in rows if pids[j] == -1]


@settings(max_examples=60, deadline=None)
@given(matrix_cases())
def test_per_query_every_rank_is_that_of_some_draw(case):
    matrix, query, gallery, excluded = case
    found = rankings(matrix, query, gallery, CUHK03, excluded=excluded)
    assert len(found) == CUHK03.draws
    for i, row in enumerate(matrix):
        kept = [j for j in range(len(row)) if not is_left_out(i, j, query, gallery, excluded)]
        pid = query.pids[i]
        if not any(gallery.pids[j] == pid for j in kept):
            for ranking in found:
                assert (ranking.first_match[i], ranking.valid[i]) == (0, False)
                assert np.isnan([ranking.average_precision[i], ranking.inverse_negative_penalty[i]]).all()
            continue
        possible = expected_ranks(row, *by_identity(kept, gallery.pids), pid)
        precision, penalty = whole_gallery(row, kept, pid, gallery.pids)
        for ranking in found:
            assert ranking.first_match[i] in possible
            assert ranking.average_precision[i] == pytest.approx(precision, rel=1e-12)
            assert ranking.inverse_negative_penalty[i] == pytest.approx(penalty, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(matrix_cases())
def test_gallery_the_ranks_of_all_queries_are_those_of_one_draw(case):
    matrix, query, gallery, excluded = case
    groups, distractors = by_identity(range(len(gallery.pids)), gallery.pids)
    possible = set()
    for drawn in itertools.product(*groups.values()):
        standing = [[j for j in [*drawn, *distractors] if (i, j) not in excluded] for i in range(len(matrix))]
        possible.add(
            tuple(
                rank_among(row, stand, pid, gallery.pids)
                for row, stand, pid in zip(matrix, standing, query.pids, strict=True)
            )
        )
    for ranking in rankings(matrix, query, gallery, VEHICLEID, excluded=excluded):
        ranks = ranking.first_match
        assert tuple(ranks.tolist()) in possible
        inverse = [1 / rank if rank else np.nan for rank in ranks]
        for shares in (ranking.average_precision, ranking.inverse_negative_penalty):
            np.testing.assert_allclose(shares, inverse, rtol=1e-12)


@pytest.mark.parametrize("protocol", [CUHK03, VEHICLEID])
def test_the_mean_over_many_draws_is_the_expectation(protocol):
    row = np.array([4, 1, 6, 2, 2, 5, 3, 7, 0, 9], dtype=np.float32)
    groups, distractors = {0: [0, 1, 2], 1: [3, 4], 2: [5, 6, 7]}, [8]
    gallery = Labels(np.array([0, 0, 0, 1, 1, 2, 2, 2, -1, 0]), np.array([1] * 9 + [0]))
    if not protocol.junk:  # then the last one, by the query's own camera, is as good as any
        groups[0] = [0, 1, 2, 9]
    expected = expected_ranks(row, groups, distractors, pid=0)
    assert len(expected) >= 3
    draws = 4000
    found = rankings(row[None], Labels(np.array([0]), np.array([0])), gallery, often(protocol, draws))
    counts = Counter(int(ranking.first_match[0]) for ranking in found)
    assert counts.keys() == expected.keys()
    for rank, share in expected.items():
        assert counts[rank] / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


def torchreid_cuhk03(matrix, query, gallery, draws, rng):
    """What torchreid's `eval_cuhk03` says it computes (torchreid/metrics/rank.py), with as many draws as one likes.

    It draws one of all distractors together, so it is the same measure only where there are none.
    """
    curves, precisions = [], []
    for row, pid, camid in zip(matrix, query.pids, query.camids, strict=True):
        order = np.argsort(row)
        order = order[(gallery.pids[order] != pid) | (gallery.camids[order] != camid)]
        people = gallery.pids[order]
        hits = people == pid
        if hits.any():
            standing = np.zeros((draws, len(order)), dtype=bool)
            for person in np.unique(people):
                standing[np.arange(draws), rng.choice(np.flatnonzero(people == person), draws)] = True
            place = np.cumsum(standing, axis=1)[standing & hits]  # one match stands in each draw
            curves.append([np.mean(place <= rank) for rank in range(1, 9)])
            precisions.append((np.cumsum(hits) / np.arange(1, len(order) + 1))[hits].mean())
    return np.mean(curves, axis=0), np.mean(precisions)


def test_cuhk03_equals_torchreids_definition_in_expectation():
    rng = np.random.default_rng(2)
    query, gallery = (Labels(rng.integers(0, 8, n), rng.integers(0, 2, n)) for n in (12, 40))
    matrix = rng.permutation(12 * 40).reshape(12, 40).astype(np.float32)
    draws = 4000
    found = rankings(matrix, query, gallery, often(CUHK03, draws))
    curve, mean_ap = torchreid_cuhk03(matrix, query, gallery, draws, rng)
    assert 0.05 < curve[0] < curve[4] < 0.95
    ours = np.mean([ranking.cmc_curve(8) for ranking in found], axis=0)
    # The variance of each mean is 1/4 at most for one query and draw, and there are two of them.
    np.testing.assert_allclose(ours, curve, atol=4 * (0.5 / (draws * found[0].valid.sum())) ** 0.5)
    assert [ranking.mean_ap for ranking in found] == pytest.approx([mean_ap] * draws, rel=1e-12)


def test_single_shot_by_hand():
    # One crop of each identity, so nothing is left to chance: junk, match, wrong at the same distance, distractors.
    gallery = Labels(np.array([5, 5, 6, -1, -1]), np.array([0, 1, 1, 1, 1]))
    matrix = np.array([[0, 2, 2, 1, 3]], dtype=np.float32)
    for ranking in rankings(matrix, Labels(np.array([5]), np.array([0])), gallery, CUHK03):
        assert ranking.first_match.tolist() == [3]
        assert (ranking.mean_ap, ranking.mean_inp) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_every_crop_asks_and_its_own_picture_is_no_match():
    # Two identities with two crops each, all of them queries; the own file is left out, as VehicleID is measured.
    labels = Labels(np.array([0, 0, 1, 1]), np.array([-1] * 4))
    position = np.array([0, 1, 2, 5], dtype=np.float32)
    matrix = np.abs(position[:, None] - position)
    found = rankings(matrix, labels, labels, often(VEHICLEID, 50), excluded={(i, i) for i in range(4)})
    # The crop that is drawn is invalid, so one query of each identity is left in each draw.
    assert {(ranking.valid[:2].sum(), ranking.valid[2:].sum()) for ranking in found} == {(1, 1)}
    # From 1 to 0 is as far as from 1 to 2: with both drawn, the wrong one is first. From 0 to 1 nothing is nearer.
    ranks = {(int(ranking.first_match[0]), int(ranking.first_match[1])) for ranking in found}
    assert ranks == {(1, 0), (0, 1), (0, 2)}
    for ranking in found:
        valid = ranking.valid
        np.testing.assert_array_equal(ranking.average_precision[valid], 1 / ranking.first_match[valid])
        assert np.isnan(ranking.average_precision[~valid]).all()


@pytest.mark.parametrize("protocol", [CUHK03, VEHICLEID])
def test_the_seed_alone_decides(protocol):
    rng = np.random.default_rng(0)
    query, gallery = (Labels(rng.integers(0, 20, n), rng.integers(0, 3, n)) for n in (30, 200))
    matrix = rng.random((30, 200), dtype=np.float32)

    def ranks(**options):
        return [ranking.first_match.tolist() for ranking in rankings(matrix, query, gallery, protocol, **options)]

    assert ranks() == ranks(rows=7)
    assert ranks() != ranks(seed=SEED + 1)
    assert len({tuple(first) for first in ranks()}) == protocol.draws


def test_only_the_order_matters():
    rng = np.random.default_rng(1)
    query, gallery = (Labels(rng.integers(0, 9, n), rng.integers(0, 3, n)) for n in (20, 60))
    matrix = rng.integers(0, 30, (20, 60)).astype(np.float32)
    for protocol in (CUHK03, VEHICLEID):
        one, other = (rankings(values, query, gallery, protocol) for values in (matrix, np.exp(matrix / 9) - 7))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.first_match, b.first_match)
            np.testing.assert_array_equal(a.average_precision, b.average_precision)


@pytest.mark.parametrize("protocol", [CUHK03, VEHICLEID])
def test_identities_of_two_types_of_integers(protocol):
    # Float64 holds neither number, and takes them for one.
    pids = np.array([2**60 + 1, 2**60 + 2])
    query, gallery = Labels(pids[:1], np.array([0])), Labels(pids.astype(np.uint64), np.array([1, 1]))
    for ranking in rankings(np.array([[3, 2]], dtype=np.float32), query, gallery, protocol):
        assert ranking.first_match.tolist() == [2]


@pytest.mark.parametrize("protocol", [CUHK03, VEHICLEID])
@pytest.mark.parametrize("people", [3, 3000])
def test_memory_stays_within_what_was_said(people, protocol):
    rng = np.random.default_rng(0)
    query, gallery = (Labels(rng.integers(0, people, n), rng.integers(0, 3, n)) for n in (50, 10_000))
    matrix = rng.random((50, 10_000), dtype=np.float32)
    rankings(matrix, query, gallery, protocol)  # imports and caches
    scorer = DrawnScorer(query, gallery, protocol)
    limit = scorer.bytes_needed + (64 + 2 * 4) * 10_000
    tracemalloc.start()
    score(scorer, matrix, query, gallery, junk=protocol.junk, rows=2).rankings()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < limit + 8 * 10_000 + 250 * people + 50_000  # of the labels' rows, and of what is small
    assert limit < 24 * protocol.draws * (50 + people) + 100 * 10_000


def test_a_negative_seed_is_refused():
    labels = Labels(np.array([0]), np.array([0]))
    with pytest.raises(InputError, match=r"seed of random numbers must be 0 or above\n  got: -1"):
        DrawnScorer(labels, labels, CUHK03, seed=-1)


def test_a_protocol_that_draws_nothing_is_refused():
    labels = Labels(np.array([0]), np.array([0]))
    with pytest.raises(InputError, match=r"The protocol market1501 draws nothing[^$]*'nothing', 1 times"):
        DrawnScorer(labels, labels, PROTOCOLS["market1501"])
