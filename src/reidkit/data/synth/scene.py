"""What a street camera looks at when nobody is there: ground, walls and street furniture in true perspective.

A scene is a small box world: a ground plane, a wall across the street and one wall along it. Every pixel's ray is
cut with these planes; the place where it hits, in metres, decides the colour. Furniture is drawn over that as shaded
tubes at true size. A crop is a window of this picture around wherever the person walks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from reidkit.data.synth.identity import Color, Stream, generator
from reidkit.data.synth.solids import Canvas, Light, linear

WIDTH, HEIGHT = 640, 480

Material = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two coordinates in metres, any shape -> linear colour, (3, ...)."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A camera's empty picture and the geometry needed to put people into it.

    Attributes:
        picture: sRGB.
        horizon: its row.
        altitude: of the camera, metres.
        focal: length, pixels.
        far: distance of the wall across, metres.
        light: of this place.
    """

    picture: UInt8[np.ndarray, "height width 3"]
    horizon: float
    altitude: float
    focal: float
    far: float
    light: Light

    @property
    def pitch(self) -> float:
        """By which the camera looks down on people, radians."""
        return math.atan2(self.altitude - 0.9, 7.0)

    def row(self, metre: float) -> float:
        """Of the ground where one metre is `metre` pixels."""
        return self.horizon + self.altitude * metre


def draw_scene(seed: int, camera: int) -> Scene:
    """The place that this camera watches; five kinds of street take turns."""
    rng = generator(seed, Stream.SCENE, camera)
    horizon, altitude = float(rng.uniform(45, 125)), float(rng.uniform(1.9, 2.9))
    focal, far = float(rng.uniform(415, 545)), float(rng.uniform(9.5, 13.0))
    turn = int(generator(seed, Stream.SCENE).integers(len(_PLACES)))
    ground, across, along = _PLACES[(camera + turn) % len(_PLACES)](rng)
    side = float(rng.choice([-1.0, 1.0]))
    pixels = _cast(horizon, altitude, focal, far, side * float(rng.uniform(2.6, 4.5)), (ground, across, along))
    direction = np.array([-side * rng.uniform(0.3, 0.9), -rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.8)])
    x, y, z = (float(v) for v in direction / np.linalg.norm(direction))
    light = Light((x, y, z), float(rng.uniform(0.38, 0.62)))
    canvas = Canvas(pixels, light)
    empty = Scene(np.zeros((0, 0, 3), np.uint8), horizon, altitude, focal, far, light)
    _furnish(canvas, empty, rng)
    picture = Image.fromarray((np.sqrt(np.clip(canvas.pixels, 0, 1)) * 255).astype(np.uint8).transpose(1, 2, 0).copy())
    picture = picture.filter(ImageFilter.GaussianBlur(0.7))
    return Scene(np.asarray(picture), horizon, altitude, focal, far, light)


def _cast(horizon: float, altitude: float, focal: float, far: float, side: float, materials: tuple[Material, ...]) -> np.ndarray:
    """Colours of the three planes, each pixel from the nearest plane that its ray meets."""
    ground, across, along = materials
    x = (np.arange(WIDTH, dtype=np.float32)[None, :] + 0.5 - WIDTH / 2) / focal
    y = (np.arange(HEIGHT, dtype=np.float32)[:, None] + 0.5 - horizon) / focal
    to_ground = np.where(y > 0, altitude / np.maximum(y, 1e-4), np.inf)
    to_side = np.where(x * side > 0, side / np.where(x == 0, 1e-6, x), np.inf)
    depth = np.minimum(np.minimum(to_ground, to_side), far).astype(np.float32)
    on_ground, on_side = depth == to_ground, depth == to_side
    on_wall = ~(on_ground | on_side)
    x, y = np.broadcast_to(x, depth.shape), np.broadcast_to(y, depth.shape)
    pixels = np.empty((3, HEIGHT, WIDTH), dtype=np.float32)
    up = altitude - y * depth
    for mask, material, a, b in ((on_ground, ground, x * depth, depth), (on_wall, across, x * depth, up), (on_side, along, depth, up)):
        pixels[:, mask] = material(a[mask], b[mask])
    # Light gets lost in corners, and far ground is paler.
    corner = np.minimum(np.abs(far - depth) * on_ground + up * ~on_ground, 0.8) / 0.8
    return pixels * (0.78 + 0.22 * corner) * np.where(on_side, 0.82, 1.0)


