"""Flip, shift and turn, against loops over pixels and against Pillow."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from random_crops import array, crops_of

from reidkit.train.augment.geometry import picked, shifted, source_of, turned

AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR
OUTSIDE = -9999.0  # what Pillow paints where the picture has no pixel


def at_all(*values):
    return torch.tensor(values)


def moved_by_hand(picture, dx, dy):
    """The picture's content moved left by dx and up by dy."""
    _, height, width = picture.shape
    out = np.full_like(picture, OUTSIDE)
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[:, y, x] = picture[:, y + dy, x + dx]
    return out


MOVES = [(0, 0), (1, 0), (0, 1), (-3, 2), (2, -3), (4, 4), (-4, -4)]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turning", [False, True])
def test_a_shift_copies_pixels(mirrored, turning):
    crops = crops_of(len(MOVES), 9, 7)
    moves = (torch.full((len(MOVES),), mirrored), *(torch.tensor(column) for column in zip(*MOVES, strict=True)))
    still = torch.eye(2).expand(len(MOVES), 2, 2)
    got, inside = turned(crops, *moves, still) if turning else shifted(crops, *moves)
    for picture, mask, crop, move in zip(got.numpy(), inside.numpy(), array(crops), MOVES, strict=True):
        expected = moved_by_hand(crop[..., ::-1] if mirrored else crop, *move)
        np.testing.assert_array_equal(mask, expected[0] != OUTSIDE)
        np.testing.assert_array_equal(picture[:, mask], expected[:, mask])


def test_what_is_outside_repeats_the_nearest_pixel():
    crops = crops_of(1, 5, 4)
    got, inside = shifted(crops, at_all(False), at_all(2), at_all(-1))
    assert inside[0].int().tolist() == [[0, 0, 0, 0], *[[1, 1, 0, 0]] * 4]
    np.testing.assert_array_equal(got[0, :, 0], got[0, :, 1])
    np.testing.assert_array_equal(got[0, :, 3, 3], array(crops)[0, :, 2, 3])


def compare(got, inside, crop, pillow):
    """Every channel against what Pillow's float pictures give; ours are rounded."""
    for channel, plane in zip(got.numpy(), crop.transpose(2, 0, 1), strict=True):
        expected = np.asarray(pillow(Image.fromarray(plane.astype(np.float32))))
        sure = np.abs(expected) < 1000
        np.testing.assert_array_equal(inside.numpy(), sure)
        assert np.abs(channel[sure] - expected[sure]).max() < 0.501
        assert (channel == channel.round()).all()


@pytest.mark.parametrize("degrees", [10.0, -33.0, 80.0])
@pytest.mark.parametrize(("height", "width"), [(24, 12), (11, 19)])
def test_a_turn_is_pillows(degrees, height, width):
    crops = crops_of(1, height, width)
    source = source_of(at_all(degrees), at_all(1.0), at_all(0.0))
    got, inside = turned(crops, at_all(False), at_all(0), at_all(0), source)
    compare(got[0], inside[0], crops[0].numpy(), lambda plane: plane.rotate(degrees, BILINEAR, fillcolor=OUTSIDE))


def affine_by_hand(degrees, zoom, slant, size):
    """Pillow's six numbers: from a point of the result to one of the crop, pixels having their middles at 0.5."""
    turn = math.radians(degrees)
    forward = (
        zoom
        * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        @ np.array([[1, slant], [0, 1]])
    )
    back, middle = np.linalg.inv(forward), np.array([size[1] / 2, size[0] / 2])
    return np.column_stack([back, middle - back @ middle]).ravel()


@pytest.mark.parametrize(
    ("degrees", "zoom", "slant"), [(0, 1.3, 0), (0, 0.7, 0), (0, 1, 0.3), (0, 1, -0.2), (17, 0.83, 0.11)]
)
def test_shear_then_zoom_then_turn(degrees, zoom, slant):
    crops = crops_of(1, 21, 13)
    source = source_of(at_all(float(degrees)), at_all(float(zoom)), at_all(float(slant)))
    got, inside = turned(crops, at_all(False), at_all(0), at_all(0), source)
    numbers = affine_by_hand(degrees, zoom, slant, (21, 13))
    compare(
        got[0],
        inside[0],
        crops[0].numpy(),
        lambda plane: plane.transform(plane.size, AFFINE, numbers, BILINEAR, fillcolor=OUTSIDE),
    )


def test_mirrored_then_shifted_then_turned():
    crops, source = crops_of(1, 16, 11), source_of(at_all(25.0), at_all(1.2), at_all(0.1))
    got, inside = turned(crops, at_all(True), at_all(3), at_all(-2), source)
    numbers = affine_by_hand(25, 1.2, 0.1, (16, 11))
    numbers[[2, 5]] += 3, -2
    compare(
        got[0],
        inside[0],
        crops[0].numpy()[:, ::-1],
        lambda plane: plane.transform(plane.size, AFFINE, numbers, BILINEAR, fillcolor=OUTSIDE),
    )


def test_pixels_are_picked_one_by_one():
    pixels = array(crops_of(3, 5, 4))
    generator = np.random.default_rng(0)
    rows, columns, crops = (generator.integers(0, high, size) for high, size in ((5, (3, 5)), (4, (3, 4)), (3, 3)))
    got = picked(*(torch.from_numpy(each) for each in (pixels, rows, columns, crops))).numpy()
    for i in range(3):
        for y in range(5):
            for x in range(4):
                np.testing.assert_array_equal(got[i, :, y, x], pixels[crops[i], :, rows[i, y], columns[i, x]])
