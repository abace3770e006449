import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from reidkit.errors import ConfigError, DataError, ImageError
from reidkit.evaluate import EmbeddedCrops
from reidkit.evaluate.embeddings_file import (
    check_format,
    check_names,
    read_embeddings,
    read_split,
    write_embeddings,
)
from reidkit.metrics.junk import same_file
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, UNKNOWN_IDENTITY, Crop

EMBEDDINGS = np.arange(12, dtype=np.float32).reshape(4, 3) - 5
CROPS = (
    Crop(Path("pictures/a.jpg"), 0, 0),
    Crop(Path("/data/ä.jpg"), 1, 1),
    Crop(Path("d.jpg"), DISTRACTOR, 1),
    Crop(Path("u.jpg"), UNKNOWN_IDENTITY, UNKNOWN_CAMERA),
)
EMBEDDED = EmbeddedCrops(CROPS, EMBEDDINGS, (ImageError("left out"),))


@pytest.fixture
def save(tmp_path):
    """Writes an .npz by hand; None leaves an array out."""

    def write(name="q.npz", **arrays):
        values = {"embedding": EMBEDDINGS, "pid": np.array([4, 4, 5, -1])} | arrays
        with (tmp_path / name).open("wb") as stream:
            np.savez(stream, **{key: value for key, value in values.items() if value is not None})
        return tmp_path / name

    return write


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".NPZ"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_written_is_read(tmp_path, suffix, dtype):
    file = tmp_path / f"e{suffix}"
    write_embeddings(file, EmbeddedCrops(CROPS, EMBEDDINGS.astype(dtype)))
    read = read_embeddings(file, name="query")
    assert read.crops == CROPS
    assert read.embeddings.dtype == dtype
    np.testing.assert_array_equal(read.embeddings, EMBEDDINGS)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_labels_are_the_data_sets_own_numbers(tmp_path, suffix):
    file = tmp_path / f"e{suffix}"
    write_embeddings(file, EMBEDDED, pid_names={0: "0007", 1: "0012"}, camera_names={0: "c3", 1: "c6"})
    read = read_embeddings(file, name="query")
    assert read.labels.pids.tolist() == [7, 12, DISTRACTOR, UNKNOWN_IDENTITY]
    assert read.labels.camids.tolist() == [3, 6, 6, UNKNOWN_CAMERA]
    write_embeddings(file, EMBEDDED, pid_names={0: "ann", 1: "bob"}, camera_names={0: "hall", 1: "yard"})
    assert read_embeddings(file, name="query").labels.pids.tolist() == [0, 1, DISTRACTOR, UNKNOWN_IDENTITY]


def test_written_by_hand(save):
    read = read_embeddings(
        save(
            embedding=None,
            pid=None,
            features=EMBEDDINGS.astype(np.float64),
            pids=np.array([4, 4, 5, 6], np.uint16),
            camids=np.array([1, 2, 1, -1], np.int8),
            paths=np.array([b"a.jpg", b"caf\xe9.jpg", b"c.jpg", b"d.jpg"]),
            note=np.array("something else"),
            odd=np.array([{}], dtype=object),  # not asked for, so not looked into
        ),
        name="query",
    )
    assert (read.embeddings.dtype, read.embeddings.tolist()) == (np.float32, EMBEDDINGS.tolist())
    assert read.labels.pids.tolist() == [4, 4, 5, 6]
    assert read.labels.camids.tolist() == [1, 2, 1, -1]
    assert [crop.path for crop in read.crops] == [
        Path(os.fsdecode(p)) for p in (b"a.jpg", b"caf\xe9.jpg", b"c.jpg", b"d.jpg")
    ]


def test_other_byte_orders_and_layouts(save):
    read = read_embeddings(save(embedding=np.asfortranarray(EMBEDDINGS.astype(">f2"))), name="query")
    assert read.embeddings.dtype.str in ("<f2", "=f2")
    np.testing.assert_array_equal(read.embeddings, EMBEDDINGS)
    too_large = EMBEDDINGS.astype(np.float64) * 1e300
    assert np.isinf(read_embeddings(save(embedding=too_large), name="query").embeddings[0]).all()  # no metric takes it


