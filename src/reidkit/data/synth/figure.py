"""A person on a canvas: legs, trunk, arms, bag, painted from far to near."""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from reidkit.data.synth.cloth import Folds, cloth, soft, wrapped
from reidkit.data.synth.head import Head, draw_hanging_hair, draw_head
from reidkit.data.synth.identity import Garment, Identity
from reidkit.data.synth.pose import HIP, Arm, Leg, Place, Pose, Skeleton, View, leaning, skeleton
from reidkit.data.synth.solids import Canvas, TubePaint, linear

# Half breadth and half depth of a trunk from the collar to the hip, in body heights, evenly spaced.
_TRUNK_WIDE = np.array([0.036, 0.094, 0.116, 0.119, 0.114, 0.106, 0.099, 0.096, 0.099, 0.104, 0.106])
_TRUNK_DEEP = np.array([0.034, 0.050, 0.062, 0.071, 0.073, 0.071, 0.067, 0.065, 0.067, 0.072, 0.074])
_HEMS = {"t-shirt": 0.475, "long sleeve": 0.475, "tank top": 0.485, "hoodie": 0.462, "jacket": 0.455, "coat": 0.31}
_LOOSE = {"t-shirt": 1.0, "long sleeve": 1.0, "tank top": 0.96, "hoodie": 1.1, "jacket": 1.1, "coat": 1.12}
_SKIRT_HEMS = {"skirt": 0.35, "long skirt": 0.14, "dress": 0.30}


@dataclass(frozen=True, slots=True)
class Sitter:
    """Everything that the parts of one figure share."""

    canvas: Canvas
    who: Identity
    pose: Pose
    view: View
    bones: Skeleton
    folds: Folds

    @property
    def lift(self) -> float:
        """How far the step has lowered (negative) or raised the body."""
        return self.bones.legs[0].hip.up - HIP

    def trunk_point(self, side: float, up: float, ahead: float) -> Place:
        """A point that moves with the trunk."""
        return leaning(self.pose, side, up + self.lift, ahead)


def draw_person(canvas: Canvas, who: Identity, pose: Pose, view: View, folds: Folds) -> None:
    """Paints a person who walks on the ground row of `view`."""
    sitter = Sitter(canvas, who, pose, view, skeleton(who.build, pose), folds)
    away = math.cos(view.heading) < 0  # the back is nearer than the chest
    head = Head(canvas, who, view, sitter.bones.head, pose.head_turn)
    left, right = sitter.bones.arms
    far_arms = [arm for arm in (left, right) if view.depth(arm.elbow) < -0.02]
    near_arms = sorted((arm for arm in (left, right) if arm not in far_arms), key=lambda arm: view.depth(arm.elbow))
    steps = [partial(_arm, sitter, arm) for arm in sorted(far_arms, key=lambda arm: view.depth(arm.elbow))]
    back = partial(_backpack, sitter)
    side_bag = partial(_side_bag, sitter)
    bag_is_near = _bag_depth(sitter) > 0
    steps += [] if bag_is_near else [side_bag]
    steps += [] if away else [back, partial(draw_hanging_hair, head)]
    legs = [partial(_leg, sitter, leg) for leg in sorted(sitter.bones.legs, key=lambda leg: view.depth(leg.knee))]
    hips = partial(_hips, sitter)
    steps += [*legs, hips] if who.lower in _SKIRT_HEMS else [hips, *legs]
    steps += [partial(_trunk, sitter)]
    steps += [back] if away else []
    steps += [partial(_arm, sitter, arm) for arm in near_arms]
    steps += [side_bag] if bag_is_near else []
    for step in steps:
        step()
    draw_head(head, sitter.bones.neck)
    if away:
        draw_hanging_hair(head)


