import random

import pytest

from reidkit.data import FORMATS, load_split
from reidkit.errors import ConfigError, DataError
from reidkit.types import SUBSETS

MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "query/0010_c1s2_000077_00.jpg",
    "bounding_box_test/0010_c2s1_000500_01.jpg",
)
DUKE = (
    "bounding_box_train/0001_c2_f0046182.jpg",
    "query/0005_c8_f0090000.jpg",
    "bounding_box_test/0005_c2_f0051341.jpg",
)


def test_formats():
    assert list(FORMATS) == ["market1501", "dukemtmc", "msmt17", "cuhk03", "veri776", "vehicleid", "folder", "table"]


def test_a_variant_of_a_format_without(lay_out):
    with pytest.raises(ConfigError) as caught:
        load_split(lay_out(MARKET), variant="small")
    assert (
        "set has no variants\n  got: variant 'small' of market1501\n  expected: only with cuhk03 or vehicleid"
        in str(caught.value)
    )


def test_no_data_set_lists_all_layouts(lay_out):
    with pytest.raises(DataError) as caught:
        load_split(lay_out(["docs/readme.txt", "setup.py"]))
    text = str(caught.value)
    assert "is no data set that reidkit knows" in text
    assert "got: set with docs/, setup.py; docs with readme.txt" in text
    for name, parser in FORMATS.items():
        assert f"{name:<11} {parser.LAYOUT}" in text


def test_misnamed_market_folders_are_not_taken_for_identities(lay_out):
    with pytest.raises(DataError, match=r"got: set with bounding_box_train/; bounding_box_train with IMG_1.jpg"):
        load_split(lay_out(["bounding_box_train/IMG_1.jpg"]))


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"is no data set that reidkit knows\n  got: an empty folder"):
        load_split(tmp_path)


def test_an_empty_folder_as_a_named_format(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path.name} holds no pictures"):
        load_split(tmp_path, "folder")
    with pytest.raises(
        DataError, match="no folder bounding_box_train and no folder query and no folder bounding_box_test"
    ):
        load_split(tmp_path, "market1501")


@pytest.mark.parametrize("format_name", [None, "table", "folder"])
def test_a_path_that_is_not_there(tmp_path, format_name):
    with pytest.raises(DataError, match=r"No such folder or file: .*nowhere\.csv"):
        load_split(tmp_path / "nowhere.csv", format_name)


def test_a_picture_or_another_file(lay_out):
    root = lay_out(["a.JPG", "notes.md"])
    with pytest.raises(DataError, match=r"a\.JPG is a picture, not a data set\n  expected: a folder, or a CSV file"):
        load_split(root / "a.JPG")
    with pytest.raises(DataError, match=r"notes\.md is a file, not a data set"):
        load_split(root / "notes.md")
    with pytest.raises(DataError, match=r"a\.JPG is a picture\n  expected: a folder with bounding_box_train/"):
        load_split(root / "a.JPG", "market1501")


def test_a_folder_as_a_table_and_a_table_under_another_suffix(lay_out):
    root = lay_out(["a.jpg"])
    with pytest.raises(
        DataError, match=r"set is a folder\n  expected: a file .csv with the columns path,pid,camid,subset"
    ):
        load_split(root, "table")
    (root / "set.txt").write_text("path,pid,subset\na.jpg,1,train\n")
    assert len(load_split(root / "set.txt", "table").train) == 1


def test_an_unknown_format_suggests_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"Unknown format 'market'(.|\n)*did you mean 'market1501'"):
        load_split(tmp_path, "market")


def test_the_parent_of_the_only_data_set(lay_out):
    root = lay_out([f"Market-1501-v15.09.15/{name}" for name in MARKET] + ["Market.zip", "papers/market.pdf"])
    split = load_split(root)
    assert (split.format, split.root) == ("market1501", root / "Market-1501-v15.09.15")
    assert load_split(root, "market1501") == split


def test_the_parent_of_several_data_sets(lay_out):
    root = lay_out([*(f"market/{name}" for name in MARKET), *(f"duke/{name}" for name in DUKE)])
    with pytest.raises(DataError, match="could be read in more than one way") as caught:
        load_split(root)
    assert f"got: {root / 'duke'} as dukemtmc, {root / 'market'} as market1501" in str(caught.value)
    assert "give the data set's own folder, or name the format" in str(caught.value)
    assert load_split(root, "dukemtmc").root == root / "duke"


def test_a_named_format_is_not_replaced_by_the_one_that_fits(lay_out):
    with pytest.raises(DataError, match=r"names? in .* cannot be Market-1501's\n  got: 0001_c2_f0046182.jpg"):
        load_split(lay_out(DUKE), "market1501")


def test_the_order_on_disk_does_not_matter(lay_out):
    names = [f"{subset}/{i:02d}/cam{j}_{i}.jpg" for subset in SUBSETS for i in range(12) for j in range(3)]
    one = load_split(lay_out(names, "one"))
    random.Random(0).shuffle(names)
    two = load_split(lay_out(names, "two"))
    for subset in SUBSETS:
        crops = one.subset(subset)
        assert [(c.path.relative_to(one.root), c.pid, c.camid) for c in crops] == [
            (c.path.relative_to(two.root), c.pid, c.camid) for c in two.subset(subset)
        ]
        paths = [c.path.as_posix() for c in crops]
        assert paths == sorted(paths)


def test_code_point_order_not_a_dictionary(lay_out):
    split = load_split(lay_out(["é/c_1.jpg", "a/c_1.jpg", "B/c_1.jpg", "a-/c_1.jpg"]))
    assert list(split.pid_names.values()) == ["B", "a", "a-", "é"]
