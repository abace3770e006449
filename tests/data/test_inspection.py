import json
from pathlib import Path

import pytest
from PIL import Image

from reidkit.config import to_dict
from reidkit.data import inspect_split, load_split
from reidkit.data.inspection import Spread, SubsetFacts
from reidkit.types import Crop, Split


@pytest.fixture
def pictures(tmp_path):
    """Writes pictures of one colour each, so that the same colour and size are the same bytes. Gives their folder."""

    def write(colors: dict[str, int], width=32, height=64):
        for name, color in colors.items():
            file = tmp_path / "set" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (width, height), (color, 255 - color, 40)).save(file)
        return tmp_path / "set"

    return write


def findings(inspection):
    return {finding.kind: finding for finding in inspection.findings}


def names(finding):
    return [path.name for path in finding.paths]


CLEAN = {
    "bounding_box_train/0001_c1s1_000001_01.png": 0,
    "bounding_box_train/0001_c2s1_000001_01.png": 1,
    "bounding_box_train/0001_c2s1_000002_01.png": 2,
    "bounding_box_train/0002_c1s1_000001_01.png": 3,
    "bounding_box_train/0002_c3s1_000001_01.png": 4,
    "query/0003_c1s1_000001_00.png": 5,
    "bounding_box_test/0003_c2s1_000001_01.png": 6,
    "bounding_box_test/0000_c2s1_000001_01.png": 7,
    "bounding_box_test/-1_c2s1_000001_01.png": 8,
}


def test_a_clean_data_set(pictures):
    calls = []
    inspection = inspect_split(load_split(pictures(CLEAN)), progress=lambda *call: calls.append(call))
    assert inspection.train == SubsetFacts(5, 2, 3, Spread(2, 2.5, 3))
    assert inspection.query == SubsetFacts(1, 1, 1, Spread(1, 1.0, 1))
    assert inspection.gallery == SubsetFacts(2, 1, 1, Spread(1, 1.0, 1))
    assert (inspection.junk, inspection.distractors, inspection.valid_queries) == (1, 1, 1)
    assert inspection.findings == inspection.errors == ()
    assert calls == [(i, 9) for i in range(1, 10)]


def test_unreadable_pictures_are_all_listed_with_the_reason(pictures):
    root = pictures(CLEAN)
    whole = (root / "query/0003_c1s1_000001_00.png").read_bytes()
    (root / "query/0003_c1s1_000002_00.png").write_bytes(whole[:-30])
    (root / "bounding_box_test/-1_c2s1_000009_01.png").write_bytes(b"not a picture")
    split = load_split(root)
    (root / "bounding_box_test/0000_c2s1_000001_01.png").unlink()
    inspection = inspect_split(split, threads=2)
    (finding,) = inspection.errors
    assert finding.kind == "unreadable"
    assert finding.sentence == "3 pictures of 11 cannot be decoded."
    assert names(finding) == ["-1_c2s1_000009_01.png", "0000_c2s1_000001_01.png", "0003_c1s1_000002_00.png"]
    assert finding.details[0] == "not a picture"
    assert finding.details[1] == "No such file or directory"
    assert finding.examples(1) == (f"{finding.paths[0]} (not a picture)",)
    assert len(finding.examples()) == 3


def test_tiny_crops_by_height_or_width(pictures, tmp_path):
    pictures(CLEAN)
    pictures({"query/0003_c1s1_000002_00.png": 50}, width=16, height=32)
    pictures({"query/0003_c1s1_000003_00.png": 51}, width=15, height=32)
    root = pictures({"query/0003_c1s1_000004_00.png": 52}, width=16, height=31)
    finding = findings(inspect_split(load_split(root)))["tiny"]
    assert finding.severity == "warning"
    assert finding.sentence == "2 crops less than 32 pixels high or 16 wide."
    assert names(finding) == ["0003_c1s1_000003_00.png", "0003_c1s1_000004_00.png"]
    assert finding.details == ("32 x 15", "31 x 16")
    assert "tiny" not in findings(inspect_split(load_split(root), tiny=(1, 1)))


def test_structure_findings(pictures):
    root = pictures(
        {
            "train/both/c1_1.png": 0,
            "train/both/c2_1.png": 1,
            "train/lone/c1_1.png": 2,
            "train/homebody/c2_1.png": 3,
            "train/homebody/c2_2.png": 4,
            "query/both/c1_1.png": 5,
            "query/same/c1_1.png": 6,
            "query/absent/c1_1.png": 7,
            "gallery/both/c2_1.png": 8,
            "gallery/same/c1_2.png": 9,
            "gallery/unasked/c1_1.png": 10,
        }
    )
    inspection = inspect_split(load_split(root))
    found = findings(inspection)
    assert inspection.valid_queries == 1
    assert {kind: (f.severity, [p.relative_to(root).as_posix() for p in f.paths]) for kind, f in found.items()} == {
        "unmatched-query": ("warning", ["query/absent/c1_1.png", "query/same/c1_1.png"]),
        "train-test-identity": ("warning", ["train/both/c1_1.png"]),
        "single-crop-identity": ("warning", ["train/lone/c1_1.png"]),
        "single-camera-identity": ("info", ["train/homebody/c2_1.png", "train/lone/c1_1.png"]),
        "unasked-identity": ("info", ["gallery/unasked/c1_1.png"]),
    }
    assert found["unmatched-query"].sentence == (
        "2 queries of 3 without a match by another camera in the gallery: not scored."
    )
    assert found["single-camera-identity"].details == ("identity homebody", "identity lone")
    severities = [finding.severity for finding in inspection.findings]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


