"""Tables of other types, and tables that would become far larger than they are: refused by name, before decoding."""

import datetime as dt
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from reidkit.errors import DataError
from reidkit.evaluate.parquet import open_parquet


def write(file, **columns):
    parquet.write_table(pa.table(columns), file, row_group_size=2)
    return file


def read(file, name="a"):
    with open_parquet(file) as table:
        return table.read(name)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_of_any_kind(tmp_path, kind):
    values = read(write(tmp_path / "t.parquet", a=pa.array(["ä", None, "c", "", "c"]).cast(kind)))
    assert values.dtype == object
    assert values.tolist() == ["ä", "", "c", "", "c"]


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float16, np.float64])
def test_numbers(tmp_path, dtype):
    numbers = pa.array(np.array([3, 1, 1], dtype))
    for column in (numbers, numbers.dictionary_encode()) if dtype != np.float16 else (numbers,):
        values = read(write(tmp_path / "t.parquet", a=column))
        assert (values.dtype, values.tolist()) == (dtype, [3, 1, 1])


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), 2)])
def test_rows_of_numbers(tmp_path, kind):
    expected = np.arange(6).reshape(3, 2)
    values = read(write(tmp_path / "t.parquet", a=pa.array(list(expected.astype(np.float16)), kind)))
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([b"a"]), "binary"),
        (pa.array([["a"]]), "list<element: string>"),
        (pa.array([[["a"]]]), "list<element: list<element: string>>"),
        (pa.array([{"b": 1}]), "struct<b: int64>"),
        (pa.array([dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)]), r"timestamp\[us, tz=UTC\]"),
        (pa.array([True]), "bool"),
        (pa.array([None]), "null"),
    ],
)
def test_other_types_are_refused(tmp_path, column, kind):
    message = rf"column a of .*t\.parquet cannot be used\n  got: values of type {kind}\n  expected: numbers, text, or"
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "t.parquet", a=column))


def test_text_that_is_no_unicode(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    with pytest.raises(DataError, match=r"t\.parquet cannot be read\n  got: 'utf-8' codec"):
        read(write(tmp_path / "t.parquet", a=broken))


def test_one_long_word_in_many_rows_is_held_once(tmp_path):
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["a" * 1_000_000]))
    parquet.write_table(pa.table({"a": words}), tmp_path / "t.parquet", compression="none")
    tracemalloc.start()
    values = read(tmp_path / "t.parquet")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert values[0] is values[-1]
    assert peak < 16 << 20  # not 20 GB


def test_more_than_the_file_can_hold_is_not_decoded(tmp_path):
    same = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1_000_000, np.float32)), 1_000)
    parquet.write_table(pa.table({"a": same}), tmp_path / "t.parquet")
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"column a of .*\n  got: 8,000,000 bytes of values in a file of [\d,]{3,5}\n"):
        read(tmp_path / "t.parquet")
    assert pa.total_allocated_bytes() <= before


def test_what_is_no_file(tmp_path):
    with pytest.raises(DataError, match="is no plain file"):
        read(tmp_path)
