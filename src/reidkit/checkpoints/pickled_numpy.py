"""The arrays and numbers of numpy in somebody's pickle, read without numpy's own reconstructors.

`numpy.dtype` and `numpy.ndarray` rebuild themselves from sizes, flags and fields that a pickle states, and trust them:
a dtype of objects whose flags deny it makes pointers out of bytes. So, while a file is read, their names lead to the
readers here, which note what they are told and check it when the array is wanted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before numpy 2, and since


class PickledDtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def dtype(self) -> np.dtype:
        """The dtype, if it is one of plain numbers.

        Raises:
            ValueError: it is another one.
        """
        order = "="
        if self.state is not None:
            if not isinstance(self.state, tuple) or len(self.state) < 5 or any(x is not None for x in self.state[2:5]):
                raise ValueError("a numpy array of records")
            order = self.state[1]
        if not isinstance(self.code, str) or self.code not in _CODES or order not in ("<", ">", "|", "="):
            raise ValueError(f"a numpy array of dtype {self.code!r}"[:80])
        return np.dtype(self.code).newbyteorder(order)


class PickledArray:
    """Stands for `numpy.ndarray`."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """A copy of the array, in this machine's byte order.

        Raises:
            ValueError: it is not of plain numbers, or its size is not that of its data.
        """
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("a numpy array without content")
        _, shape, kind, fortran, data = self.state
        if not isinstance(kind, PickledDtype):
            raise ValueError("a numpy array without dtype")
        dtype = kind.dtype()
        # Each size is bounded before they are multiplied: a pickle's integers are not.
        fits = (
            isinstance(shape, tuple)
            and len(shape) <= 32
            and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
            and isinstance(data, bytes)
            and math.prod(shape) * dtype.itemsize == len(data)
        )
        if not fits:
            raise ValueError("a numpy array with other data than its shape asks for")
        flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _reconstruct(*_: Any) -> PickledArray:
    return PickledArray()


def _scalar(kind: Any = None, data: Any = None) -> int | float | bool | None:
    """A number; None for what is none: no such thing is a weight."""
    try:
        return np.frombuffer(data, kind.dtype())[0].item()
    except (ValueError, TypeError, AttributeError, IndexError):
        return None


def _empty_bytes(*_: Any) -> bytes:
    """Stands for `bytes`: the protocol of torch.save calls it for the data of an array without values."""
    return b""


@contextmanager
def allow_numpy() -> Iterator[None]:
    """Lets `torch.load` read numpy's arrays as `PickledArray`, in place of all that this process allows otherwise.

    What somebody allowed for another file must not decide what becomes of this one.
    """
    others = torch.serialization.get_safe_globals()
    allowed: list[Any] = [
        (PickledArray, "numpy.ndarray"),
        (PickledDtype, "numpy.dtype"),
        (_empty_bytes, "builtins.bytes"),
    ]
    for module in _MODULES:
        allowed += [(_reconstruct, f"{module}._reconstruct"), (_scalar, f"{module}.scalar")]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)
