"""TensorRT played: networks that record what they are told, builders, and engines whose embedding is the mean colour.

As much of versions 8.6, 10 and 11 as reidkit uses; what a version has not, is not there.
"""

import ctypes
import enum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

NETWORK_FLAGS = {
    8: ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
    10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
    11: ["STRONGLY_TYPED"],
}
BUILDER_FLAGS = {
    8: ["FP16", "INT8", "REFIT", "TF32", "OBEY_PRECISION_CONSTRAINTS", "VERSION_COMPATIBLE"],
    10: ["FP16", "INT8", "REFIT", "TF32", "OBEY_PRECISION_CONSTRAINTS", "VERSION_COMPATIBLE", "BF16", "STRIP_PLAN"],
    11: ["REFIT", "TF32", "VERSION_COMPATIBLE", "STRIP_PLAN"],
}
LAYERS = (
    "ACTIVATION",
    "CAST",
    "CONCATENATION",
    "CONSTANT",
    "CONVOLUTION",
    "ELEMENTWISE",
    "GATHER",
    "IDENTITY",
    "MATRIX_MULTIPLY",
    "NORMALIZATION",
    "POOLING",
    "REDUCE",
    "SCALE",
    "SHAPE",
    "SHUFFLE",
    "SLICE",
)


def fake_tensorrt(version: str, cuda: Any = None) -> Any:
    """A module of a version, over a played CUDA where engines are to run.

    Its own attributes: `builders` and `engines` that were made; `failure`, a list of errors that the next build logs
    before it gives nothing; `parse_errors`.
    """
    major = int(version.partition(".")[0])
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version
    trt.builders, trt.engines, trt.failure, trt.parse_errors, trt.cuda = [], [], None, [], cuda
    for name in ["float32", "float16", "int32", "int8", "uint8"] + (["bfloat16", "int64"] if major >= 10 else []):
        setattr(trt, name, name)
    trt.ILogger = type(
        "ILogger", (), dict(zip(["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], range(5), strict=True))
    )
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", NETWORK_FLAGS[major], start=0)
    trt.BuilderFlag = enum.IntEnum("BuilderFlag", BUILDER_FLAGS[major], start=0)
    sources = ["CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    trt.TacticSource = enum.IntEnum("TacticSource", sources, start=0)
    trt.PreviewFeature = SimpleNamespace(**({"PROFILE_SHARING_0806": "sharing"} if major <= 10 else {}))
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    trt.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")
    if major >= 10:
        trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="by the user")
    trt.OnnxParserFlag = SimpleNamespace(NATIVE_INSTANCENORM="native")
    trt.LayerType = SimpleNamespace(**{name: name for name in LAYERS})
    for kind, names in {
        "ScaleMode": "CHANNEL",
        "ElementWiseOperation": "SUM SUB PROD DIV MAX POW",
        "ActivationType": "RELU SIGMOID",
        "PoolingType": "MAX AVERAGE",
        "PaddingMode": "EXPLICIT_ROUND_UP EXPLICIT_ROUND_DOWN",
        "ReduceOperation": "AVG MAX",
        "MatrixOperation": "NONE TRANSPOSE",
    }.items():
        setattr(trt, kind, SimpleNamespace(**{name: name for name in names.split()}))
    trt.Permutation, trt.Weights, trt.Network = tuple, Weights, Network
    trt.Builder = lambda log: trt.builders.append(Builder(trt, log)) or trt.builders[-1]
    trt.OnnxParser = lambda network, log: Parser(trt, network)
    trt.Runtime = lambda log: Runtime(trt, log, major)
    return trt


class Weights:
    """Of a layer."""

    def __init__(self, *given: Any) -> None:
        self.values = given[0]


class Tensor:
    """Between layers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype = "float32"  # what a network without types says of them all


class Layer:
    """Of a network, with whatever it was told."""

    def __init__(self, kind: str, arguments: tuple[Any, ...], number: int) -> None:
        self.kind = self.type = kind
        self.arguments = arguments
        self.precision: Any = None
        self.output_types: dict[int, Any] = {}
        self.output = Tensor(f"{kind}_{number}")
        self.inputs = [argument for argument in arguments if isinstance(argument, Tensor)]
        if kind == "CONSTANT":
            self.shape, self.weights = arguments

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        assert index == 0
        return self.output

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.output_types[index] = dtype

    def set_input(self, index: int, tensor: Tensor) -> None:
        assert isinstance(tensor, Tensor)


class Network:
    """Records the layers that it is given."""

    def __init__(self, flags: int = 0) -> None:
        self.flags = flags
        self.layers: list[Layer] = []
        self.outputs: list[Tensor] = []

    def add_input(self, name: str, dtype: Any, shape: Any) -> Tensor:
        return Tensor(name)

    def mark_output(self, tensor: Tensor) -> None:
        self.outputs.append(tensor)

    def __getattr__(self, name: str) -> Any:
        kind = name.removeprefix("add_").removesuffix("_nd").upper()
        if not name.startswith("add_") or kind not in LAYERS:
            raise AttributeError(name)

        def add(*arguments: Any) -> Layer:
            self.layers.append(Layer(kind, arguments, len(self.layers)))
            return self.layers[-1]

        return add

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class Config:
    """What a builder is told, recorded. TF32 is on at first, as in the real one."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.flags = {"TF32"}
        self.limits: dict[str, int] = {}
        self.preview: dict[str, bool] = {}
        self.profiles: list[Profile] = []
        self.cache: Any = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: str, limit: int) -> None:
        self.limits[pool] = limit

    def set_tactic_sources(self, sources: int) -> None:
        self.sources = [source.name for source in self.trt.TacticSource if sources >> source & 1]

    def set_preview_feature(self, feature: str, on: bool) -> None:
        self.preview[feature] = on

    def add_optimization_profile(self, profile: "Profile") -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, data: bytes) -> Any:
        return None if data.startswith(b"garbage") else TimingCache(data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data.startswith(b"another card"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class TimingCache:
    """What kernels took: of a build that adds b"timed"."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def combine(self, others: "TimingCache", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if others.data.startswith(b"another card"):
            return False
        self.data += others.data.removeprefix(self.data)  # what both have is there once
        return True

    def serialize(self) -> bytes:
        return self.data + b"timed"


class Profile:
    """Of an engine."""

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.name, self.shapes = name, shapes


class Builder:
    """Makes no engine, but the bytes of one."""

    def __init__(self, trt: Any, log: Any) -> None:
        self.trt, self.log = trt, log

    def create_builder_config(self) -> Config:
        self.config = Config(self.trt)
        return self.config

    def create_network(self, flags: int) -> Network:
        self.network = Network(flags)
        return self.network

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        if self.trt.failure is None:
            return b"an engine"
        for message in self.trt.failure:
            self.log.log(self.trt.ILogger.ERROR, message)
        return None


class Parser:
    """Takes any graph, or none. Of a convolution it makes two layers, the first with an output of its own name."""

    def __init__(self, trt: Any, network: Network) -> None:
        self.trt, self.network = trt, network
        self.flags: list[str] = []
        trt.parsers = [*getattr(trt, "parsers", []), self]

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def parse(self, data: bytes) -> bool:
        import onnx

        kinds = {"Conv": "CONVOLUTION", "Cast": "CAST", "Reshape": "SHUFFLE", "Transpose": "SHUFFLE"}
        kinds["InstanceNormalization"] = "NORMALIZATION"
        self.model = onnx.load_from_string(data)
        for node in self.model.graph.node:
            inputs = tuple(map(Tensor, node.input))
            if node.op_type == "Conv":
                helper = Layer("MATRIX_MULTIPLY", inputs, len(self.network.layers))
                self.network.layers.append(helper)
                inputs = (helper.output,)
            layer = Layer(kinds.get(node.op_type, "ELEMENTWISE"), inputs, len(self.network.layers))
            layer.output.name = node.output[0]
            self.network.layers.append(layer)
        return not self.trt.parse_errors

    @property
    def num_errors(self) -> int:
        return len(self.trt.parse_errors)

    def get_error(self, index: int) -> Any:
        return self.trt.parse_errors[index]


class Runtime:
    """Reads engines."""

    def __init__(self, trt: Any, log: Any, major: int) -> None:
        self.trt, self.log, self.major = trt, log, major
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        if data.startswith(b"broken"):
            self.log.log(self.trt.ILogger.ERROR, "1: [stdArchiveReader.cpp::StdArchiveReader::32] Error Code 1: broken")
            return None
        self.trt.engines.append(
            (EngineOf8 if self.major == 8 else EngineOf10 if self.major == 10 else EngineOf11)(self)
        )
        return self.trt.engines[-1]


class Engine:
    """Whose embedding is the mean colour. `contexts` that it gave out; after `most` of them there are none."""

    scratch = 1 << 12

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.cuda = runtime, runtime.trt.cuda
        self.contexts: list[Context] = []
        self.most = 1000
        self.ranges = ((1, 1), (2, 4), (5, 8))

    def _context(self) -> "Context | None":
        if len(self.contexts) >= self.most:
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]


class EngineOf8(Engine):
    """With the names of 8.6."""

    device_memory_size = Engine.scratch

    def create_execution_context_without_device_memory(self) -> Any:
        return self._context()


class EngineOf11(Engine):
    """With those of 11."""

    device_memory_size_v2 = Engine.scratch

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "by the user"
        return self._context()


class EngineOf10(EngineOf11):
    """With those of 10: the old ones are still there, deprecated, and not to be asked."""

    device_memory_size = 1

    def create_execution_context_without_device_memory(self) -> Any:
        raise AssertionError("deprecated")


class Context:
    """Runs an engine on a stream."""

    failing = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.device_memory: int | None = None
        self.profile = 0
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.prepared: tuple[int, ...] | None = None
        self.enqueued = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == self.engine.scratch
        self.device_memory = address

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.engine.cuda.streams
        self.profile = index
        return index < len(self.engine.ranges)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, most = self.engine.ranges[self.profile]
        self.shape = shape
        return name == "crops" and least <= shape[0] <= most

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        cuda, (n, height, width, _) = self.engine.cuda, self.shape
        # What a new shape needs cannot be captured.
        if self.failing or (cuda.capturing(stream) and self.prepared != self.shape):
            return False
        self.prepared = self.shape
        self.enqueued += 1
        assert self.device_memory is not None
        cuda.address(self.device_memory, self.engine.scratch, "device")
        crops = cuda.address(self.addresses["crops"], n * height * width * 3, "device")
        embeddings = cuda.address(self.addresses["embeddings"], n * 12, "device")

        def work() -> None:
            pixels = np.ctypeslib.as_array((ctypes.c_uint8 * (n * height * width * 3)).from_address(crops))
            result = np.ctypeslib.as_array((ctypes.c_float * (n * 3)).from_address(embeddings))
            result[:] = pixels.reshape(n, height, width, 3).mean((1, 2)).astype(np.float32).reshape(-1)

        cuda.enqueue(stream, work)
        return True
