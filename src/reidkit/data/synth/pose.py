"""How a person stands in front of a camera: a walking skeleton in three dimensions, and its projection.

A body has height 1. Its axes: side (towards its own left hand), up, and ahead. Heading 0 walks towards the viewer,
pi/2 to the right of the picture, pi away.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reidkit.data.synth.identity import Build

ANKLE = 0.042
KNEE = 0.275
HIP = 0.515
SHOULDER = 0.785
NECK = 0.838
HEAD = 0.925


class Place(NamedTuple):
    """A point of the body."""

    side: float
    up: float
    ahead: float


@dataclass(frozen=True, slots=True)
class Pose:
    """One moment of a walk.

    Attributes:
        heading: radians, see above.
        phase: of the step, radians.
        stride: swing of a thigh to either side, radians; 0 stands still.
        elbows: bend of the left and right elbow, radians.
        swing: of the left and right arm, as a share of the stride; a hand in a pocket or at a strap does not swing.
        spread: of the arms from the body, radians.
        lean: of the trunk, ahead, radians.
        head_turn: of the head against the body, radians.
    """

    heading: float
    phase: float
    stride: float
    elbows: tuple[float, float]
    swing: tuple[float, float]
    spread: float
    lean: float
    head_turn: float


def draw_pose(rng: np.random.Generator) -> Pose:
    """A moment of somebody's walk, in any direction; one in eight stands."""
    walks = rng.random() > 0.12
    busy = rng.random(2) < 0.14  # a hand at a phone or at a strap
    elbows = np.where(busy, rng.uniform(1.4, 2.1, 2), rng.uniform(0.15, 0.6, 2))
    swing = np.where(busy, 0.15, rng.uniform(0.6, 1.0, 2))
    # People come, go and cross; few walk exactly along the axes.
    heading = rng.integers(8) * (math.pi / 4) + rng.normal(0.0, 0.3)
    return Pose(
        heading=float(heading),
        phase=float(rng.uniform(0.0, 2 * math.pi)),
        stride=float(rng.uniform(0.28, 0.52) if walks else rng.uniform(0.0, 0.1)),
        elbows=(float(elbows[0]), float(elbows[1])),
        swing=(float(swing[0]), float(swing[1])),
        spread=float(rng.uniform(0.05, 0.22)),
        lean=float(rng.normal(0.03, 0.03)),
        head_turn=float(rng.normal(0.0, 0.3)),
    )


@dataclass(frozen=True, slots=True)
class Leg:
    """Joints of one leg, from the hip down."""

    hip: Place
    knee: Place
    ankle: Place
    heel: Place
    toe: Place


