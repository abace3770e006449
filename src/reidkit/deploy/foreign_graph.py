"""What an ONNX file of unknown origin holds: its image input, its outputs, its opset. Nothing is changed here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx.external_data_helper import load_external_data_for_model

from reidkit.errors import ModelError

Layout = Literal["nchw", "nhwc"]

OLDEST_OPSET = 7
"""Of the standard operators: older ones broadcast and cast in ways that ONNX Runtime does not run either."""

_STANDARD_DOMAINS = ("", "ai.onnx")
_CHANNEL_AXIS: dict[Layout, int] = {"nchw": 1, "nhwc": 3}
_IMAGE_TYPES: dict[int, np.dtype] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
}
_TYPE_NAMES: dict[int, str] = {
    **{number: name.lower() for name, number in onnx.TensorProto.DataType.items()},
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}
_SIGNATURES = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file it stands for", "fetch it with `git lfs pull`"),
    b"PK\x03\x04": ("a zip archive, as PyTorch checkpoints are", "export the network to ONNX first"),
    b"<": ("a web page or XML", "download the file again; for OpenVINO IR, take the ONNX file it was made from"),
}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The one input of a network that takes images.

    Attributes:
        name: of the value.
        layout: order of its axes.
        dtype: float32 or float16.
        batch: the static batch size, or None where any is declared to do.
        height: pixels, or None where dynamic.
        width: pixels, or None where dynamic.
    """

    name: str
    layout: Layout
    dtype: np.dtype
    batch: int | None
    height: int | None
    width: int | None


def read_model(file: Path, *, with_weights: bool = True) -> onnx.ModelProto:
    """Reads and checks an ONNX file, with the weights that lie in files beside it.

    Raises:
        ModelError: no such file, not ONNX, truncated, invalid, too old, or weights missing or outside its folder.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ModelError(f"{file} {what}", expected="an ONNX file", fix="check the path")
    if file.stat().st_size == 0:
        raise ModelError(f"{file} is empty", expected="an ONNX file", fix="download or export it again")
    try:
        model = onnx.load(str(file), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise _not_onnx(file, error) from None
    if not model.HasField("graph") or not model.graph.node:
        raise _not_onnx(file, "no graph inside")
    if with_weights:
        _load_weights(model, file)
        _check(model, file)
    if (opset := standard_opset(model)) < OLDEST_OPSET:
        raise ModelError(
            f"{file} uses operators that are too old",
            got=f"opset {opset}",
            expected=f"opset {OLDEST_OPSET} or newer",
            fix="export it again, or convert it with onnx.version_converter",
        )
    return model


def standard_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the graph is written in; 0 where it does not say."""
    return next((entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS), 0)


def is_standard(node: onnx.NodeProto, operator: str) -> bool:
    """Whether a node is that operator of the standard domain, and not another domain's of the same name."""
    return node.op_type == operator and node.domain in _STANDARD_DOMAINS


def find_image_input(model: onnx.ModelProto, file: Path, layout: Layout | None = None) -> ImageInput:
    """Finds the one input, rank 4 with three channels, float32 or float16.

    Args:
        model: the network.
        file: it came from, for the messages.
        layout: order of the axes; None reads it off the axis that has three channels.

    Raises:
        ModelError: no input or several, or one of another type, rank or number of channels, or an unclear layout.
    """
    # Before ONNX IR 4 every initialiser had to be listed as an input too.
    weights = {tensor.name for tensor in model.graph.initializer}
    weights.update(sparse.values.name for sparse in model.graph.sparse_initializer)
    inputs = [value for value in model.graph.input if value.name not in weights]
    expected = "one input, float32 or float16, of shape (n, 3, height, width) or (n, height, width, 3)"
    if len(inputs) != 1:
        got = "; ".join(map(describe, inputs)) or "no input"
        what = "takes more than an image" if inputs else "takes no input"
        raise ModelError(f"{file} {what}", got=got, expected=expected, fix="export the network with one image input")
    value, dims = inputs[0], _dims(inputs[0])
    element_type = value.type.tensor_type.elem_type
    if dims is None or len(dims) != 4 or element_type not in _IMAGE_TYPES:
        fix = "export the part of the network that goes from normalised pixels to the embedding"
        raise ModelError(f"{file} does not take float images", got=describe(value), expected=expected, fix=fix)
    layout = _layout(dims, layout, describe(value), file)
    height, width = (dims[2], dims[3]) if layout == "nchw" else (dims[1], dims[2])
    return ImageInput(value.name, layout, _IMAGE_TYPES[element_type], dims[0], height, width)


def describe(value: onnx.ValueInfoProto) -> str:
    """A value in words: its name, type and shape, with `?` for a dynamic axis."""
    if not value.type.HasField("tensor_type"):
        return f"{value.name!r} (no tensor)"
    tensor = value.type.tensor_type
    kind = _TYPE_NAMES.get(tensor.elem_type, f"type {tensor.elem_type}")
    if not tensor.HasField("shape"):
        return f"{value.name!r} {kind} of unknown shape"
    names = [str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in tensor.shape.dim]
    return f"{value.name!r} {kind} ({', '.join(names)})"


def _load_weights(model: onnx.ModelProto, file: Path) -> None:
    try:
        load_external_data_for_model(model, str(file.parent))
    except Exception as error:  # a checker error, an OSError or a ValueError, by version of onnx
        raise ModelError(
            f"The weights that {file} keeps in other files cannot be read",
            got=first_line(error),
            expected="files beside it, inside its own folder",
            fix="put the .onnx and its data files, unchanged, in one folder",
        ) from error


def _check(model: onnx.ModelProto, file: Path) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{file} is not a valid ONNX graph", got=first_line(error), fix="export it again") from error
    except (ValueError, EncodeError) as error:
        raise too_large(file) from error


def too_large(file: Path) -> ModelError:
    """The error for a network that does not fit in one ONNX file."""
    return ModelError(f"{file} is too large", got="over 2 GB with its weights", expected="a graph below 2 GB")


def first_line(error: BaseException | str) -> str:
    """The part of another library's message that people can use."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return text if len(text) <= 300 else text[:299] + "…"


def _not_onnx(file: Path, detail: object) -> ModelError:
    with file.open("rb") as stream:
        head = stream.read(64).lstrip()
    for signature, (got, fix) in _SIGNATURES.items():
        if head.startswith(signature):
            return ModelError(f"{file} is not an ONNX file", got=got, fix=fix)
    return ModelError(
        f"{file} is not an ONNX file, or is truncated",
        got=f"{file.stat().st_size:,} bytes: {detail}",
        fix="download or export it again",
    )


def _dims(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """Static sizes, None for a dynamic axis; None where not even the rank is known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]


def _layout(dims: Sequence[int | None], asked: Layout | None, what: str, file: Path) -> Layout:
    layouts: list[Layout] = [asked] if asked else ["nchw", "nhwc"]
    certain: list[Layout] = [layout for layout in layouts if dims[_CHANNEL_AXIS[layout]] == 3]
    possible: list[Layout] = certain or [layout for layout in layouts if dims[_CHANNEL_AXIS[layout]] is None]
    if len(possible) == 1:
        return possible[0]
    if possible:
        fix = "say which it is: --layout nchw or --layout nhwc"
        raise ModelError(f"{file} does not say which axis of its input holds the channels", got=what, fix=fix)
    axes = " or ".join(f"axis {_CHANNEL_AXIS[layout]} ({layout})" for layout in layouts)
    raise ModelError(f"{file} does not take images of three channels", got=what, expected=f"3 channels on {axes}")
