"""Archives that lie, are damaged or would run code: refused by name, before anything is allocated."""

import io
import os
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from reidkit.errors import DataError
from reidkit.evaluate.npz import open_npz


def member(shape, dtype="<f4", payload=b"", version=(1, 0)):
    stream = io.BytesIO()
    write = npy.write_array_header_2_0 if version == (2, 0) else npy.write_array_header_1_0
    write(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue() + payload


def described(text):
    """An array with this text as its header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(file, *, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return file


def read(file, name="a"):
    with open_npz(file) as arrays:
        return arrays.read(name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes(tmp_path, save):
    rng = np.random.default_rng(0)
    values = {
        "a": rng.normal(size=(300, 70)).astype(np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(3, 5))),
        "half": rng.normal(size=7).astype(np.float16),
        "names": np.array(["ä", "", "long name"]),
        "zeros": np.zeros((500, 500)),
        "none": np.empty((0, 4)),
        "scalar": np.array(3),
    }
    save(tmp_path / "e.npz", **values)
    with open_npz(tmp_path / "e.npz") as arrays:
        assert sorted(arrays.names) == sorted(values)
        for name, expected in values.items():
            assert arrays.header(name) == (expected.shape, expected.dtype)
            np.testing.assert_array_equal(arrays.read(name), expected)


def test_the_newer_header_of_numpy(tmp_path):
    data = member((2,), payload=np.float32([1, 2]).tobytes(), version=(2, 0))
    assert read(archive(tmp_path / "e.npz", a=data)).tolist() == [1, 2]


@pytest.mark.parametrize(
    "lie",
    [
        member((1 << 40,)),
        member((1 << 62, 1 << 62)),
        member((3,), payload=bytes(8)),
        member((1,), payload=bytes(8)),
        member((-1, -2), payload=bytes(8)),
        member((1 << 60,), "<U0"),
        b"\x93NUMPY\x03\x00" + bytes(64),
        b"\x93NUMPY\x01\x00\xff\xff",
        described("{[]: 1}"),
        described("-" * 9000 + "1"),
        described("(" * 9000),
        described("'''"),
        described("{'shape': (2,), 'fortran_order': False, 'descr': 'spam'}"),
        b"no array",
        b"",
    ],
    ids=range(15),
)
def test_a_header_that_lies_is_refused(tmp_path, lie):
    archive(tmp_path / "e.npz", a=lie)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"e\.npz is truncated or damaged at its array 'a'\n  got: (.|\n)*to do: copy"):
        read(tmp_path / "e.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_directory_that_lies_is_refused(tmp_path, compression):
    """The archive says that its member holds a tebibyte, as the array's own header does."""
    size = 1 << 40
    file = archive(tmp_path / "e.npz", compression=compression, a=member((size // 4,)))
    with zipfile.ZipFile(file) as opened:
        (info,) = opened.infolist()
    data = file.read_bytes()
    start = data.index(b"PK\x01\x02")
    # The record of the member in the directory: both sizes move to a field of 64 bits behind the name.
    extra = (1).to_bytes(2, "little") + (16).to_bytes(2, "little") + size.to_bytes(8, "little") * 2
    record = bytearray(data[start : start + 46 + len(info.filename)])
    record[20:28] = b"\xff" * 8
    record[30:32] = len(extra).to_bytes(2, "little")
    end = bytearray(data[data.index(b"PK\x05\x06") :])
    end[12:16] = (len(record) + len(extra)).to_bytes(4, "little")
    file.write_bytes(data[:start] + record + extra + end)
    with zipfile.ZipFile(file) as opened:
        assert opened.infolist()[0].file_size == size
    with pytest.raises(DataError, match=r"'a'\n  got: 1,099,511,627,776 bytes in a file of"):
        read(file)


def test_only_what_numpy_compresses_with(tmp_path):
    archive(tmp_path / "e.npz", compression=zipfile.ZIP_LZMA, a=member((2,), payload=bytes(8)))
    with pytest.raises(DataError, match="damaged at its array 'a'"):
        read(tmp_path / "e.npz")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("e.npz", a=np.array([Trap()], dtype=object), b=np.arange(3))
    with pytest.raises(DataError, match=r"'a' holds pickled Python objects, which could run code"):
        read(tmp_path / "e.npz")
    assert read(tmp_path / "e.npz", "b").tolist() == [0, 1, 2]
    assert not (tmp_path / "trapped").exists()


def test_text_that_is_no_unicode(tmp_path):
    np.savez(tmp_path / "e.npz", a=np.array([65, sys.maxunicode + 1], np.uint32).view("U1"), b=np.array(["ä"], ">U3"))
    with pytest.raises(DataError, match=r"damaged at its array 'a'\n  got: text that is no Unicode"):
        read(tmp_path / "e.npz")
    assert read(tmp_path / "e.npz", "b").tolist() == ["ä"]


def test_every_damaged_byte_of_an_array_is_found(tmp_path):
    values = np.arange(20, dtype=np.float32)
    file = tmp_path / "e.npz"
    np.savez(file, a=values)
    whole = file.read_bytes()
    start = whole.index(values.tobytes())
    for place in range(start, start + values.nbytes):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"'a'\n  got: Bad CRC"):
            read(file)


def test_what_is_no_archive(tmp_path):
    file = tmp_path / "e.npz"
    with pytest.raises(DataError, match=r"No such file: .*e\.npz\n  to do: check the path"):
        read(file)
    with pytest.raises(DataError, match="is no plain file"):
        read(tmp_path)
    file.touch()
    with pytest.raises(
        DataError, match=r"e\.npz is no \.npz file\n  got: an empty file\n  expected: a file of np\.savez"
    ):
        read(file)
    file.write_text("pid,embedding\n")
    with pytest.raises(DataError, match=r"is no \.npz file\n  got: File is not a zip file"):
        read(file)
    np.savez(file, a=np.arange(1000))
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"e\.npz is truncated or damaged\n"):
        read(file)
    with file.open("wb") as stream:
        np.save(stream, np.arange(3))
    with pytest.raises(
        DataError, match=r"e\.npz holds a single array\n  got: a file of np\.save\n  expected: a file of"
    ):
        read(file)