def _leg(s: Sitter, leg: Leg) -> None:
    view, limbs, cloth_color = s.view, s.who.build.limbs, s.who.lower_cloth
    skin = linear(s.who.skin)
    hip, knee, ankle = view.point(leg.hip), view.point(leg.knee), view.point(leg.ankle)
    _foot(s, leg)
    thigh = np.array([0.058, 0.054, 0.049, 0.043, 0.037]) * limbs
    shin = np.array([0.036, 0.040, 0.037, 0.029, 0.023]) * limbs
    match s.who.lower:
        case "trousers":
            upper, lower = thigh + 0.003, np.array([0.041, 0.039, 0.036, 0.033, 0.032]) * limbs
        case "wide trousers":
            upper, lower = thigh + 0.010, np.array([0.051, 0.050, 0.050, 0.051, 0.053]) * limbs
        case "shorts":
            upper, lower = thigh + np.array([0.008, 0.012, 0.015, 0.017, 0.0]), shin
        case _:
            upper, lower = thigh, shin
    whole = s.who.lower in ("trousers", "wide trousers")
    fabric = cloth(cloth_color, view.heading, s.folds, top=0.1, span=0.5, crease=0.12)
    calf = cloth(cloth_color, view.heading, s.folds, top=0.6, span=0.5, crease=0.14)
    sock = linear(s.who.socks)

    def bare_shin(angle: np.ndarray, along: np.ndarray) -> np.ndarray:
        return skin + soft(along - 0.9) * (sock - skin)

    thigh_paint = fabric if whole else _ending(fabric, skin, 0.86) if s.who.lower == "shorts" else skin
    s.canvas.tube(knee, ankle, _sizes(view, lower), calf if whole else bare_shin, flat_end=whole)
    s.canvas.tube(hip, knee, _sizes(view, upper), thigh_paint)


def _foot(s: Sitter, leg: Leg) -> None:
    view = s.view
    heel, toe = view.point(leg.heel), view.point(leg.toe)
    shoe = linear(s.who.shoes)
    middle = (heel[0] * 0.45 + toe[0] * 0.55, heel[1] * 0.45 + toe[1] * 0.55)
    s.canvas.tube(heel, toe, _sizes(view, [0.020, 0.022, 0.015]), shoe)
    s.canvas.tube(view.point(leg.ankle), middle, _sizes(view, [0.021, 0.020]), shoe)


def _hips(s: Sitter) -> None:
    """The seat of the trousers, or the whole skirt: what joins the legs."""
    view, build, who = s.view, s.who.build, s.who
    wide = np.array([0.094, 0.102, 0.104, 0.088]) * build.hips
    deep = np.array([0.066, 0.074, 0.078, 0.064]) * build.hips
    top = view.point(s.trunk_point(0.0, 0.585, 0.0))
    if who.lower not in _SKIRT_HEMS:
        fabric = cloth(who.lower_cloth, view.heading, s.folds, span=0.2)
        s.canvas.tube(
            top, view.point(s.trunk_point(0.0, 0.458, 0.0)), view.half_width(wide, deep), fabric, flat_start=True
        )
        return
    hem = _SKIRT_HEMS[who.lower]
    flare = np.linspace(1.0, 1.38 if who.lower == "dress" else 1.25, 4)
    _hanging(
        s,
        top,
        hem,
        wide[[0, 1, 2, 2]] * flare,
        deep[[0, 1, 2, 2]] * flare,
        cloth(who.lower_cloth, view.heading, s.folds, span=0.8, crease=0.15),
    )


def _hanging(
    s: Sitter, top: tuple[float, float], hem: float, wide: np.ndarray, deep: np.ndarray, paint: TubePaint
) -> None:
    """Cloth that hangs from the waist to `hem` and gives way to the striding knees."""
    view = s.view
    ratio = np.clip((0.515 - hem) / 0.24, 0.0, 1.35)
    xs = [(1 - ratio) * view.point(leg.hip)[0] + ratio * view.point(leg.knee)[0] for leg in s.bones.legs]
    reach = abs(xs[0] - xs[1]) / 2 + view.size(0.05)
    radii = view.half_width(wide, deep)
    radii = np.maximum(radii, np.linspace(0.0, reach, len(radii)))
    bottom = view.point(s.trunk_point(0.0, hem, 0.0))
    s.canvas.tube(top, (sum(xs) / 2, bottom[1]), radii, paint, flat_start=True, flat_end=True)


