"""Numbers rounded to eight bits as an engine rounds them, through which gradients go as if they were not.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018; ranges that are learned: Esser et al., "Learned Step Size Quantization", ICLR 2020, of which this differs in
learning factors of both ends of a range, not the step.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from reidkit.calibration import EngineKind, Range

_SIGNED = 127  # -128 is not used: a grid around 0 has as many steps below it as above
_UNSIGNED = 255
_FLOAT16_BITS = 2.0**11  # of its significand
_FLOAT16_NORMAL = (2.0**-14, torch.finfo(torch.float16).max)
_LEAST_FACTOR = 0.01  # a range that is learned neither vanishes nor turns round


class _StraightRound(torch.autograd.Function):
    """To the nearest whole number, of two equally near the even one, as ONNX does; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _ScaledGradient(torch.autograd.Function):
    """What it gets; the gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def rounded_weight(
    weight: Float32[Tensor, "outputs *others"], engine: EngineKind
) -> Float32[Tensor, "outputs *others"]:
    """Weights on signed grids of their own for each output, with 0 in the middle and the largest value at the end."""
    step = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / _SIGNED
    step = _held_by_float16(step) if engine == "tensorrt" else _above_zero(step)
    return _StraightRound.apply(weight / step) * step  # nothing lies beyond the end


class Grid(nn.Module):
    """The grid of a value: 256 numbers ("cpu") or 255 around 0 ("tensorrt") between the ends of a range.

    Behind its ends values are clipped, and have no gradient. In training a range that is not learned follows what it
    sees, and the value is rounded in the range that has seen it.

    Args:
        engine: that is imitated.
        learned: whether the loss decides on the range, which so becomes a parameter: a factor for each end.

    Attributes:
        low: end of the range, 0 or below.
        high: the other, 0 or above.
        factors: of both; None where they are not learned.
        mode: "rounds"; or "measures": values pass as they are, and their range is followed; or "passes": that alone.
    """

    def __init__(self, engine: EngineKind, *, learned: bool) -> None:
        super().__init__()
        self.engine = engine
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.factors = nn.Parameter(torch.ones(2)) if learned else None
        self.mode: Literal["rounds", "measures", "passes"] = "rounds"

    def forward(self, x: Float32[Tensor, "..."], rate: Float32[Tensor, ""]) -> Float32[Tensor, "..."]:
        """The value on its grid.

        Args:
            x: any value.
            rate: share of the way towards what is seen that the range takes; on the device, for a captured graph.
        """
        if self.mode == "measures" or (self.mode == "rounds" and self.training and self.factors is None):
            self._follow(x, rate)
        if self.mode != "rounds":
            return x
        low, high = self.ends(gradient=1 / math.sqrt(x.numel() * _UNSIGNED))
        if self.engine == "tensorrt":
            step = _symmetric(low, high)
            return _StraightRound.apply(x / step).clamp(-_SIGNED, _SIGNED) * step
        step, zero = _affine(low, high)
        return ((_StraightRound.apply(x / step) + zero).clamp(0, _UNSIGNED) - zero) * step

    def ends(self, *, gradient: float = 1.0) -> tuple[Tensor, Tensor]:
        """Both ends of the range.

        Args:
            gradient: factor of the gradient of ends that are learned.
        """
        if self.factors is None:
            return self.low, self.high
        low, high = _ScaledGradient.apply(self.factors.clamp(min=_LEAST_FACTOR), gradient).unbind()
        return self.low * low, self.high * high

    @torch.no_grad()
    def set(self, given: Range) -> None:
        """Begins with a range, in place."""
        self.low.fill_(given.low)
        self.high.fill_(given.high)

    @torch.no_grad()
    def range(self) -> Range:
        """The range, its ends moved onto the grid: whoever makes a grid of it finds the same step and the same 0."""
        low, high = self.ends()
        if bool(low == high):  # nothing but 0
            return Range(0.0, 0.0)
        if self.engine == "tensorrt":
            peak = _SIGNED * _symmetric(low, high).item()
            return Range(-peak, high.item()) if bool(-low > high) else Range(low.item(), peak)
        step, zero = (value.item() for value in _affine(low, high))
        return Range(-zero * step, (_UNSIGNED - zero) * step)

    @torch.no_grad()
    def _follow(self, x: Tensor, rate: Tensor) -> None:
        low, high = x.detach().aminmax()
        self.low.lerp_(low.clamp(max=0), rate)
        self.high.lerp_(high.clamp(min=0), rate)


def _affine(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Step and place of 0 of a grid whose ends are near those of the range, for 0 has to be on it."""
    step = _above_zero((high - low) / _UNSIGNED)
    return step, _StraightRound.apply(-low / step)


def _symmetric(low: Tensor, high: Tensor) -> Tensor:
    """Step of a grid around 0 that holds both ends."""
    return _held_by_float16(torch.maximum(-low, high) / _SIGNED)


def _above_zero(step: Tensor) -> Tensor:
    """What has only been 0 has a step of 1."""
    return torch.where(step > 0, step, 1.0)


def _held_by_float16(step: Tensor) -> Tensor:
    """The step, or the next above that float16 holds, as the graph for TensorRT has it; it has the step's gradient."""
    mantissa, exponent = torch.frexp(step.detach())
    held = torch.ldexp((mantissa * _FLOAT16_BITS).ceil() / _FLOAT16_BITS, exponent)
    least, most = _FLOAT16_NORMAL
    held = torch.where((step >= least) & (step < most), held, step.detach())
    return _above_zero(step + (held - step).detach())  # exact, for both are near each other
