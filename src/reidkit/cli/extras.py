"""Which extra brings a library that a command may find missing."""

from reidkit.errors import RuntimeMissing
from reidkit.runtime.machine import install_command

_PACKAGES = {"cuda": "cuda-bindings", "cuda.bindings": "cuda-bindings", "filelock": "filelock"}
"""What every flavour of TensorRT needs beside itself, as pip calls it."""

_EXTRAS = {
    "google": "onnx",
    "google.protobuf": "onnx",
    "jinja2": "report",
    "lightning_fabric": "train",
    "matplotlib": "report",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "train",
    "openvino": "openvino",
    "pyarrow": "parquet",
    "tensorboard": "train",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "timm": "timm",
    "torch": "train",
    "torchvision": "timm",
    "yaml": "train",
}


def explained(error: ModuleNotFoundError) -> RuntimeMissing | None:
    """What to install; None where the module is no extra's, so that our own slip is not reported as a user's."""
    name = error.name or ""
    if name in _PACKAGES:
        return RuntimeMissing(f"{name} is not installed", fix=f"pip install {_PACKAGES[name]}")
    if name in _EXTRAS:
        return RuntimeMissing(f"{name} is not installed", fix=install_command(_EXTRAS[name]))
    return None