@dataclass(frozen=True, slots=True)
class Arm:
    """Joints of one arm, from the shoulder down."""

    shoulder: Place
    elbow: Place
    wrist: Place
    hand: Place


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Where the joints are; (left, right) pairs."""

    legs: tuple[Leg, Leg]
    arms: tuple[Arm, Arm]
    neck: Place
    head: Place


def skeleton(build: Build, pose: Pose) -> Skeleton:
    """Joints of that body at that moment; its lower foot is on the ground."""
    legs = tuple(_leg(build, pose, side) for side in (1, -1))
    drop = min(min(leg.heel.up, leg.toe.up) for leg in legs)
    left, right = (_lifted(leg, -drop) for leg in legs)
    arms = tuple(_arm(build, pose, side, -drop) for side in (1, -1))
    return Skeleton(
        legs=(left, right),
        arms=(arms[0], arms[1]),
        neck=leaning(pose, 0.0, NECK - drop, 0.0),
        head=leaning(pose, 0.0, HEAD - drop, 0.018),
    )


def leaning(pose: Pose, side: float, up: float, ahead: float) -> Place:
    """A point of the trunk, moved as the trunk leans."""
    return Place(side, up, ahead + (up - HIP) * float(math.sin(pose.lean)))


def _leg(build: Build, pose: Pose, side: int) -> Leg:
    angle = side * pose.stride * math.sin(pose.phase)
    swings_forward = max(0.0, side * math.cos(pose.phase + 0.3))
    bend = 0.06 + 1.4 * pose.stride * swings_forward**2
    hip = Place(side * 0.05 * build.hips, HIP, 0.0)
    thigh, shin = (HIP - KNEE) * build.legs, (KNEE - ANKLE) * build.legs
    knee = Place(hip.side * 0.92, hip.up - thigh * math.cos(angle), thigh * math.sin(angle))
    low = angle - bend
    ankle = Place(hip.side * 0.8, knee.up - shin * math.cos(low), knee.ahead + shin * math.sin(low))
    tip = -0.25 * max(0.0, -low) * 1.6 + 0.35 * max(0.0, low)  # toe down behind, toe up in front
    out = side * 0.018
    heel = Place(ankle.side, ankle.up - 0.030 * math.cos(low), ankle.ahead - 0.026)
    toe = Place(ankle.side + out, heel.up + 0.092 * math.sin(tip) - 0.004, heel.ahead + 0.102 * math.cos(tip))
    return Leg(hip, knee, ankle, heel, toe)


def _lifted(leg: Leg, by: float) -> Leg:
    return Leg(*(place._replace(up=place.up + by) for place in (leg.hip, leg.knee, leg.ankle, leg.heel, leg.toe)))


def _arm(build: Build, pose: Pose, side: int, lift: float) -> Arm:
    index = 0 if side > 0 else 1
    angle = -side * pose.stride * pose.swing[index] * math.sin(pose.phase) + 0.04
    bend = pose.elbows[index]
    shoulder = leaning(pose, side * 0.103 * build.shoulders, SHOULDER + lift, 0.0)
    out = math.sin(pose.spread) * side
    elbow = Place(
        shoulder.side + 0.165 * out, shoulder.up - 0.165 * math.cos(angle), shoulder.ahead + 0.165 * math.sin(angle)
    )
    low = angle + bend
    inward = -0.25 * side * math.sin(bend) * 0.5
    wrist = Place(
        elbow.side + 0.145 * (out * 0.3 + inward), elbow.up - 0.145 * math.cos(low), elbow.ahead + 0.145 * math.sin(low)
    )
    hand = Place(*(w + 0.30 * (w - e) for w, e in zip(wrist, elbow, strict=True)))
    return Arm(shoulder, elbow, wrist, hand)


@dataclass(frozen=True, slots=True)
class View:
    """From the body to the picture.

    Attributes:
        x: of the body's axis, pixels.
        ground: row of the ground below the body, pixels.
        height: of the body, pixels.
        stretch: of the width, as a tight box brought to 1:2 stretches people.
        heading: of the body, radians.
        pitch: by which the camera looks down, radians.
    """

    x: float
    ground: float
    height: float
    stretch: float
    heading: float
    pitch: float

    def depth(self, place: Place) -> float:
        """Towards the viewer, in body heights."""
        return float(place.ahead * math.cos(self.heading) - place.side * math.sin(self.heading))

    def point(self, place: Place) -> tuple[float, float]:
        """Column and row, in pixels."""
        right = place.side * math.cos(self.heading) + place.ahead * math.sin(self.heading)
        down = self.depth(place) * math.sin(self.pitch) - place.up * math.cos(self.pitch)
        return float(self.x + self.height * self.stretch * right), float(self.ground + self.height * down)

    def half_width(self, wide: np.ndarray | float, deep: np.ndarray | float, turn: float = 0.0) -> np.ndarray:
        """Half the breadth in pixels of an ellipse with those half axes (body heights), turned as the body is."""
        cos, sin = math.cos(self.heading + turn), math.sin(self.heading + turn)
        half = np.hypot(np.multiply(wide, cos), np.multiply(deep, sin))
        return np.asarray(self.height * self.stretch * half)

    def size(self, length: float) -> float:
        """A radius of something round, body heights to pixels."""
        return self.height * length * (1.0 + self.stretch) / 2
