"""What an ONNX graph of unknown origin takes: its image input. Nothing is changed here."""

from pathlib import Path

import numpy as np
import onnx

from reidkit.deploy.foreign_proof import ImageInput, Layout, find_layout
from reidkit.errors import ModelError

_IMAGE_TYPES: dict[int, np.dtype] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
}
_TYPE_NAMES: dict[int, str] = {
    **{number: name.lower() for name, number in onnx.TensorProto.DataType.items()},
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
}


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
    layout = find_layout(dims, layout, describe(value), file)
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


def _dims(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """Static sizes, None for a dynamic axis; None where not even the rank is known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
