"""Random changes to whole batches of crops, on the device that trains. Pixels are float, 0 to 255, n x 3 x h x w."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from reidkit.train.recipe import Augment

_GREY = (0.299, 0.587, 0.114)


def augment_batch(
    crops: UInt8[Tensor, "n height width 3"],
    settings: Augment,
    *,
    generator: torch.Generator,
    fill: Float[Tensor, " 3"],
) -> Float[Tensor, "n 3 height width"]:
    """Flips, shifts, recolours and erases each crop by its own draw.

    Args:
        crops: RGB.
        settings: what to do and how often.
        generator: of the random numbers, on the CPU, so that a seed means the same on every device.
        fill: colour of what was shifted in or erased, 0 to 255 per channel (the data's mean: zero after normalisation).

    Returns:
        Pixels, still 0 to 255.
    """
    n, height, width, _ = crops.shape
    device = crops.device
    draw = _Draw(generator, n, device)
    x = crops.permute(0, 3, 1, 2)
    mirrored = draw.chance(settings.flip)
    dx = draw.integers(-settings.pad, settings.pad)
    dy = draw.integers(-settings.pad, settings.pad)
    # One gather does flip and shift: no picture is copied twice.
    columns = torch.arange(width, device=device) + dx[:, None]
    rows = torch.arange(height, device=device) + dy[:, None]
    inside = ((columns >= 0) & (columns < width))[:, None, :] & ((rows >= 0) & (rows < height))[:, :, None]
    columns = columns.clamp(0, width - 1)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    rows = rows.clamp(0, height - 1)
    batch = torch.arange(n, device=device)
    x = x.permute(0, 2, 3, 1)[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
    x = x.permute(0, 3, 1, 2).float()
    background = fill.to(device).view(1, 3, 1, 1)
    if settings.color > 0:
        x = _recolor(x, settings.color, draw)
    x = torch.where(inside[:, None], x, background)
    if settings.erase > 0:
        x = torch.where(_rectangles(height, width, draw, settings.erase)[:, None], background, x)
    return x


class _Draw:
    """Random numbers for a batch: drawn on the CPU, used on the device."""

    def __init__(self, generator: torch.Generator, n: int, device: torch.device) -> None:
        self.generator, self.n, self.device = generator, n, device

    def uniform(self, low: float, high: float) -> Float[Tensor, " n"]:
        values = torch.rand(self.n, generator=self.generator)
        return (low + (high - low) * values).to(self.device, non_blocking=True)

    def chance(self, probability: float) -> Tensor:
        return self.uniform(0.0, 1.0) < probability

    def integers(self, low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (self.n,), generator=self.generator).to(self.device, non_blocking=True)


def _recolor(x: Float[Tensor, "n 3 h w"], strength: float, draw: _Draw) -> Float[Tensor, "n 3 h w"]:
    """Saturation, contrast and brightness, each by a factor of 1 +- strength."""
    saturation, contrast, brightness = (draw.uniform(1 - strength, 1 + strength).view(-1, 1, 1, 1) for _ in range(3))
    grey = (x * torch.tensor(_GREY, device=x.device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    x = grey + (x - grey) * saturation
    mean = grey.mean(dim=(2, 3), keepdim=True)
    x = (mean + (x - mean) * contrast) * brightness
    return x.clamp(0.0, 255.0)


def _rectangles(height: int, width: int, draw: _Draw, probability: float) -> Tensor:
    """Random Erasing's rectangles, as a mask (n, h, w): 2 to 40 % of the area, aspect 0.3 to 3.3."""
    area = draw.uniform(0.02, 0.4) * (height * width)
    aspect = torch.exp(draw.uniform(-1.2, 1.2))
    h = (area * aspect).sqrt().round().clamp(1, height - 1)
    w = (area / aspect).sqrt().round().clamp(1, width - 1)
    top = (draw.uniform(0.0, 1.0) * (height - h + 1)).floor()
    left = (draw.uniform(0.0, 1.0) * (width - w + 1)).floor()
    rows = torch.arange(height, device=draw.device)
    columns = torch.arange(width, device=draw.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :] & draw.chance(probability)[:, None, None]
