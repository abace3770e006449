"""A head: neck, face, hair and hat. Most of it is a ball whose paint knows where the face is."""

import math
from dataclasses import dataclass

import numpy as np

from reidkit.data.synth.cloth import soft
from reidkit.data.synth.identity import Identity
from reidkit.data.synth.pose import Place, View
from reidkit.data.synth.solids import BallPaint, Canvas, linear

_WIDE, _HIGH, _DEEP = 0.051, 0.071, 0.061  # half axes, body heights


@dataclass(frozen=True, slots=True)
class Head:
    """A head in its place; `turn` is against the body, radians."""

    canvas: Canvas
    who: Identity
    view: View
    center: Place
    turn: float

    @property
    def heading(self) -> float:
        """Of the face, as the body's."""
        return self.view.heading + self.turn

    def point(self, side: float, up: float, ahead: float) -> tuple[float, float]:
        """A point given in half axes of the head, turned with the head."""
        size = self.who.build.head
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        s, a = side * _WIDE * size, ahead * _DEEP * size
        c = self.center
        return self.view.point(Place(c.side + s * cos + a * sin, c.up + up * _HIGH * size, c.ahead + a * cos - s * sin))

    def radii(self, grow: float = 1.0, tall: float = 1.0) -> tuple[float, float]:
        """Half axes on the picture, pixels."""
        size = self.who.build.head * grow
        return float(
            self.view.half_width(_WIDE * size, _DEEP * size, self.turn)
        ), self.view.height * _HIGH * size * tall

    def local(self, right: np.ndarray, up: np.ndarray, front: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Directions on the picture as (side, up, ahead) of the head, for a camera that looks down on it."""
        cos, sin = math.cos(self.view.pitch), math.sin(self.view.pitch)
        up, front = up * cos + front * sin, front * cos - up * sin
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return right * cos - front * sin, up, front * cos + right * sin


def draw_head(head: Head, neck: Place) -> None:
    """Paints neck, face, hair and hat over the trunk."""
    away = math.cos(head.heading) < -0.1
    _neck(head, neck)
    if away:
        _brim(head)
    head.canvas.ball(head.point(0.0, 0.0, 0.0), head.radii(), _face(head))
    _ears(head)
    _hair(head)
    _hat(head)
    if not away:
        _brim(head)


def _neck(head: Head, neck: Place) -> None:
    skin, size = linear(head.who.skin), head.view.size(0.028 * (0.5 + 0.5 * head.who.build.limbs))
    low = head.view.point(Place(neck.side, neck.up - 0.012, neck.ahead))
    head.canvas.tube(head.point(0.0, -0.55, -0.12), low, (size, size, size * 1.15), skin * 0.72)


def _face(head: Head) -> BallPaint:
    who = head.who
    skin, hair = linear(who.skin), linear(who.hair_color)

    def paint(right: np.ndarray, up: np.ndarray, front: np.ndarray) -> tuple[np.ndarray, float]:
        side, up, ahead = head.local(right, up, front)
        seen = soft(ahead - 0.15, 6.0)
        color = skin * (1.0 + 0.10 * soft(0.10 - np.abs(side)) * soft(0.17 - np.abs(up + 0.12)) * seen)
        if who.beard:
            beard = soft(-0.34 - up + 0.2 * np.abs(side), 8.0) * seen
            color = color + 0.8 * beard * (hair - color)
        apart = np.abs(np.abs(side) - 0.36)
        dark = soft(0.15 - apart) * (0.85 * soft(0.075 - np.abs(up - 0.05)) + 0.55 * soft(0.05 - np.abs(up - 0.26)))
        lips = 0.5 * soft(0.24 - np.abs(side)) * soft(0.05 - np.abs(up + 0.52))
        return color * (1.0 - np.clip(dark + lips, 0, 0.9) * seen), 1.0

    return paint


def _ears(head: Head) -> None:
    if head.who.hair in ("bob", "long"):
        return
    for side in (1.0, -1.0):
        if -side * math.sin(head.heading) > -0.2:
            size = head.view.size(0.012)
            head.canvas.tube(
                head.point(side, 0.1, -0.05),
                head.point(side * 0.95, -0.15, -0.05),
                (size, size),
                linear(head.who.skin) * 0.88,
            )


def _hair(head: Head) -> None:
    style, color = head.who.hair, linear(head.who.hair_color)
    if style == "bald":
        return
    grow = {"curly": 1.30, "bob": 1.20, "long": 1.14}.get(style, 1.09)

    def paint(right: np.ndarray, up: np.ndarray, front: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side, up, ahead = head.local(right, up, front)
        if style in ("bob", "long"):
            mask = np.maximum(soft(0.22 - ahead), soft(up - 0.48 + 0.1 * np.abs(side)))
        elif style == "curly":
            mask = np.maximum(soft(0.05 - ahead) * soft(up + 0.55), soft(up - 0.34))
        else:
            mask = soft(up - np.clip(-0.5 + 0.95 * (ahead + 0.35) / 0.85, -0.55, 0.5))
        sheen = 1.0 + 0.5 * soft(0.12 - np.abs(up - 0.55), 4.0) + 0.15 * np.sin(14.0 * side + 5.0 * up)
        return color * sheen, mask

    low = -0.10 if style == "bob" else 0.04
    head.canvas.ball(head.point(0.0, low, -0.06), head.radii(grow, 1.06 if style == "bob" else 1.0), paint)


def draw_hanging_hair(head: Head) -> None:
    """Paints long hair, a ponytail or a bun: before the trunk where the face is seen, else after the head."""
    color, view = linear(head.who.hair_color), head.view
    match head.who.hair:
        case "long":
            wide = view.half_width(
                np.array([0.050, 0.058, 0.062, 0.056, 0.030]), np.array([0.045, 0.040, 0.034, 0.030, 0.02])
            )
            head.canvas.tube(head.point(0.0, 0.2, -0.45), head.point(0.0, -2.35, -0.75), wide, color * 0.9)
        case "ponytail":
            size = view.size(1.0)
            head.canvas.tube(
                head.point(0.0, 0.45, -0.95),
                head.point(0.0, -1.6, -1.45),
                (0.018 * size, 0.026 * size, 0.022 * size, 0.010 * size),
                color,
            )
        case "bun":
            head.canvas.ball(head.point(0.0, 0.62, -0.95), (view.size(0.032), view.size(0.030)), color)


def _hat(head: Head) -> None:
    who, color = head.who, linear(head.who.hat_color)
    if who.hat is None:
        return
    edge = {"cap": 0.26, "beanie": 0.14, "sun hat": 0.34}[who.hat]

    def paint(right: np.ndarray, up: np.ndarray, front: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side, up, _ = head.local(right, up, front)
        band = soft(edge + 0.22 - up, 8.0)
        ribs = 0.10 * np.sin(20.0 * side) if who.hat == "beanie" else 0.0 * side
        return color * (1.0 - 0.3 * band + ribs), soft(up - edge, 14.0)

    grow = 1.22 if who.hair == "curly" else 1.15
    head.canvas.ball(head.point(0.0, 0.08, -0.04), head.radii(grow), paint)


def _brim(head: Head) -> None:
    if head.who.hat not in ("cap", "sun hat"):
        return
    view, color = head.view, linear(head.who.hat_color) * 0.8
    tilt = view.height * _HIGH * (0.10 + 0.8 * abs(math.sin(view.pitch)))
    if head.who.hat == "sun hat":
        head.canvas.ball(head.point(0.0, 0.40, 0.0), (view.size(0.115), tilt * 1.5), color)
    else:
        across = float(view.half_width(0.044, 0.042, head.turn))
        head.canvas.ball(head.point(0.0, 0.36, 1.15), (across, tilt), color)
