"""The brush: shaded tubes and ellipsoids on a picture.

A person is made of solids of revolution seen from the side. For every pixel of a solid its place on the surface is
known (angle around, way along), so cloth patterns turn with the body and light falls on round shapes.

Axes: x right and y down on the picture, in pixels; angles in radians around a solid, 0 towards the viewer, positive
to the right. Colours on a canvas are linear light: the square of an sRGB value, close enough and cheap. Channels come
first in memory, which lets numpy multiply a colour by a brightness six times faster than when they come last.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from reidkit.data.synth.identity import Color

Pixels = Float32[np.ndarray, "3 height width"]
TubePaint = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(angle around, way along 0 to 1) -> linear colour, (3, height, width) or (3, 1, 1)."""
BallPaint = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | float]]
"""(right, up, towards the viewer; each -1 to 1 on the unit ball) -> linear colour and cover 0 to 1."""


def linear(color: Color) -> Float32[np.ndarray, "3 1 1"]:
    """An sRGB colour as linear light."""
    return np.square(np.array(color, np.float32))[:, None, None]


@dataclass(frozen=True, slots=True)
class Light:
    """Where light comes from (unit vector: right, down, towards the viewer) and how much of it has no direction."""

    direction: tuple[float, float, float]
    ambient: float

    def shade(self, facing: np.ndarray, front: np.ndarray) -> np.ndarray:
        """Brightness of a surface: about 1 where it faces the light.

        Args:
            facing: cosine of its normal with the direction of light.
            front: cosine of its normal with the line of sight; edges that turn away are darker.
        """
        lit = np.maximum(facing, 0.0)
        lit *= 1.05 - self.ambient
        lit += self.ambient
        return lit * (0.72 + 0.28 * front)


@dataclass(frozen=True, slots=True)
class _Tube:
    start: tuple[float, float]
    end: tuple[float, float]
    radii: np.ndarray | Sequence[float]
    paint: TubePaint | np.ndarray
    flat_start: bool
    flat_end: bool


@dataclass(frozen=True, slots=True)
class _Ball:
    center: tuple[float, float]
    radii: tuple[float, float]
    paint: BallPaint | np.ndarray


_Window = tuple[slice, slice]
_Surface = Float32[np.ndarray, "4 height width"]
"""Of one tube in its window: cover, shade, angle around, way along."""
_STEPS = np.arange(256.0)
_FAR = 1e6  # pixels: a limit that never limits


