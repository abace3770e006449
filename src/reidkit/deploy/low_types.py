"""Numbers in float16 and bfloat16, as ONNX stores them."""

import onnx
from onnx import TensorProto, helper, numpy_helper

from reidkit.deploy.network.layers import Kind
from reidkit.deploy.network.weights import bfloat16_bits

ELEMENTS: dict[Kind, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def converted(tensor: onnx.TensorProto, kind: Kind, name: str) -> onnx.TensorProto:
    """A float32 tensor in a low type, under another name."""
    values = numpy_helper.to_array(tensor)
    if kind == "float16":
        return numpy_helper.from_array(values.astype("float16"), name)
    bits = bfloat16_bits(values).astype("<u2")
    return helper.make_tensor(name, ELEMENTS[kind], values.shape, bits.tobytes(), raw=True)
