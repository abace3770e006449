"""Who is held back, what is measured, and a network that is left as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import TINY

from reidkit.errors import DataError
from reidkit.models.model import Preprocess, build_model
from reidkit.train.settings import Validation
from reidkit.train.validation import Examination, divide, embed
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, Crop, InputSpec, Split

pytestmark = pytest.mark.usefixtures("narrow_networks")

HELD_OUT = Validation(every=1.0, identities=0.3)


def crops_of(folder, people, cameras):
    """A crop of each of these people by each of these cameras, in order; a camera may come twice."""
    return tuple(Crop(folder / f"{pid}_{i}.png", pid, camid) for pid in people for i, camid in enumerate(cameras))


def split_of(folder, train, **others):
    return Split("folder", folder, train=train, **others)


@pytest.fixture
def ten(tmp_path):
    """Ten people, four crops each, by three cameras."""
    return split_of(tmp_path, crops_of(tmp_path, range(10), (1, 1, 2, 3)))


def pids_of(crops):
    return {crop.pid for crop in crops}


def test_without_measurements_all_learn(ten):
    learned, examination = divide(ten, Validation(), seed=0)
    assert learned == ten.train
    assert examination is None


def test_who_is_held_back_teaches_nothing(ten):
    learned, examination = divide(ten, HELD_OUT, seed=0)
    held = pids_of(examination.gallery)
    assert len(held) == 3
    assert held.isdisjoint(pids_of(learned))
    assert held == pids_of(examination.query)
    # All the crops of everybody, in their order.
    assert sorted([*learned, *examination.gallery], key=lambda crop: crop.path) == list(ten.train)
    assert learned == tuple(crop for crop in ten.train if crop.pid not in held)
    assert examination.crops == examination.query + examination.gallery


def test_one_crop_of_each_camera_asks_and_the_camera_counts(ten):
    _, examination = divide(ten, HELD_OUT, seed=0)
    assert [int(crop.path.stem[-1]) for crop in examination.query] == [0, 2, 3] * 3  # the first of each camera
    assert examination.junk


def test_the_seed_decides_who(ten):
    held = [frozenset(pids_of(divide(ten, HELD_OUT, seed=seed)[1].gallery)) for seed in range(8)]
    assert held[0] == pids_of(divide(ten, HELD_OUT, seed=0)[1].gallery)
    assert len(set(held)) > 4


@pytest.mark.parametrize(("share", "wanted"), [(0.01, 2), (0.2, 2), (0.45, 4), (0.8, 8), (0.9, 9)])
def test_at_least_two_are_held_back(ten, share, wanted):
    learned, examination = divide(ten, replace(HELD_OUT, identities=share), seed=0)
    assert len(pids_of(examination.gallery)) == wanted
    assert len(pids_of(learned)) == 10 - wanted


@pytest.mark.parametrize(("people", "share"), [(2, 0.1), (10, 0.97), (1, 0.1)])
def test_somebody_must_be_left_to_learn_from(tmp_path, people, share):
    split = split_of(tmp_path, crops_of(tmp_path, range(people), (1, 2)))
    with pytest.raises(DataError, match=rf"too few identities to hold any back\n  got: {people}, of which") as caught:
        divide(split, replace(HELD_OUT, identities=share), seed=0)
    assert "validation.every=0" in str(caught.value)


@pytest.mark.parametrize("camera", [UNKNOWN_CAMERA, 0])
def test_where_cameras_are_not_known_they_make_no_difference(tmp_path, camera):
    split = split_of(tmp_path, crops_of(tmp_path, range(10), (camera,) * 3))
    _, examination = divide(split, HELD_OUT, seed=0)
    assert not examination.junk
    assert len(examination.query) == 3
    assert len(examination.gallery) == 9
    # By hand: each asks for two others of its own.
    embeddings = np.eye(10, dtype=np.float32)[[crop.pid for crop in examination.crops]]
    assert examination.rank(embeddings).mean_ap == pytest.approx(1.0)


def test_one_crop_by_each_camera_is_enough(tmp_path):
    split = split_of(tmp_path, crops_of(tmp_path, range(10), (1, 2)))
    _, examination = divide(split, HELD_OUT, seed=0)
    assert examination.query == examination.gallery
    assert examination.junk


def test_people_with_one_crop_each_cannot_be_measured_on(tmp_path):
    split = split_of(tmp_path, crops_of(tmp_path, range(10), (1,)))
    text = r"held out cannot be measured on\n  got: 3 of 10 identities with one crop each\n.*several crops"
    with pytest.raises(DataError, match=text):
        divide(split, HELD_OUT, seed=0)


def test_the_figures_by_hand(tmp_path):
    """A query, its own crop by another camera second nearest, one by its own camera (junk) nearest."""
    query = (Crop(tmp_path / "q.png", 1, 1),)
    gallery = tuple(
        Crop(tmp_path / f"{i}.png", pid, camid) for i, (pid, camid) in enumerate([(1, 1), (2, 1), (1, 2), (2, 2)])
    )
    angles = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ranking = Examination(query, gallery, True).rank(embeddings)
    assert ranking.mean_ap == pytest.approx(1 / 2)
    assert ranking.cmc(1) == 0.0
    without = Examination(query, gallery, False).rank(embeddings)
    assert without.mean_ap == pytest.approx((1 + 2 / 3) / 2)
    assert without.cmc(1) == 1.0
    # Its own file is found nowhere.
    assert Examination(query, (*query, *gallery), False).rank(embeddings[[0, 0, 1, 2, 3, 4]]).mean_ap == pytest.approx(
        without.mean_ap
    )


# -- the data set's own query and gallery ------------------------------------------------------------------------------

TEST = Validation(every=1.0, on="test")


def with_test_part(folder, data_format, query, gallery):
    return Split(data_format, folder, train=crops_of(folder, range(4), (1, 2)), query=query, gallery=gallery)


def test_the_test_part_is_measured_on_and_all_learn(tmp_path):
    query, gallery = crops_of(tmp_path, (7, 8), (1,)), crops_of(tmp_path, (7, 8, DISTRACTOR), (2,))
    split = with_test_part(tmp_path, "market1501", query, gallery)
    learned, examination = divide(split, TEST, seed=0)
    assert learned == split.train
    assert examination == Examination(query, gallery, True)


def test_a_protocol_that_draws_its_gallery_is_measured_as_a_whole(tmp_path):
    crops = crops_of(tmp_path, (7, 8), (1, 1))
    split = with_test_part(tmp_path, "vehicleid", crops, crops)
    assert divide(split, TEST, seed=0)[1] == Examination(crops, crops, False)


def test_no_test_part(tmp_path):
    split = with_test_part(tmp_path, "folder", crops_of(tmp_path, (7,), (1,)), ())
    with pytest.raises(DataError, match=r"has no query and gallery to measure on\n  got: 1 query and 0 gallery crops"):
        divide(split, TEST, seed=0)


@pytest.mark.parametrize(("camera", "found"), [(1, False), (2, True), (UNKNOWN_CAMERA, True)])
def test_a_test_part_without_a_match_is_refused_before_the_work(tmp_path, camera, found):
    split = with_test_part(
        tmp_path, "market1501", crops_of(tmp_path, (7,), (1,)), crops_of(tmp_path, (7, 9), (camera,))
    )
    if found:
        assert divide(split, TEST, seed=0)[1] is not None
        return
    text = r"has a match in the gallery\n  got: protocol market1501\n  expected: crops of the same identity by another"
    with pytest.raises(DataError, match=text):
        divide(split, TEST, seed=0)


# -- embedding in the middle of a training -----------------------------------------------------------------------------


def test_embedding_gives_what_evaluation_gives_and_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    network, spec = build_model(TINY, identities=3), InputSpec(32, 16, color="bgr")
    crops = torch.randint(0, 256, (300, 32, 16, 3), dtype=torch.uint8)
    asked = []

    def fetch(indices):
        asked.append(indices.tolist())
        return crops[torch.from_numpy(indices)]

    with torch.no_grad():
        expected = network.eval()(Preprocess(spec)(crops[:270].flip(0)))
        pooled = network.training_outputs(Preprocess(spec)(crops[:5]))[0].pooled
    network.train()
    network.backbone.eval()  # as a frozen one is
    modes = {name: module.training for name, module in network.named_modules()}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    order = np.arange(269, -1, -1)
    got = embed(network, Preprocess(spec), fetch, order)
    assert [part for parts in asked for part in parts] == order.tolist()
    assert max(map(len, asked)) == 256
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not got.requires_grad
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(
        embed(network, Preprocess(spec), fetch, np.arange(5), pooled=True), pooled, rtol=1e-4, atol=1e-5
    )
