"""What this machine is called where speed is told: its graphics cards, its processor and how much of that is ours."""

import os
import platform
from pathlib import Path

from reidkit.errors import RuntimeMissing
from reidkit.imaging import available_cores

_PROCESSOR = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/gpus")
_BOARD = Path("/proc/device-tree/model")  # of a Jetson, whose card is not among those of the driver
_NVIDIAS_INDEX = "--extra-index-url https://pypi.nvidia.com"


def machine(device: str) -> str:
    """What a device is part of: processor and cores, and the graphics card in front where it is known by name.

    Args:
        device: in an engine's own words: "cpu", "cuda:0", "gpu", "npu".
    """
    processor = f"{_processor()}, {available_cores()} of {os.cpu_count()} cores"
    if not device.lower().startswith("cuda"):
        return processor
    # Which of several unlike cards a number means is CUDA's own affair: all of them are named.
    cards = _cards()
    return "; ".join([" or ".join(cards), processor]) if cards else processor


def install_command(extra: str) -> str:
    """The command that installs what an extra of reidkit brings, on this machine."""
    if extra == "tensorrt" and jetson():
        return "sudo apt-get install --reinstall python3-libnvinfer"  # of JetPack; there are no wheels for a Jetson
    command = f"pip install 'reidkit[{extra}]'"
    return f"{command} {_NVIDIAS_INDEX}" if extra == "tensorrt" else command


def jetson() -> str:
    """What a Jetson calls itself; empty elsewhere."""
    name = text_of(_BOARD).strip("\0\n ")
    return name if "jetson" in name.lower() else ""


def has_card() -> bool:
    """Whether an NVIDIA card is here, as far as its driver or CUDA says."""
    return bool(_cards())


def _cards() -> list[str]:
    """Names of NVIDIA's cards: the driver's word, or CUDA's where that says nothing, as in some containers."""
    told = sorted({name for file in _NVIDIA.glob("*/information") if (name := field_of(file, "Model"))})
    return told or _cards_of_cuda()


def _cards_of_cuda() -> list[str]:
    try:
        from reidkit.runtime import cuda  # which needs cuda-bindings

        return [cuda.card().name]
    except (ImportError, RuntimeMissing):
        return []


def _processor() -> str:
    return field_of(_PROCESSOR, "model name") or platform.processor() or platform.machine() or "unknown processor"


def field_of(file: Path, name: str) -> str:
    """The first value of a name in a file of `name : value` lines; empty where there is none."""
    pairs = (line.partition(":") for line in text_of(file).splitlines())
    return next((" ".join(value.split()) for key, _, value in pairs if key.strip() == name), "")


def text_of(file: Path) -> str:
    """What the system says in a file; empty where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux, no driver, or not for us to read
        return ""
