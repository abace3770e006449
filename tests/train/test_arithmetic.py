"""Which numbers a network is computed in."""

import pytest
import torch

from reidkit.train.arithmetic import autocast_type

CPU = torch.device("cpu")


@pytest.mark.parametrize(("amp", "expected"), [("off", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_what_is_asked_for(amp, expected):
    for device in (CPU, torch.device("cuda")):
        assert autocast_type(device, amp, width=16) == expected


@pytest.mark.parametrize(
    ("capabilities", "width", "expected"),
    [
        ({}, 128, None),
        ({"avx512": True, "avx512_bf16": False, "amx_bf16": False}, 128, None),
        ({"avx512_bf16": True}, 128, torch.bfloat16),
        ({"avx512_bf16": True}, 16, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": True}, 33, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": True}, 32, None),
    ],
)
def test_a_processor_decides_by_its_instructions(monkeypatch, capabilities, width, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert autocast_type(CPU, "auto", width=width) == expected


def test_a_pytorch_that_does_not_know_its_processor_takes_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert autocast_type(CPU, "auto", width=128) is None


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, None)])
def test_a_gpu_decides_by_its_hardware_and_not_by_what_is_emulated(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert autocast_type(torch.device("cuda"), "auto", width=16) == expected
