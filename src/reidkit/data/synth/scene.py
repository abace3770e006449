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

from reidkit.data.synth.furniture import PIECES, SLIM
from reidkit.data.synth.identity import Color, Stream, generator
from reidkit.data.synth.material import Material, asphalt, bricks, concrete, hedge, lawn, paving, shops
from reidkit.data.synth.solids import Canvas, Light, Pixels

WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True, slots=True)
class Lens:
    """Where a camera hangs and how it looks.

    Attributes:
        horizon: its row in the picture.
        altitude: above the ground, metres.
        focal: length, pixels.
    """

    horizon: float
    altitude: float
    focal: float

    @property
    def pitch(self) -> float:
        """By which the camera looks down on people, radians."""
        return math.atan2(self.altitude - 0.9, 7.0)

    def row(self, metre: float) -> float:
        """Of the ground where one metre is `metre` pixels."""
        return self.horizon + self.altitude * metre


@dataclass(frozen=True, slots=True)
class Scene:
    """A camera's empty picture and what is needed to put people into it.

    Attributes:
        picture: sRGB.
        lens: that took it.
        far: distance of the wall across, metres.
        light: of this place.
    """

    picture: UInt8[np.ndarray, "height width 3"]
    lens: Lens
    far: float
    light: Light


_Place = Callable[[np.random.Generator], tuple[Material, Material, Material]]


def _high_street(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    signs: tuple[Color, ...] = (
        (0.70, 0.14, 0.14),
        (0.15, 0.34, 0.60),
        (0.88, 0.74, 0.20),
        (0.16, 0.45, 0.30),
        (0.85, 0.85, 0.84),
    )
    return paving(rng, (0.60, 0.58, 0.56), 0.6), shops(rng, signs), bricks(rng, (0.66, 0.58, 0.48))


def _park(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    return lawn(rng), hedge(rng, 1.1), hedge(rng, 1.6)


def _back_street(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    return asphalt(rng, (0.36, 0.36, 0.37)), bricks(rng, (0.52, 0.27, 0.20)), concrete(rng, (0.56, 0.54, 0.50))


def _campus(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    return paving(rng, (0.70, 0.50, 0.42), 0.32), concrete(rng, (0.74, 0.73, 0.70)), hedge(rng, 1.2)


def _station(rng: np.random.Generator) -> tuple[Material, Material, Material]:
    return paving(rng, (0.46, 0.47, 0.49), 0.9), concrete(rng, (0.34, 0.37, 0.42)), concrete(rng, (0.50, 0.50, 0.52))


_PLACES: tuple[_Place, ...] = (_high_street, _park, _back_street, _campus, _station)


def draw_scene(seed: int, camera: int) -> Scene:
    """The place that this camera watches; five kinds of street take turns."""
    rng = generator(seed, Stream.SCENE, camera)
    lens = Lens(float(rng.uniform(45, 125)), float(rng.uniform(1.9, 2.9)), float(rng.uniform(415, 545)))
    far = float(rng.uniform(9.5, 13.0))
    turn = int(generator(seed, Stream.SCENE).integers(len(_PLACES)))
    materials = _PLACES[(camera + turn) % len(_PLACES)](rng)
    side = float(rng.choice([-1.0, 1.0]))
    pixels = _cast(lens, far, side * float(rng.uniform(2.6, 4.5)), materials)
    direction = np.array([-side * rng.uniform(0.3, 0.9), -rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.8)])
    x, y, z = (float(v) for v in direction / np.linalg.norm(direction))
    light = Light((x, y, z), float(rng.uniform(0.38, 0.62)))
    canvas = Canvas(pixels, light)
    _furnish(canvas, lens, far, rng)
    picture = Image.fromarray((np.sqrt(np.clip(canvas.pixels, 0, 1)) * 255).astype(np.uint8).transpose(1, 2, 0).copy())
    return Scene(np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7))), lens, far, light)


def _cast(lens: Lens, far: float, side: float, materials: tuple[Material, Material, Material]) -> Pixels:
    """Colours of the ground, the wall across at `far` and the wall along at `side`, metres: the nearest on each ray."""
    ground, across, along = materials
    # Rays of pixel centres, at depth 1; none is exactly straight ahead.
    x = (np.arange(WIDTH, dtype=np.float32)[None, :] + 0.5 - WIDTH / 2) / lens.focal
    y = (np.arange(HEIGHT, dtype=np.float32)[:, None] + 0.5 - lens.horizon) / lens.focal
    to_ground = np.where(y > 0, lens.altitude / np.maximum(y, 1e-4), np.inf)
    to_side = np.where(x * side > 0, side / x, np.inf)
    depth = np.minimum(np.minimum(to_ground, to_side), far)
    on_ground = depth == to_ground
    on_side = (depth == to_side) & ~on_ground
    right, up = x * depth, lens.altitude - y * depth
    pixels = np.empty((3, HEIGHT, WIDTH), dtype=np.float32)
    for mask, material, a, b in (
        (on_ground, ground, right, depth),
        (~(on_ground | on_side), across, right, up),
        (on_side, along, depth, up),
    ):
        pixels[:, mask] = material(a[mask], b[mask])
    # Light gets lost in corners, and the wall along is turned away from it.
    corner = np.minimum(np.where(on_ground, far - depth, up), 0.8) / 0.8
    pixels *= (0.78 + 0.22 * corner) * np.where(on_side, 0.82, 1.0)
    return pixels


def _furnish(canvas: Canvas, lens: Lens, wall: float, rng: np.random.Generator) -> None:
    """Bins, posts, lamps, trees and parked cars behind where people walk, from far to near."""
    far = sorted(rng.uniform(0.74 * wall, 0.97 * wall, int(rng.integers(7, 11))), reverse=True)
    near = sorted(rng.uniform(0.5 * wall, 0.72 * wall, int(rng.integers(2, 4))), reverse=True)
    for distance in (*far, *near):
        metre = lens.focal / float(distance)
        pieces = PIECES if distance > 0.72 * wall else SLIM
        pieces[int(rng.integers(len(pieces)))](canvas, rng, float(rng.uniform(0, WIDTH)), lens.row(metre), metre)
    canvas.paint()
