"""Street furniture: posts, bins, trees, parked cars and benches, at true size."""

from collections.abc import Callable

import numpy as np

from reidkit.data.synth.identity import Color
from reidkit.data.synth.solids import Canvas, linear

_PAINTS: tuple[Color, ...] = (
    (0.20, 0.22, 0.24),
    (0.16, 0.30, 0.22),
    (0.62, 0.62, 0.60),
    (0.66, 0.52, 0.14),
    (0.16, 0.24, 0.42),
    (0.55, 0.16, 0.14),
)
_CARS: tuple[Color, ...] = (
    (0.80, 0.80, 0.80),
    (0.12, 0.12, 0.13),
    (0.52, 0.08, 0.10),
    (0.20, 0.30, 0.48),
    (0.48, 0.49, 0.50),
)


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
    canvas.tube(
        (x, ground - 0.95 * metre), (x, ground - 0.05 * metre), (0.21 * metre, 0.19 * metre), color, flat_start=True
    )
    canvas.tube(
        (x, ground - 0.93 * metre), (x, ground - 0.84 * metre), (0.17 * metre, 0.23 * metre), color * 0.4, flat_end=True
    )


def _tree(canvas: Canvas, rng: np.random.Generator, x: float, ground: float, metre: float) -> None:
    canvas.darken((x, ground), (1.3 * metre, 0.25 * metre), 0.45)
    canvas.tube(
        (x, ground - 3.2 * metre), (x, ground), (0.09 * metre, 0.12 * metre, 0.19 * metre), linear((0.33, 0.27, 0.22))
    )
    for _ in range(26):
        dx, up, size = rng.normal(0, 0.6), rng.normal(3.0, 0.45), rng.uniform(0.22, 0.5)
        leaf = linear((0.27, 0.33, 0.18)) * rng.uniform(0.6, 1.5)
        canvas.ball(
            (x + float(dx) * metre, ground - float(up) * metre),
            (float(size) * metre, float(size) * 0.8 * metre),
            leaf.astype(np.float32),
        )


def _car(canvas: Canvas, rng: np.random.Generator, x: float, ground: float, metre: float) -> None:
    paint = linear(_CARS[int(rng.integers(len(_CARS)))])
    glass, tyre = linear((0.14, 0.17, 0.20)), linear((0.09, 0.09, 0.09))
    canvas.darken((x, ground), (2.5 * metre, 0.25 * metre), 0.6)

    def bar(left: float, right: float, up: float, radii: tuple[float, ...], color: np.ndarray) -> None:
        canvas.tube(
            (x + left * metre, ground - up * metre),
            (x + right * metre, ground - up * metre),
            [r * metre for r in radii],
            color,
        )

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
        canvas.tube(
            (x + dx * metre, ground - 0.8 * metre),
            (x + dx * metre, ground),
            (0.035 * metre, 0.035 * metre),
            linear((0.2, 0.2, 0.2)),
        )
    for up in (0.42, 0.64, 0.80):
        canvas.tube(
            (x - 0.85 * metre, ground - up * metre),
            (x + 0.85 * metre, ground - up * metre),
            (0.055 * metre, 0.055 * metre),
            wood,
        )


_Piece = Callable[[Canvas, np.random.Generator, float, float, float], None]
PIECES: tuple[_Piece, ...] = (_post, _bin, _tree, _car, _bench)
"""Painters of one piece: (canvas, generator, column and row of its foot, pixels a metre)."""
SLIM: tuple[_Piece, ...] = (_post, _bin)
"""Those that may stand where people walk."""