class _Grain:
    """Smooth random values over metres, repeating only after a long way."""

    def __init__(self, rng: np.random.Generator) -> None:
        coarse = np.pad(rng.random((64, 64)), 4, mode="wrap").astype(np.float32)
        fine = Image.fromarray(coarse).resize((72 * 8, 72 * 8), Image.Resampling.BICUBIC)
        self._table = np.asarray(fine)[32:-32, 32:-32] - 0.5

    def __call__(self, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
        """Around 0, mostly within -0.5 to 0.5; features are about 4 / `scale` metres wide."""
        return self._table[np.floor(b * (2 * scale)).astype(np.int64) & 511, np.floor(a * (2 * scale)).astype(np.int64) & 511]


def _mix(base: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    return base + share * (other - base)


def _flat(color: Color) -> np.ndarray:
    return linear(color)[:, :, 0]


def _paving(rng: np.random.Generator, color: Color, size: float) -> Material:
    """Slabs with joints; every slab a little different."""
    grain, base, shift = _Grain(rng), _flat(color), rng.uniform(0, 1)
    tint = rng.uniform(0.82, 1.12, (64, 64))

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        row = np.floor(b / size)
        column = a / size + 0.5 * (row % 2) + shift
        joint = (np.abs(column % 1 - 0.5) > 0.47) | (np.abs(b / size % 1 - 0.5) > 0.46)
        slab = tint[row.astype(np.int64) & 63, np.floor(column).astype(np.int64) & 63]
        return base * (slab + 0.35 * grain(a, b, 24) + 0.25 * grain(a, b, 3)) * np.where(joint, 0.62, 1.0)

    return material


def _asphalt(rng: np.random.Generator, color: Color) -> Material:
    """A road with a kerb line, a painted line and patches."""
    grain, base, paint, line = _Grain(rng), _flat(color), _flat((0.85, 0.84, 0.78)), rng.uniform(4.0, 6.0)
    dashed = rng.random() < 0.5

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        rough = base * (1.0 + 0.5 * grain(a, b, 40) + 0.5 * grain(a, b, 2.5))
        painted = (np.abs(b - line) < 0.09) & ((a % 2.4 < 1.4) | (not dashed))
        return _mix(rough, paint * (1 + 0.4 * grain(a, b, 30)), painted)

    return material


def _lawn(rng: np.random.Generator) -> Material:
    """A sandy path between lawns."""
    grain, grass, sand = _Grain(rng), _flat((0.38, 0.44, 0.25)), _flat((0.68, 0.62, 0.52))
    near, far = rng.uniform(2.8, 3.6), rng.uniform(6.0, 7.5)

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        edge = 0.5 * grain(a, b, 4)
        on_path = (b > near + edge) & (b < far + edge)
        green = grass * (1 + 0.8 * grain(a, b, 60) + 0.6 * grain(a, b, 5))
        return np.where(on_path, sand * (1 + 0.35 * grain(a, b, 50) + 0.3 * grain(a, b, 4)), green)

    return material


def _bricks(rng: np.random.Generator, color: Color, base_height: float = 0.5) -> Material:
    """A brick wall over a plinth, with a few windows."""
    grain, brick, mortar = _Grain(rng), _flat(color), _flat((0.62, 0.60, 0.56))
    tint, step = rng.uniform(0.75, 1.2, (64, 64)), rng.uniform(2.6, 3.6)
    glass = _flat((0.16, 0.20, 0.24))

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        row = np.floor(b / 0.14)
        column = a / 0.34 + 0.5 * (row % 2)
        joint = (np.abs(column % 1 - 0.5) > 0.46) | (np.abs(b / 0.14 % 1 - 0.5) > 0.42)
        color = brick * tint[row.astype(np.int64) & 63, np.floor(column).astype(np.int64) & 63]
        color = _mix(color, mortar, 0.6 * joint) * (1 + 0.3 * grain(a, b, 3))
        color = np.where(b < base_height, mortar * (0.75 + 0.4 * grain(a, b, 9)), color)
        across = np.abs(a % step - step / 2)
        frame, pane = (across < 0.62) & (np.abs(b - 1.75) < 0.72), (across < 0.52) & (np.abs(b - 1.75) < 0.62)
        color = np.where(frame, mortar * 1.3, color)
        return np.where(pane & (across > 0.03), glass * (1.0 + 1.6 * (b - 1.1) + 1.5 * grain(a, b, 3)), color)

    return material


def _shops(rng: np.random.Generator, colors: tuple[Color, ...]) -> Material:
    """Shop windows with goods behind glass, doors, coloured fasciae above."""
    grain, front, dark = _Grain(rng), _flat((0.46, 0.44, 0.42)), _flat((0.12, 0.12, 0.13))
    table = np.stack([_flat(color)[:, 0] for color in colors], axis=1)
    goods = np.square(rng.uniform(0.15, 0.75, (64, 64)) * rng.uniform(0.75, 1.0, (3, 64, 64)))
    wide = rng.uniform(3.0, 4.2)

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shop = np.floor(a / wide).astype(np.int64)
        within = a % wide
        sign = table[:, shop % len(colors)] * (0.9 + 0.4 * grain(a, b, 6))
        shelf = goods[:, (b * 2.2).astype(np.int64) & 63, np.floor(a * 2.6).astype(np.int64) & 63]
        inside = _mix(dark, shelf, 0.35 + 0.4 * grain(a, b, 5)) * (0.5 + 0.35 * np.clip(b, 0, 2))
        mullion = (np.abs(within % 1.2 - 0.6) > 0.56) | (np.abs(within - wide / 2) > wide / 2 - 0.16)
        color = np.where((b > 0.35) & ~mullion, inside, front * (1 + 0.3 * grain(a, b, 8)))
        color = np.where((b > 2.35) & (b < 2.95), sign, color)
        return np.where(b >= 2.95, front * (1.1 + 0.3 * grain(a, b, 4)), color)

    return material


def _hedge(rng: np.random.Generator, height: float) -> Material:
    """A hedge, and above it trees against the sky."""
    grain, leaf, sky = _Grain(rng), _flat((0.25, 0.31, 0.18)), _flat((0.72, 0.78, 0.84))

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        green = leaf * (0.9 + 1.3 * grain(a, b, 26) + 0.7 * grain(a, b, 7)) * (0.55 + 0.45 * np.clip(b / height, 0, 1))
        crowns = np.where(grain(a, b, 9) + 0.6 * grain(a, b, 3) > -0.05, green * 0.75, sky)
        trunk = np.abs((a + 0.3 * grain(a, b, 1)) % 2.7 - 1.3) < 0.11
        above = np.where(trunk & (b < height + 1.2), leaf * 0.4, crowns)
        return np.where(b < height + 0.4 * grain(a, b, 12), np.maximum(green, 0.004), np.maximum(above, 0.004))

    return material


def _concrete(rng: np.random.Generator, color: Color) -> Material:
    """Large panels, stained by rain, with a dark band of glass."""
    grain, base, glass = _Grain(rng), _flat(color), _flat((0.20, 0.26, 0.30))
    low, step = rng.uniform(0.8, 1.3), rng.uniform(1.2, 1.8)

    def material(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        joint = (np.abs(a / step % 1 - 0.5) > 0.49) | (np.abs(b / 1.1 % 1 - 0.5) > 0.485)
        wall = base * (1 + 0.35 * grain(a, b * 0.15, 10) + 0.15 * grain(a, b, 30)) * np.where(joint, 0.6, 1.0)
        band = (b > low) & (b < low + 1.4) & (np.abs(a / step % 1 - 0.5) < 0.44)
        return np.where(band, glass * (0.8 + 1.4 * grain(a + b, b, 2.5)), wall)

    return material


_Place = Callable[[np.random.Generator], tuple[Material, Material, Material]]


def _high_street(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    signs: tuple[Color, ...] = ((0.70, 0.14, 0.14), (0.15, 0.34, 0.60), (0.88, 0.74, 0.20), (0.16, 0.45, 0.30), (0.85, 0.85, 0.84))
    return _paving(rng, (0.60, 0.58, 0.56), 0.6), _shops(rng, signs), _bricks(rng, (0.66, 0.58, 0.48))


def _park(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    return _lawn(rng), _hedge(rng, 1.1), _hedge(rng, 1.6)


def _back_street(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    return _asphalt(rng, (0.36, 0.36, 0.37)), _bricks(rng, (0.52, 0.27, 0.20)), _concrete(rng, (0.56, 0.54, 0.50))


def _campus(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    return _paving(rng, (0.70, 0.50, 0.42), 0.32), _concrete(rng, (0.74, 0.73, 0.70)), _hedge(rng, 1.2)


def _station(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    return _paving(rng, (0.46, 0.47, 0.49), 0.9), _concrete(rng, (0.34, 0.37, 0.42)), _concrete(rng, (0.50, 0.50, 0.52))


_PLACES: tuple[_Place, ...] = (_high_street, _park, _back_street, _campus, _station)


def _furnish(canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    """Bins, posts, lamps, trees and parked cars behind where people walk, from far to near."""
    far = sorted(rng.uniform(0.74 * scene.far, 0.97 * scene.far, int(rng.integers(7, 11))), reverse=True)
    near = sorted(rng.uniform(3.6, 0.7 * scene.far, int(rng.integers(2, 5))), reverse=True)
    for distance in (*far, *near):
        metre = scene.focal / float(distance)
        pieces = _PIECES if distance > 0.72 * scene.far else _PIECES[:2]
        pieces[int(rng.integers(len(pieces)))](canvas, rng, float(rng.uniform(0, WIDTH)), scene.row(metre), metre)
    canvas.paint()


def _post(canvas: Canvas, rng: np.random.Generator, x: float, ground: float, metre: float) -> None:
    tall, thick = float(rng.choice([0.9, 3.8, 4.5])), float(rng.uniform(0.05, 0.09))
    color = linear(_PAINTS[int(rng.integers(len(_PAINTS)))])
    canvas.darken((x + 0.5 * metre, ground), (0.7 * metre, 0.08 * metre), 0.4)
    canvas.tube((x, ground - tall * metre), (x, ground), (thick * metre, thick * metre), color)
    if tall > 3:
        canvas.tube((x, ground - 0.5 * metre), (x, ground), (thick * 1.6 * metre, thick * 1.9 * metre), color)


def _bin(canvas: Canvas, rng: np.random.Generator, x: float, ground: float, metre: float) -> None:
    color = linear(_PAINTS[int(rng.integers(len(_PAINTS)))])
    canvas.darken((x, ground), (0.5 * metre, 0.12 * metre), 0.5)
    canvas.tube((x, ground - 0.95 * metre), (x, ground - 0.05 * metre), (0.21 * metre, 0.19 * metre), color, flat_start=True)
    canvas.tube((x, ground - 0.93 * metre), (x, ground - 0.84 * metre), (0.17 * metre, 0.23 * metre), color * 0.4, flat_end=True)


def _tree(canvas: Canvas, rng: np.random.Generator, x: float, ground: float, metre: float) -> None:
    canvas.darken((x, ground), (1.3 * metre, 0.25 * metre), 0.45)
    canvas.tube((x, ground - 3.2 * metre), (x, ground), (0.09 * metre, 0.12 * metre, 0.19 * metre), linear((0.33, 0.27, 0.22)))
    for _ in range(26):
        dx, up, size = rng.normal(0, 0.6), rng.normal(3.0, 0.45), rng.uniform(0.22, 0.5)
        leaf = linear((0.27, 0.33, 0.18)) * rng.uniform(0.6, 1.5)
        canvas.ball((x + float(dx) * metre, ground - float(up) * metre), (float(size) * metre, float(size) * 0.8 * metre), leaf.astype(np.float32))


def _car(canvas: Canvas, rng: np.random.Generator, x: float, ground: float, metre: float) -> None:
    paint = linear(_CARS[int(rng.integers(len(_CARS)))])
    glass, tyre = linear((0.14, 0.17, 0.20)), linear((0.09, 0.09, 0.09))
    canvas.darken((x, ground), (2.5 * metre, 0.25 * metre), 0.6)

    def bar(left: float, right: float, up: float, radii: tuple[float, ...], color: np.ndarray) -> None:
        canvas.tube((x + left * metre, ground - up * metre), (x + right * metre, ground - up * metre), [r * metre for r in radii], color)

    bar(-0.95, 1.0, 1.02, (0.26, 0.40, 0.42, 0.36, 0.22), paint)
    bar(-0.8, 0.85, 1.06, (0.16, 0.27, 0.28, 0.24, 0.14), glass)
    bar(0.02, 0.06, 1.05, (0.34, 0.34), paint)
    bar(-1.85, 1.85, 0.58, (0.22, 0.30, 0.31, 0.31, 0.31, 0.30, 0.24), paint)
    for wheel in (-1.25, 1.25):
        bar(wheel - 0.01, wheel + 0.01, 0.31, (0.33, 0.33), tyre)
        bar(wheel - 0.01, wheel + 0.01, 0.31, (0.17, 0.17), linear((0.6, 0.6, 0.62)))


def _bench(canvas: Canvas, rng: np.random.Generator, x: float, ground: float, metre: float) -> None:
    wood = linear((0.48, 0.33, 0.20)) * float(rng.uniform(0.6, 1.3))
    canvas.darken((x, ground), (1.0 * metre, 0.14 * metre), 0.5)
    for dx in (-0.7, 0.7):
        canvas.tube((x + dx * metre, ground - 0.8 * metre), (x + dx * metre, ground), (0.035 * metre, 0.035 * metre), linear((0.2, 0.2, 0.2)))
    for up in (0.42, 0.64, 0.80):
        canvas.tube((x - 0.85 * metre, ground - up * metre), (x + 0.85 * metre, ground - up * metre), (0.055 * metre, 0.055 * metre), wood)


_PAINTS: tuple[Color, ...] = ((0.20, 0.22, 0.24), (0.16, 0.30, 0.22), (0.62, 0.62, 0.60), (0.66, 0.52, 0.14), (0.16, 0.24, 0.42), (0.55, 0.16, 0.14))
_CARS: tuple[Color, ...] = ((0.80, 0.80, 0.80), (0.12, 0.12, 0.13), (0.52, 0.08, 0.10), (0.20, 0.30, 0.48), (0.48, 0.49, 0.50))
_PIECES = (_post, _bin, _tree, _car, _bench)
