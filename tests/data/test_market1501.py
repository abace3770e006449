import pytest

from reidkit.data import load_split
from reidkit.errors import DataError
from reidkit.types import DISTRACTOR

WHOLE = (
    "bounding_box_train/0007_c3s1_000001_01.jpg",
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "query/0010_c1s2_000077_00.jpg",
    "bounding_box_test/0010_c2s1_000500_01.jpg",
    "bounding_box_test/0000_c1s1_000151_01.jpg",
    "bounding_box_test/-1_c6s1_000401_03.jpg",
)


def test_identities_cameras_distractors_and_junk(lay_out):
    root = lay_out(WHOLE)
    split = load_split(root)
    assert (split.format, split.root) == ("market1501", root)
    assert dict(split.pid_names) == {0: "0002", 1: "0007", 2: "0010"}
    assert dict(split.camera_names) == {0: "c1", 1: "c2", 2: "c3", 3: "c6"}
    assert [(c.path.name, c.pid, c.camid) for c in split.train] == [
        ("0002_c1s1_000451_03.jpg", 0, 0),
        ("0007_c3s1_000001_01.jpg", 1, 2),
    ]
    assert [(c.pid, c.camid) for c in split.query] == [(2, 0)]
    assert [(c.path.name, c.pid, c.camid) for c in split.gallery] == [
        ("0000_c1s1_000151_01.jpg", DISTRACTOR, 0),
        ("0010_c2s1_000500_01.jpg", 2, 1),
    ]
    assert [(c.path.name, c.camid) for c in split.junk] == [("-1_c6s1_000401_03.jpg", 3)]
    assert split.train[0].path == root / WHOLE[1]


def test_clutter_further_folders_and_double_suffix_do_no_harm(lay_out):
    extra = ("query/Thumbs.db", "query/.DS_Store", "bounding_box_train/._0002_c1s1_000451_03.jpg", "readme.txt")
    split = load_split(lay_out((*WHOLE, *extra, "gt_bbox/anything.jpg", "query/0010_c3s1_000001_00.jpg.jpg")))
    assert [len(split.train), len(split.query), len(split.gallery), len(split.junk)] == [2, 2, 2, 1]


def test_a_missing_folder_is_named(lay_out):
    root = lay_out([name for name in WHOLE if not name.startswith("query/")])
    with pytest.raises(DataError) as caught:
        load_split(root)
    text = str(caught.value)
    assert f"{root} is not whole: no folder query" in text
    assert "got: set with bounding_box_test/, bounding_box_train/" in text
    assert "expected: Market-1501 with bounding_box_train/, query/, bounding_box_test/" in text


def test_misnamed_files_are_counted_and_shown(lay_out):
    bad = [f"bounding_box_train/IMG_{i}.jpg" for i in range(7)]
    with pytest.raises(DataError) as caught:
        load_split(lay_out((*WHOLE, *bad)))
    text = str(caught.value)
    assert "7 names in " in text
    assert "cannot be Market-1501's" in text
    assert "got: IMG_0.jpg, IMG_1.jpg, IMG_2.jpg, IMG_3.jpg, IMG_4.jpg and 2 more" in text
    assert "expected: names such as 0002_c1s1_000451_03.jpg" in text


def test_a_folder_among_the_pictures_is_misnamed(lay_out):
    with pytest.raises(DataError, match=r"1 name in .*query cannot be Market-1501's\n  got: more/"):
        load_split(lay_out((*WHOLE, "query/more/0010_c1s1_000001_00.jpg")))


@pytest.mark.parametrize(("folder", "subset"), [("query", "query"), ("bounding_box_train", "train")])
@pytest.mark.parametrize("name", ["0000_c1s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"])
def test_nobody_can_be_asked_for_or_learned(lay_out, folder, subset, name):
    with pytest.raises(DataError, match=rf"1 {subset} picture of .* named as junk or distractors\n  got: {name}"):
        load_split(lay_out((*WHOLE, f"{folder}/{name}")))
