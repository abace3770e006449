"""The part of Caffe's files that reidkit writes: a network as text (`.prototxt`) and its weights (`.caffemodel`).

Both are the message `NetParameter` of BVLC Caffe's `caffe.proto`: as text without weights, as bytes with them. The
table below declares what is needed of it, with Caffe's names and field numbers; protobuf does the rest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

_Fields = tuple[tuple[str, str, int], ...]

# Message: name, type and number of each field. `*` stands for repeated; a type with a capital is a message or an enum.
# `data` is "repeated float, packed", which in a file are the bytes of the array: as `bytes` it needs no list of floats.
_MESSAGES: dict[str, _Fields] = {
    "BlobShape": (("dim", "*int64", 1),),
    "BlobProto": (("data", "bytes", 5), ("shape", "BlobShape", 7)),
    "NetParameter": (("name", "string", 1), ("layer", "*LayerParameter", 100)),
    "LayerParameter": (
        ("name", "string", 1),
        ("type", "string", 2),
        ("bottom", "*string", 3),
        ("top", "*string", 4),
        ("blobs", "*BlobProto", 7),
        ("concat_param", "ConcatParameter", 104),
        ("convolution_param", "ConvolutionParameter", 106),
        ("eltwise_param", "EltwiseParameter", 110),
        ("mvn_param", "MVNParameter", 120),
        ("pooling_param", "PoolingParameter", 121),
        ("power_param", "PowerParameter", 122),
        ("slice_param", "SliceParameter", 126),
        ("flatten_param", "FlattenParameter", 135),
        ("scale_param", "ScaleParameter", 142),
        ("input_param", "InputParameter", 143),
    ),
    "ConcatParameter": (("axis", "int32", 2),),
    "ConvolutionParameter": (
        ("num_output", "uint32", 1),
        ("bias_term", "bool", 2),
        ("pad", "*uint32", 3),
        ("kernel_size", "*uint32", 4),
        ("group", "uint32", 5),
        ("stride", "*uint32", 6),
    ),
    "EltwiseParameter": (("operation", "EltwiseOp", 1),),
    "MVNParameter": (("normalize_variance", "bool", 1), ("across_channels", "bool", 2)),
    "PoolingParameter": (
        ("pool", "PoolMethod", 1),
        ("kernel_size", "uint32", 2),
        ("stride", "uint32", 3),
        ("pad", "uint32", 4),
        ("global_pooling", "bool", 12),
    ),
    "PowerParameter": (("power", "float", 1), ("scale", "float", 2), ("shift", "float", 3)),
    "SliceParameter": (("slice_point", "*uint32", 2), ("axis", "int32", 3)),
    "FlattenParameter": (("axis", "int32", 1),),
    "ScaleParameter": (("axis", "int32", 1), ("bias_term", "bool", 4)),
    "InputParameter": (("shape", "*BlobShape", 1),),
}
_ENUMS = {"EltwiseOp": ("PROD", "SUM", "MAX"), "PoolMethod": ("MAX", "AVE")}
_PACKED = {("BlobShape", "dim")}


def layer(
    name: str, kind: str, bottoms: Sequence[str], tops: Sequence[str], **parameters: Mapping[str, Any]
) -> Message:
    """A `LayerParameter` without weights.

    Args:
        name: of the layer, unlike any other's.
        kind: such as "Convolution".
        bottoms: blobs that it reads.
        tops: blobs that it writes.
        parameters: fields of the kind's own message, such as `relu_param`.
    """
    return _message("LayerParameter", name=name, type=kind, bottom=bottoms, top=tops, **parameters)


def prototxt(name: str, layers: Iterable[Message]) -> str:
    """The text of a network."""
    return text_format.MessageToString(_message("NetParameter", name=name, layer=list(layers)))


def caffemodel(name: str, layers: Iterable[Message], blobs: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """The bytes of a network with its weights.

    Args:
        name: of the network.
        layers: without weights.
        blobs: float32 arrays by the name of their layer.
    """
    net: Any = _message("NetParameter", name=name)
    for plain in layers:
        added = net.layer.add()
        added.CopyFrom(plain)
        for array in blobs.get(added.name, ()):
            blob = added.blobs.add()
            blob.shape.dim.extend(array.shape)
            blob.data = array.astype("<f4").tobytes()
    return net.SerializeToString(deterministic=True)


def _message(kind: str, **fields: Any) -> Message:
    return _classes()[kind](**fields)


@cache
def _classes() -> dict[str, Callable[..., Message]]:
    """The class of each message, in a pool of their own: another library of the process may have Caffe's whole file."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, kind, number in fields:
            declared.field.append(_field(message, name, kind, number))
            if kind in _ENUMS:
                values = enumerate(_ENUMS[kind])
                declared.enum_type.add(name=kind, value=[{"name": value, "number": n} for n, value in values])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in _MESSAGES}


def _field(message: str, name: str, kind: str, number: int) -> descriptor_pb2.FieldDescriptorProto:
    proto = descriptor_pb2.FieldDescriptorProto
    plain = kind.removeprefix("*")
    field = proto(name=name, number=number, label=proto.LABEL_OPTIONAL if plain == kind else proto.LABEL_REPEATED)
    if plain in _ENUMS:
        field.type, field.type_name = proto.TYPE_ENUM, f".caffe.{message}.{plain}"
    elif plain in _MESSAGES:
        field.type, field.type_name = proto.TYPE_MESSAGE, f".caffe.{plain}"
    else:
        field.type = proto.Type.Value(f"TYPE_{plain.upper()}")
    if (message, name) in _PACKED:
        field.options.packed = True
    return field
