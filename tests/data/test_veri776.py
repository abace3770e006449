import pytest

from reidkit.data import load_split
from reidkit.errors import DataError

WHOLE = (
    "image_train/0001_c001_00016450_0.jpg",
    "image_query/0002_c019_00030600_1.jpg",
    "image_test/0002_c002_00030600_0.jpg",
    "image_test/0776_c020_00000001_0.jpg",
    "name_train.txt",
)


def test_identities_and_cameras(lay_out):
    split = load_split(lay_out(WHOLE))
    assert split.format == "veri776"
    assert dict(split.pid_names) == {0: "0001", 1: "0002", 2: "0776"}
    assert dict(split.camera_names) == {0: "c001", 1: "c002", 2: "c019", 3: "c020"}
    assert [(c.pid, c.camid) for c in (*split.train, *split.query, *split.gallery)] == [(0, 0), (1, 2), (1, 1), (2, 3)]


def test_missing_folders_are_named(lay_out):
    with pytest.raises(DataError, match="no folder image_train and no folder image_query"):
        load_split(lay_out(WHOLE[2:]))


def test_folders_of_this_name_with_other_files_are_not_taken_for_identities(lay_out):
    root = lay_out(["image_train/000001.jpg", "image_query/000001.jpg", "image_test/000001.jpg"])
    with pytest.raises(DataError, match="is no data set that reidkit knows"):
        load_split(root)
