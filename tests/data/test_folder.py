import logging

import pytest

from reidkit.data import load_split
from reidkit.errors import DataError
from reidkit.types import UNKNOWN_CAMERA


def names(split, subset):
    return [crop.path.relative_to(split.root).as_posix() for crop in split.subset(subset)]


def test_one_pool_with_cameras(lay_out):
    split = load_split(
        lay_out(["zoë/door_2.jpg", "zoë/door_1.JPG", "zoë/yard_1.png", "10/yard_7_b.jpg", "9/yard_1.jpg"])
    )
    assert split.format == "folder"
    assert dict(split.pid_names) == {0: "10", 1: "9", 2: "zoë"}
    assert dict(split.camera_names) == {0: "door", 1: "yard"}
    everything = ["10/yard_7_b.jpg", "9/yard_1.jpg", "zoë/door_1.JPG", "zoë/door_2.jpg", "zoë/yard_1.png"]
    assert names(split, "train") == names(split, "gallery") == everything
    assert names(split, "query") == ["10/yard_7_b.jpg", "9/yard_1.jpg", "zoë/door_1.JPG", "zoë/yard_1.png"]
    assert [(crop.pid, crop.camid) for crop in split.query] == [(0, 1), (1, 1), (2, 0), (2, 1)]


def test_one_pool_without_cameras(lay_out, caplog):
    split = load_split(lay_out(["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg", "b/2.jpg"]))
    assert len(split.train) == 5
    assert names(split, "query") == ["a/1.jpg", "b/1.jpg"]
    assert names(split, "gallery") == ["a/2.jpg", "a/3.jpg", "b/2.jpg"]
    assert {crop.camid for crop in split.train} == {UNKNOWN_CAMERA}
    assert split.camera_names == {}
    assert not caplog.records


@pytest.mark.parametrize("odd", ["a/second.jpg", "a/_second.jpg"])
def test_one_name_without_camera_makes_all_unknown_and_is_logged(lay_out, caplog, odd):
    with caplog.at_level(logging.WARNING):
        split = load_split(lay_out(["a/door_1.jpg", odd, "b/door_1.jpg", "b/yard_1.jpg"]))
    assert {crop.camid for crop in split.gallery} == {UNKNOWN_CAMERA}
    assert len(split.query) == 2
    assert "1 of 4 file names tell no camera" in caplog.text
    assert odd.partition("/")[2] in caplog.text


def test_subsets(lay_out):
    split = load_split(
        lay_out(
            ["train/a/door_1.jpg", "query/b/door_1.jpg", "gallery/b/yard_1.jpg", "gallery/c/yard_1.jpg", "notes.txt"]
        )
    )
    assert dict(split.pid_names) == {0: "a", 1: "b", 2: "c"}
    assert [(crop.pid, crop.camid) for crop in (*split.train, *split.query)] == [(0, 0), (1, 0)]
    assert names(split, "gallery") == ["gallery/b/yard_1.jpg", "gallery/c/yard_1.jpg"]


def test_train_alone_and_test_alone(lay_out):
    split = load_split(lay_out(["train/a/door_1.jpg"]))
    assert (len(split.train), split.query, split.gallery) == (1, (), ())
    split = load_split(lay_out(["query/a/door_1.jpg", "gallery/a/yard_1.jpg"], "test"))
    assert (split.train, len(split.query), len(split.gallery)) == ((), 1, 1)


@pytest.mark.parametrize(("there", "missing"), [("query", "gallery"), ("gallery", "query")])
def test_query_and_gallery_come_together(lay_out, there, missing):
    with pytest.raises(DataError, match=rf"has {there}/ but no {missing}/"):
        load_split(lay_out(["train/a/door_1.jpg", f"{there}/b/door_1.jpg"]))


def test_another_folder_beside_the_subsets_is_not_left_out_in_silence(lay_out):
    with pytest.raises(DataError, match=r"has folders beside train/, query/ and gallery/\n  got: test/\n"):
        load_split(lay_out(["train/a/door_1.jpg", "test/b/door_1.jpg"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "loose.jpg",
            r"1 picture in .*set without an identity\n  got: loose.jpg\n  expected: IDENTITY/CAMERA_NAME.jpg",
        ),
        ("a/notes.txt", r"1 entry in .*set cannot be taken for crops\n  got: a/notes.txt\n"),
        ("a/door/1.jpg", r"1 entry in .*set cannot be taken for crops\n  got: a/door/\n"),
    ],
)
def test_strangers(lay_out, name, message):
    with pytest.raises(DataError, match=message):
        load_split(lay_out(["a/door_1.jpg", name]))


def test_identity_in_the_place_of_the_camera(lay_out):
    # Market-1501's crops sorted into a folder for each identity: as cameras they would make every match junk.
    root = lay_out(["0002/0002_c1s1_000451_03.jpg", "0007/0007_c3s3_077419_03.jpg"])
    with pytest.raises(DataError, match="start with the identity where the camera should be") as caught:
        load_split(root)
    assert "got: 0002/0002_c1s1_000451_03.jpg" in str(caught.value)


def test_one_identity_may_be_called_like_its_camera(lay_out):
    assert load_split(lay_out(["door/door_1.jpg"])).camera_names == {0: "door"}
