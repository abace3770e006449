"""What ground and walls are made of: colour as a function of the place on them, in metres."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from reidkit.data.synth.identity import Color
from reidkit.data.synth.solids import linear

Material = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two coordinates in metres, any shape -> linear colour, (3, ...)."""


class _Grain:
    """Smooth random values over metres, repeating only after a long way."""

    def __init__(self, rng: np.random.Generator) -> None:
        coarse = np.pad(rng.random((64, 64)), 4, mode="wrap").astype(np.float32)
        fine = Image.fromarray(coarse).resize((72 * 8, 72 * 8), Image.Resampling.BICUBIC)
        self._table = np.asarray(fine)[32:-32, 32:-32] - 0.5

    def __call__(self, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
        """Around 0, mostly within -0.5 to 0.5; features are about 4 / `scale` metres wide."""
        return self._table[
            np.floor(b * (2 * scale)).astype(np.int64) & 511, np.floor(a * (2 * scale)).astype(np.int64) & 511
        ]


def _mix(base: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    return base + share * (other - base)


def _flat(color: Color) -> np.ndarray:
    return linear(color)[:, :, 0]


def paving(rng: np.random.Generator, color: Color, size: float) -> Material:
    """Slabs with joints; every slab a little different."""
    grain, base, shift = _Grain(rng), _flat(color), rng.uniform(0, 1)
    tint = rng.uniform(0.82, 1.12, (64, 64))

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        row = np.floor(b / size)
        column = a / size + 0.5 * (row % 2) + shift
        joint = (np.abs(column % 1 - 0.5) > 0.47) | (np.abs(b / size % 1 - 0.5) > 0.46)
        slab = tint[row.astype(np.int64) & 63, np.floor(column).astype(np.int64) & 63]
        return base * (slab + 0.35 * grain(a, b, 24.0) + 0.25 * grain(a, b, 3.0)) * np.where(joint, 0.62, 1.0)

    return material


def asphalt(rng: np.random.Generator, color: Color) -> Material:
    """A road with a kerb line, a painted line and patches."""
    grain, base, paint, line = _Grain(rng), _flat(color), _flat((0.85, 0.84, 0.78)), rng.uniform(4.0, 6.0)
    dashed = rng.random() < 0.5

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        rough = base * (1.0 + 0.5 * grain(a, b, 40.0) + 0.5 * grain(a, b, 2.5))
        painted = (np.abs(b - line) < 0.09) & ((a % 2.4 < 1.4) | (not dashed))
        return _mix(rough, paint * (1 + 0.4 * grain(a, b, 30.0)), painted)

    return material


def lawn(rng: np.random.Generator) -> Material:
    """A sandy path between lawns."""
    grain, grass, sand = _Grain(rng), _flat((0.38, 0.44, 0.25)), _flat((0.68, 0.62, 0.52))
    near, far = rng.uniform(2.8, 3.6), rng.uniform(6.0, 7.5)

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        edge = 0.5 * grain(a, b, 4.0)
        on_path = (b > near + edge) & (b < far + edge)
        green = grass * (1 + 0.8 * grain(a, b, 60.0) + 0.6 * grain(a, b, 5.0))
        return np.where(on_path, sand * (1 + 0.35 * grain(a, b, 50.0) + 0.3 * grain(a, b, 4.0)), green)

    return material


def bricks(rng: np.random.Generator, color: Color, base_height: float = 0.5) -> Material:
    """A brick wall over a plinth, with a few windows."""
    grain, brick, mortar = _Grain(rng), _flat(color), _flat((0.62, 0.60, 0.56))
    tint, step = rng.uniform(0.75, 1.2, (64, 64)), rng.uniform(2.6, 3.6)
    glass = _flat((0.16, 0.20, 0.24))

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        row = np.floor(b / 0.14)
        column = a / 0.34 + 0.5 * (row % 2)
        joint = (np.abs(column % 1 - 0.5) > 0.46) | (np.abs(b / 0.14 % 1 - 0.5) > 0.42)
        color = brick * tint[row.astype(np.int64) & 63, np.floor(column).astype(np.int64) & 63]
        color = _mix(color, mortar, 0.6 * joint) * (1 + 0.3 * grain(a, b, 3.0))
        color = np.where(b < base_height, mortar * (0.75 + 0.4 * grain(a, b, 9.0)), color)
        across = np.abs(a % step - step / 2)
        frame, pane = (across < 0.62) & (np.abs(b - 1.75) < 0.72), (across < 0.52) & (np.abs(b - 1.75) < 0.62)
        color = np.where(frame, mortar * 1.3, color)
        return np.where(pane & (across > 0.03), glass * (1.0 + 1.6 * (b - 1.1) + 1.5 * grain(a, b, 3.0)), color)

    return material


def shops(rng: np.random.Generator, colors: tuple[Color, ...]) -> Material:
    """Shop windows with goods behind glass, doors, coloured fasciae above."""
    grain, front, dark = _Grain(rng), _flat((0.46, 0.44, 0.42)), _flat((0.12, 0.12, 0.13))
    table = np.stack([_flat(color)[:, 0] for color in colors], axis=1)
    goods = np.square(rng.uniform(0.15, 0.75, (64, 64)) * rng.uniform(0.75, 1.0, (3, 64, 64)))
    wide = rng.uniform(3.0, 4.2)

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shop = np.floor(a / wide).astype(np.int64)
        within = a % wide
        sign = table[:, shop % len(colors)] * (0.9 + 0.4 * grain(a, b, 6.0))
        shelf = goods[:, (b * 2.2).astype(np.int64) & 63, np.floor(a * 2.6).astype(np.int64) & 63]
        inside = _mix(dark, shelf, 0.35 + 0.4 * grain(a, b, 5.0)) * (0.5 + 0.35 * np.clip(b, 0, 2))
        mullion = (np.abs(within % 1.2 - 0.6) > 0.56) | (np.abs(within - wide / 2) > wide / 2 - 0.16)
        color = np.where((b > 0.35) & ~mullion, inside, front * (1 + 0.3 * grain(a, b, 8.0)))
        color = np.where((b > 2.35) & (b < 2.95), sign, color)
        return np.where(b >= 2.95, front * (1.1 + 0.3 * grain(a, b, 4.0)), color)

    return material


def hedge(rng: np.random.Generator, height: float) -> Material:
    """A hedge, and above it trees against the sky."""
    grain, leaf, sky = _Grain(rng), _flat((0.25, 0.31, 0.18)), _flat((0.72, 0.78, 0.84))

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        green = (
            leaf * (0.9 + 1.3 * grain(a, b, 26.0) + 0.7 * grain(a, b, 7.0)) * (0.55 + 0.45 * np.clip(b / height, 0, 1))
        )
        crowns = np.where(grain(a, b, 9.0) + 0.6 * grain(a, b, 3.0) > -0.05, green * 0.75, sky)
        trunk = np.abs((a + 0.3 * grain(a, b, 1.0)) % 2.7 - 1.3) < 0.11
        above = np.where(trunk & (b < height + 1.2), leaf * 0.4, crowns)
        return np.where(b < height + 0.4 * grain(a, b, 12.0), np.maximum(green, 0.004), np.maximum(above, 0.004))

    return material


def concrete(rng: np.random.Generator, color: Color) -> Material:
    """Large panels, stained by rain, with a dark band of glass."""
    grain, base, glass = _Grain(rng), _flat(color), _flat((0.20, 0.26, 0.30))
    low, step = rng.uniform(0.8, 1.3), rng.uniform(1.2, 1.8)

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        joint = (np.abs(a / step % 1 - 0.5) > 0.49) | (np.abs(b / 1.1 % 1 - 0.5) > 0.485)
        wall = base * (1 + 0.35 * grain(a, b * 0.15, 10.0) + 0.15 * grain(a, b, 30.0)) * np.where(joint, 0.6, 1.0)
        band = (b > low) & (b < low + 1.4) & (np.abs(a / step % 1 - 0.5) < 0.44)
        return np.where(band, glass * (0.8 + 1.4 * grain(a + b, b, 2.5)), wall)

    return material
