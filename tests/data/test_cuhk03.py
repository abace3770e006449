import json

import pytest

from reidkit.data import load_split
from reidkit.errors import ConfigError, DataError

NP = ("bounding_box_train/0003_c1_21.png", "query/0001_c2_1.png", "bounding_box_test/0001_c1_4.png")
NP_BOTH = (*(f"detected/{name}" for name in NP), *(f"labeled/{name}" for name in (*NP, "query/0001_c1_2.png")))

# As torchreid writes it: paths of another machine, training identities numbered anew, so that 0 is two people.
EXTRACTED = {
    "train": [["/home/somebody/cuhk03/images_detected/1_002_1_01.png", 0, 0]],
    "query": [["C:\\reid\\images_detected\\1_001_1_01.png", 0, 0]],
    "gallery": [["images_detected/1_001_2_06.png", 0, 1], ["images_detected/5_001_1_02.png", 1400, 0]],
    "num_train_pids": 1,
}
EXTRACTED_FILES = [f"images_detected/{n}.png" for n in ("1_002_1_01", "1_001_1_01", "1_001_2_06", "5_001_1_02")]


def lay_out_extracted(lay_out, splits):
    root = lay_out(EXTRACTED_FILES)
    (root / "splits_new_detected.json").write_text(splits if isinstance(splits, str) else json.dumps(splits))
    return root


def test_np_takes_the_detected_variant(lay_out):
    split = load_split(lay_out(NP_BOTH))
    assert (split.format, len(split.query)) == ("cuhk03", 1)
    assert dict(split.pid_names) == {0: "0001", 1: "0003"}
    assert dict(split.camera_names) == {0: "c1", 1: "c2"}
    assert [(c.pid, c.camid) for c in (*split.train, *split.query, *split.gallery)] == [(1, 0), (0, 1), (0, 0)]


def test_np_labeled(lay_out):
    root = lay_out(NP_BOTH)
    split = load_split(root, variant="labeled")
    assert [c.path for c in split.query] == [root / "labeled/query/0001_c1_2.png", root / "labeled/query/0001_c2_1.png"]


def test_the_folder_of_one_variant(lay_out):
    labeled = lay_out(NP_BOTH) / "labeled"
    assert len(load_split(labeled).query) == len(load_split(labeled, variant="labeled").query) == 2
    with pytest.raises(DataError, match=r"labeled is not the detected variant(.|\n)*give the folder .*set/detected"):
        load_split(labeled, variant="detected")


def test_a_variant_that_is_not_there(lay_out):
    with pytest.raises(DataError, match=r"has no labeled variant of CUHK03\n  got: set with detected/"):
        load_split(lay_out(name for name in NP_BOTH if name.startswith("detected")), variant="labeled")


def test_no_such_variant_and_variants_of_others(lay_out):
    with pytest.raises(ConfigError, match=r"Unknown variant of CUHK03 'labelled'(.|\n)*did you mean 'labeled'"):
        load_split(lay_out(NP_BOTH), variant="labelled")
    plain = lay_out(["anna/cam1_1.jpg"], "plain")
    with pytest.raises(ConfigError, match=r"has no variants\n  got: variant 'labeled' of folder"):
        load_split(plain, variant="labeled")


def test_extracted_by_torchreid(lay_out):
    root = lay_out_extracted(lay_out, [EXTRACTED])
    split = load_split(root)
    assert dict(split.pid_names) == {0: "1_001", 1: "1_002", 2: "5_001"}
    assert dict(split.camera_names) == {0: "1", 1: "2"}
    assert [(c.pid, c.camid) for c in (*split.train, *split.query, *split.gallery)] == [(1, 0), (0, 0), (0, 1), (2, 0)]
    assert split.query[0].path == root / "images_detected/1_001_1_01.png"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("{", r"splits_new_detected\.json cannot be read as JSON"),
        ([], r"splits_new_detected\.json is not a split of the new protocol"),
        ([EXTRACTED] * 20, "is not a split of the new protocol"),
        ([{"train": [], "query": []}], "is not a split of the new protocol\n  got: no 'gallery' in it"),
        ([{**EXTRACTED, "query": ["1_001_1_01.png"]}], "is not a split of the new protocol"),
        ([{**EXTRACTED, "query": [[5, 0, 0]]}], "is not a split of the new protocol"),
        ([{**EXTRACTED, "query": [["a/1.png", 0, 0]]}], r"names 1 file that cannot be CUHK03's\n  got: 1\.png"),
        (
            [{**EXTRACTED, "query": [["1_009_1_01.png", 0, 0]]}],
            r"names 1 file not to be found in (.|\n)*got: 1_009_1_01",
        ),
    ],
)
def test_broken_split_files(lay_out, splits, message):
    with pytest.raises(DataError, match=message):
        load_split(lay_out_extracted(lay_out, splits))


def test_pictures_without_split_file(lay_out):
    with pytest.raises(
        DataError, match=r"has pictures but no splits_new_detected\.json\n  got: set with images_detected/"
    ):
        load_split(lay_out(EXTRACTED_FILES))
