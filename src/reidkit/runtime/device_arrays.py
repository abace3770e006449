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
_CAPSULE = b"dltensor"
_CODES = {0: "i", 1: "u", 2: "f"}  # DLPack's kinds of numbers, as numpy writes them


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A C-contiguous array of somebody else's.

    Attributes:
        address: of its first byte, on the card.
        shape: of its axes.
        dtype: of its numbers.
        owner: what keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object


def read_device_array(array: Any, *, device: int) -> DeviceView:
    """Where an array lies on a card, without a copy.

    Args:
        array: with `__cuda_array_interface__`, or with `__dlpack__` and `__dlpack_device__`.
        device: number of the card that it has to be on; the first interface does not say, and is believed.

    Raises:
        InputError: neither interface, another device, no C-contiguous layout, or numbers that numpy has not.
    """
    described = getattr(array, "__cuda_array_interface__", None)
    if described is not None:
        dtype, shape = np.dtype(described["typestr"]), tuple(int(size) for size in described["shape"])
        _check_contiguous(shape, described.get("strides"), dtype.itemsize)
        return DeviceView(int(described["data"][0]), shape, dtype, array)
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        raise InputError(
            "This is no array on a card",
            got=type(array).__name__,
            expected="__cuda_array_interface__ or DLPack",
            fix="give arrays of the host to `embed`",
        )
    kind, index = (int(value) for value in array.__dlpack_device__())
    if kind not in (_CUDA, _MANAGED) or index != device:
        raise InputError(
            "The array is on another device", got=f"DLPack device {kind}:{index}", expected=f"cuda:{device}"
        )
    capsule = array.__dlpack__()
    tensor = ctypes.cast(_pointer(capsule, _CAPSULE), ctypes.POINTER(_ManagedTensor)).contents.tensor
    if tensor.dtype.lanes != 1 or tensor.dtype.code not in _CODES:
        raise InputError("The array holds numbers that are not known here", got=f"DLPack code {tensor.dtype.code}")
    dtype = np.dtype(f"{_CODES[tensor.dtype.code]}{tensor.dtype.bits // 8}")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = [tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim)] if tensor.strides else None
    _check_contiguous(shape, strides, dtype.itemsize)
    return DeviceView(tensor.data + tensor.byte_offset, shape, dtype, capsule)


def _check_contiguous(shape: tuple[int, ...], strides: Any, itemsize: int) -> None:
    if strides is None:
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

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A DLPack capsule; the values are complete, so no stream has to be waited for."""
        return _Lent.capsule(self)


class _DataType(ctypes.Structure):
    _fields_: ClassVar = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
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


class _ManagedTensor(ctypes.Structure):
    _fields_: ClassVar = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Lent:
    """Arrays that other libraries hold through DLPack: each lives until its deleter is called."""

    _arrays: ClassVar[dict[int, tuple[Any, ...]]] = {}

    @classmethod
    def capsule(cls, array: DeviceArray) -> Any:
        shape = (ctypes.c_int64 * len(array.shape))(*array.shape)
        code = {kind: code for code, kind in _CODES.items()}[array.dtype.kind]
        tensor = _Tensor(
            array.__cuda_array_interface__["data"][0],
            _CUDA,
            array.device,
            len(array.shape),
            _DataType(code, 8 * array.dtype.itemsize, 1),
            ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
            None,
            0,
        )
        managed = _ManagedTensor(tensor, None, ctypes.cast(_release, ctypes.c_void_p))
        address = ctypes.addressof(managed)
        cls._arrays[address] = (array, managed, shape)
        return _new_capsule(address, _CAPSULE, ctypes.cast(_release_capsule, ctypes.c_void_p))

    @classmethod
    def release(cls, address: int) -> None:
        cls._arrays.pop(address, None)


@_Deleter
def _release(address: int) -> None:
    _Lent.release(address)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _release_capsule(capsule: int) -> None:
    # A capsule that nobody took is still called so; whoever took it has given it another name, and releases it.
    if _is_valid(capsule, _CAPSULE):
        _Lent.release(_raw_pointer(capsule, _CAPSULE))
