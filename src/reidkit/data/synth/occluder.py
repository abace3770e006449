"""Things that stand between a camera and a person: posts, railings, parked bicycles, leaves."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from reidkit.data.synth.solids import Canvas, linear

_METAL = ((0.62, 0.63, 0.64), (0.20, 0.21, 0.22), (0.16, 0.32, 0.24), (0.70, 0.56, 0.14), (0.52, 0.14, 0.13))


def draw_occluder(canvas: Canvas, x: float, ground: float, height: float, rng: np.random.Generator) -> None:
    """Paints one thing in front of somebody who stands at (x, ground) and is `height` pixels high."""
    color = linear(_METAL[int(rng.integers(len(_METAL)))])
    _KINDS[int(rng.integers(len(_KINDS)))](canvas, x, ground + 0.05 * height, height, color, rng)


def _bollards(
    canvas: Canvas, x: float, ground: float, height: float, color: np.ndarray, rng: np.random.Generator
) -> None:
    thick, tall = float(rng.uniform(0.025, 0.045)) * height, float(rng.uniform(0.42, 0.56)) * height
    at = x + float(rng.uniform(-0.25, 0.05)) * height
    for post in (at, at + 0.55 * height):
        canvas.tube((post, ground - tall), (post, ground), (thick, thick), color)
        canvas.tube(
            (post, ground - 0.85 * tall),
            (post, ground - 0.78 * tall),
            (thick * 1.05, thick * 1.05),
            linear((0.85, 0.85, 0.82)),
        )


def _railing(
    canvas: Canvas, x: float, ground: float, height: float, color: np.ndarray, rng: np.random.Generator
) -> None:
    tilt, top, thin = float(rng.uniform(-0.06, 0.06)) * height, float(rng.uniform(0.40, 0.55)) * height, 0.011 * height
    for up in (top, 0.5 * top):
        canvas.tube((x - height, ground - up - tilt), (x + height, ground - up + tilt), (thin * 1.4, thin * 1.4), color)
    step, start = float(rng.uniform(0.11, 0.3)) * height, float(rng.uniform(0.0, 0.3)) * height
    for i in range(-5, 6):
        post = x + start + i * step
        canvas.tube((post, ground - top), (post, ground), (thin, thin), color)


def _bicycle(
    canvas: Canvas, x: float, ground: float, height: float, color: np.ndarray, rng: np.random.Generator
) -> None:
    wheel, side = 0.18 * height, float(rng.choice([-1.0, 1.0]))
    at, dark = x + float(rng.uniform(-0.3, 0.3)) * height, linear((0.10, 0.10, 0.10))

    def bar(x0: float, up0: float, x1: float, up1: float, thin: float, paint: np.ndarray) -> None:
        start = (at + side * x0 * height, ground - up0 * height)
        end = (at + side * x1 * height, ground - up1 * height)
        canvas.tube(start, end, (thin * height, thin * height), paint)

    for hub in (-0.28, 0.28):
        angles = np.linspace(0.0, 2 * math.pi, 15)
        rim = [(at + side * hub * height + wheel * math.cos(a), ground - wheel + wheel * math.sin(a)) for a in angles]
        for start, end in pairwise(rim):
            canvas.tube(start, end, (0.010 * height, 0.010 * height), dark)
    for x0, up0, x1, up1 in (
        (-0.28, 0.18, -0.08, 0.42),
        (-0.08, 0.42, 0.20, 0.44),
        (0.20, 0.44, -0.02, 0.18),
        (-0.02, 0.18, -0.09, 0.46),
    ):
        bar(x0, up0, x1, up1, 0.010, color)
    bar(0.28, 0.18, 0.19, 0.52, 0.010, color)
    bar(-0.28, 0.18, -0.02, 0.18, 0.009, color)
    bar(-0.13, 0.48, -0.04, 0.48, 0.016, dark)
    bar(0.13, 0.53, 0.20, 0.52, 0.010, dark)


def _leaves(
    canvas: Canvas, x: float, ground: float, height: float, color: np.ndarray, rng: np.random.Generator
) -> None:
    corner = x + float(rng.choice([-1.0, 1.0])) * 0.28 * height
    top = ground - (1.0 if rng.random() < 0.5 else 0.12) * height
    for _ in range(22):
        leaf = (linear((0.27, 0.34, 0.17)) * float(rng.uniform(0.4, 1.5))).astype(np.float32)
        size = float(rng.uniform(0.02, 0.05)) * height
        canvas.ball(
            (corner + float(rng.normal(0, 0.09)) * height, top + float(rng.normal(0, 0.07)) * height),
            (size, size * 0.7),
            leaf,
        )


_Kind = Callable[[Canvas, float, float, float, np.ndarray, np.random.Generator], None]
_KINDS: tuple[_Kind, ...] = (_bollards, _railing, _bicycle, _leaves)
