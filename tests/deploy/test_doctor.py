"""The doctor on machines that are made up: libraries that are missing, broken or deadly; cards by CUDA and by /proc."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import reidkit
from reidkit.config import to_dict
from reidkit.deploy import doctor, probe
from reidkit.deploy.doctor import Card, Library, diagnose
from reidkit.runtime import ENGINES, machine
from reidkit.runtime.engine_facts import EngineFacts, Profile, graph_digest
from reidkit.runtime.engine_store import write_engine
from small_bundle import write

LIBRARIES = ("onnxruntime", "openvino", "torch", "tensorrt", "tensorrt_rtx", "cuda", "filelock", "onnx")
DRIVER = """
from enum import IntEnum
class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100
class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76
ok = Status.CUDA_SUCCESS
CARDS = [("NVIDIA H200", (9, 0), 150_754_820_096), ("NVIDIA RTX 6000 Ada", (8, 9), 51_000_000_000)]
def cuInit(flags): return (ok,)
def cuDriverGetVersion(): return ok, 12090
def cuDeviceGetCount(): return ok, len(CARDS)
def cuDeviceGet(index): return ok, index
def cuDeviceGetName(length, card): return ok, (CARDS[card][0].encode() + b"\\0stale\\xff").ljust(length, b"\\0")
def cuDeviceGetAttribute(attribute, card): return ok, CARDS[card][1][attribute - 75]
def cuDeviceTotalMem(card): return ok, CARDS[card][2]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A machine on which nothing is installed; gives the hand that installs a library of one file."""
    site, proc = tmp_path / "site", tmp_path / "proc"
    site.mkdir()
    proc.mkdir()
    # A module that cannot be found, whatever the real machine has: what the finder raises is what Python raises.
    for name in LIBRARIES:
        (site / f"{name}.py").write_text(f'raise ModuleNotFoundError("No module named {name}", name="{name}")')
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(doctor, "_NVIDIA", proc / "driver/nvidia")
    monkeypatch.setattr(machine, "_BOARD", proc / "device-tree/model")

    def call(name: str, source: str) -> None:
        file = site / f"{name.replace('.', '/')}.py"
        for folder in list(file.relative_to(site).parents)[:-1]:
            (site / f"{folder}.py").unlink(missing_ok=True)
            (site / folder).mkdir(parents=True, exist_ok=True)
            (site / folder / "__init__.py").write_text("__version__ = '12.9.1'")
        file.write_text(source)

    return call


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_machine_with_nothing(install):
    put(machine._BOARD, "Raspberry Pi 5\0")  # another board than a Jetson is no card
    found = diagnose()
    assert found.reidkit == reidkit.__version__
    assert found.cards == ()
    assert (found.driver, found.cuda, found.no_cards) == (None, None, "cuda-bindings is not installed")
    assert found.cores >= 1
    assert {name: library.fix for name, library in found.engines.items()} == {
        "onnxruntime": "pip install 'reidkit[onnx]'",
        "openvino": "pip install 'reidkit[openvino]'",
        "pytorch": "pip install 'reidkit[train]'",
        "inductor": "pip install 'reidkit[train]'",
        "tensorrt": "pip install 'reidkit[tensorrt]' --extra-index-url https://pypi.nvidia.com",
        "tensorrt-rtx": "pip install 'reidkit[tensorrt-rtx]'",
    }
    assert not any(library.usable or library.problem or library.version for library in found.engines.values())
    assert [(library.name, library.fix) for library in found.beside] == [
        ("cuda.bindings.driver", "pip install cuda-bindings"),
        ("filelock", "pip install filelock"),
        ("onnx", "pip install onnx"),
    ]
    assert found.stored is None


def test_libraries_that_work(install, capfd):
    noisy = "import os\nos.write(2, b'[W] noise')\nprint('[I] noise')\nBuilder = object\n__version__ = "
    install("tensorrt", noisy + "'10.3.0'")
    install("onnxruntime", "__version__ = '1.31.1'")
    found = diagnose()
    assert found.engines["tensorrt"] == Library("tensorrt", "10.3.0", None, None)
    assert found.engines["onnxruntime"] == Library("onnxruntime", "1.31.1", None, None)
    assert found.engines["tensorrt"].usable
    assert capfd.readouterr() == ("", "")


def test_broken_libraries_are_reported(install):
    broken = {
        "tensorrt": (
            "raise ImportError('libnvinfer.so.8: cannot open shared object file\\nand more')",
            "libnvinfer.so.8: cannot open shared object file",
        ),
        "tensorrt_rtx": ("__version__ = '1.7'", "it is a package without the library"),
        "openvino": ("import numpy_of_mine", "No module named 'numpy_of_mine'"),
        "onnxruntime": ("raise OSError", "OSError"),
        "torch": (
            "import os, sys; sys.stderr.write('CUDA lost\\n'); sys.stderr.flush(); os.abort()",
            "importing it ended Python with signal 6: CUDA lost",
        ),
        "filelock": ("raise SystemExit(0)", "0"),
        "onnx": ("raise ImportError('it wants another protobuf')", "it wants another protobuf"),
        "cuda": ("import os; print('{\"version\":'); os._exit(0)", "importing it ended Python with status 0"),
    }
    for name, (source, _) in broken.items():
        install(name, source)
    found = diagnose()
    libraries = [*found.engines.values(), *found.beside]
    assert {library.name.partition(".")[0]: library.problem for library in libraries} == {
        name: problem for name, (_, problem) in broken.items()
    }
    assert not any(library.usable for library in libraries)
    assert found.engines["tensorrt-rtx"].fix == "pip install --force-reinstall 'reidkit[tensorrt-rtx]'"
    assert found.no_cards == "importing it ended Python with status 0"


def test_a_library_that_hangs(install, monkeypatch):
    install("openvino", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_SECONDS", 0.5)
    assert doctor._ask_one("openvino") == {"problem": "importing it did not end within 0 seconds"}


def test_a_process_that_cannot_start(install, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert diagnose().engines["openvino"].problem == "no process could be started to import it: Permission denied"


def test_tensorrt_that_is_too_old(install):
    install("tensorrt", "Builder = object; __version__ = '8.5.3.1'")
    library = diagnose().engines["tensorrt"]
    assert library.problem == "8.5.3.1 is older than 8.6, the oldest that reidkit knows"
    assert library.fix == "pip install --upgrade 'reidkit[tensorrt]' --extra-index-url https://pypi.nvidia.com"


def test_cards_by_cuda(install):
    install("cuda.bindings.driver", DRIVER)
    put(
        doctor._NVIDIA / "version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\nGCC\n"
    )
    found = diagnose()
    assert found.cards == (
        Card("NVIDIA H200", "9.0", 150_754_820_096, ("tensorrt",)),
        Card("NVIDIA RTX 6000 Ada", "8.9", 51_000_000_000, ("tensorrt", "tensorrt-rtx")),
    )
    assert (found.driver, found.cuda, found.no_cards) == ("580.95.05", "12.9", None)
    assert found.beside[0] == Library("cuda.bindings.driver", "12.9.1", None, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("def cuInit(flags): return (Status.CUDA_ERROR_NO_DEVICE,)", "the driver says CUDA_ERROR_NO_DEVICE"),
        ("def cuInit(flags): raise RuntimeError('libcuda.so.1 is not there\\nsee x')", "libcuda.so.1 is not there"),
        ("def cuDeviceGetCount(): return (Status.CUDA_ERROR_NO_DEVICE, 0)", "the driver says CUDA_ERROR_NO_DEVICE"),
    ],
)
def test_a_driver_that_refuses(change, reason):
    driver = ModuleType("driver")
    exec(f"{DRIVER}\n{change}", driver.__dict__)
    assert probe.cards_of(driver) == {"no_cards": reason}


def test_a_driver_without_a_card(install):
    install("cuda.bindings.driver", f"{DRIVER}\nCARDS = []")
    found = diagnose()
    assert (found.cards, found.no_cards, found.cuda) == ((), "CUDA sees no card", "12.9")


def test_cards_by_the_driver_alone(install):
    for number, name in enumerate(["NVIDIA H200", "NVIDIA L4"]):
        put(doctor._NVIDIA / f"gpus/0000:0{number}:00.0/information", f"Model: \t\t {name}\nIRQ: 1\n")
    found = diagnose()
    assert found.cards == (Card("NVIDIA H200"), Card("NVIDIA L4"))
    assert found.no_cards == "cuda-bindings is not installed"


def test_a_jetson(install):
    put(machine._BOARD, "NVIDIA Jetson AGX Orin Developer Kit\0")
    found = diagnose()
    assert found.cards == (Card("NVIDIA Jetson AGX Orin Developer Kit"),)
    assert found.engines["tensorrt"].fix == "sudo apt-get install --reinstall python3-libnvinfer"


def test_engines_of_a_bundle(install, tmp_path):
    install("cuda.bindings.driver", DRIVER)
    install("tensorrt", "Builder = object; __version__ = '8.6.0'")
    bundle = write(tmp_path / "small.reid")
    assert diagnose(bundle).stored == ()
    here = EngineFacts(
        runtime="tensorrt",
        version="8.6.0",
        precision="float16",
        via="parser",
        graph=graph_digest(bundle, "parser"),
        profiles=(Profile(1, 1, 8),),
        gpu="NVIDIA H200",
        compute_capability="9.0",
    )
    portable = EngineFacts(
        "tensorrt-rtx", "1.7.1", "float32", "network", graph_digest(bundle, "network"), (Profile(1, 1, 8),)
    )
    for facts in (here, portable):
        write_engine(bundle, facts, b"kernels")
    stripped = write_engine(bundle, replace(here, options=("weight-stripped",)), b"no weights")
    truncated = write_engine(bundle, replace(here, via="network", graph=graph_digest(bundle, "network")), b"kernels")
    (bundle.path / "engines" / truncated.file).write_bytes(b"ker")
    lost = write_engine(bundle, replace(here, precision="float32"), b"kernels")
    (bundle.path / "engines" / lost.file).unlink()
    stored = diagnose(bundle).stored
    assert stored is not None
    assert {engine.name: engine.misfits for engine in stored} == {
        here.name: (),
        stripped.name: ("it has no weights, which TensorRT's own refitter puts back",),
        truncated.name: ("its file has 3 bytes of 7: build it again",),
        lost.name: ("its file is missing: build it again",),
        portable.name: (
            "tensorrt-rtx is not installed here",
            "tensorrt-rtx does not run on NVIDIA H200 (compute capability 9.0)",
        ),
    }


def test_a_real_library(install, capfd):
    install("onnxruntime", "import sys; del sys.modules['onnxruntime']; sys.path.pop(0); import onnxruntime")
    found = diagnose()
    assert list(found.engines) == list(ENGINES)
    assert found.engines["onnxruntime"] == Library("onnxruntime", version("onnxruntime"), None, None)
    assert to_dict(found)["engines"]["onnxruntime"]["fix"] is None
    assert capfd.readouterr() == ("", "")


def test_the_probe_says_what_it_finds(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["probe.py", json.dumps(sys.path), "numpy"])
    probe.main()
    assert json.loads(capsys.readouterr().out) == {"version": np.__version__}