def test_without_cameras_they_are_unknown(save):
    assert read_embeddings(save(), name="query").labels.camids.tolist() == [UNKNOWN_CAMERA] * 4


def test_rows_without_paths_are_pictures_of_their_own(save):
    query, gallery = (read_embeddings(save(name), name="query").crops for name in ("q.npz", "g.npz"))
    excluded = same_file([c.path for c in query], [c.path for c in gallery])
    assert [excluded.of(row).tolist() for row in range(4)] == [[]] * 4
    own = same_file([c.path for c in query], [c.path for c in query])
    assert [own.of(row).tolist() for row in range(4)] == [[0], [1], [2], [3]]
    some = read_embeddings(save(path=np.array(["a.jpg", "", "", "b.jpg"])), name="query").crops
    assert len({crop.path for crop in some}) == 4
    assert query[2].path.name == "row 2"
    assert query[2].path.parent.name == "q.npz"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"embedding": None},
            r"q\.npz holds no embeddings\n  got: arrays pid\n  expected: an array embedding or embed",
        ),
        ({"features": EMBEDDINGS}, r"more than one embedding\n  got: arrays embedding, features\n"),
        ({"pids": np.arange(4)}, r"more than one pid\n  got: arrays pid, pids\n  expected: one of pid, pids"),
        (
            {"pid": None},
            r"The query embeddings have no labels: .*q\.npz has no array pid or pids\n  got: arrays embedding",
        ),
        (
            {"pid": np.array(["ann", "ann", "bob", "cy"])},
            r"The identities of the query .*q\.npz are no whole numbers\n  got: pid: text, such as ann\n(.|\n)*"
            r"number them over query and gallery together: np\.unique\(names.*the column pid that `reid embed` writes",
        ),
        ({"pid": np.array([4.0, 4, 5, 5])}, r"got: pid: float64, such as 4\.0\n(.|\n)*to do: save pid\.astype\(int\)"),
        ({"pid": np.array([True] * 4)}, r"no whole numbers\n  got: pid: bool, such as True"),
        ({"camid": np.array(["c1"] * 4)}, r"The cameras of .* are no whole numbers\n  got: camid: text, such as c1"),
        (
            {"pid": np.array([0, 1, -3, -4])},
            r"2 of 4 identities of .* out of range\n  got: pid -3 in row 2\n.*-1 for a dis",
        ),
        (
            {"pid": np.array([0, 1, 2, 1 << 63], np.uint64)},
            r"1 of 4 identities .*\n  got: pid 9223372036854775808 in row 3",
        ),
        (
            {"camid": np.array([0, -2, 0, 0])},
            r"1 of 4 cameras .* out of range\n  got: camid -2 in row 1\n.*-1 for an unkn",
        ),
        ({"pid": np.arange(3)}, r"pid does not fit the query .*\n  got: pid of shape \(3,\) for 4 embeddings\n"),
        ({"pid": np.arange(4)[:, None]}, r"pid does not fit .*\n  got: pid of shape \(4, 1\) for 4 emb"),
        ({"camid": np.arange(5)}, r"camid does not fit .*\n  got: camid of shape \(5,\)"),
        ({"path": np.array(["a"])}, r"path does not fit .*\n  got: path of shape \(1,\)"),
        ({"path": np.arange(4)}, r"path of the query .* is no text\n  got: path: int64"),
        ({"path": np.array([Path("a")] * 4, dtype=object)}, r"'path' holds pickled Python objects"),
        ({"pid": np.array(["a", None, "b", 3], dtype=object)}, r"'pid' holds pickled Python objects"),
        (
            {"embedding": EMBEDDINGS.astype(int)},
            r"no table of floating-point numbers\n  got: embedding: int64 \(4, 3\)\n",
        ),
        ({"embedding": EMBEDDINGS.astype(complex)}, r"no table .*\n  got: embedding: complex128"),
        (
            {"embedding": EMBEDDINGS[0]},
            r"no table .*\n  got: embedding: float32 \(3,\)\n  expected: float16, float32 or",
        ),
        ({"embedding": EMBEDDINGS[:0]}, r"The query .* are empty, .*\n  got: embedding: float32 \(0, 3\)"),
        ({"embedding": EMBEDDINGS[:, :0]}, r"are empty, .*\n  got: embedding: float32 \(4, 0\)"),
    ],
)
def test_errors_say_which_array(save, arrays, message):
    with pytest.raises(DataError, match=message):
        read_embeddings(save(**arrays), name="query")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a", "b\0c", "c", "d"], r"Row 1 of the query .* no file can have\n  got: 'b\\x00c'\n"),
        (["a", "b", "c", "d" * 4097], r"Row 3 of the query .* no file can have\n  got: 'd+'\.\.\. of 4,097 characters"),
        (["a", "b", "\ud800", "d"], r"Row 2 of the query .* no file can have\n  got: '\\ud800'"),
        (
            ["video1", "b", "./video1", "video1"],
            r"video1 is the path of several rows of the query (.|\n)*rows 0 and 2\n(.|\n)*leave the paths out where",
        ),
    ],
)
def test_paths_that_cannot_be(save, paths, message):
    with pytest.raises(DataError, match=message):
        read_embeddings(save(path=np.array(paths)), name="query")


