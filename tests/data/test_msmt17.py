import pytest

from reidkit.data import load_split
from reidkit.errors import DataError

TRAIN = "0000/0000_000_01_0303morning_0008_0.jpg 0"
VAL = "0001/0001_002_15_0113noon_0120_1_ex.jpg 1"
QUERY_FILE = "0000/0000_000_01_0303morning_0015_0.jpg"
QUERY = f"{QUERY_FILE} 0"
GALLERY = "0000/0000_001_14_0303morning_0020_0.jpg 0"


def lay_out_msmt17(lay_out, train_folder="train", test_folder="test", root="set", **lists):
    lines = {"train": TRAIN, "val": VAL, "query": QUERY, "gallery": GALLERY, **lists}
    pictures = [f"{train_folder}/{line.split()[0]}" for line in (TRAIN, VAL)]
    pictures += [f"{test_folder}/{line.split()[0]}" for line in (QUERY, GALLERY)]
    home = lay_out([*pictures, f"{test_folder}/0000/unlisted.jpg"], root)
    for name, text in lines.items():
        (home / f"list_{name}.txt").write_text(text + "\n", encoding="utf-8")
    return home


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_both_editions(lay_out, folders):
    root = lay_out_msmt17(lay_out, *folders)
    split = load_split(root)
    assert split.format == "msmt17"
    # Person 0 of the training folder and person 0 of the test folder are two people.
    assert dict(split.pid_names) == {0: "test/0000", 1: "train/0000", 2: "train/0001"}
    assert dict(split.camera_names) == {0: "01", 1: "14", 2: "15"}
    assert [(c.pid, c.camid) for c in split.train] == [(1, 0), (2, 2)]
    assert [(c.pid, c.camid) for c in split.query] == [(0, 0)]
    assert [(c.pid, c.camid) for c in split.gallery] == [(0, 1)]
    assert split.query[0].path == root / folders[1] / QUERY_FILE


def test_blank_lines_and_windows_line_ends(lay_out):
    root = lay_out_msmt17(lay_out)
    (root / "list_query.txt").write_bytes(QUERY.encode() + b"\r\n\r\n")
    assert len(load_split(root).query) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{QUERY}\n{QUERY_FILE} zero", "list_query.txt, line 2: the identity is not a number\n  got: 'zero'"),
        (QUERY_FILE, "list_query.txt, line 1: not a file and an identity\n  got: '0000/0000_000"),
        ("0000/0000.jpg 0", "list_query.txt, line 1: the file name tells no camera\n  got: 0000/0000.jpg"),
        ("0000/0000_000_01_gone.jpg 0", r"1 file named in .*list_query.txt cannot be found\n  got: .*_gone.jpg"),
        (f"{QUERY}\n{QUERY}", r"lists pictures twice in one subset\n  got: .*0000_000_01_0303morning_0015_0.jpg"),
    ],
)
def test_broken_lines_are_located(lay_out, line, message):
    with pytest.raises(DataError, match=message):
        load_split(lay_out_msmt17(lay_out, query=line))


def test_a_missing_list(lay_out):
    root = lay_out_msmt17(lay_out)
    (root / "list_val.txt").unlink()
    with pytest.raises(DataError, match=r"is not whole: no list_val\.txt"):
        load_split(root)


def test_a_list_that_is_not_text(lay_out):
    root = lay_out_msmt17(lay_out)
    (root / "list_val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"list_val\.txt cannot be read\n.*\n  expected: a text file in UTF-8"):
        load_split(root)


def test_editions_must_be_whole_and_alone(lay_out):
    root = lay_out_msmt17(lay_out)
    (root / "mask_train_v2").mkdir()
    (root / "mask_test_v2").mkdir()
    with pytest.raises(DataError, match="holds both editions of MSMT17"):
        load_split(root)
    half = lay_out(["mask_train_v2/0000/0000_000_01_0303morning_0008_0.jpg"], "half")
    with pytest.raises(DataError, match=r"holds no whole edition of MSMT17\n  got: half with mask_train_v2/"):
        load_split(half)


def test_two_editions_side_by_side_must_be_chosen_from(lay_out):
    lay_out_msmt17(lay_out, root="all/MSMT17_V1")
    root = lay_out_msmt17(lay_out, "mask_train_v2", "mask_test_v2", root="all/MSMT17_V2").parent
    with pytest.raises(DataError, match=r"more than one way\n  got: .*MSMT17_V1 as msmt17, .*MSMT17_V2 as msmt17"):
        load_split(root)
