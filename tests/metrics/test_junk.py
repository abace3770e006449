import os
from pathlib import Path

import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.metrics.junk import (
    Exclusion,
    Labels,
    check_exclusions,
    excluded_rows,
    labels_of,
    rows_by_identity,
    same_camera,
    same_file,
)
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, UNKNOWN_IDENTITY, Crop


def labels(*pairs):
    return labels_of([Crop(Path("x"), pid, camid) for pid, camid in pairs])


def rows_of(exclusion):
    """The excluded gallery rows of each query."""
    return [exclusion.of(query).tolist() for query in range(exclusion.shape[0])]


def test_the_same_identity_in_the_same_camera():
    query = labels((1, 1), (1, UNKNOWN_CAMERA), (9, 1))
    gallery = labels((1, 1), (1, 2), (2, 1), (1, UNKNOWN_CAMERA), (1, 1))
    assert rows_of(same_camera(query, gallery)) == [[0, 4], [], []]


@pytest.mark.parametrize("nobody", [DISTRACTOR, UNKNOWN_IDENTITY])
def test_two_of_unknown_identity_are_not_the_same(nobody):
    crops = labels((nobody, 1))
    assert rows_of(same_camera(crops, crops)) == [[]]


def test_unsigned_labels_know_no_unknown():
    crops = Labels(np.array([255], dtype=np.uint8), np.array([255], dtype=np.uint8))
    assert rows_of(same_camera(crops, crops)) == [[0]]


def test_the_very_same_file_under_any_name(tmp_path):
    file, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    for path in (file, other):
        path.touch()
    link = tmp_path / "link.jpg"
    link.symlink_to(file)
    written_otherwise = Path(os.path.relpath(file))
    assert rows_of(same_file([file, other], [other, link, written_otherwise])) == [[1, 2], [0]]


def test_several_exclusions_leave_out_each_row_once():
    exclude = [same_camera(labels((1, 1), (2, 1)), labels((1, 1), (2, 1), (1, 1))), same_file("ab", "cca")]
    assert excluded_rows(exclude, 0).tolist() == [0, 2]
    assert excluded_rows(exclude, 1).tolist() == [1]
    assert excluded_rows([], 0).tolist() == []


@pytest.mark.parametrize("rows", [[3, 0], [0, 0], [-1], [0, 9], [1, 3, 2]])
def test_an_exclusion_that_gives_no_ascending_rows(rows):
    message = rf"no ascending gallery rows for query row 2\n  got: \[ ?{rows[0]}[^$]*rows from 0 to 3, ascending"
    with pytest.raises(InputError, match=message):
        excluded_rows([Exclusion((5, 4), lambda _: np.array(rows))], 2)


def test_rows_by_identity():
    found = rows_by_identity(labels((5, 0), (DISTRACTOR, 0), (5, 1), (2, 0)))
    assert {pid: rows.tolist() for pid, rows in found.items()} == {DISTRACTOR: [1], 2: [3], 5: [0, 2]}
    assert rows_by_identity(labels()) == {}


def test_an_exclusion_of_another_size():
    with pytest.raises(InputError, match=r"exclusion does not fit[\s\S]*\(1, 2\) \(queries, gallery\)[\s\S]*\(1, 3\)"):
        check_exclusions([same_file("a", "abc"), same_file("a", "ab")], (1, 3))
    check_exclusions([Exclusion((1, 3), lambda _: np.array([0]))], (1, 3))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16, np.uint64, ">i4"])
def test_labels_of_any_type_are_held_in_one(dtype):
    crops = Labels(np.array([7, 100], dtype=dtype), np.array([3, 4], dtype=dtype))
    assert (crops.pids.dtype, crops.camids.dtype) == (np.int64, np.int64)
    assert (crops.pids.tolist(), crops.camids.tolist()) == ([7, 100], [3, 4])


def test_labels_too_large():
    with pytest.raises(
        InputError, match=r"cameras are too large for 64 bits\n  got: 9223372036854775808[^$]*below 2\^63"
    ):
        Labels(np.array([1, 2]), np.array([1, 1 << 63], dtype=np.uint64))


def test_labels_differ_in_number():
    with pytest.raises(InputError, match="Identities and cameras differ in number\n  got: 2 and 1"):
        Labels(np.array([1, 2]), np.array([1]))


@pytest.mark.parametrize(
    ("pids", "camids", "message"),
    [
        (
            ["0001", "0002"],
            [0, 0],
            r"identities are no row of whole[^\n]*\n  got: <U4 \(2,\), such as '0001'[^$]*unique",
        ),
        ([1.0], [0], r"identities are no row of whole numbers\n  got: float64 \(1,\), such as 1.0"),
        ([1], ["c1"], r"cameras are no row of whole numbers\n  got: <U2 \(1,\), such as 'c1'"),
        ([[1]], [[0]], r"identities are no row of whole numbers\n  got: int64 \(1, 1\)"),
        ([], [0], r"identities are no row of whole numbers\n  got: float64 \(0,\)\n"),
    ],
)
def test_labels_that_are_no_whole_numbers(pids, camids, message):
    with pytest.raises(InputError, match=message):
        Labels(np.array(pids), np.array(camids))
