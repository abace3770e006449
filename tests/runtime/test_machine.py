"""What a machine is called: by files that say what its processor and its cards are."""

import pytest

from reidkit.errors import RuntimeMissing
from reidkit.runtime import machine as machine_module
from reidkit.runtime import usual_device
from reidkit.runtime.machine import has_card, machine


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A machine of two cores, of which one is ours; cards are put into it."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some  Xeon(R): v2\n\nmodel name\t: another\n")
    monkeypatch.setattr(machine_module, "_PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine_module, "_NVIDIA", tmp_path / "gpus")
    monkeypatch.setattr(machine_module, "available_cores", lambda: 1)
    monkeypatch.setattr(machine_module.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine_module, "_cards_of_cuda", list)

    def put(*cards):
        for number, card in enumerate(cards):
            folder = tmp_path / "gpus" / f"0000:0{number}:00.0"
            folder.mkdir(parents=True)
            (folder / "information").write_text(f"Model: \t\t {card}\nIRQ:   \t\t 41\nGPU UUID: \t GPU-1\n")

    return put


def test_the_machine_is_its_processor_and_cores(host):
    host("NVIDIA H100")
    for device in ("cpu", "gpu", "npu"):
        assert machine(device) == "Some Xeon(R): v2, 1 of 2 cores"


def test_a_card_is_named_with_its_host(host):
    host("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    assert machine("cuda") == "NVIDIA H100 80GB HBM3; Some Xeon(R): v2, 1 of 2 cores"


def test_of_unlike_cards_none_is_guessed(host):
    host("Tesla T4", "NVIDIA A100")
    assert machine("cuda:1") == "NVIDIA A100 or Tesla T4; Some Xeon(R): v2, 1 of 2 cores"


def test_a_machine_that_does_not_say_what_it_is(host, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").unlink()
    monkeypatch.setattr(machine_module.platform, "processor", lambda: "")
    monkeypatch.setattr(machine_module.platform, "machine", lambda: "riscv64")
    assert machine("cuda") == "riscv64, 1 of 2 cores"
    monkeypatch.setattr(machine_module.platform, "machine", lambda: "")
    assert machine("cpu") == "unknown processor, 1 of 2 cores"


def test_a_card_that_only_cuda_knows(host, monkeypatch):
    monkeypatch.setattr(machine_module, "_cards_of_cuda", lambda: ["NVIDIA H200"])
    assert machine("cuda:0") == "NVIDIA H200; Some Xeon(R): v2, 1 of 2 cores"
    host("Tesla T4")
    assert machine("cuda:0") == "Tesla T4; Some Xeon(R): v2, 1 of 2 cores"


def test_where_there_is_no_card_cuda_names_none(monkeypatch):
    cuda = pytest.importorskip("reidkit.runtime.cuda")

    def nothing(device="cuda"):
        raise RuntimeMissing("There is no CUDA device here")

    monkeypatch.setattr(cuda, "card", nothing)
    assert machine_module._cards_of_cuda() == []


def test_auto_runs_on_a_card_where_there_is_one(host):
    assert not has_card()
    assert [usual_device("auto"), usual_device("openvino"), usual_device("tensorrt")] == ["cpu", "cpu", "cuda"]
    host("Tesla T4")
    assert has_card()
    assert [usual_device("auto"), usual_device("openvino")] == ["cuda", "cpu"]
