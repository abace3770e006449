"""Batches: what every epoch must hold, whatever the counts; and what is said of them."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reidkit.errors import TrainingError
from reidkit.train.sampler import describe_batches, identity_batches, plain_batches
from reidkit.train.settings import Batches

BALANCES = ("crops", "cameras", "identities")


def labels_of(counts, seed=0):
    """Labels in no order, with gaps between the numbers."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3 + 1, counts))


def epoch_of(labels, identities, crops, *, cameras=None, balance="crops", seed=0, epoch=0):
    cameras = np.zeros_like(labels) if cameras is None else cameras
    settings = Batches(identities, crops, balance)
    return list(identity_batches(labels, cameras, settings, seed=seed, epoch=epoch))


def most_batches(counts, identities, crops):
    """How many batches of different people there are to be had: each gives a batch at most one of its groups."""
    groups, most = -(-np.asarray(counts) // crops), 0
    while np.minimum(groups, most + 1).sum() >= identities * (most + 1):
        most += 1
    return most


def said(counts, *, cameras=None, metric=True, **options):
    labels = np.repeat(np.arange(len(counts)), counts)
    cameras = np.zeros_like(labels) if cameras is None else np.asarray(cameras)
    return describe_batches(labels, cameras, Batches(**options), metric=metric)


@hypothesis_settings(max_examples=250, deadline=None)
@given(
    counts=st.lists(st.integers(1, 23), min_size=2, max_size=25),
    identities=st.integers(2, 8),
    crops=st.integers(2, 6),
    cameras=st.integers(1, 7),
    balance=st.sampled_from(BALANCES),
    seed=st.integers(0, 5),
)
def test_every_epoch_is_made_of_whole_batches_and_ends(counts, identities, crops, cameras, balance, seed):
    labels = labels_of(counts, seed)
    camids = np.random.default_rng(seed).integers(0, cameras, len(labels)) ** 2 - 1
    options = {"cameras": camids, "balance": balance, "seed": seed}
    if len(counts) < identities:
        with pytest.raises(TrainingError, match="Too few identities for a batch"):
            epoch_of(labels, identities, crops, **options)
        return
    batches = epoch_of(labels, identities, crops, **options)
    assert 1 <= len(batches) <= most_batches(counts, identities, crops)
    for batch in batches:
        assert batch.shape == (identities * crops,)
        groups = batch.reshape(identities, crops)
        assert all(len(set(labels[group])) == 1 for group in groups)
        assert len(set(labels[batch])) == identities
        for group in groups:
            own = labels == labels[group[0]]
            assert len(set(group)) == min(crops, own.sum())  # twice in a batch only where the identity has too few
            if balance == "cameras":
                assert len(set(camids[group])) == min(crops, len(set(camids[own])))
    if balance == "crops":
        times = np.bincount(np.concatenate(batches), minlength=len(labels))
        for pid in np.unique(labels):
            own = times[labels == pid]
            short = -len(own) % crops  # so many places are filled up
            assert own.max() <= -(-(len(own) + short) // len(own))
            assert np.maximum(own - 1, 0).sum() <= short


@pytest.mark.parametrize("balance", BALANCES)
def test_no_crop_comes_twice_where_nobody_is_short(balance):
    drawn = np.concatenate(epoch_of(labels_of([8] * 12), 4, 4, balance=balance))
    assert len(drawn) == len(set(drawn))


@pytest.mark.parametrize("counts", [[3, 3], [3, 3, 3]])
def test_too_few_identities_for_a_batch(counts):
    n = len(counts)
    text = rf"Too few identities for a batch\n  got: {n} identities\n  expected: at least 4\n.*batches\.identities={n}$"
    with pytest.raises(TrainingError, match=text):
        epoch_of(labels_of(counts), 4, 4)
    with pytest.raises(TrainingError, match=text):
        said(counts, identities=4)


@pytest.mark.parametrize("count", [1, 40])
def test_one_identity_alone(count):
    text = f"only one identity to train on\n  got: {count} crops of one identity\n  expected: at least two.*\n.*people"
    with pytest.raises(TrainingError, match=text):
        epoch_of(labels_of([count]), 4, 4)
    with pytest.raises(TrainingError, match=text):
        said([count], metric=False)


@pytest.mark.parametrize("balance", BALANCES)
def test_people_with_one_crop_fill_their_place_with_it(balance):
    batches = epoch_of(labels_of([1, 1, 1]), 3, 4, balance=balance)
    assert len(batches) == 1
    assert sorted(batches[0]) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_places_are_filled_up_evenly():
    (batch,) = epoch_of(labels_of([2, 3]), 2, 6)
    assert sorted(np.bincount(batch)) == [2, 2, 2, 3, 3]


def test_a_short_last_group_is_filled_with_other_crops():
    for seed in range(20):  # five crops: the second group holds the fifth and three of the first four
        for batch in epoch_of(labels_of([5, 5]), 2, 4, seed=seed):
            assert len(set(batch)) == 8


@pytest.mark.parametrize("balance", BALANCES)
def test_seed_and_epoch_decide(balance):
    labels = labels_of([7, 9, 4, 12, 8])
    cameras = np.arange(40) % 5

    def drawn(seed, epoch):
        batches = epoch_of(labels, 3, 4, cameras=cameras, balance=balance, seed=seed, epoch=epoch)
        return np.concatenate(batches).tolist()

    assert drawn(1, 2) == drawn(1, 2)
    assert len({tuple(drawn(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("balance", BALANCES)
def test_labels_and_cameras_are_left_as_they_were(balance):
    labels, cameras = labels_of([5, 6, 7]), np.arange(18) % 4
    before = labels.copy()
    epoch_of(labels, 2, 4, cameras=cameras, balance=balance)
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(cameras, np.arange(18) % 4)


SKEWED = {
    "like Market-1501": np.maximum(2, np.random.default_rng(0).gamma(2.2, 7.8, 751)).astype(int),
    "Zipf": np.maximum(1, 400 / np.arange(1, 301)).astype(int),
    "half of them single": np.array([1] * 200 + [24] * 200),
    "as many people as a batch": np.full(16, 20),
    "one giant": np.array([1000] + [8] * 60),
}


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("name", SKEWED)
def test_an_epoch_covers_nearly_all_that_different_people_allow(name, balance):
    counts = SKEWED[name]
    labels = labels_of(counts)
    cameras = np.random.default_rng(1).integers(0, 6, len(labels))
    batches = epoch_of(labels, 16, 4, cameras=cameras, balance=balance)
    # 16 people a batch bound what an epoch can see of one with far more crops than the others; the bound is reached.
    assert 0.97 * most_batches(counts, 16, 4) - 1 <= len(batches) <= most_batches(counts, 16, 4)
    if name == "like Market-1501" and balance == "crops":
        assert len(np.unique(np.concatenate(batches))) >= 0.99 * len(labels)


@pytest.mark.parametrize("balance", BALANCES)
def test_what_one_epoch_leaves_out_another_brings(balance):
    labels = labels_of([40] + [4] * 8)
    cameras = np.where(np.arange(len(labels)) % 9, 0, 1)
    seen = set()
    for epoch in range(60):
        seen.update(np.concatenate(epoch_of(labels, 3, 4, cameras=cameras, balance=balance, epoch=epoch)).tolist())
    assert seen == set(range(len(labels)))


def test_a_batch_is_not_an_order_of_people():
    labels = labels_of([8] * 30)
    firsts = [labels[next(iter(islice(epoch_of(labels, 5, 2, epoch=e), 1)))[0]] for e in range(60)]
    assert len(set(firsts)) > 15  # 60 draws of 30 people find about 26


def groups_of(labels, cameras, pid, crops, *, epoch=0):
    batches = epoch_of(labels, 2, crops, cameras=cameras, balance="cameras", epoch=epoch)
    groups = np.concatenate([batch.reshape(2, crops) for batch in batches])
    return groups[labels[groups[:, 0]] == pid]


def test_every_crop_once_where_cameras_are_balanced_already():
    # Three groups of four from six cameras with two crops each: all twelve, and never a camera twice in a group.
    labels, cameras = np.repeat([0, 1], 12), np.tile(np.repeat(np.arange(6), 2), 2)
    for pid in (0, 1):
        groups = groups_of(labels, cameras, pid, 4)
        assert sorted(groups.ravel()) == list(range(12 * pid, 12 * pid + 12))
        assert all(len(set(cameras[group])) == 4 for group in groups)


def test_a_rare_camera_is_in_every_group_of_few_cameras():
    # Twenty crops make five groups; one camera has 18 of them, the other 2, which come again and again, evenly.
    labels, cameras = np.repeat([0, 1], 20), np.tile([7] * 18 + [9] * 2, 2)
    groups = groups_of(labels, cameras, 0, 4)
    assert groups.shape == (5, 4)
    assert (cameras[groups] == 9).sum(axis=1).tolist() == [1] * 5
    assert sorted(np.bincount(groups[cameras[groups] == 9])[18:]) == [2, 3]
    common = groups[cameras[groups] == 7]
    assert len(common) == len(set(common)) == 15


def test_which_cameras_a_group_shows_changes_from_epoch_to_epoch():
    labels, cameras = np.repeat([0, 1], 6), np.tile(np.arange(6), 2)
    epochs = [groups_of(labels, cameras, 0, 3, epoch=epoch) for epoch in range(12)]
    assert len({frozenset(cameras[groups[0]]) for groups in epochs}) > 5  # of 20 choices
    assert all(sorted(cameras[groups.ravel()]) == list(range(6)) for groups in epochs)


def test_without_known_cameras_balancing_them_deals_like_crops():
    labels = labels_of([9, 8, 12])
    for cameras in (np.full(29, -1), np.arange(29)):  # one for all, or one for each crop
        drawn = np.concatenate(epoch_of(labels, 3, 4, cameras=cameras, balance="cameras"))
        assert len(drawn) == 24
        assert len(set(drawn)) >= 21  # the nine crops fill three groups of four, and only they come again


def test_everybody_equally_often_whatever_they_have():
    counts = [1, 2, 4, 8, 16, 32, 64, 100]
    labels = labels_of(counts)
    for epoch in range(5):
        batches = epoch_of(labels, 2, 4, balance="identities", epoch=epoch)
        times = np.bincount(labels[np.concatenate(batches)])[np.unique(labels)] // 4
        # 1 + 1 + 1 + 2 + 4 + 8 + 16 + 25 = 58 groups make 29 pairs of different people, and so 58 / 8 groups for each.
        assert len(batches) == 29
        assert sorted(times) == [7, 7, 7, 7, 7, 7, 8, 8]


@pytest.mark.parametrize(("count", "size", "batches"), [(64, 16, 4), (65, 16, 5), (5, 16, 1), (1, 2, 1), (16, 16, 1)])
def test_plain_batches_show_every_crop_and_are_all_whole(count, size, batches):
    drawn = list(plain_batches(count, size=size, seed=3, epoch=1))
    assert [batch.shape for batch in drawn] == [(size,)] * batches
    times = np.bincount(np.concatenate(drawn), minlength=count)
    assert times.min() >= 1
    assert times.max() - times.min() <= 1
    if count >= size:
        assert all(len(set(batch)) == size for batch in drawn)


def test_seed_and_epoch_decide_on_plain_batches():
    def drawn(seed, epoch):
        return np.concatenate(list(plain_batches(40, size=8, seed=seed, epoch=epoch))).tolist()

    assert drawn(1, 2) == drawn(1, 2)
    assert len({tuple(drawn(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_nothing_is_said_of_good_data():
    assert said([8] * 20) == []
    assert said([8] * 20, cameras=np.tile(np.arange(4), 40), balance="cameras") == []
    assert said([8] * 20, balance="identities", identities=4) == []


def test_single_crops_and_few_crops_are_said():
    sentences = said([1, 1, 2, 3, 3, 8, 8, 8], identities=2)
    assert sentences == [
        "2 of 8 identities have one crop: it is repeated 4 times in a batch, and only augmentation makes a difference"
        " between its copies",
        "3 of 8 identities have fewer than 4 crops: some of them come twice in a batch",
    ]


def test_lone_cameras_are_said():
    lone = np.repeat(np.arange(4), 8)
    assert said([8] * 4, cameras=lone, balance="cameras", identities=2) == [
        'no identity was seen by two cameras: balance "cameras" does what "crops" does'
    ]
    lone[:8] = np.arange(8)
    (sentence,) = said([8] * 4, cameras=lone, balance="cameras", identities=2)
    assert sentence == "3 of 4 identities were seen by one camera only: there is nothing to balance for them"
    assert said([8] * 4, cameras=lone, balance="crops", identities=2) == []


def test_what_an_epoch_has_no_room_for_is_said():
    # The giant is in each batch at most once. 15 others with two groups each: two batches, 8 of its crops.
    (sentence,) = said([1000] + [8] * 15, identities=16)
    assert "an epoch of 2 batches sees about 11% of the crops, in each epoch others" in sentence  # 128 of 1120
    (sentence,) = said([400] + [4] * 100, identities=2, balance="identities")
    assert "sees about 51% of the crops" in sentence  # one or two groups for everybody


def test_nobody_has_two_crops():
    text = r"No identity has two crops.*\n  got: 20 crops of 20 identities\n  expected: .*several crops.*\n.*weight=0"
    with pytest.raises(TrainingError, match=text):
        said([1] * 20)
    assert len(said([1] * 20, metric=False)) == 1
