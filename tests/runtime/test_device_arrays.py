"""Arrays on a card as other libraries give and take them; its memory is the host's here, and never looked into."""

import ctypes
import gc
import subprocess
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fake_cuda import FakeCuda
from reidkit.errors import InputError
from reidkit.runtime import cuda
from reidkit.runtime.device_arrays import DeviceArray, read_device_array

FLOAT = np.dtype(np.float32)


@pytest.fixture
def card(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "cudart", fake)
    return fake


class Described:
    """An array with `__cuda_array_interface__` alone, as Numba's."""

    def __init__(self, shape=(2, 3), typestr="|u1", address=4096, **more):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (address, False),
            "version": 3,
            **more,
        }


class Lent:
    """An array of NumPy's that says it is on a card."""

    def __init__(self, array, *, device=(2, 0), change=None):
        self.array, self.device, self.change = array, device, change
        self.streams = []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        if self.change:
            self.change(fields(capsule))
        return capsule


class Tensor(ctypes.Structure):
    """Written out from dlpack.h once more."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    )


def pointer(capsule, name=b"dltensor"):
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return get(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, name)


def fields(capsule):
    return Tensor.from_address(pointer(capsule))


def consume(capsule):
    """As a library does that takes an array: the capsule gets another name, and the deleter is called in the end."""
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    address = pointer(capsule)
    assert rename(("PyCapsule_SetName", ctypes.pythonapi))(capsule, USED) == 0
    return address


USED = b"used_dltensor"


# Given


def test_what_is_lent_lies_where_it_says(card):
    array = DeviceArray.new((3, 5), FLOAT, device=0)
    ((address, (size, kind)),) = card.live.items()
    assert (size, kind) == (60, "device")
    assert array.__cuda_array_interface__ == {
        "version": 3,
        "shape": (3, 5),
        "typestr": "<f4",
        "data": (address, False),
    }
    capsule = array.__dlpack__(stream=1, max_version=(1, 0), dl_device=(2, 0), copy=False)
    tensor = fields(capsule)
    assert (tensor.data, tensor.offset) == (address, 0)
    assert (*tensor.device, *array.__dlpack_device__()) == (2, 0, 2, 0)
    assert (tensor.code, tensor.bits, tensor.lanes) == (2, 32, 1)
    assert (tensor.ndim, tensor.shape[:2]) == (2, [3, 5])
    assert not tensor.strides or tensor.strides[:2] == [5, 1]


def test_the_number_of_the_card_is_lent_too(card):
    array = DeviceArray.new((2,), np.dtype(np.uint8), device=3)
    tensor = fields(capsule := array.__dlpack__())
    assert (*tensor.device, tensor.code, tensor.bits) == (2, 3, 1, 8)
    assert array.__dlpack_device__() == (2, 3)
    del capsule


def test_a_capsule_that_nobody_takes_gives_the_array_back(card):
    array = DeviceArray.new((3, 5), FLOAT, device=0)
    capsule = array.__dlpack__()
    del array
    gc.collect()
    assert len(card.live) == 1
    del capsule
    gc.collect()
    assert card.live == {}


def test_a_capsule_that_was_taken_gives_it_back_when_its_taker_says_so(card):
    array = DeviceArray.new((3, 5), FLOAT, device=0)
    capsule = array.__dlpack__()
    address = consume(capsule)
    del array, capsule
    gc.collect()
    assert len(card.live) == 1
    Tensor.from_address(address).deleter(address)
    gc.collect()
    assert card.live == {}


def test_an_array_is_lent_as_often_as_it_is_asked_for(card):
    array = DeviceArray.new((4,), FLOAT, device=0)
    gone = weakref.ref(array)
    capsules = [array.__dlpack__() for _ in range(3)]
    assert len({fields(capsule).data for capsule in capsules}) == 1
    del array
    while capsules:
        assert gone() is not None
        capsules.pop()
    gc.collect()
    assert gone() is None


def test_a_library_of_the_host_is_refused_and_nothing_is_lost(card):
    array = DeviceArray.new((4,), FLOAT, device=0)
    for _ in range(3):
        with pytest.raises((BufferError, RuntimeError), match=r"card|device"):
            np.from_dlpack(array)
    with pytest.raises(BufferError, match="neither copied nor brought elsewhere"):
        array.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="neither copied nor brought elsewhere"):
        array.__dlpack__(dl_device=(1, 0))
    del array
    gc.collect()
    assert card.live == {}


def test_a_capsule_may_end_while_an_exception_is_on_its_way(card):
    def fails():
        held = DeviceArray.new((4,), FLOAT, device=0).__dlpack__()
        raise KeyError(len([held]))

    with pytest.raises(KeyError, match="1"):
        fails()
    gc.collect()
    assert card.live == {}


def test_python_may_end_while_arrays_are_lent():
    script = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from fake_cuda import FakeCuda
from reidkit.runtime import cuda
cuda.cudart = FakeCuda()
import numpy as np
from reidkit.runtime.device_arrays import DeviceArray
held = [DeviceArray.new((2,), np.dtype(np.float32), device=0).__dlpack__() for _ in range(3)]
sys.held = held
print("whole")
"""
    tests = str(next(path for path in sys.path if path.endswith("tests")))
    done = subprocess.run(
        [sys.executable, "-c", script, tests], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "whole\n", "")


