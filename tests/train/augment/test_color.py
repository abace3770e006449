"""Changes of colour, against Pillow and the standard library's HSV."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from random_crops import array, crops_of, planes, smooth_crops

from reidkit.train.augment.color import brightened, contrasted, hue_turned, luma, saturated

FACTORS = [0.0, 0.4, 0.9, 1.0, 1.3, 2.0]
CROPS = torch.cat([crops_of(6, 12, 9), smooth_crops(6, 12, 9)])


@pytest.mark.parametrize(
    ("change", "enhance", "off"),
    [
        (brightened, ImageEnhance.Brightness, 1.0),
        (contrasted, ImageEnhance.Contrast, 1.5),  # Pillow also rounds the mean grey
        (saturated, ImageEnhance.Color, 1.5),  # and the grey of each pixel
    ],
)
def test_as_pillow_but_for_its_whole_numbers(change, enhance, off):
    factors = FACTORS * 2
    got = change(planes(CROPS), torch.tensor(factors)).numpy()
    for picture, crop, factor in zip(got, CROPS.numpy(), factors, strict=True):
        expected = np.asarray(enhance(Image.fromarray(crop)).enhance(factor)).transpose(2, 0, 1)
        assert np.abs(picture - expected).max() < off + 1e-3
        # Pillow cuts, so it lies below by half a level in the mean.
        assert abs((picture - expected).mean()) < 0.8
    assert got.min() >= 0
    assert got.max() == 255


def test_grey_is_pillows():
    for grey, crop in zip(luma(planes(CROPS)), CROPS.numpy(), strict=True):
        expected = np.asarray(Image.fromarray(crop).convert("L"))
        np.testing.assert_array_equal((grey[0] + 0.5).floor(), expected)


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.1, 1 / 3, 0.5, -0.5])
def test_hue_turns_in_hsv(turns):
    crops = crops_of(2, 8, 9)
    crops[0, 0] = torch.tensor([[0, 0, 0], [255, 255, 255], [99, 99, 99], [255, 0, 0], [0, 255, 0], [0, 0, 255],
                                [255, 255, 0], [0, 255, 255], [255, 0, 255]])  # fmt: skip
    got = hue_turned(planes(crops), torch.full((2,), turns)).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    for pixel, before in zip(got, crops.reshape(-1, 3).numpy() / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        np.testing.assert_allclose(pixel / 255, colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), atol=1e-5)


def test_a_third_of_a_turn_makes_red_green():
    red = torch.tensor([255.0, 0, 0]).view(1, 3, 1, 1)
    assert hue_turned(red, torch.tensor([1 / 3])).flatten().tolist() == pytest.approx([0, 255, 0], abs=1e-3)


def test_each_crop_has_its_own_factor():
    crops = crops_of(2, 3, 3)
    got = saturated(planes(crops), torch.tensor([0.0, 1.0])).numpy()
    assert np.ptp(got[0], axis=0).max() < 1e-3  # grey
    np.testing.assert_allclose(got[1], array(crops)[1], atol=1e-4)
