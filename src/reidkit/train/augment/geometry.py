"""Where the pixels of a changed crop come from: mirrored, shifted, turned, zoomed, sheared, all in one gather."""

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F


def shifted(
    crops: UInt8[Tensor, "n height width 3"],
    mirrored: Bool[Tensor, " n"],
    dx: Int[Tensor, " n"],
    dy: Int[Tensor, " n"],
) -> tuple[Float[Tensor, "n 3 height width"], Bool[Tensor, "n height width"]]:
    """Mirrors crops, then moves their content left by dx and up by dy, pixel by pixel.

    Returns:
        The pixels, and which of them the crop has; where it has none, its nearest pixel is repeated.
    """
    _, height, width, _ = crops.shape
    columns = torch.arange(width, device=crops.device) + dx[:, None]
    rows = torch.arange(height, device=crops.device) + dy[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    columns = columns.clamp(0, width - 1)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    return picked(crops.permute(0, 3, 1, 2), rows.clamp(0, height - 1), columns).float(), inside


def turned(
    crops: UInt8[Tensor, "n height width 3"],
    mirrored: Bool[Tensor, " n"],
    dx: Int[Tensor, " n"],
    dy: Int[Tensor, " n"],
    source: Float[Tensor, "n 2 2"],
) -> tuple[Float[Tensor, "n 3 height width"], Bool[Tensor, "n height width"]]:
    """Mirrors and shifts crops as `shifted` does, then turns them about their middle, bilinearly, in one sampling.

    What a shift pushed out of the picture, a turn may so bring back in. Pixels are rounded to whole numbers, so that a
    crop that is not turned comes out as an exact copy.

    Args:
        crops: RGB.
        mirrored: which of them are mirrored.
        dx: pixels to the left.
        dy: pixels up.
        source: maps (x, y) from the middle of the result to (x, y) from the middle of what it is made of.

    Returns:
        As `shifted` does.
    """
    _, height, width, _ = crops.shape
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=crops.device) - middle_x
    y = (torch.arange(height, device=crops.device) - middle_y)[:, None]
    a, b, c, d = (source[:, row, column, None, None] for row in (0, 1) for column in (0, 1))
    # Not by affine_grid: it multiplies matrices, in TF32 where that is allowed, which is off by pixels.
    from_x = a * x + b * y + middle_x + dx[:, None, None]
    from_y = c * x + d * y + middle_y + dy[:, None, None]
    inside = (from_x >= -0.5) & (from_x < width - 0.5) & (from_y >= -0.5) & (from_y < height - 0.5)
    from_x = torch.where(mirrored[:, None, None], width - 1 - from_x, from_x)
    grid = torch.stack([(2 * from_x + 1) / width - 1, (2 * from_y + 1) / height - 1], dim=-1)
    pixels = crops.permute(0, 3, 1, 2).float()
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return pixels.round(), inside


def source_of(
    degrees: Float[Tensor, " n"], zoom: Float[Tensor, " n"], slant: Float[Tensor, " n"]
) -> Float[Tensor, "n 2 2"]:
    """The matrix that `turned` takes: of a shear along x, then a zoom, then a turn counter-clockwise.

    Args:
        degrees: of the turn.
        zoom: factor; above 1 enlarges.
        slant: of the shear: pixels to the right for each pixel down.
    """
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    # y points down: counter-clockwise is (x, y) -> (cos x + sin y, cos y - sin x). The inverse, then the shear's.
    rows = [cos - slant * sin, -sin - slant * cos, sin, cos]
    return (torch.stack(rows, dim=-1) / zoom[:, None]).unflatten(1, (2, 2))


def picked(
    pixels: Tensor,
    rows: Int[Tensor, "n height"],
    columns: Int[Tensor, "n width"],
    crops: Int[Tensor, " n"] | None = None,
) -> Tensor:
    """Pixel (rows[i, y], columns[i, x]) of crop i, or of `crops[i]`, at (y, x): n x 3 x height x width, any type."""
    n, channels, height, width = pixels.shape
    if crops is None:
        crops = torch.arange(n, device=pixels.device)
    table = pixels.permute(0, 2, 3, 1).reshape(-1, channels)
    index = (crops[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    # Whole pixels by their number: on a CPU a quarter of the time of indexing by crop, row and column.
    chosen = table.index_select(0, index.flatten())
    return chosen.view(n, *index.shape[1:], channels).permute(0, 3, 1, 2)