def test_text_that_is_none(save):
    with pytest.raises(DataError, match=r"camera of the query embeddings .* is no text\n  got: camera: int64"):
        read_embeddings(save(camera=np.arange(4)), name="query")


def test_more_rows_than_bytes(tmp_path):
    n = 100_000
    values = {"embedding": np.zeros((n, 1), np.float16), "pid": np.zeros(n, np.int8)}
    np.savez_compressed(tmp_path / "q.npz", **values)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values["embedding"].ravel()), 1)
    parquet.write_table(pa.table({"embedding": lists, "pid": values["pid"]}), tmp_path / "q.parquet")
    for file in (tmp_path / "q.npz", tmp_path / "q.parquet"):
        with pytest.raises(DataError, match=r"q\.\w+ holds more rows than bytes\n  got: 100,000 rows in [\d,]+ bytes"):
            read_embeddings(file, name="query")


# Query and gallery


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_split_of_two_files(tmp_path, suffix):
    query, gallery = tmp_path / f"q{suffix}", tmp_path / f"g{suffix}"
    names = {"pid_names": {0: "0007", 1: "0012"}, "camera_names": {0: "c3", 1: "c6"}}
    write_embeddings(query, EmbeddedCrops(CROPS[:1], EMBEDDINGS[:1]), **names)
    write_embeddings(gallery, EMBEDDED, **names)
    asked, searched, split = read_split(query, gallery)
    assert (split.query, split.gallery) == (asked.crops, searched.crops)
    assert [len(asked.embeddings), len(searched.embeddings)] == [1, 4]
    assert split.name == f"embeddings q{suffix} g{suffix}"
    assert dict(split.pid_names) == {7: "0007", 12: "0012"}  # and no name for a distractor
    assert dict(split.camera_names) == {3: "c3", 6: "c6"}


def test_a_split_without_names(save):
    _, _, split = read_split(save("q.npz"), save("g.npz", identity=np.array(["", "", "ann", ""])))
    assert (dict(split.pid_names), dict(split.camera_names)) == ({5: "ann"}, {})


@pytest.mark.parametrize(("column", "number"), [("identity", "pid 4"), ("camera", "camid 4")])
def test_files_of_two_data_sets(save, column, number):
    same = {"pid": np.full(4, 4), "camid": np.full(4, 4)}
    query = save("q.npz", **same, **{column: np.array(["ann"] * 4)})
    gallery = save("g.npz", **same, **{column: np.array(["bob"] * 4)})
    message = rf"{number} goes by two names\n  got: 'ann' in .*q\.npz, 'bob' in .*g\.npz\n(.|\n)*of one data set with"
    with pytest.raises(DataError, match=message):
        read_split(query, gallery)


def test_the_message_names_the_subset(save):
    with pytest.raises(DataError, match="The gallery embeddings have no labels"):
        read_embeddings(save(pid=None), name="gallery")


