"""Who a person is: build, skin, hair, clothes, bag and hat. The same whichever camera looks.

Colours are sRGB, 0 to 1. (Upper, lower) colours are dealt from a shuffled deck, so two people of one
data set wear the same pair only after every pair has been worn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np

Color = tuple[float, float, float]
Pattern = Literal["plain", "stripes", "pinstripes", "checks", "block", "logo", "sleeves"]
UpperKind = Literal["t-shirt", "long sleeve", "tank top", "hoodie", "jacket", "coat"]
LowerKind = Literal["trousers", "wide trousers", "shorts", "skirt", "long skirt", "dress"]
HairStyle = Literal["bald", "short", "curly", "bob", "long", "ponytail", "bun"]
BagKind = Literal["backpack", "handbag", "shoulder bag"]
HatKind = Literal["cap", "beanie", "sun hat"]


class Stream(IntEnum):
    """What a random generator is for: the second word of its seed, so that no two draws share numbers."""

    DECK = 0
    PERSON = 1
    DISTRACTOR = 2
    JUNK = 3
    CAMERA = 4
    SCENE = 5
    IDENTITY = 6


def generator(seed: int, stream: Stream, *words: int) -> np.random.Generator:
    """The one source of chance: independent numbers for every (seed, stream, words), in any order and any process."""
    return np.random.default_rng(np.random.SeedSequence([seed, stream, *words]))


@dataclass(frozen=True, slots=True)
class Garment:
    """One piece of clothing; `accent` is the second colour of the pattern, `inner` what an open jacket shows."""

    color: Color
    accent: Color
    inner: Color
    pattern: Pattern = "plain"


@dataclass(frozen=True, slots=True)
class Build:
    """Proportions of a body, as factors of the average."""

    shoulders: float
    waist: float
    hips: float
    limbs: float
    legs: float
    head: float


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything about a person that stays the same from camera to camera."""

    build: Build
    skin: Color
    hair: HairStyle
    hair_color: Color
    beard: bool
    upper: UpperKind
    upper_cloth: Garment
    lower: LowerKind
    lower_cloth: Garment
    shoes: Color
    socks: Color
    bag: BagKind | None
    bag_color: Color
    hat: HatKind | None
    hat_color: Color


UPPER_COLORS: tuple[Color, ...] = (
    (0.09, 0.09, 0.10),  # black
    (0.92, 0.92, 0.90),  # white
    (0.50, 0.51, 0.53),  # grey
    (0.78, 0.10, 0.12),  # red
    (0.95, 0.50, 0.10),  # orange
    (0.94, 0.82, 0.18),  # yellow
    (0.12, 0.50, 0.22),  # green
    (0.42, 0.72, 0.92),  # sky
    (0.13, 0.28, 0.76),  # blue
    (0.46, 0.20, 0.60),  # purple
    (0.95, 0.56, 0.70),  # pink
    (0.40, 0.25, 0.14),  # brown
)
LOWER_COLORS: tuple[Color, ...] = (
    (0.08, 0.08, 0.09),  # black
    (0.90, 0.89, 0.86),  # white
    (0.30, 0.46, 0.70),  # denim
    (0.74, 0.63, 0.42),  # khaki
    (0.11, 0.16, 0.42),  # navy
    (0.62, 0.10, 0.16),  # wine
    (0.34, 0.44, 0.18),  # olive
)
_SKIN: tuple[Color, ...] = (
    (0.96, 0.80, 0.69),
    (0.88, 0.69, 0.55),
    (0.76, 0.56, 0.42),
    (0.56, 0.38, 0.27),
    (0.36, 0.24, 0.18),
)
_HAIR: tuple[Color, ...] = (
    (0.07, 0.06, 0.06),
    (0.20, 0.12, 0.08),
    (0.42, 0.26, 0.14),
    (0.80, 0.64, 0.36),
    (0.46, 0.20, 0.11),
    (0.68, 0.68, 0.68),
)
_SHOES: tuple[Color, ...] = (
    (0.08, 0.08, 0.08),
    (0.92, 0.92, 0.92),
    (0.40, 0.24, 0.13),
    (0.62, 0.12, 0.12),
    (0.16, 0.26, 0.52),
    (0.92, 0.78, 0.20),
)
_BAG: tuple[Color, ...] = (
    (0.09, 0.09, 0.10),
    (0.74, 0.12, 0.14),
    (0.14, 0.26, 0.60),
    (0.16, 0.48, 0.30),
    (0.94, 0.78, 0.16),
    (0.48, 0.29, 0.15),
    (0.88, 0.50, 0.64),
    (0.84, 0.83, 0.80),
)
_PATTERNS: dict[Pattern, float] = {
    "plain": 0.42,
    "stripes": 0.16,
    "pinstripes": 0.04,
    "checks": 0.08,
    "block": 0.13,
    "logo": 0.10,
    "sleeves": 0.07,
}
_WOMAN_UPPER: dict[UpperKind, float] = {
    "t-shirt": 0.32,
    "long sleeve": 0.25,
    "tank top": 0.15,
    "hoodie": 0.06,
    "jacket": 0.12,
    "coat": 0.1,
}
_MAN_UPPER: dict[UpperKind, float] = {
    "t-shirt": 0.4,
    "long sleeve": 0.22,
    "tank top": 0.05,
    "hoodie": 0.13,
    "jacket": 0.14,
    "coat": 0.06,
}
_WOMAN_LOWER: dict[LowerKind, float] = {
    "trousers": 0.32,
    "wide trousers": 0.1,
    "shorts": 0.14,
    "skirt": 0.18,
    "long skirt": 0.1,
    "dress": 0.16,
}
_MAN_LOWER: dict[LowerKind, float] = {"trousers": 0.5, "wide trousers": 0.2, "shorts": 0.3}
_WOMAN_HAIR: dict[HairStyle, float] = {
    "short": 0.06,
    "curly": 0.1,
    "bob": 0.22,
    "long": 0.3,
    "ponytail": 0.2,
    "bun": 0.12,
}
_MAN_HAIR: dict[HairStyle, float] = {"bald": 0.14, "short": 0.66, "curly": 0.16, "ponytail": 0.04}
_BAGS: dict[BagKind | None, float] = {None: 0.46, "backpack": 0.22, "handbag": 0.14, "shoulder bag": 0.18}
_HATS: dict[HatKind | None, float] = {None: 0.70, "cap": 0.16, "beanie": 0.10, "sun hat": 0.05}

