"""People to learn, drawn once; and one thread, since crops this small are not worth sharing out."""

import ctypes
import sys

import pytest
import tiny_runs
import torch

_DISABLED = 2  # SS_DISABLE


class _Stack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def _no_alternate_stack():
    """A signal that a test sends to itself is handled on the thread's own stack.

    A library leaves another behind that it has freed, and the next signal ends the process: seen where OpenVINO ran
    after PyTorch's compiler.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(None, _DISABLED, 0)), None)


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def narrow_networks():
    """Networks that learn in no time; see there."""
    with tiny_runs.narrow_networks():
        yield


@pytest.fixture(scope="package")
def people(tmp_path_factory):
    """Six people with six pictures each, by six cameras."""
    return tiny_runs.draw_people(tmp_path_factory.mktemp("people"))


@pytest.fixture
def split(people, tmp_path):
    """All of them to learn from."""
    return tiny_runs.split_of(people, tmp_path / "people")