class Canvas:
    """A picture under one light. Strokes are collected from far to near; `paint` puts them on the picture.

    Args:
        pixels: linear colours, painted in place.
        light: that every solid is shaded by.
    """

    def __init__(self, pixels: Pixels, light: Light) -> None:
        self.pixels = pixels
        self.light = light
        self._strokes: list[_Tube | _Ball] = []
        centers = np.indices(pixels.shape[1:]).astype(np.float32) + 0.5
        self._rows: np.ndarray = centers[0]
        self._columns: np.ndarray = centers[1]

    def tube(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        radii: np.ndarray | Sequence[float],
        paint: TubePaint | np.ndarray,
        *,
        flat_start: bool = False,
        flat_end: bool = False,
    ) -> None:
        """Adds a tube from `start` to `end` whose radius follows two or more `radii`, evenly spaced, in pixels."""
        self._strokes.append(_Tube(start, end, radii, paint, flat_start, flat_end))

    def ball(self, center: tuple[float, float], radii: tuple[float, float], paint: BallPaint | np.ndarray) -> None:
        """Adds an ellipsoid with horizontal and vertical radii in pixels."""
        self._strokes.append(_Ball(center, radii, paint))

    def paint(self) -> None:
        """Puts all strokes on the picture, in the order in which they came."""
        if not self._strokes:
            return
        tubes = [
            (stroke, window)
            for stroke in self._strokes
            if isinstance(stroke, _Tube) and (window := self._around(stroke))
        ]
        surfaces = {
            id(tube): (window, planes) for (tube, window), planes in zip(tubes, self._surfaces(tubes), strict=True)
        }
        for stroke in self._strokes:
            if isinstance(stroke, _Ball):
                self._paint_ball(stroke)
            elif id(stroke) in surfaces:
                window, (cover, shade, angle, along) = surfaces[id(stroke)]
                color = stroke.paint(angle, along) if callable(stroke.paint) else stroke.paint
                self._blend(window, color * shade, cover)
        self._strokes.clear()

    def _around(self, tube: _Tube) -> _Window | None:
        reach = float(max(tube.radii)) + 1.0
        (x0, y0), (x1, y1) = tube.start, tube.end
        return self._window(min(x0, x1) - reach, min(y0, y1) - reach, max(x0, x1) + reach, max(y0, y1) + reach)

    def _surfaces(self, tubes: list[tuple[_Tube, _Window]]) -> list[_Surface]:
        # The windows of all tubes, end to end: thirty numpy calls a figure instead of thirty a tube, four times faster.
        if not tubes:
            return []
        facts = np.array([self._facts(tube, 256.0 * i) for i, (tube, _) in enumerate(tubes)], dtype=np.float32)
        tables = np.concatenate([_radius_table(tube.radii) for tube, _ in tubes])
        columns = [self._columns[window].ravel() for _, window in tubes]
        counts = [len(part) for part in columns]
        x, y = np.concatenate(columns), np.concatenate([self._rows[window].ravel() for _, window in tubes])
        ax, ay, a0, bx, by, b0, length, before, after, offset, sideways = np.repeat(facts.T, counts, axis=1)
        way = ax * x + ay * y + a0
        across = bx * x + by * y + b0
        along = np.clip(way, 0.0, 1.0)
        radius = tables[(along * 255.0 + offset).astype(np.intp)]
        beyond = (way - along) * length
        cover = radius + 0.5 - np.sqrt(across * across + beyond * beyond)
        way *= length
        cover = np.minimum(np.minimum(cover, way + before), after - way)
        side = np.clip(across / radius, -1.0, 1.0)
        front = np.sqrt(1.0 - side * side)
        shade = self.light.shade(side * sideways + front * self.light.direction[2], front)
        planes = np.stack([np.clip(cover, 0.0, 1.0), shade, np.arcsin(side), along])
        edges = np.cumsum([0, *counts])
        return [
            planes[:, start:end].reshape(4, *self._columns[window].shape)
            for (_, window), start, end in zip(tubes, edges[:-1], edges[1:], strict=True)
        ]

    def _facts(self, tube: _Tube, offset: float) -> tuple[float, ...]:
        (x, y), (dx, dy) = tube.start, (tube.end[0] - tube.start[0], tube.end[1] - tube.start[1])
        length = math.hypot(dx, dy)
        if length < 0.01:  # seen end on
            dx, dy, length = 0.0, 0.01, 0.01
        ux, uy = dx / length, dy / length
        return (
            *(ux / length, uy / length, -(x * ux + y * uy) / length),
            *(uy, -ux, y * ux - x * uy),
            length,
            0.5 if tube.flat_start else _FAR,
            length + (0.5 if tube.flat_end else _FAR),
            offset,
            uy * self.light.direction[0] - ux * self.light.direction[1],
        )

    def _paint_ball(self, ball: _Ball) -> None:
        rx, ry = max(ball.radii[0], 0.6), max(ball.radii[1], 0.6)
        cx, cy = ball.center
        window = self._window(cx - rx - 1, cy - ry - 1, cx + rx + 1, cy + ry + 1)
        if window is None:
            return
        x, y = (self._columns[window] - cx) / rx, (self._rows[window] - cy) / ry
        distance = np.sqrt(x * x + y * y)
        cover = np.clip((1.0 - distance) * min(rx, ry) + 0.5, 0.0, 1.0)
        inside = np.maximum(distance, 1.0)
        x, y = x / inside, y / inside
        front = np.sqrt(np.maximum(1.0 - x * x - y * y, 0.0))
        color, mask = ball.paint(x, -y, front) if callable(ball.paint) else (ball.paint, 1.0)
        direction = self.light.direction
        facing = x * direction[0] + y * direction[1] + front * direction[2]
        self._blend(window, color * self.light.shade(facing, front), cover * mask)

    def darken(self, center: tuple[float, float], radii: tuple[float, float], amount: float) -> None:
        """Casts a soft elliptic shadow on what is there now."""
        (cx, cy), (rx, ry) = center, radii
        window = self._window(cx - rx, cy - ry, cx + rx, cy + ry)
        if window is None:
            return
        x, y = (self._columns[window] - cx) / rx, (self._rows[window] - cy) / ry
        self.pixels[:, window[0], window[1]] *= 1.0 - amount * np.sqrt(np.maximum(1.0 - x * x - y * y, 0.0))

    def _window(self, left: float, top: float, right: float, bottom: float) -> _Window | None:
        height, width = self.pixels.shape[1:]
        x0, x1 = max(int(left), 0), min(int(right) + 1, width)
        y0, y1 = max(int(top), 0), min(int(bottom) + 1, height)
        return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None

    def _blend(self, window: _Window, color: np.ndarray, cover: np.ndarray) -> None:
        area = self.pixels[:, window[0], window[1]]
        color = color - area
        color *= cover
        area += color


def _radius_table(radii: np.ndarray | Sequence[float]) -> np.ndarray:
    # Looking up one of 256 steps is five times faster than interpolating for every pixel.
    knots = np.arange(len(radii)) * (255.0 / (len(radii) - 1))
    return np.maximum(np.interp(_STEPS, knots, radii), 0.5).astype(np.float32)
