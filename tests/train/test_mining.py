"""Offline mining: exact against a loop over all pairs, and batches in which every crop has a triplet."""

import numpy as np
import pytest
import torch

from reidkit.errors import ConfigError, TrainingError
from reidkit.train.losses.pairs import batch_hard_triplet
from reidkit.train.mining import check_mining, hardest, mined_batches, round_subset, worst_queries
from reidkit.train.settings import Batches, Mining


def drawn(count, people, dim=6, seed=0, *, spread=1.0):
    """Embeddings around a centre for each person, and whom they show, in no order and with gaps between the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, people, count) * 3 + 1
    centers = rng.normal(size=(3 * people, dim))
    return (centers[labels] + spread * rng.normal(size=(count, dim))).astype(np.float32), labels


def by_hand(embeddings, labels, positives, negatives):
    """Sorts every crop's distances to all others, in float64; the first of equals first."""
    x = embeddings.astype(np.float64)
    far, near, gap = [], [], []
    for i in range(len(x)):
        distances = [(float(np.sqrt(((x[i] - x[j]) ** 2).sum())), j) for j in range(len(x)) if j != i]
        own = sorted((-d, j) for d, j in distances if labels[j] == labels[i])
        others = sorted((d, j) for d, j in distances if labels[j] != labels[i])
        far.append(([j for _, j in own] + [-1] * positives)[:positives])
        near.append(([j for _, j in others] + [-1] * negatives)[:negatives])
        gap.append(-own[0][0] - others[0][0] if own and others else -np.inf)
    return np.array(far), np.array(near), np.array(gap)


def mined(embeddings, labels, *, crops=None, seed=0, number=0, batches=Batches(4, 4), **settings):  # noqa: B008
    crops = np.arange(len(labels)) if crops is None else crops
    return mined_batches(
        torch.from_numpy(embeddings), labels, crops, Mining(**settings), batches, seed=seed, number=number
    )


@pytest.mark.parametrize(("count", "people"), [(2, 1), (3, 2), (40, 30), (60, 5), (150, 25)])
@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (2, 3), (5, 4)])
def test_the_hardest_are_those_of_a_loop_over_all_pairs(count, people, positives, negatives):
    embeddings, labels = drawn(count, people)
    far, near, gap = by_hand(embeddings, labels, positives, negatives)
    for memory in (1, 10 * count * 7, 1 << 28):  # rows one by one, seven at a time, all at once
        found = hardest(torch.from_numpy(embeddings), labels, positives=positives, negatives=negatives, memory=memory)
        np.testing.assert_array_equal(found.positives, far)
        np.testing.assert_array_equal(found.negatives, near)
        np.testing.assert_allclose(found.gap, gap, rtol=1e-5, atol=1e-5)


def test_equal_distances_are_taken_in_the_order_of_the_round():
    embeddings = np.zeros((6, 2), dtype=np.float32)
    embeddings[4:] = 1.0
    labels = np.array([7, 7, 7, 2, 7, 7])
    found = hardest(torch.from_numpy(embeddings), labels, positives=3, negatives=2)
    assert found.positives[:3].tolist() == [[4, 5, 1], [4, 5, 0], [4, 5, 0]]
    assert found.positives[4:].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert found.positives[3].tolist() == [-1, -1, -1]
    assert found.negatives.tolist() == [[3, -1], [3, -1], [3, -1], [0, 1], [3, -1], [3, -1]]


def test_far_from_the_origin_distances_keep_their_digits():
    embeddings, labels = drawn(80, 8)
    found = hardest(torch.from_numpy(embeddings + 1000), labels, positives=1, negatives=1)
    far, near, gap = by_hand(embeddings + np.float32(1000), labels, 1, 1)
    np.testing.assert_array_equal(found.positives, far)
    np.testing.assert_array_equal(found.negatives, near)
    np.testing.assert_allclose(found.gap, gap, atol=1e-3)


