"""Arrays that lie on a card, taken from and given to other libraries without a copy.

Two interfaces: `__cuda_array_interface__` (Numba's, version 3; PyTorch, CuPy) and DLPack (JAX and most others). Only
addresses change hands: nothing here touches the card.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from reidkit.errors import InputError
from reidkit.runtime.cuda import DeviceMemory

_CUDA = 2  # DLPack's kDLCUDA
_MANAGED = 13  # kDLCUDAManaged
_DEFAULT_STREAM, _NO_STREAM = 1, -1  # DLPack: "make the default stream wait", "wait for nothing"
_CODES = {0: "i", 1: "u", 2: "f"}  # DLPack's kinds of numbers, as numpy writes them


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A C-contiguous array of somebody else's.

    Attributes:
        address: of its first byte, on the card.
        shape: of its axes.
        dtype: of its numbers.
        owner: what keeps the memory alive.
        stream: number of the CUDA stream that has to be waited for; None where the values are complete.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object
    stream: int | None = None


def read_device_array(array: Any, *, device: int, stream: int | None = None) -> DeviceView:
    """Where an array lies on a card, without a copy.

    DLPack goes first, for it also says on which card that is and lets the default stream wait for whoever fills it.

    Args:
        array: with `__dlpack__` and `__dlpack_device__`, or with `__cuda_array_interface__`.
        device: number of the card that it has to be on; the second interface does not say, and is believed.
        stream: CUDA stream that makes the array, as a number; None asks the array.

    Raises:
        InputError: neither interface, another device, no C-contiguous layout, or numbers that numpy has not.
    """
    if isinstance(array, DeviceArray):
        if array.device != device:
            raise _elsewhere(_CUDA, array.device, device)
        described = array.__cuda_array_interface__
    elif hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _lent(array, device, stream)
    else:
        described = getattr(array, "__cuda_array_interface__", None)
    if described is None:
        raise InputError(
            "This is no array on a card",
            got=type(array).__name__,
            expected="__cuda_array_interface__ or DLPack",
            fix="give arrays of the host to `embed`",
        )
    dtype, shape = np.dtype(described["typestr"]), tuple(int(size) for size in described["shape"])
    _check_contiguous(shape, described.get("strides"), dtype.itemsize)
    waited = described.get("stream") if stream is None else stream
    return DeviceView(int(described["data"][0]), shape, dtype, array, waited)


def _lent(array: Any, device: int, stream: int | None) -> DeviceView:
    kind, index = (int(value) for value in array.__dlpack_device__())
    if kind not in (_CUDA, _MANAGED) or index != device:
        raise _elsewhere(kind, index, device)
    try:
        capsule = array.__dlpack__(stream=_DEFAULT_STREAM if stream is None else _NO_STREAM)
    except BufferError as error:
        raise InputError("The array does not let itself be read", got=error) from error
    tensor = _tensor_in(capsule)
    try:
        dtype = np.dtype(f"{_CODES[tensor.dtype.code]}{tensor.dtype.bits / 8:g}" if tensor.dtype.lanes == 1 else "")
    except (KeyError, TypeError) as error:
        got = f"DLPack code {tensor.dtype.code}, {tensor.dtype.lanes} x {tensor.dtype.bits} bits"
        raise InputError("The array holds numbers that are not known here", got=got) from error
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = [tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim)] if tensor.strides else None
    _check_contiguous(shape, strides, dtype.itemsize)
    address = (tensor.data or 0) + tensor.byte_offset  # an empty array may lie nowhere
    # The capsule is never consumed: it gives the array back when it is collected.
    return DeviceView(address, shape, dtype, capsule, _DEFAULT_STREAM if stream is None else stream)


def _elsewhere(kind: int, index: int, device: int) -> InputError:
    return InputError("The array is on another device", got=f"DLPack device {kind}:{index}", expected=f"cuda:{device}")


def _check_contiguous(shape: tuple[int, ...], strides: Any, itemsize: int) -> None:
    if strides is None or 0 in shape:
        return
    step = itemsize
    for size, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if size > 1 and stride != step:
            raise InputError(
                "The array on the card is not C-contiguous",
                got=f"shape {shape}, strides {tuple(strides)} bytes",
                fix="copy it into one piece first, as .contiguous() of PyTorch does",
            )
        step *= size


class DeviceArray:
    """An array on a card, for whoever reads `__cuda_array_interface__` or DLPack.

    Attributes:
        shape: of its axes.
        dtype: of its numbers.
        device: number of the card.
    """

    def __init__(self, memory: DeviceMemory, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> None:
        self._memory = memory
        self.shape = shape
        self.dtype = dtype
        self.device = device

    @classmethod
    def new(cls, shape: tuple[int, ...], dtype: np.dtype[Any], *, device: int) -> "DeviceArray":
        """An array whose values are whatever lay there, on the device in use.

        Raises:
            EngineError: the card has no memory left.
        """
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        return cls(DeviceMemory(size), shape, dtype, device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": (self._memory.address, False)}

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule of the oldest kind; the values are complete, so no stream has to be waited for.

        Raises:
            BufferError: it is asked for on another device, or as a copy.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("an array on a card is lent as it is: neither copied nor brought elsewhere")
        # NumPy makes the capsule, around an array that it never looks into: its deleter and destructor are C, and so
        # work at any time, also while an exception is on its way or Python ends.
        capsule = np.asarray(_Held(self)).__dlpack__()
        tensor = _tensor_in(capsule)
        tensor.device_type, tensor.device_id = _CUDA, self.device
        return capsule


class _Held:
    """Lets NumPy hold an array on a card, which lives as long as NumPy's does."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array
        self.__array_interface__ = array.__cuda_array_interface__


class _DataType(ctypes.Structure):
    _fields_: ClassVar = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h, as it has been since its first version."""

    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _tensor_in(capsule: Any) -> _Tensor:
    """The description in a capsule, which begins with it; valid as long as the capsule lives and is not consumed."""
    return _Tensor.from_address(_pointer_in(capsule, b"dltensor"))
