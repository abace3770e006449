"""One crop: somebody walks through a scene, a detector cuts a box, a camera saves it."""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from reidkit.data.synth.camera import CROP_HEIGHT, CROP_WIDTH, Camera, develop
from reidkit.data.synth.cloth import draw_folds
from reidkit.data.synth.figure import draw_person
from reidkit.data.synth.identity import Identity
from reidkit.data.synth.occluder import draw_occluder
from reidkit.data.synth.pose import View, draw_pose
from reidkit.data.synth.scene import HEIGHT, WIDTH, Scene
from reidkit.data.synth.solids import Canvas, Pixels

# Painted at the size of the crop: solids have soft edges of their own, so nothing is gained by painting larger.
_WIDE, _HIGH = CROP_WIDTH, CROP_HEIGHT
_TALL = 1.7  # metres


@dataclass(frozen=True, slots=True)
class Framing:
    """How a box lies on the scene.

    Attributes:
        height: of a person, as a share of the box.
        foot: row of the ground, as a share of the box, 0 at its top.
        x: of the person, as a share of the box.
        stretch: of widths, as the box becomes 1:2.
    """

    height: float
    foot: float
    x: float
    stretch: float


def good_framing(rng: np.random.Generator) -> Framing:
    """A detector's usual box: around the person, a little loose or a little tight."""
    height = float(np.clip(rng.normal(0.89, 0.035), 0.78, 1.02))
    spare = 1.0 - height
    return Framing(
        height=height,
        foot=1.0 - spare * float(rng.uniform(0.15, 0.75)) + float(rng.normal(0.0, 0.015)),
        x=float(rng.normal(0.5, 0.035)),
        stretch=float(rng.uniform(1.14, 1.34)),
    )


def bad_framing(rng: np.random.Generator) -> Framing:
    """A failed detection: legs only, a head and shoulders, half a person at the edge, or nobody."""
    match int(rng.integers(4)):
        case 0:
            return Framing(1.9, float(rng.uniform(0.85, 1.0)), float(rng.uniform(0.2, 0.8)), 1.0)
        case 1:
            return Framing(2.2, 2.2, float(rng.uniform(0.2, 0.8)), 1.0)
        case 2:
            return Framing(1.0, 0.95, float(rng.choice([-0.08, 1.08])), 1.1)
        case _:
            return Framing(0.9, 0.95, 3.0, 1.1)


def draw_crop(
    scene: Scene, camera: Camera, who: Identity, framing: Framing, passer_by: Identity, rng: np.random.Generator
) -> bytes:
    """Paints one crop and returns it as JPEG, 64 pixels wide and 128 high.

    Args:
        scene: where.
        camera: that looks.
        who: is looked at.
        framing: of the box.
        passer_by: somebody else, who now and then walks behind or in front.
        rng: everything else: pose, place, weather, noise.
    """
    pixels = _background(scene, framing, rng)
    canvas = Canvas(pixels, scene.light)
    if rng.random() < 0.05:
        _walk(canvas, scene, passer_by, _beside(framing, float(rng.uniform(0.6, 0.85)), rng), rng)
    _walk(canvas, scene, who, framing, rng)
    if rng.random() < 0.01:
        _walk(canvas, scene, passer_by, _beside(framing, 1.08, rng), rng)
    if rng.random() < 0.06:
        draw_occluder(canvas, framing.x * _WIDE, framing.foot * _HIGH, framing.height * _HIGH, rng)
    canvas.paint()
    _cast_shade(pixels, rng)
    return develop(camera, pixels, rng)


def _beside(framing: Framing, size: float, rng: np.random.Generator) -> Framing:
    """The framing of somebody who stands to the left or right, further away where `size` is below 1."""
    return replace(
        framing,
        height=framing.height * size,
        foot=framing.foot - 0.5 * (1.0 - size) * framing.height,
        x=framing.x + float(rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.5)),
    )


def _walk(canvas: Canvas, scene: Scene, who: Identity, framing: Framing, rng: np.random.Generator) -> None:
    canvas.paint()  # whoever is further away, before a shadow falls on them
    pose = draw_pose(rng)
    x, ground, height = framing.x * _WIDE, framing.foot * _HIGH, framing.height * _HIGH
    lx, _, lz = scene.light.direction
    # One shadow where the feet stand, a fainter one away from the light.
    away = (x - lx * 0.16 * height, ground - (0.02 + 0.03 * lz) * height)
    canvas.darken(away, (0.24 * height, 0.035 * height), 0.75 - 0.7 * scene.light.ambient)
    canvas.darken((x, ground), (0.13 * height, 0.022 * height), 0.6)
    pitch = scene.lens.pitch
    view = View(x, ground, height / math.cos(pitch), framing.stretch, pose.heading, pitch)
    draw_person(canvas, who, pose, view, draw_folds(rng))


def _background(scene: Scene, framing: Framing, rng: np.random.Generator) -> Pixels:
    """The window of the scene that lies behind the box, at the place where the person is as large as the box says."""
    lens, below = scene.lens, 1.0 - min(framing.foot, 1.0)
    nearest = (HEIGHT - 1 - lens.horizon) / (lens.altitude + below * _TALL / framing.height)
    furthest = lens.focal / (0.8 * scene.far)
    metre = float(rng.uniform(furthest + 0.15 * (nearest - furthest), nearest))
    high = _TALL * metre / framing.height
    wide = high / 2 / framing.stretch
    top = lens.row(metre) - framing.foot * high
    left = float(rng.uniform(0, WIDTH - wide))
    box = (left, max(top, 0.0), left + wide, min(top + high, float(HEIGHT)))
    window = Image.fromarray(scene.picture).resize((_WIDE, _HIGH), Image.Resampling.BILINEAR, box=box)
    return np.square(np.asarray(window).transpose(2, 0, 1).astype(np.float32) / 255.0)


def _cast_shade(pixels: Pixels, rng: np.random.Generator) -> None:
    """Now and then the shadow of a house or a tree falls across the box."""
    if rng.random() > 0.08:
        return
    slope, offset = float(rng.normal(0.0, 1.2)), float(rng.uniform(-0.5, 0.5))
    y = np.linspace(-0.5, 0.5, _HIGH, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, _WIDE, dtype=np.float32)[None, :]
    inside = np.clip((y + slope * x - offset) * float(rng.choice([-14.0, 14.0])) + 0.5, 0.0, 1.0)
    pixels *= 1.0 - float(rng.uniform(0.25, 0.45)) * inside
