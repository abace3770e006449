import pytest

from reidkit.data import load_split
from reidkit.errors import DataError
from reidkit.types import UNKNOWN_CAMERA

HEADER = "path,pid,camid,subset\n"
FILES = ("img/a.jpg", "img/b.jpg", "img/c.jpg")


@pytest.fixture
def table(lay_out):
    root = lay_out(FILES)

    def write(text, name="set.csv"):
        file = root / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def test_any_text_is_an_identity_or_a_camera(table, lay_out):
    elsewhere = lay_out(["d.jpg"], "elsewhere") / "d.jpg"
    file = table(
        f"{HEADER}img/b.jpg,Zoë,yard,train\nimg/a.jpg,Anna,door,train\nimg/c.jpg,7,yard,query\n{elsewhere},7,door,gallery\n"
    )
    split = load_split(file)
    assert (split.format, split.root) == ("table", file)
    assert dict(split.pid_names) == {0: "7", 1: "Anna", 2: "Zoë"}
    assert dict(split.camera_names) == {0: "door", 1: "yard"}
    assert [(c.path.name, c.pid, c.camid) for c in split.train] == [("a.jpg", 1, 0), ("b.jpg", 2, 1)]
    assert [(c.path, c.pid) for c in split.query] == [(file.parent / "img/c.jpg", 0)]
    assert [(c.path, c.camid) for c in split.gallery] == [(elsewhere, 0)]


def test_without_camera_column_or_value_the_camera_is_unknown(table):
    split = load_split(table("subset,path,pid\nquery,img/a.jpg,1\ngallery,img/b.jpg,1\n"))
    assert [c.camid for c in (*split.query, *split.gallery)] == [UNKNOWN_CAMERA] * 2
    split = load_split(table(f"{HEADER}img/a.jpg,1,,query\nimg/b.jpg,1,door,gallery\n"))
    assert [c.camid for c in (*split.query, *split.gallery)] == [UNKNOWN_CAMERA, 0]


def test_spreadsheet_habits(table):
    rows = ["path, pid, camid, subset", '"img/a.jpg", "Doe, Jane", c1, query', "", 'img/a.jpg,"Doe, Jane",c1,gallery']
    split = load_split(table("\ufeff" + "\r\n".join(rows), "SET.CSV"))
    assert split.pid_names == {0: "Doe, Jane"}
    assert split.query == split.gallery


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,camid\n", "set.csv has no column pid and no column subset\n  got: path,camid\n"),
        ("path;pid;camid;subset\n", r"has no column path(.|\n)*separated by commas"),
        ("", "has no column path and no column pid and no column subset\n  got: an empty first line"),
        ("path,pid,subset,pid\n", "has a column twice"),
        ("path,pid,camera,subset\n", "has an unknown column 'camera'"),
        (HEADER, "holds no pictures"),
        (f"{HEADER}img/a.jpg,1,c1,train\nimg/b.jpg,1,c1,test\n", "line 3: unknown subset\n  got: 'test'\n"),
        (f"{HEADER}img/a.jpg, ,c1,train\n", "line 2: pid is empty\n  got: img/a.jpg,,c1,train"),
        (f"{HEADER},1,c1,train\n", "line 2: path is empty"),
        (f"{HEADER}img/a.jpg,1,train\n", "line 2: the row does not fit the header\n  got: 3 values\n  expected: 4"),
        (f'{HEADER}img/a.jpg,"1,c1,train\n', "line 2: not CSV"),
        (f"{HEADER}img/a.jpg,1,c1,train\n\nimg/a.jpg,1,c1,train\n", "line 4: repeats line 2\n  got: .*a.jpg in train"),
        (
            f"{HEADER}img/a.jpg,1,c1,train\nimg/a.jpg,2,c1,query\n",
            "line 3: .*a.jpg has another identity or camera in line 2\n  got: pid 2, camid c1 against pid 1, camid c1",
        ),
        (HEADER.encode() + b"img/a.jpg,Zo\xeb,c1,train\n", "line 2: not UTF-8\n  got: byte 0xeb\n"),
    ],
)
def test_errors_say_where(table, text, message):
    with pytest.raises(DataError, match=message):
        load_split(table(text))


def test_missing_files_are_counted_and_shown(table):
    rows = "".join(f"img/gone{i}.jpg,1,c1,{subset}\n" for i in range(7) for subset in ("train", "query"))
    with pytest.raises(DataError, match=r"7 files named in .*set\.csv cannot be found") as caught:
        load_split(table(f"{HEADER}img/a.jpg,1,c1,train\n{rows}"))
    text = str(caught.value)
    assert "img/gone0.jpg" in text
    assert "img/gone4.jpg and 2 more" in text
    assert "img/gone5.jpg" not in text


def test_a_folder_that_is_not_there_is_a_missing_file_too(table):
    with pytest.raises(DataError, match=r"1 file named in .* cannot be found\n  got: .*nowhere/a\.jpg"):
        load_split(table(f"{HEADER}nowhere/a.jpg,1,c1,train\n"))
