import pytest

from reidkit.data import load_split
from reidkit.errors import DataError

WHOLE = (
    "bounding_box_train/0001_c2_f0046182.jpg",
    "bounding_box_train/0001_c1_f0044158.jpg",
    "query/0005_c8_f0090000.jpg",
    "bounding_box_test/0005_c2_f0051341.jpg",
    "bounding_box_test/7139_c2_f0160815.jpg",
)


def test_identities_and_cameras(lay_out):
    split = load_split(lay_out(WHOLE))
    assert split.format == "dukemtmc"
    assert dict(split.pid_names) == {0: "0001", 1: "0005", 2: "7139"}
    assert dict(split.camera_names) == {0: "c1", 1: "c2", 2: "c8"}
    assert [(c.path.name, c.pid, c.camid) for c in split.train] == [
        ("0001_c1_f0044158.jpg", 0, 0),
        ("0001_c2_f0046182.jpg", 0, 1),
    ]
    assert [(c.pid, c.camid) for c in split.query] == [(1, 2)]
    assert [(c.pid, c.camid) for c in split.gallery] == [(1, 1), (2, 1)]
    assert split.junk == ()


def test_a_misnamed_file(lay_out):
    with pytest.raises(DataError, match=r"1 name in .* cannot be DukeMTMC-reID's\n  got: 1_2.jpg\n"):
        load_split(lay_out((*WHOLE, "query/1_2.jpg")))


def test_a_market_file_among_dukes_is_ambiguous_until_the_format_is_named(lay_out):
    root = lay_out((*WHOLE, "query/0005_c1s1_000001_00.jpg"))
    with pytest.raises(DataError, match="could be read in more than one way") as caught:
        load_split(root)
    assert f"{root} as market1501, {root} as dukemtmc" in str(caught.value)
    with pytest.raises(DataError, match=r"cannot be DukeMTMC-reID's\n  got: 0005_c1s1_000001_00.jpg"):
        load_split(root, "dukemtmc")
