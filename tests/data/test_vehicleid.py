import re

import pytest
from PIL import Image

from reidkit.data import inspect_split, load_split, vehicleid
from reidkit.errors import ConfigError, DataError
from reidkit.types import UNKNOWN_CAMERA

LISTS = {
    "train_list.txt": "0000001 10\n0000002 10\n0000007 9\n",
    "test_list_800.txt": "0000004 2\n0000003 2\n0000005 1\n",
    "test_list_1600.txt": "0000003 2\r\n0000005 1\r\n0000006 3\r\n\r\n",
    "test_list_13164.txt": "0000006 3\n",
}
PICTURES = [f"image/{n:07}.jpg" for n in range(1, 8)]


@pytest.fixture
def vehicles(lay_out):
    """Writes pictures and lists, some of them replaced, or left out where None. Gives their folder."""

    def write(root="VehicleID_V1.0", pictures=PICTURES, **replaced):
        folder = lay_out([*pictures, "train_test_split/.keep", "attribute/color_attr.txt"], root)
        for name, text in (LISTS | {f"{name}.txt": text for name, text in replaced.items()}).items():
            if text is not None:
                (folder / "train_test_split" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return write


def described(split, subset):
    return [(crop.path.name, split.pid_names[crop.pid]) for crop in split.subset(subset)]


def test_small_is_the_usual_test_set(vehicles):
    root = vehicles()
    split = load_split(root)
    assert (split.format, split.root, split.junk) == ("vehicleid", root, ())
    assert described(split, "train") == [("0000001.jpg", "10"), ("0000002.jpg", "10"), ("0000007.jpg", "9")]
    assert described(split, "query") == [("0000003.jpg", "2"), ("0000004.jpg", "2"), ("0000005.jpg", "1")]
    assert split.query == split.gallery
    assert split.query[0].path == root / "image/0000003.jpg"
    assert dict(split.pid_names) == {0: "1", 1: "10", 2: "2", 3: "9"}
    assert dict(split.camera_names) == {}
    assert {crop.camid for crop in (*split.train, *split.query)} == {UNKNOWN_CAMERA}


@pytest.mark.parametrize(
    ("variant", "pictures"),
    [
        ("small", "345"),
        ("800", "345"),
        ("medium", "356"),
        ("1600", "356"),
        ("13164", "6"),
    ],
)
def test_variants(vehicles, variant, pictures):
    split = load_split(vehicles(), variant=variant)
    assert [crop.path.stem for crop in split.query] == [f"000000{n}" for n in pictures]
    assert split.gallery == split.query
    assert len(split.train) == 3
    # Reports on several test sets of one folder are told apart.
    assert split.name == f"vehicleid VehicleID_V1.0 {vehicleid.VARIANTS[variant]}"


def test_the_variants_names():
    assert dict(vehicleid.VARIANTS).items() >= {("small", "800"), ("medium", "1600"), ("large", "2400")}
    assert set(vehicleid.VARIANTS) - {"small", "medium", "large"} == {"800", "1600", "2400", "3200", "6000", "13164"}


def test_a_variant_without_its_list(vehicles):
    with pytest.raises(DataError, match=r"train_test_split has no test_list_2400\.txt\n  got: train_test_split with "):
        load_split(vehicles(), variant="large")


@pytest.mark.parametrize(("variant", "near"), [("smal", "small"), ("8000", "800")])
def test_an_unknown_variant(vehicles, variant, near):
    with pytest.raises(ConfigError, match=f"Unknown variant of VehicleID '{variant}'(.|\n)*did you mean '{near}'"):
        load_split(vehicles(), variant=variant)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_list": None}, r"train_test_split has no train_list\.txt\n  got: train_test_split with test_list_1"),
        ({"train_list": ""}, r"train_list\.txt is empty\n  expected: a line for each picture"),
        ({"test_list_800": "\n \n"}, r"test_list_800\.txt is empty"),
        (
            {"test_list_800": "0000003 2\n0000004\n\n0000005 1 7\n0000006.jpg 1\n0000007 -1\n../../x 1"},
            r"6 lines of .*test_list_800\.txt cannot be VehicleID's\n  got: line 2: '0000004', line 3: '', line 4: "
            r"'0000005 1 7', line 5: '0000006\.jpg 1', line 6: '0000007 -1' and 1 more\n  expected: lines such as",
        ),
        (
            {"train_list": "0000001 1\n0000002 1\n0000001 1\n0000002 3\n0000001 1"},
            r"train_list\.txt lists 2 pictures more than once\n  got: 0000001, 0000002\n  expected: each once",
        ),
        (
            {"train_list": "".join(f"{n} 1\n" for n in range(101, 1112)) + "0000001 1"},
            r"train_list\.txt names 1,011 pictures not to be found in .*image\n  got: 101\.jpg, .* and 1,006 more\n"
            r"  expected: all 1,012",
        ),
        ({"train_list": b"\xff\xfe1"}, r"train_list\.txt cannot be read\n  got: 'utf-8' codec"),
    ],
)
def test_broken_lists(vehicles, replaced, message):
    with pytest.raises(DataError, match=message):
        load_split(vehicles(**replaced))


