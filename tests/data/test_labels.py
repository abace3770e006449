from pathlib import Path

import pytest

from reidkit.data.labels import crops_by_name, own_numbers, unlabelled_crops, unnamed_files
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, UNKNOWN_IDENTITY, Crop


@pytest.mark.parametrize(
    ("name", "pid", "camid"),
    [
        ("0002_c1s1_000451_03.jpg", 2, 1),  # Market-1501
        ("1501_c6s4_001877_00.jpg.jpg", 1501, 6),
        ("0005_c2_f0046985.jpg", 5, 2),  # DukeMTMC-reID
        ("0001_c1_21.png", 1, 1),  # CUHK03-NP
        ("0776_c020_00084730_0.jpg", 776, 20),  # VeRi-776
        ("7_c3.jpg", 7, 3),
        ("0000_c1s1_000151_01.jpg", DISTRACTOR, 1),
    ],
)
def test_identity_and_camera_of_a_name(name, pid, camid):
    path = Path("some/0009_c9s9/folder", name)
    named = crops_by_name([path])
    assert named is not None
    assert (named.crops, named.junk) == ((Crop(path, pid, camid),), ())


def test_junk_comes_apart_and_distractors_do_not():
    paths = [Path(f"{identity}_c4s1_000401_03.jpg") for identity in ("0000", "-1", "0002", "0012")]
    named = crops_by_name(paths)
    assert named is not None
    assert [(crop.path, crop.pid) for crop in named.crops] == [(paths[0], DISTRACTOR), (paths[2], 2), (paths[3], 12)]
    assert [crop.path for crop in named.junk] == [paths[1]]
    assert named.pid_names == {2: "0002", 12: "0012"}
    assert named.camera_names == {4: "c4"}


@pytest.mark.parametrize(
    "name",
    [
        "IMG_0001.jpg",
        "0002.jpg",
        "0002_1.jpg",
        "c1_0002.jpg",
        "x0002_c1s1.jpg",
        "0002_c.jpg",
        "0002_c1x.jpg",
        "0002_c1",
        "_c1s1.jpg",
        "٣_c1s1.jpg",  # a digit, but not one that these data sets write
    ],
)
def test_one_name_that_says_nothing_and_none_is_believed(name):
    paths = [Path("0002_c1s1_000451_03.jpg"), Path(name)]
    assert crops_by_name(paths) is None
    assert unnamed_files(paths) == [Path(name)]


def test_no_names_say_nothing():
    assert crops_by_name([]) is None


def test_the_order_is_that_of_the_paths():
    paths = [Path(f"{pid}_c1s1.jpg") for pid in (30, 4, 200)]
    named = crops_by_name(paths)
    assert named is not None
    assert [crop.pid for crop in named.crops] == [30, 4, 200]
    assert [crop.path for crop in named.crops] == paths


def test_unlabelled_crops_know_their_file_only():
    paths = [Path("b.jpg"), Path("0002_c1s1.jpg")]
    assert unlabelled_crops(paths) == [Crop(path, UNKNOWN_IDENTITY, UNKNOWN_CAMERA) for path in paths]
    assert unlabelled_crops([]) == []


@pytest.mark.parametrize(
    ("names", "own"),
    [
        ({0: "0002", 1: "0007"}, {0: 2, 1: 7}),
        ({0: "c3", 1: "c020"}, {0: 3, 1: 20}),
        ({0: "0007", 1: "ann"}, {0: 0, 1: 1}),
        ({0: "7", 1: "0007"}, {0: 0, 1: 1}),  # two identities, one number
        ({0: "9" * 30, 1: "1"}, {0: 0, 1: 1}),  # no int64
        ({}, {}),
    ],
)
def test_the_data_sets_own_numbers(names, own):
    assert own_numbers(names) == own
