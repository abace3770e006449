import os
from pathlib import Path

import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.index import NO_NEIGHBOR, nearest
from reidkit.metrics.junk import Labels, excluded_pairs, labels_of, same_camera, same_file
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, UNKNOWN_IDENTITY, Crop

EVERY = slice(0, 100)


def labels(*pairs):
    return labels_of([Crop(Path("x"), pid, camid) for pid, camid in pairs])


def test_the_same_identity_in_the_same_camera():
    query = labels((1, 1), (1, UNKNOWN_CAMERA))
    gallery = labels((1, 1), (1, 2), (2, 1), (1, UNKNOWN_CAMERA))
    assert same_camera(query, gallery)(EVERY).tolist() == [[True, False, False, False], [False] * 4]


@pytest.mark.parametrize("nobody", [DISTRACTOR, UNKNOWN_IDENTITY])
def test_two_of_unknown_identity_are_not_the_same(nobody):
    crops = labels((nobody, 1))
    assert same_camera(crops, crops)(EVERY).tolist() == [[False]]


def test_the_very_same_file_under_any_name(tmp_path):
    file, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    for path in (file, other):
        path.touch()
    link = tmp_path / "link.jpg"
    link.symlink_to(file)
    written_otherwise = Path(os.path.relpath(file))
    assert same_file([file], [other, link, written_otherwise])(EVERY).tolist() == [[False, True, True]]


def test_search_leaves_out_what_is_excluded_block_by_block():
    places = np.array([[1], [2], [3]], dtype=np.float32)
    exclude = [same_camera(labels((1, 1), (2, 1)), labels((1, 1), (2, 1), (3, 1))), same_file("ab", "cba")]
    found = nearest(np.zeros((2, 1), np.float32), places, metric="euclidean", exclude=exclude, block=1)
    assert found.indices.tolist() == [[1, NO_NEIGHBOR, NO_NEIGHBOR], [0, 2, NO_NEIGHBOR]]


def test_no_exclusion_excludes_nothing():
    assert excluded_pairs([], slice(0, 2), (2, 3)).tolist() == [[False] * 3] * 2


def test_labels_differ_in_number():
    with pytest.raises(InputError, match="Identities and cameras differ in number"):
        Labels(np.array([1, 2]), np.array([1]))