def test_other_digits_are_no_numbers(vehicles):
    with pytest.raises(DataError, match=r"1 line of .* cannot be VehicleID's\n  got: line 1: '٣ 1'"):
        load_split(vehicles(test_list_800="٣ 1"))


def test_no_pictures_at_all(vehicles):
    with pytest.raises(DataError, match="is not whole: no folder image\n"):
        load_split(vehicles(pictures=[]))


@pytest.mark.parametrize("kept", [{"train_list"}, {"test_list_800"}])
def test_half_of_it_is_still_told_from_other_layouts(vehicles, kept):
    root = vehicles(**{name[:-4]: None for name in LISTS if name[:-4] not in kept})
    with pytest.raises(DataError, match=r"train_test_split has no (train_list|test_list_800)"):
        load_split(root)


def test_veri_wild_is_not_taken_for_it(lay_out):
    root = lay_out(["images/00001/000001.jpg", "train_test_split/train_list.txt", "train_test_split/test_3000.txt"])
    assert not vehicleid.claims(root)


def test_inspection_knows_that_query_and_gallery_are_one_list(vehicles):
    root = vehicles()
    for n, name in enumerate(PICTURES):
        Image.new("RGB", (64, 64), (40 * n, 0, 0)).save(root / name)
    (root / "image/0000004.jpg").write_bytes((root / "image/0000003.jpg").read_bytes())
    inspection = inspect_split(load_split(root))
    found = {finding.kind: finding for finding in inspection.findings}
    assert inspection.errors == ()
    assert set(found) == {
        "query-is-gallery",
        "unknown-camera",
        "unmatched-query",
        "single-crop-identity",
        "query-gallery-copy",
    }
    assert found["query-is-gallery"].severity == "info"
    assert found["query-is-gallery"].sentence == (
        "Query and gallery are the same 3 pictures: none is ranked for itself; under a protocol that draws its gallery "
        "(VehicleID's), those that are not drawn ask."
    )
    # Six files, though three of them are in two subsets.
    assert re.match("6 crops of unknown camera", found["unknown-camera"].sentence)
    assert [path.stem for path in found["unknown-camera"].paths] == [f"000000{n}" for n in (1, 2, 3, 4, 5, 7)]
    # The vehicle with one picture can only be found, and never asks.
    assert found["unmatched-query"].sentence == "1 query of 3 without a match in the gallery: not scored."
    assert [path.stem for path in found["unmatched-query"].paths] == ["0000005"]
    assert inspection.valid_queries == 2
    # A file in both is no copy of itself, but two files of the same bytes are.
    assert [path.stem for path in found["query-gallery-copy"].paths] == ["0000003", "0000004"]
