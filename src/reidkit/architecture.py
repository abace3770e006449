"""What a known network is, as data: the frozen spec that PyTorch builds from and that the manifest records.

No torch here: engines that are built without it (TensorRT's network definition, Caffe) read the same spec.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from reidkit.errors import ConfigError, require_one_of

Ibn = Literal["none", "a"]
Pooling = Literal["average", "max", "gem"]

STAGE_BLOCKS: dict[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2)}
"""Residual blocks a stage, by depth (He et al., CVPR 2016, table 1)."""

STAGE_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class ResNetSpec:
    """A residual network with the re-identification head: pooling and BNneck.

    Attributes:
        depth: 18.
        ibn: "a" puts instance normalisation on half of the channels of each block's first normalisation in stages 1
            to 3 (Pan et al., ECCV 2018).
        last_stride: of stage 4; 1 keeps the last feature map twice as large (Luo et al., CVPRW 2019).
        pooling: over the last feature map; "gem" is the generalised mean (Radenovic et al., TPAMI 2019).
        gem_p: the exponent, or where a learned one starts.
        gem_learned: whether the exponent is a weight.
    """

    depth: int = 18
    ibn: Ibn = "a"
    last_stride: int = 1
    pooling: Pooling = "gem"
    gem_p: float = 3.0
    gem_learned: bool = False

    def __post_init__(self) -> None:
        require_one_of("kind of IBN", self.ibn, get_args(Ibn))
        require_one_of("pooling", self.pooling, get_args(Pooling))
        if self.depth not in STAGE_BLOCKS:
            raise ConfigError("No ResNet of this depth", got=self.depth, expected=f"one of {list(STAGE_BLOCKS)}")
        if self.last_stride not in (1, 2):
            raise ConfigError("The last stride cannot be this", got=self.last_stride, expected="1 or 2")
        # x ** 16 leaves float32 at x = 256.
        if not (math.isfinite(self.gem_p) and 0 < self.gem_p <= 16):
            raise ConfigError("GeM's exponent is out of range", got=self.gem_p, expected="above 0, at most 16")

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return STAGE_WIDTHS[-1]