def test_autocast_around_it_changes_nothing():
    embeddings, labels = drawn(80, 8, dim=64)
    plain = hardest(torch.from_numpy(embeddings), labels, positives=1, negatives=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hardest(torch.from_numpy(embeddings), labels, positives=1, negatives=2)
    for got, wanted in zip(found, plain, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_queries_are_the_worst_and_nobody_gives_more_than_twice_an_even_share():
    gap = np.array([9, 8, 7, 6, 5, 1, 0, -1, -2, -np.inf], dtype=np.float32)
    labels = np.array([4, 4, 4, 4, 4, 1, 1, 2, 2, 3])
    # Six queries of three people who can: at most four of person 4.
    assert worst_queries(gap, labels, 6).tolist() == [0, 1, 2, 3, 5, 6]
    assert worst_queries(gap, labels, 3).tolist() == [0, 1, 5]
    # All that there are: then also the fifth, after everybody else.
    assert worst_queries(gap, labels, 100).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert worst_queries(gap, labels, 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    gap[:5] = 9
    assert worst_queries(gap, labels, 3).tolist() == [0, 1, 5]
    assert worst_queries(np.full(3, -np.inf, dtype=np.float32), np.array([1, 2, 3]), 5).tolist() == []


def groups_by_hand(embeddings, labels, positives, negatives):
    far, near, _ = by_hand(embeddings, labels, positives, negatives)
    return [
        {i, *far[i][far[i] >= 0], *near[i], *(far[j, 0] for j in near[i] if far[j, 0] >= 0)} for i in range(len(labels))
    ]


@pytest.mark.parametrize("settings", [{}, {"queries": 7}, {"positives": 2, "negatives": 5}, {"queries": 500}])
def test_batches_hold_whole_groups_in_which_everybody_has_a_triplet(settings):
    embeddings, labels = drawn(120, 18)
    crops = np.random.default_rng(5).permutation(5000)[:120]
    batches = mined(embeddings, labels, crops=crops, **settings)
    where = {crop: i for i, crop in enumerate(crops.tolist())}
    members = [[where[crop] for crop in batch.tolist()] for batch in batches]
    assert all(batch.shape == (16,) for batch in batches)
    for batch in members:
        twice = {i for i in batch if batch.count(i) > 1}  # those who are alone, or all that these people have is in
        alone = all((labels == labels[i]).sum() == 1 for i in twice)
        assert alone or set(batch) == set(np.flatnonzero(np.isin(labels, labels[batch])).tolist())
        assert all((labels[batch] == labels[i]).sum() > 1 for i in batch)
        assert len(set(labels[batch])) > 1
    _, _, gap = by_hand(embeddings, labels, 1, 1)
    queries = worst_queries(gap.astype(np.float32), labels, settings.get("queries", 60))
    groups = groups_by_hand(embeddings, labels, settings.get("positives", 1), settings.get("negatives", 2))
    assert all(any(groups[query] <= set(batch) for batch in members) for query in queries.tolist())


def test_the_batch_hard_loss_of_mined_batches_is_at_least_that_of_their_queries():
    embeddings, labels = drawn(300, 40, spread=0.6)
    x = torch.from_numpy(embeddings)

    def loss(batch):
        return float(batch_hard_triplet(x[batch], torch.from_numpy(labels[batch]), margin=0.3))

    mined_loss = np.mean([loss(batch) for batch in mined(embeddings, labels, queries=60)])
    rng = np.random.default_rng(0)
    people = [np.flatnonzero(labels == pid) for pid in np.unique(labels)]
    pk_loss = np.mean(
        [
            loss(np.concatenate([np.resize(rng.permutation(people[i]), 4) for i in rng.permutation(len(people))[:4]]))
            for _ in range(60)
        ]
    )
    assert mined_loss > 1.3 * pk_loss
    # Of the worst query of all, the hardest triplet of the whole round is in the batch.
    far, near, gap = by_hand(embeddings, labels, 1, 1)
    worst = int(gap.argmax())
    (batch,) = mined(embeddings, labels, queries=1, batches=Batches(2, 4))
    assert {worst, int(far[worst, 0]), int(near[worst, 0])} <= set(batch.tolist())


def test_a_negative_without_another_crop_comes_twice():
    # Person 1 has two crops, persons 2 and 3 one each, the nearest to the first.
    embeddings = np.array([[0.0], [5.0], [1.0], [-1.5], [40.0], [41.0]], dtype=np.float32)
    (batch,) = mined(embeddings, np.array([1, 1, 2, 3, 4, 4]), queries=1, batches=Batches(2, 3))
    assert sorted(batch.tolist()) == [0, 1, 2, 2, 3, 3]


def test_places_left_are_filled_with_the_same_people_and_then_with_the_same_crops():
    embeddings = np.array([[0.0], [3.0], [2.0], [1.0], [4.0], [90.0], [91.0]], dtype=np.float32)
    labels = np.array([1, 1, 1, 2, 2, 3, 3])
    # The worst: 0 and 1 are 3 apart with person 2 one away from either. Person 3 is no one's negative.
    (batch,) = mined(embeddings, labels, queries=1, negatives=1, batches=Batches(2, 2))
    assert set(batch.tolist()) == {0, 1, 3, 4}
    (batch,) = mined(embeddings, labels, queries=1, negatives=1, batches=Batches(5, 2))
    assert sorted(np.bincount(batch, minlength=7).tolist(), reverse=True) == [2, 2, 2, 2, 2, 0, 0]


def test_seed_and_round_decide():
    embeddings, labels = drawn(120, 18)

    def order(seed, number):
        return tuple(np.concatenate(mined(embeddings, labels, seed=seed, number=number)).tolist())

    assert order(1, 2) == order(1, 2)
    assert len({order(seed, number) for seed in range(3) for number in range(3)}) == 9


def test_a_round_takes_random_crops_or_all():
    assert round_subset(10, Mining(), seed=0, number=0).tolist() == list(range(10))
    assert round_subset(10, Mining(images=50), seed=0, number=0).tolist() == list(range(10))
    rounds = [round_subset(100, Mining(images=30), seed=seed, number=number) for seed in (0, 1) for number in range(20)]
    assert all(len(set(subset)) == 30 and (np.diff(subset) > 0).all() for subset in rounds)
    assert len({tuple(subset) for subset in rounds}) == 40
    assert set(np.concatenate(rounds)) == set(range(100))
    np.testing.assert_array_equal(rounds[3], round_subset(100, Mining(images=30), seed=0, number=3))


def test_a_group_that_fits_in_no_batch():
    text = r"do not fit in a batch\n  got: .*1 positives and 4 negatives.*: 10 crops\n  expected: .* = 9\n.*mining\.neg"
    with pytest.raises(ConfigError, match=text):
        check_mining(Mining(negatives=4), Batches(3, 3))
    with pytest.raises(ConfigError, match=text):
        mined(*drawn(60, 5), negatives=4, batches=Batches(3, 3))
    check_mining(Mining(negatives=3), Batches(2, 4))


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [1, 2, 3, 4]])
def test_nothing_to_mine(labels):
    people = len(set(labels))
    text = rf"nothing to mine.*\n  got: 4 crops of {people} identities\n.*\n.*mining\.images=0"
    with pytest.raises(TrainingError, match=text):
        mined(np.eye(4, dtype=np.float32), np.array(labels))


def test_embeddings_that_are_no_numbers():
    embeddings, labels = drawn(20, 4)
    embeddings[3, 2], embeddings[7] = np.nan, np.inf
    with pytest.raises(TrainingError, match=r"no numbers.*\n  got: 2 of 20 not finite\n.*\n.*optim\.lr"):
        mined(embeddings, labels)
