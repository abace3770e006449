"""Which extra brings a library that a command may find missing."""

from reidkit.errors import RuntimeMissing

_EXTRAS = {
    "cuda": "tensorrt",
    "cuda.bindings": "tensorrt",
    "filelock": "tensorrt",
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
    extra = _EXTRAS.get(error.name or "")
    if extra is None:
        return None
    return RuntimeMissing(f"{error.name} is not installed", fix=f"pip install 'reidkit[{extra}]'")
