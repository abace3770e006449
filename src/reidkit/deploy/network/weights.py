"""Weights by canonical name: read from a file, handed out by name, every one accounted for. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt16
from safetensors import SafetensorError
from safetensors.numpy import load_file

from reidkit.architecture import CLASSIFIERS
from reidkit.errors import ModelError
from reidkit.fitting import group_names, misfit
from reidkit.wts import read_wts

EPSILON = 1e-5
"""What every normalisation of a known network adds to a variance, as in PyTorch."""

_STATISTICS = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # of a batch normalisation: training's own affair
_ONLY_TRAINING = CLASSIFIERS | {"heads.classifier.weight", "pixel_mean", "pixel_std"}


class Weights:
    """Named tensors that a description takes, name by name.

    Args:
        tensors: by canonical name; a flat one, as `.wts` files hold them, gets its shape when it is taken.
        source: what they come from, for the messages.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], *, source: str) -> None:
        self._tensors = tensors
        self._source = source
        self._taken: dict[str, tuple[int, ...]] = {}
        self._counters: set[str] = set()
        self._exponents: list[str] = []

    def take(self, name: str, *shape: int) -> Float32[np.ndarray, "..."]:
        """A tensor. Zeros stand for one that is missing or of another shape: `check` names them all at once."""
        self._taken[name] = shape
        found = self._tensors.get(name)
        if found is None or _shape_as(found, shape) != shape:
            return np.zeros(shape, np.float32)
        return np.ascontiguousarray(found, np.float32).reshape(shape)

    def batch_norm(
        self, name: str, channels: int
    ) -> tuple[Float32[np.ndarray, " channels"], Float32[np.ndarray, " channels"]]:
        """Factor and offset of a batch normalisation in evaluation."""
        self._counters.add(f"{name}.{_COUNTER}")
        weight, bias, mean, variance = (
            self.take(f"{name}.{part}", channels).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = weight / np.sqrt(variance + EPSILON)
        return factor.astype(np.float32), (bias - mean * factor).astype(np.float32)

    def instance_norm(
        self, name: str, channels: int
    ) -> tuple[Float32[np.ndarray, " channels"], Float32[np.ndarray, " channels"]]:
        """Factor and offset of an instance normalisation."""
        return self.take(f"{name}.weight", channels), self.take(f"{name}.bias", channels)

    def exponent(self, name: str) -> float:
        """GeM's exponent, where it was learned."""
        self._exponents.append(name)
        return float(self.take(name, 1)[0])

    def deployed(self) -> dict[str, np.ndarray]:
        """Every tensor that a network in evaluation has, in its shape, for a bundle; to be asked for after `check`.

        Floats are float32, counters int64 and 0 where they are missing, as before PyTorch 0.4.1; classifiers are left
        out.
        """
        floats = {name: self.take(name, *shape) for name, shape in self._taken.items()}
        counted = {name: np.asarray(self._tensors.get(name, 0)) for name in sorted(self._counters)}
        return floats | {name: count.astype(np.int64).reshape(()) for name, count in counted.items()}

    @property
    def parameters(self) -> int:
        """How many numbers were learned: all but the running statistics."""
        return sum(math.prod(shape) for name, shape in self._taken.items() if not name.endswith(_STATISTICS))

    def check(self) -> None:
        """Refuses weights that are not exactly those taken; what only training needs may be there too.

        Raises:
            ModelError: lists what is missing, unexpected and of another shape; or names values that cannot be: NaN,
                infinity, a negative variance, an exponent that is not above 0.
        """
        wanted = self._taken | dict.fromkeys(self._counters & self._tensors.keys(), ())
        faults = misfit(
            {name: _Shape(shape) for name, shape in wanted.items()},
            {
                name: _Shape(_shape_as(tensor, wanted.get(name)))
                for name, tensor in self._tensors.items()
                if name in wanted or name not in _ONLY_TRAINING
            },
        )
        if faults:
            raise ModelError(
                f"The weights of {self._source} do not fit the architecture",
                got=faults.describe(),
                expected="every tensor, once",
            )
        broken = [name for name, shape in self._taken.items() if not self._possible(name, shape)]
        if broken:
            raise ModelError(
                f"{self._source} holds values that no network can have",
                got=f"NaN, infinity or a number out of range in {group_names(broken)}",
                expected="finite numbers, variances of at least 0, exponents above 0",
                fix="copy or export the weights again",
            )

    def _possible(self, name: str, shape: tuple[int, ...]) -> bool:
        values = self.take(name, *shape)
        if name.endswith(".running_var") and (values < 0).any():
            return False
        return bool(np.isfinite(values).all()) and (name not in self._exponents or bool(values[0] > 0))


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tensor of which nothing but the shape is compared: all become float32."""

    shape: tuple[int, ...]
    dtype: str = "float32"


def _shape_as(tensor: np.ndarray, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of a tensor; the wanted one where it is flat and has as many values."""
    if wanted is not None and tensor.ndim == 1 and tensor.size == int(np.prod(wanted)):
        return wanted
    return tensor.shape


def bfloat16_bits(values: Float32[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """The upper halves of finite float32 numbers, rounded to nearest, ties to even: bfloat16, which NumPy lacks."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def read_tensors(file: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors` or `.wts` file.

    Raises:
        ModelError: no such file, truncated, damaged, or of another kind.
    """
    file = Path(file)
    if file.suffix == ".wts":
        return read_wts(file).tensors
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read as weights", got=error, expected="safetensors or .wts") from error
    except (TypeError, AttributeError, KeyError) as error:  # of safetensors, for the types of deep learning alone
        raise ModelError(
            f"{file} has values of a type that NumPy does not know", got=error, fix="convert them to float32"
        ) from error
