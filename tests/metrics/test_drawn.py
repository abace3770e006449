"""Against plain loops with the same draws, exact expectations by enumeration, and values by hand."""

import itertools
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


def drawn_rows(rng, draws, rows, pids):
    """One row of each identity, identities ascending: the same random numbers as the scorer's, used one by one."""
    groups = [[row for row in rows if pids[row] == pid] for pid in sorted({int(pids[row]) for row in rows} - {-1})]
    shares = rng.random((draws, len(groups)))
    return [[group[int(share * len(group))] for group, share in zip(groups, line, strict=True)] for line in shares]


def rank_among(row, standing, pid, pids):
    """Rank of the first match among gallery rows; at equal distance the wrong one comes first."""
    items = sorted((row[j], bool(pids[j] == pid)) for j in standing)
    return next((rank for rank, (_, same) in enumerate(items, 1) if same), 0)


def whole_gallery(row, kept, pid, pids):
    """Average precision and inverse negative penalty with all matches."""
    items = sorted((row[j], bool(pids[j] == pid)) for j in kept)
    ranks = [rank for rank, (_, same) in enumerate(items, 1) if same]
    return np.mean([n / rank for n, rank in enumerate(ranks, 1)]), len(ranks) / ranks[-1]


@settings(max_examples=60, deadline=None)
@given(matrix_cases())
def test_per_query_equals_the_loop_with_the_same_draws(case):
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
        draws = drawn_rows(np.random.default_rng([SEED, i]), CUHK03.draws, kept, gallery.pids)
        distractors = [j for j in kept if gallery.pids[j] == -1]
        precision, penalty = whole_gallery(row, kept, pid, gallery.pids)
        for ranking, drawn in zip(found, draws, strict=True):
            assert ranking.first_match[i] == rank_among(row, [*drawn, *distractors], pid, gallery.pids)
            assert ranking.average_precision[i] == pytest.approx(precision, rel=1e-12)
            assert ranking.inverse_negative_penalty[i] == pytest.approx(penalty, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(matrix_cases())
def test_gallery_equals_the_loop_with_the_same_draws(case):
    matrix, query, gallery, excluded = case
    found = rankings(matrix, query, gallery, VEHICLEID, excluded=excluded)
    draws = drawn_rows(np.random.default_rng(SEED), VEHICLEID.draws, range(len(gallery.pids)), gallery.pids)
    distractors = np.flatnonzero(gallery.pids == -1).tolist()
    for ranking, drawn in zip(found, draws, strict=True):
        for i, row in enumerate(matrix):
            standing = [j for j in [*drawn, *distractors] if (i, j) not in excluded]
            rank = rank_among(row, standing, query.pids[i], gallery.pids)
            assert ranking.first_match[i] == rank
            for share in (ranking.average_precision[i], ranking.inverse_negative_penalty[i]):
                assert share == pytest.approx(1 / rank if rank else np.nan, nan_ok=True)


def expected_ranks(row, groups, distractors, pid):
    """Probability of each rank: every combination of one crop from each identity is equally likely."""
    pids = {j: p for p, group in groups.items() for j in group} | dict.fromkeys(distractors, -1)
    counts = Counter(
        rank_among(row, [*drawn, *distractors], pid, pids) for drawn in itertools.product(*groups.values())
    )
    return {rank: count / counts.total() for rank, count in counts.items()}


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

    assert ranks() == ranks(memory=matrix[:7].nbytes)
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


def test_a_protocol_that_draws_nothing_is_refused():
    labels = Labels(np.array([0]), np.array([0]))
    with pytest.raises(InputError, match=r"The protocol market1501 draws nothing[^$]*'nothing', 1 times"):
        DrawnScorer(labels, labels, PROTOCOLS["market1501"])