def test_what_is_no_archive_of_arrays(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(DataError, match=r"model\.pt holds no arrays"):
        read_embeddings(tmp_path / "model.pt", name="query")
    with pytest.raises(DataError, match="No such file"):
        read_embeddings(tmp_path / "none.npz", name="query")


def test_parquet_written_by_hand(tmp_path):
    file = tmp_path / "q.parquet"
    table = {
        "features": pa.array(EMBEDDINGS.astype(np.float64).tolist()),
        "pid": pa.array([1, 1, 2, 3], pa.int32()),
        "path": pa.array(["a", None, "c", "d"]).dictionary_encode(),
        "note": pa.array([None] * 4),
    }
    parquet.write_table(pa.table(table), file, row_group_size=3)
    read = read_embeddings(file, name="query")
    assert (read.embeddings.dtype, read.embeddings.tolist()) == (np.float32, EMBEDDINGS.tolist())
    assert [crop.pid for crop in read.crops] == [1, 1, 2, 3]
    assert [crop.path for crop in read.crops] == [Path("a"), file / "row 1", Path("c"), Path("d")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pid": pa.array([1, None])}, r"column pid of .*q\.parquet cannot be used\n  got: 1 empty rows of 2\n"),
        ({"pid": pa.array(["ann", "bob"])}, r"no whole numbers\n  got: pid: text, such as ann"),
        ({"pid": pa.array([1.0, 2.0])}, r"no whole numbers\n  got: pid: float64"),
        (
            {"embedding": pa.array([[1.0, 2.0], [1.0]])},
            r"column embedding .*\n  got: rows of different widths, or with g",
        ),
        ({"embedding": pa.array([[1.0, None], [1.0, 2.0]])}, "rows of different widths, or with gaps"),
        (
            {"embedding": pa.array([1.0, 2.0])},
            r"no table of floating-point numbers\n  got: embedding: float64 \(2,\)",
        ),
        (
            {"embedding": pa.array([["a"], ["b"]])},
            r"got: values of type list<element: string>\n  expected: numbers, text, or",
        ),
        ({"embedding": pa.array([[], []], pa.list_(pa.float32()))}, r"are empty.*\n  got: embedding: float32 \(2, 0\)"),
    ],
)
def test_parquet_errors_say_which_column(tmp_path, columns, message):
    file = tmp_path / "q.parquet"
    table = {"embedding": pa.array([[1.0, 2.0], [3.0, 4.0]]), "pid": pa.array([1, 2])} | columns
    parquet.write_table(pa.table(table), file)
    with pytest.raises(DataError, match=message):
        read_embeddings(file, name="query")


def test_what_is_no_parquet(tmp_path):
    file = tmp_path / "q.parquet"
    with pytest.raises(DataError, match=r"No such file: .*q\.parquet"):
        read_embeddings(file, name="query")
    file.write_bytes(b"PAR1 and nothing more PAR1")
    with pytest.raises(DataError, match=r"q\.parquet cannot be read\n  got: (.|\n)*expected: a Parquet table"):
        read_embeddings(file, name="query")
    schema = pa.schema({"embedding": pa.list_(pa.float32()), "pid": pa.int64()})
    parquet.write_table(schema.empty_table(), file)
    with pytest.raises(DataError, match=r"The query embeddings in .* are empty"):
        read_embeddings(file, name="query")


def test_formats_that_can_be_written(monkeypatch):
    check_format(Path("e.npz"))
    check_format(Path("E.PARQUET"))
    with pytest.raises(ConfigError, match=r"Cannot write e\.csv\n  got: \.csv\n  expected: \.npz or \.parquet"):
        check_format(Path("e.csv"))
    with pytest.raises(ConfigError, match="got: no suffix"):
        check_format(Path("e"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_format(Path("e.npz"))
    with pytest.raises(ModuleNotFoundError, match="pyarrow"):
        check_format(Path("e.parquet"))


def test_names_that_a_table_can_hold():
    odd = os.fsdecode(b"caf\xe9.jpg")
    check_names(Path("e.npz"), [odd])
    check_names(Path("e.parquet"), ["ä"])
    with pytest.raises(
        DataError, match=r"cannot hold the name 'caf\\udce9\.jpg'\n(.|\n)*write \.npz, or rename the file"
    ):
        check_names(Path("e.parquet"), ["a", odd])


def test_npz_needs_no_pyarrow(save):
    code = (
        "import sys; from pathlib import Path; from reidkit.evaluate.embeddings_file import read_embeddings\n"
        f"print(len(read_embeddings(Path({str(save())!r}), name='query').crops), 'pyarrow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "4 False\n", result.stderr