def test_unknown_cameras_match_any(pictures):
    root = pictures(
        {"query/a/1.png": 1, "query/b/1.png": 2, "gallery/a/2.png": 3, "train/c/1.png": 4, "train/c/2.png": 5}
    )
    inspection = inspect_split(load_split(root))
    found = findings(inspection)
    assert inspection.valid_queries == 1
    assert found["unmatched-query"].sentence == "1 query of 2 without a match in the gallery: not scored."
    assert found["unknown-camera"].severity == "info"
    assert len(found["unknown-camera"].paths) == 5
    assert "single-camera-identity" not in found


def test_nothing_to_score_is_an_error(pictures):
    root = pictures({"query/a/c1_1.png": 1, "gallery/a/c1_2.png": 2})
    (finding,) = inspect_split(load_split(root)).errors
    assert finding.kind == "unmatched-query"
    assert finding.sentence == "1 query of 1 without a match by another camera in the gallery: nothing can be scored."


def test_empty_subsets(pictures):
    inspection = inspect_split(load_split(pictures({"train/a/c1_1.png": 1, "train/a/c2_1.png": 2})))
    empty = [finding.sentence for finding in inspection.findings if finding.kind == "empty-subset"]
    assert empty == ["There are no query crops.", "There are no gallery crops."]
    assert inspection.query == SubsetFacts(0, 0, 0, None)


def test_copies_between_subsets(pictures):
    root = pictures(
        {
            "train/a/c1_1.png": 1,
            "train/a/c2_1.png": 2,
            "query/b/c1_1.png": 3,
            "query/b/c2_1.png": 4,
            "query/b/c3_1.png": 1,
            "gallery/b/c1_9.png": 3,
            "gallery/b/c3_9.png": 4,
        }
    )
    found = findings(inspect_split(load_split(root)))
    left_out = found["ignored-copy"]
    assert (left_out.severity, left_out.paths) == ("info", (root / "query/b/c1_1.png",))
    assert left_out.details == (f"the same as {root / 'gallery/b/c1_9.png'}",)
    assert found["query-gallery-copy"].severity == "warning"
    assert found["query-gallery-copy"].paths == (root / "query/b/c2_1.png",)
    assert found["train-test-copy"].paths == (root / "query/b/c3_1.png",)
    conflict = found["label-conflict"]
    assert conflict.severity == "error"
    assert conflict.paths == (root / "train/a/c1_1.png", root / "query/b/c3_1.png")
    assert conflict.details == ("identity a", "identity b")


def test_broken_pictures_are_no_copies_of_each_other(lay_out):
    found = findings(inspect_split(load_split(lay_out(["query/a/c1_1.jpg", "gallery/b/c2_1.jpg"]))))
    assert "label-conflict" not in found
    assert "query-gallery-copy" not in found
    assert len(found["unreadable"].paths) == 2


def test_one_pool_tells_that_it_is_tested_on_what_it_learns(pictures):
    root = pictures({"a/c1_1.png": 1, "a/c2_1.png": 2, "b/c1_1.png": 3, "b/c2_1.png": 4})
    inspection = inspect_split(load_split(root))
    (finding,) = inspection.findings
    assert (finding.kind, finding.severity) == ("one-pool", "warning")
    assert finding.sentence == ("Training and test set are the same 4 pictures: accuracy will look better than it is.")
    assert inspection.valid_queries == 4


def test_a_file_in_two_subsets_is_no_copy_of_itself(pictures):
    root = pictures({"a.png": 1, "b.png": 2, "c.png": 1, "d.png": 4})
    rows = ["a.png,1,0,train", "a.png,1,0,query", "a.png,1,0,gallery", "b.png,1,1,gallery", "d.png,2,0,train"]
    (root / "set.csv").write_text("\n".join(["path,pid,camid,subset", *rows]))
    inspection = inspect_split(load_split(root / "set.csv"))
    found = findings(inspection)
    assert found["train-test-copy"].paths == (root / "a.png",)
    assert found["train-test-copy"].details == ("the same file",)
    assert not found.keys() & {"query-gallery-copy", "ignored-copy", "one-pool"}
    (root / "set.csv").write_text("\n".join(["path,pid,camid,subset", *rows, "c.png,1,0,gallery"]))
    found = findings(inspect_split(load_split(root / "set.csv")))
    assert found["ignored-copy"].details == (f"the same as {root / 'c.png'}",)


def test_the_query_itself_is_no_match(pictures):
    root = pictures({"a.png": 1, "b.png": 2, "c.png": 3})
    rows = ["a.png,1,query", "b.png,2,query", "a.png,1,gallery", "b.png,2,gallery", "c.png,2,gallery"]
    (root / "set.csv").write_text("\n".join(["path,pid,subset", *rows]))
    inspection = inspect_split(load_split(root / "set.csv"))
    assert inspection.valid_queries == 1
    assert findings(inspection)["unmatched-query"].paths == (root / "a.png",)


def test_it_is_plain_data(pictures):
    values = json.loads(json.dumps(to_dict(inspect_split(load_split(pictures(CLEAN))))))
    assert values["train"]["crops_per_identity"] == {"min": 2, "median": 2.5, "max": 3}
    assert values["findings"] == []


def test_a_split_made_by_hand_needs_no_names(tmp_path):
    Image.new("RGB", (32, 64)).save(tmp_path / "a.png")
    crop = Crop(tmp_path / "a.png", 5, 0)
    found = findings(inspect_split(Split("by hand", Path(tmp_path), train=(crop,))))
    assert found["single-crop-identity"].details == ("identity 5",)