def _trunk(s: Sitter) -> None:
    view, who, build = s.view, s.who, s.who.build
    mix = np.clip(np.linspace(-0.4, 1.2, len(_TRUNK_WIDE)), 0.0, 1.0)
    girth = (1 - mix) * build.shoulders + mix * np.where(mix < 0.8, build.waist, 0.5 * (build.waist + build.hips))
    loose = _LOOSE[who.upper]
    wide, deep = _TRUNK_WIDE * girth * loose, _TRUNK_DEEP * (0.35 + 0.65 * girth) * loose
    hem = 0.56 if who.lower == "dress" else _HEMS[who.upper]
    paint = _trunk_paint(s)
    top = view.point(s.bones.neck)
    if who.upper == "coat" and who.lower != "dress":
        waist = view.point(s.trunk_point(0.0, 0.56, 0.0))
        below = cloth(who.upper_cloth, view.heading, s.folds, top=0.7, span=0.6, crease=0.12)
        _hanging(s, waist, hem, wide[-1] * np.linspace(1.0, 1.22, 4), deep[-1] * np.linspace(1.0, 1.25, 4), below)
        hem = 0.55
    s.canvas.tube(top, view.point(s.trunk_point(0.0, hem, 0.0)), view.half_width(wide, deep), paint, flat_end=True)
    if who.upper == "hoodie":
        hood = view.point(s.trunk_point(0.0, 0.835, -0.045))
        s.canvas.ball(hood, (view.size(0.062), view.size(0.036)), linear(who.upper_cloth.color) * 0.85)


def _trunk_paint(s: Sitter) -> TubePaint:
    who, turn = s.who, s.view.heading
    garment = replace(who.upper_cloth, pattern="plain") if who.upper_cloth.pattern == "sleeves" else who.upper_cloth
    paint = _open_front(s, cloth(garment, turn, s.folds))
    skin, bag = linear(who.skin), linear(who.bag_color)
    neckline = 0.14 if who.upper == "tank top" else 0.05

    def trunk(angle: np.ndarray, along: np.ndarray) -> np.ndarray:
        around = wrapped(angle - turn)
        color = paint(angle, along)
        collar = soft(neckline * (0.35 + 0.65 * np.cos(around)) - along, 30.0)
        color = color + collar * (skin * 0.85 - color)
        strap = None
        if who.bag == "backpack":
            strap = soft(0.13 - np.abs(np.abs(around) - 0.62)) * soft(0.55 - along)
        elif who.bag == "shoulder bag":
            strap = soft(0.045 - np.abs(along - 0.48 + 0.42 * np.sin(around)), 25.0)
        return color if strap is None else color + strap * (bag * 0.8 - color)

    return trunk


def _open_front(s: Sitter, paint: TubePaint) -> TubePaint:
    """A jacket or coat shows what is worn below."""
    if s.who.upper not in ("jacket", "coat"):
        return paint
    inner, turn = linear(s.who.upper_cloth.inner), s.view.heading

    def jacket(angle: np.ndarray, along: np.ndarray) -> np.ndarray:
        around = wrapped(angle - turn)
        gap = soft(0.28 - 0.18 * along - np.abs(around))
        edge = soft(0.40 - 0.18 * along - np.abs(around)) - gap
        color = paint(angle, along) * (1.0 - 0.45 * edge)
        return color + gap * (inner * 0.9 - color)

    return jacket


def _arm(s: Sitter, arm: Arm) -> None:
    view, who, limbs = s.view, s.who, s.who.build.limbs
    skin = linear(who.skin)
    shoulder, elbow, wrist, hand = (view.point(p) for p in (arm.shoulder, arm.elbow, arm.wrist, arm.hand))
    above, below = np.array([0.023, 0.031, 0.030, 0.027]) * limbs, np.array([0.027, 0.027, 0.023, 0.018]) * limbs
    cuff = {"tank top": 0.0, "t-shirt": 0.62}.get(who.upper, 2.0)
    thick = 0.007 if who.upper in ("hoodie", "jacket", "coat") else 0.004
    upper_sleeve, lower_sleeve = (cloth(_sleeve(who), view.heading, s.folds, top=t, span=0.45) for t in (0.12, 0.55))
    s.canvas.tube(wrist, hand, _sizes(view, [0.017, 0.021, 0.018]), skin)
    if cuff > 1:
        s.canvas.tube(elbow, wrist, _sizes(view, below + thick * 1.2), lower_sleeve, flat_end=True)
        s.canvas.tube(shoulder, elbow, _sizes(view, above + thick), upper_sleeve)
        return
    s.canvas.tube(elbow, wrist, _sizes(view, below), skin)
    fit = above + np.array([0.004, 0.010, 0.008, 0.0]) * (cuff > 0)
    s.canvas.tube(shoulder, elbow, _sizes(view, fit), _ending(upper_sleeve, skin, cuff) if cuff > 0 else skin)


