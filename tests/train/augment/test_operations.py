"""The policy's operations on colour, against Pillow's ImageOps and ImageEnhance."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from random_crops import array, crops_of, planes, smooth_crops

from reidkit.train.augment.operations import operated
from reidkit.train.augment.policy import Operation, Operations


def operated_on(crops, kind, value):
    n = len(crops)
    return operated(planes(crops), Operations(torch.full((n,), int(kind)), torch.full((n,), float(value)))).numpy()


def odd_crops(height, width):
    """Pictures of one value, of two, of neighbouring ones, and one bright pixel in the dark."""
    crops = torch.zeros((5, height, width, 3), dtype=torch.uint8)
    crops[0] = 77
    crops[1, :2] = 255
    crops[2] = 100
    crops[2, 0] = 101
    crops[3, 0, 0] = 255
    crops[4] = 255
    return crops


def pictures(height, width):
    return torch.cat([crops_of(4, height, width), smooth_crops(8, height, width), odd_crops(height, width)])


SIZES = [(64, 32), (20, 20), (16, 3)]  # Equalize's step is 8, 1 (its last values are above 255 and cut), 0


def pillow(crops, operation):
    return np.stack([np.asarray(operation(Image.fromarray(crop))) for crop in crops.numpy()]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "value", "operation"),
    [
        *((Operation.POSTERIZE, bits, lambda x, bits=bits: ImageOps.posterize(x, bits)) for bits in (1, 4, 6, 7, 8)),
        *((Operation.SOLARIZE, t, lambda x, t=t: ImageOps.solarize(x, t)) for t in (0, 76, 128, 204, 256)),
        (Operation.EQUALIZE, 0, ImageOps.equalize),
        (Operation.INVERT, 0, ImageOps.invert),
    ],
)
def test_as_pillow_to_the_bit(kind, value, operation, size):
    crops = pictures(*size)
    np.testing.assert_array_equal(operated_on(crops, kind, value), pillow(crops, operation))


def enhanced(kind, factor):
    return lambda x: kind(x).enhance(factor)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "value", "operation"),
    [
        (Operation.AUTO_CONTRAST, 0, ImageOps.autocontrast),
        *((Operation.CONTRAST, f, enhanced(ImageEnhance.Contrast, f)) for f in (0.1, 0.82, 1.54, 1.9)),
        *((Operation.COLOR, f, enhanced(ImageEnhance.Color, f)) for f in (0.1, 0.82, 1.54, 1.9)),
        *((Operation.SHARPNESS, f, enhanced(ImageEnhance.Sharpness, f)) for f in (0.1, 0.82, 1.36, 1.9)),
    ],
)
def test_as_pillow_but_for_its_floating_point(kind, value, operation, size):
    crops = pictures(*size)
    off = np.abs(operated_on(crops, kind, value) - pillow(crops, operation))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02


@pytest.mark.parametrize("kind", [Operation.NOTHING, Operation.ROTATE, Operation.SHEAR_X])
def test_what_does_not_touch_colour_leaves_it(kind):
    crops = pictures(16, 8)
    np.testing.assert_array_equal(operated_on(crops, kind, 27.0), array(crops))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2)])
@pytest.mark.parametrize("kind", list(Operation))
def test_the_smallest_crops_go_through(kind, size):
    crops = crops_of(3, *size)
    got = operated_on(crops, kind, 1.5 if kind in (6, 7, 8) else 5)
    assert ((got >= 0) & (got <= 255) & (got == got.round())).all()
    if kind == Operation.EQUALIZE:
        np.testing.assert_array_equal(got, pillow(crops, ImageOps.equalize))


def test_each_crop_has_its_own_operation():
    crops = crops_of(len(Operation), 12, 6)
    kinds = torch.tensor(list(Operation))
    values = torch.tensor([0, 5, 99, 0, 0, 0, 1.3, 0.4, 1.7, 12, 0.2])
    together = operated(planes(crops), Operations(kinds, values)).numpy()
    for i, kind in enumerate(Operation):
        np.testing.assert_array_equal(together[i], operated_on(crops[i : i + 1], kind, values[i])[0])
