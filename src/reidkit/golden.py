"""Golden crops: drawn by program, the same on every machine, to hold engines to one set of embeddings.

Nobody is shown on them, so they can travel with any model. They are varied, so that a mistake in colour order, in
scale, in layout or in the order of a batch cannot hide: flat and busy, dark and bright, every channel on its own.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from reidkit.errors import InputError
from reidkit.types import InputSpec

_SEED = 20_240_229
_Drawing = Float[np.ndarray, "height width 3"]


def golden_crops(spec: InputSpec, n: int = 8) -> UInt8[np.ndarray, "n {spec.height} {spec.width} 3"]:
    """Draws crops of the spec's size: colour fields, ramps, blocks and noise in turn, no two the same.

    The i-th crop depends on the size and on i alone, not on `n`.

    Raises:
        InputError: `n` is below 1.
    """
    if n < 1:
        raise InputError("Cannot draw that few golden crops", got=n, expected="1 or more")
    drawings = [
        _DRAWERS[i % len(_DRAWERS)](np.random.default_rng((_SEED, i)), spec.height, spec.width) for i in range(n)
    ]
    return np.stack([np.rint(np.clip(drawing, 0, 1) * 255).astype(np.uint8) for drawing in drawings])


def _colour_field(rng: np.random.Generator, height: int, width: int) -> _Drawing:
    """A few slow waves per channel: what is left of a picture far out of focus."""
    y, x = _grid(height, width)
    waves, channels = 4, 3
    rate, phase = rng.uniform(-2, 2, (2, waves, channels)), rng.uniform(0, 2 * np.pi, (waves, channels))
    angles = 2 * np.pi * (y[..., None, None] * rate[0] + x[..., None, None] * rate[1]) + phase
    return rng.uniform(0.2, 0.8, channels) + np.cos(angles).mean(axis=2) * 0.8


def _blocks(rng: np.random.Generator, height: int, width: int) -> _Drawing:
    """Flat rectangles with sharp edges upon one colour."""
    y, x = _grid(height, width)
    drawing = np.broadcast_to(rng.uniform(0, 1, 3), (height, width, 3)).copy()
    for _ in range(7):
        (top, left), (tall, wide) = rng.uniform(-0.1, 0.8, 2), rng.uniform(0.1, 0.6, 2)
        inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
        drawing[inside] = rng.uniform(0, 1, 3)
    return drawing


def _ramp(rng: np.random.Generator, height: int, width: int) -> _Drawing:
    """Each channel rises across the crop in a direction of its own."""
    y, x = _grid(height, width)
    start, down, right = rng.uniform(0, 1, 3), rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3)
    return start + y[..., None] * down + x[..., None] * right


def _noise(rng: np.random.Generator, height: int, width: int) -> _Drawing:
    """Every pixel on its own, around one colour."""
    return rng.uniform(0.1, 0.9, 3) + rng.uniform(-0.5, 0.5, (height, width, 3))


_DRAWERS: tuple[Callable[[np.random.Generator, int, int], _Drawing], ...] = (_colour_field, _blocks, _ramp, _noise)


def _grid(height: int, width: int) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """How far down and how far right each pixel's centre is, as fractions of the crop."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return y, x
