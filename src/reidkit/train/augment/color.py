"""Changes of colour that are the same for every pixel of a crop. Pixels are float, 0 to 255.

As Pillow's ImageEnhance, but on real numbers: Pillow cuts every result to a whole number, and measures contrast from
the mean grey rounded to one, so the two differ by less than 1.5 after each change.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def luma(pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 1 height width"]:
    """Grey of ITU-R BT.601, with Pillow's weights in 65536ths: exact in float32 for whole numbers."""
    red, green, blue = pixels.split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471) / 65536


def brightened(pixels: Float[Tensor, "n 3 height width"], factor: Float[Tensor, " n"]) -> Tensor:
    """Times a factor; 0 is black."""
    return (pixels * factor.view(-1, 1, 1, 1)).clamp(0, 255)


def contrasted(pixels: Float[Tensor, "n 3 height width"], factor: Float[Tensor, " n"]) -> Tensor:
    """Away from the crop's mean grey by a factor; 0 is that grey."""
    mean = luma(pixels).mean(dim=(2, 3), keepdim=True)
    return (mean + (pixels - mean) * factor.view(-1, 1, 1, 1)).clamp(0, 255)


def saturated(pixels: Float[Tensor, "n 3 height width"], factor: Float[Tensor, " n"]) -> Tensor:
    """Away from each pixel's own grey by a factor; 0 is a grey picture."""
    grey = luma(pixels)
    return (grey + (pixels - grey) * factor.view(-1, 1, 1, 1)).clamp(0, 255)


def hue_turned(pixels: Float[Tensor, "n 3 height width"], turns: Float[Tensor, " n"]) -> Tensor:
    """Round the colour circle of HSV by so many whole turns: a third makes red green."""
    value, low = pixels.amax(dim=1, keepdim=True), pixels.amin(dim=1, keepdim=True)
    chroma = value - low
    red, green, blue = pixels.split(1, dim=1)
    # In sixths of the circle from the largest channel's own place. Of a grey pixel: any, since its chroma is 0.
    unit = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, (blue - red) / unit + 2, (red - green) / unit + 4),
    )
    hue = hue + 6 * turns.view(-1, 1, 1, 1)
    channels = []
    for offset in (5, 3, 1):  # where on the circle red, green and blue are least
        distance = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1))
    return torch.cat(channels, dim=1)
