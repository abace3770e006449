"""What cloth looks like on a turning body: patterns that run around it, and the folds of one moment."""

from dataclasses import dataclass

import numpy as np

from reidkit.data.synth.identity import Garment
from reidkit.data.synth.solids import TubePaint, linear


@dataclass(frozen=True, slots=True)
class Folds:
    """Creases of one crop: waves over (angle, way along) whose phases nobody can predict."""

    waves: tuple[tuple[float, float, float, float], ...]

    def __call__(self, angle: np.ndarray, along: np.ndarray, depth: float) -> np.ndarray:
        """Brightness factor around 1."""
        total = np.float32(1.0)
        for around, down, phase, weight in self.waves:
            total = total + (weight * depth) * np.sin(around * angle + (down * along + phase))
        return np.asarray(total)


def draw_folds(rng: np.random.Generator) -> Folds:
    """Two waves, a broad one and a fine one."""
    scales = ((1.8, 7.0, 1.0), (3.0, 16.0, 0.7))
    return Folds(
        tuple(
            (float(a * rng.uniform(-1.2, 1.2)), float(d * rng.uniform(0.7, 1.3)), float(rng.uniform(0, 6.28)), w)
            for a, d, w in scales
        )
    )


def cloth(
    garment: Garment, turn: float, folds: Folds, *, top: float = 0.0, span: float = 1.0, crease: float = 0.09
) -> TubePaint:
    """A paint for a tube of that cloth.

    Args:
        garment: colours and pattern.
        turn: heading of the body, so that the pattern turns with it.
        folds: creases of the moment.
        top: where on the garment the tube starts, 0 at the shoulder or waist.
        span: how much of the garment the tube covers, 1 for a trunk from shoulder to hem.
        crease: depth of the folds.
    """
    base, accent = linear(garment.color), linear(garment.accent)

    def paint(angle: np.ndarray, along: np.ndarray) -> np.ndarray:
        share = _accent_share(garment, wrapped(angle - turn), top + span * along)
        color = base if share is None else base + share * (accent - base)
        return color * folds(angle, along, crease)

    return paint


def wrapped(angle: np.ndarray) -> np.ndarray:
    """An angle brought to -pi to pi: 0 at the chest, positive towards the left hand."""
    return angle - (2 * np.pi) * np.rint(angle / (2 * np.pi))


def soft(value: np.ndarray, sharpness: float = 12.0) -> np.ndarray:
    """0 below zero, 1 above, with a short ramp between: edges without stairs."""
    return np.clip(value * sharpness + 0.5, 0.0, 1.0)


def _accent_share(garment: Garment, around: np.ndarray, down: np.ndarray) -> np.ndarray | None:
    match garment.pattern:
        case "stripes":
            return soft(np.sin(down * 2 * np.pi * 5.0), 2.0) + 0.0 * around
        case "pinstripes":
            return soft(np.sin(around * 9.0), 2.0) + 0.0 * down
        case "checks":
            return 0.5 * soft(np.sin(around * 6.0), 2.0) + 0.5 * soft(np.sin(down * 2 * np.pi * 4.5), 2.0)
        case "block":
            return soft(down - 0.5) + 0.0 * around
        case "logo":
            height = soft(0.15 - np.abs(down - 0.34))
            width = soft(0.62 - np.abs(around)) + soft(0.62 - np.abs(np.abs(around) - np.pi))
            return height * width
        case _:
            return None