T = TypeVar("T")


def choose(rng: np.random.Generator, weights: dict[T, float]) -> T:
    """Draws one key with the chance that its weight says."""
    edges = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


@lru_cache(maxsize=1024)
def draw_identity(seed: int, number: int) -> Identity:
    """The person of that number, 0 or above: the same for the same seed, however many others are drawn."""
    rng = generator(seed, Stream.IDENTITY, number)
    upper_color, lower_color = _dealt_colors(seed, number)
    woman = bool(rng.random() < 0.5)
    upper = choose(rng, _WOMAN_UPPER if woman else _MAN_UPPER)
    lower = choose(rng, _WOMAN_LOWER if woman else _MAN_LOWER)
    upper_cloth = _garment(rng, upper_color, choose(rng, _PATTERNS))
    plain_lower = lower in ("trousers", "wide trousers") or rng.random() < 0.6
    lower_cloth = _garment(
        rng, lower_color, "plain" if plain_lower else choose(rng, {"stripes": 0.4, "checks": 0.4, "block": 0.2})
    )
    hair = choose(rng, _WOMAN_HAIR if woman else _MAN_HAIR)
    return Identity(
        build=_build(rng, woman),
        skin=_pick(rng, _SKIN),
        hair=hair,
        hair_color=_pick(rng, _HAIR),
        beard=not woman and bool(rng.random() < 0.35),
        upper=upper,
        upper_cloth=upper_cloth,
        lower=lower,
        lower_cloth=upper_cloth if lower == "dress" and rng.random() < 0.5 else lower_cloth,
        shoes=_pick(rng, _SHOES),
        socks=_pick(rng, ((0.9, 0.9, 0.9), (0.1, 0.1, 0.1))),
        bag=choose(rng, _BAGS),
        bag_color=_distinct(rng, _BAG, upper_color),
        hat=choose(rng, _HATS),
        hat_color=_pick(rng, UPPER_COLORS),
    )


def _dealt_colors(seed: int, number: int) -> tuple[Color, Color]:
    # Round after round of all upper colours, each time with the next lower colour: any dozen people in a row differ
    # above, and a pair comes back only when all pairs have been worn.
    deal, place = divmod(number, len(UPPER_COLORS))
    upper = int(generator(seed, Stream.DECK, deal).permutation(len(UPPER_COLORS))[place])
    lowers = generator(seed, Stream.DECK).permutation(len(LOWER_COLORS))
    return UPPER_COLORS[upper], LOWER_COLORS[int(lowers[(upper + deal) % len(LOWER_COLORS)])]


def _garment(rng: np.random.Generator, color: Color, pattern: Pattern) -> Garment:
    tint = rng.uniform(-0.025, 0.025, 3)
    red, green, blue = (float(c) for c in np.clip(np.array(color) + tint, 0.03, 0.96))
    # White or black goes with everything, and people know it.
    accents = UPPER_COLORS if rng.random() < 0.25 else UPPER_COLORS[:2]
    return Garment((red, green, blue), _distinct(rng, accents, color), _distinct(rng, UPPER_COLORS[:3], color), pattern)


def _build(rng: np.random.Generator, woman: bool) -> Build:
    heavy = float(np.clip(rng.normal(), -1.4, 2.0))
    return Build(
        shoulders=(0.94 if woman else 1.04) + 0.05 * heavy + rng.uniform(-0.03, 0.03),
        waist=(0.88 if woman else 1.0) + 0.13 * heavy,
        hips=(1.04 if woman else 0.97) + 0.09 * heavy,
        limbs=(0.93 if woman else 1.03) + 0.09 * heavy,
        legs=1.0 + rng.uniform(-0.04, 0.04),
        head=1.0 + rng.uniform(-0.06, 0.06),
    )


def _pick(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    return colors[int(rng.integers(len(colors)))]


def _distinct(rng: np.random.Generator, colors: Sequence[Color], other: Color) -> Color:
    """A colour that the eye tells from `other` across a street."""
    far = [color for color in colors if float(np.abs(np.subtract(color, other)).sum()) > 0.55]
    return _pick(rng, far)