def _sleeve(who: Identity) -> Garment:
    garment = who.upper_cloth
    if garment.pattern == "sleeves":
        return replace(garment, color=garment.accent, pattern="plain")
    return replace(garment, pattern="plain") if garment.pattern in ("logo", "pinstripes") else garment


def _ending(fabric: TubePaint, bare: np.ndarray, cuff: float) -> TubePaint:
    """Cloth as far as `cuff`, skin from there on, in the shade of the hem."""

    def paint(angle: np.ndarray, along: np.ndarray) -> np.ndarray:
        covered = soft(cuff - along, 25.0)
        shade = 1.0 - 0.35 * soft(cuff + 0.12 - along, 8.0)
        skin = bare * shade
        return skin + covered * (fabric(angle, along) - skin)

    return paint


def _backpack(s: Sitter) -> None:
    if s.who.bag != "backpack":
        return
    view, bag = s.view, linear(s.who.bag_color)
    shape = np.array([0.70, 0.95, 1.0, 1.0, 1.0, 0.92])

    def paint(angle: np.ndarray, along: np.ndarray) -> np.ndarray:
        behind = np.abs(np.abs(wrapped(angle - view.heading)) - np.pi)
        pocket = soft(1.1 - behind) * soft(along - 0.48)
        seam = soft(0.03 - np.abs(along - 0.46), 40.0) + soft(0.025 - np.abs(along - 0.14), 40.0)
        return bag * (1.0 - 0.22 * pocket - 0.45 * np.clip(seam, 0, 1)) * s.folds(angle, along, 0.05)

    top, bottom = (view.point(s.trunk_point(0.0, up, -0.105)) for up in (0.785, 0.60))
    s.canvas.tube(top, bottom, view.half_width(0.078 * shape, 0.054 * shape), paint)


def _bag_depth(s: Sitter) -> float:
    return s.view.depth(_bag_place(s))


def _bag_place(s: Sitter) -> Place:
    if s.who.bag == "handbag":
        hand = s.bones.arms[1].hand
        return Place(hand.side - 0.012, hand.up - 0.075, hand.ahead)
    return s.trunk_point(-0.128 * s.who.build.hips, 0.505, -0.01)


def _side_bag(s: Sitter) -> None:
    if s.who.bag not in ("handbag", "shoulder bag"):
        return
    view, bag, place = s.view, linear(s.who.bag_color), _bag_place(s)
    half = 0.052
    if s.who.bag == "handbag":
        grip = view.point(s.bones.arms[1].hand)
        for ahead in (-0.03, 0.03):
            corner = view.point(Place(place.side, place.up + half, place.ahead + ahead))
            s.canvas.tube(grip, corner, _sizes(view, [0.005, 0.005]), bag * 0.7)
    top, bottom = (view.point(Place(place.side, place.up + up, place.ahead)) for up in (half, -half))

    def paint(angle: np.ndarray, along: np.ndarray) -> np.ndarray:
        flap = soft(0.04 - np.abs(along - 0.42), 30.0)
        return bag * (1.0 - 0.5 * flap)

    shape = np.array([0.82, 1.0, 1.0, 0.96])
    s.canvas.tube(top, bottom, view.half_width(0.026 * shape, 0.066 * shape), paint, flat_start=True, flat_end=True)


def _sizes(view: View, lengths: np.ndarray | list[float]) -> np.ndarray:
    return np.asarray(lengths, dtype=np.float32) * np.float32(view.size(1.0))
