"""Training for eight bits, as data: what a recipe says of it, and where a network is rounded. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from reidkit.calibration import EngineKind, Range, RoundedLayer
from reidkit.errors import ConfigError
from reidkit.train.settings import at_least, fraction


@dataclass(frozen=True, slots=True)
class Quantization:
    """The network computes in training as an engine will in eight bits, and learns to be right so.

    Attributes:
        engine: that is imitated.
        ranges: "ema" follows what is seen, by a moving average of each batch's extremes; "learned" has the loss decide.
        momentum: of the moving average: the share that a step keeps.
        freeze_after: share of the steps after which ranges that follow stay as they are.
        images: training crops that the first ranges are measured on, where the bundle has no table of them.
    """

    engine: EngineKind = "cpu"
    ranges: Literal["ema", "learned"] = "ema"
    momentum: float = 0.99
    freeze_after: float = 0.5
    images: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(
                "quantization.momentum is out of range", got=self.momentum, expected="0 or above, below 1"
            )
        fraction("quantization.freeze_after", self.freeze_after)
        at_least("quantization.images", self.images, 1)


@dataclass(frozen=True, slots=True)
class Rounding:
    """Where an engine rounds the network that a run begins with.

    Attributes:
        engine: whose placement it is.
        layers: that are computed in eight bits.
        floats: names of layers that stay float on purpose.
        ranges: to begin with, by name of the grid; the others are measured.
    """

    engine: EngineKind
    layers: tuple[RoundedLayer, ...]
    floats: tuple[str, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)
