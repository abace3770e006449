"""P x K batches: what every epoch must hold, whatever the counts."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.errors import TrainingError
from reidkit.train.sampler import identity_batches


def labels_of(counts, seed=0):
    """Labels in no order, with gaps between the numbers."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3 + 1, counts))


def epoch_of(labels, identities, crops, *, seed=0, epoch=0):
    return list(identity_batches(labels, identities=identities, crops=crops, seed=seed, epoch=epoch))


def most_batches(counts, identities, crops):
    """How many batches of different people there are to be had: each gives a batch at most one of its groups."""
    groups, most = -(-np.asarray(counts) // crops), 0
    while np.minimum(groups, most + 1).sum() >= identities * (most + 1):
        most += 1
    return most


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(1, 23), min_size=1, max_size=25),
    identities=st.integers(1, 8),
    crops=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_every_epoch_is_made_of_whole_batches_and_ends(counts, identities, crops, seed):
    labels = labels_of(counts, seed)
    if len(counts) < identities:
        with pytest.raises(TrainingError, match="Too few identities for a batch"):
            epoch_of(labels, identities, crops, seed=seed)
        return
    batches = epoch_of(labels, identities, crops, seed=seed)
    assert 1 <= len(batches) <= most_batches(counts, identities, crops)
    for batch in batches:
        assert batch.shape == (identities * crops,)
        groups = batch.reshape(identities, crops)
        assert all(len(set(labels[group])) == 1 for group in groups)
        assert len(set(labels[batch])) == identities
        for group in groups:  # a crop twice in a batch only where the identity has too few
            assert len(set(group)) == min(crops, (labels == labels[group[0]]).sum())
    times = np.bincount(np.concatenate(batches), minlength=len(labels))
    for pid in np.unique(labels):
        own = times[labels == pid]
        short = -len(own) % crops  # so many places are filled up
        assert own.max() <= -(-(len(own) + short) // len(own))
        assert np.maximum(own - 1, 0).sum() <= short


def test_no_crop_comes_twice_where_nobody_is_short():
    labels = labels_of([8] * 12)
    drawn = np.concatenate(epoch_of(labels, 4, 4))
    assert len(drawn) == len(set(drawn))


@pytest.mark.parametrize("counts", [[40], [1], [3, 3, 3]])
def test_too_few_identities_for_a_batch(counts):
    n = len(counts)
    fix = max(2, n)
    text = (
        rf"Too few identities for a batch\n  got: {n} identities\n  expected: at least 4\n.*batches\.identities={fix}$"
    )
    with pytest.raises(TrainingError, match=text):
        epoch_of(labels_of(counts), 4, 4)


def test_people_with_one_crop_fill_their_place_with_it():
    batches = epoch_of(labels_of([1, 1, 1]), 3, 4)
    assert len(batches) == 1
    assert sorted(batches[0]) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_places_are_filled_up_evenly():
    (batch,) = epoch_of(labels_of([2, 3]), 2, 6)
    assert sorted(np.bincount(batch)) == [2, 2, 2, 3, 3]


def test_a_short_last_group_is_filled_with_other_crops():
    for seed in range(20):  # five crops: the second group holds the fifth and three of the first four
        for batch in epoch_of(labels_of([5, 5]), 2, 4, seed=seed):
            assert len(set(batch)) == 8


def test_seed_and_epoch_decide():
    labels = labels_of([7, 9, 4, 12, 8])

    def drawn(seed, epoch):
        return np.concatenate(epoch_of(labels, 3, 4, seed=seed, epoch=epoch)).tolist()

    assert drawn(1, 2) == drawn(1, 2)
    assert len({tuple(drawn(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_labels_are_left_as_they_were():
    labels = labels_of([5, 6, 7])
    before = labels.copy()
    epoch_of(labels, 2, 4)
    np.testing.assert_array_equal(labels, before)


SKEWED = {
    "like Market-1501": np.maximum(2, np.random.default_rng(0).gamma(2.2, 7.8, 751)).astype(int),
    "Zipf": np.maximum(1, 400 / np.arange(1, 301)).astype(int),
    "half of them single": np.array([1] * 200 + [24] * 200),
    "as many people as a batch": np.full(16, 20),
    "one giant": np.array([1000] + [8] * 60),
}


@pytest.mark.parametrize("name", SKEWED)
def test_an_epoch_covers_nearly_all_that_different_people_allow(name):
    counts = SKEWED[name]
    labels = labels_of(counts)
    batches = epoch_of(labels, 16, 4)
    # 16 people a batch bound what an epoch can see of one with far more crops than the others; the bound is reached.
    assert len(batches) >= 0.97 * most_batches(counts, 16, 4) - 1
    if name == "like Market-1501":
        assert len(np.unique(np.concatenate(batches))) >= 0.99 * len(labels)


def test_what_one_epoch_leaves_out_another_brings():
    labels = labels_of([40] + [4] * 8)
    seen = set()
    for epoch in range(60):
        seen.update(np.concatenate(epoch_of(labels, 3, 4, epoch=epoch)).tolist())
    assert seen == set(range(len(labels)))


def test_a_batch_is_not_an_order_of_people():
    labels = labels_of([8] * 30)
    firsts = [labels[next(iter(islice(epoch_of(labels, 5, 2, epoch=e), 1)))[0]] for e in range(60)]
    assert len(set(firsts)) > 15  # 60 draws of 30 people find about 26
