import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.golden import golden_crops
from reidkit.types import InputSpec

SPEC = InputSpec(64, 32)


def test_they_are_the_same_every_time_and_do_not_depend_on_how_many():
    crops = golden_crops(SPEC, 8)
    assert crops.dtype == np.uint8
    assert crops.shape == (8, 64, 32, 3)
    np.testing.assert_array_equal(crops, golden_crops(SPEC, 8))
    np.testing.assert_array_equal(crops[:3], golden_crops(SPEC, 3))


def test_no_two_are_alike_and_all_three_channels_differ():
    crops = golden_crops(SPEC, 12).astype(np.float64)
    for i in range(12):
        for other in range(i):
            assert np.abs(crops[i] - crops[other]).mean() > 10
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert np.abs(crops[i, ..., a] - crops[i, ..., b]).mean() > 5


def test_none_is_its_own_mirror_image():
    # A network fed with width and height swapped, or the picture upside down, must show.
    for crop in golden_crops(InputSpec(48, 48), 8).astype(np.float64):
        for turned in (crop[::-1], crop[:, ::-1], crop.transpose(1, 0, 2)):
            assert np.abs(crop - turned).mean() > 5


def test_they_use_the_range_of_a_pixel():
    crops = golden_crops(SPEC)
    assert crops.min() == 0
    assert crops.max() == 255
    assert 80 < crops.mean() < 175


def test_a_crop_of_one_pixel_can_be_drawn():
    assert golden_crops(InputSpec(1, 1), 4).shape == (4, 1, 1, 3)


def test_fewer_than_one_is_refused():
    with pytest.raises(InputError, match=r"Cannot draw that few golden crops\n  got: 0\n  expected: 1 or more"):
        golden_crops(SPEC, 0)