# Taken


def test_numbas_interface_is_read():
    view = read_device_array(given := Described((2, 3), "<f4", 4096), device=0)
    assert (view.address, view.shape, view.dtype, view.owner, view.stream) == (4096, (2, 3), FLOAT, given, None)
    assert read_device_array(Described(stream=7), device=0).stream == 7
    assert read_device_array(Described(stream=7), device=0, stream=9).stream == 9
    assert read_device_array(Described(strides=(3, 1)), device=0).shape == (2, 3)
    assert read_device_array(Described((2, 1), strides=(1, 77)), device=0).shape == (2, 1)  # one of a kind has no step


def test_dlpack_is_read_and_its_maker_is_waited_for():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    lent = Lent(array)
    view = read_device_array(lent, device=0)
    assert (view.address, view.shape, view.dtype) == (array.ctypes.data, (2, 3), np.dtype(np.uint8))
    assert (view.stream, lent.streams) == (1, [1])  # the default stream, which the array's own is to be ahead of
    view = read_device_array(lent, device=0, stream=42)
    assert (view.stream, lent.streams) == (42, [1, -1])


def test_dlpack_goes_first_and_a_managed_array_is_on_its_card():
    lent: Any = Lent(np.zeros(3, np.float32), device=(13, 1))
    lent.__cuda_array_interface__ = Described(address=1).__cuda_array_interface__
    assert read_device_array(lent, device=1).address == lent.array.ctypes.data


def test_the_array_lives_as_long_as_what_was_read():
    array = np.zeros(1000, np.uint8)
    gone = weakref.ref(array)
    view = read_device_array(Lent(array), device=0)
    del array
    gc.collect()
    assert gone() is not None
    del view
    gc.collect()
    assert gone() is None


def test_an_offset_counts_and_an_empty_array_may_lie_nowhere():
    def shift(tensor):
        tensor.offset = 2

    array = np.zeros(4, np.uint8)
    assert read_device_array(Lent(array, change=shift), device=0).address == array.ctypes.data + 2

    def nowhere(tensor):
        tensor.data = None

    view = read_device_array(Lent(np.zeros((0, 4), np.uint8), change=nowhere), device=0)
    assert (view.address, view.shape) == (0, (0, 4))


def test_our_own_array_is_complete(card):
    array = DeviceArray.new((2, 2), FLOAT, device=1)
    view = read_device_array(array, device=1)
    assert (view.address, view.stream, view.owner) == (next(iter(card.live)), None, array)
    assert read_device_array(array, device=1, stream=5).stream == 5
    with pytest.raises(InputError, match=r"another device\n  got: DLPack device 2:1\n  expected: cuda:0"):
        read_device_array(array, device=0)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3), r"The array is on another device\n  got: DLPack device 1:0\n  expected: cuda:0"),
        (
            [1, 2],
            r"This is no array on a card\n  got: list\n  expected: __cuda_array_interface__ or DLPack\n  to do: give",
        ),
        (Lent(np.zeros(3), device=(2, 1)), r"another device\n  got: DLPack device 2:1\n  expected: cuda:0"),
        (
            Described(strides=(6, 2)),
            r"not C-contiguous\n  got: shape \(2, 3\), strides \(6, 2\) bytes\n  to do: copy it",
        ),
        (Lent(np.zeros((4, 6), np.uint8)[:, ::2]), r"not C-contiguous\n  got: shape \(4, 3\), strides \(6, 2\) bytes"),
        (Lent(np.zeros((4, 6), np.float32).T), r"not C-contiguous\n  got: shape \(6, 4\), strides \(4, 24\) bytes"),
    ],
)
def test_other_arrays_are_refused(array, words):
    with pytest.raises(InputError, match=words):
        read_device_array(array, device=0)


@pytest.mark.parametrize(("code", "bits", "lanes"), [(4, 16, 1), (2, 8, 1), (1, 4, 1), (2, 32, 4), (99, 8, 1)])
def test_numbers_that_numpy_has_not_are_refused(code, bits, lanes):
    def change(tensor):
        tensor.code, tensor.bits, tensor.lanes = code, bits, lanes

    got = f"DLPack code {code}, {lanes} x {bits} bits"
    with pytest.raises(InputError, match=rf"The array holds numbers that are not known here\n  got: {got}"):
        read_device_array(Lent(np.zeros(8, np.uint8), change=change), device=0)


def test_an_array_that_does_not_let_itself_be_read():
    def refuse(**_):
        raise BufferError("it takes part in a gradient")

    array = SimpleNamespace(__dlpack__=refuse, __dlpack_device__=lambda: (2, 0))
    with pytest.raises(InputError, match=r"does not let itself be read\n  got: it takes part in a gradient"):
        read_device_array(array, device=0)
