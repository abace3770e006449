"""TensorRT's flavours: every difference between 8.6, 10, 11 and TensorRT-RTX that reidkit has to know is on this page.

| | 8.6 | 10 | 11 | RTX |
|---|---|---|---|---|
| batch | explicit by a flag | always explicit | always explicit | always explicit |
| types | the network's by `precision` of each layer, with flags | in the network | in the network | in the network |
| shapes are | int32 | int64 | int64 | int64 |
| ONNX | to opset 17; in 18 it ignores the axes of reductions, in silence | newer | newer | newer |
| kernels of cuDNN and cuBLAS | by default | none | none | none |
| two contexts on one profile | by a preview flag | yes | yes | yes |
| bfloat16 | no | yes | yes | yes |
| a normalisation is added by | `add_normalization` | from 10.15 on `add_normalization_v2` | v2 | v2 |
| and computed in | float32, whatever its type | its type | its type | its type |
| int8 | by a flag; Q and DQ in float32 alone | Q and DQ | Q and DQ | Q and DQ |
| builds without a card | no | no | no | yes |
| an engine runs on | the kind of card it was built on | likewise | likewise | 8.0 and newer; or Turing alone |
"""

import importlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from reidkit.errors import RuntimeMissing
from reidkit.runtime.engine_facts import TURING
from reidkit.runtime.machine import install_command
from reidkit.types import Precision

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Import name of each flavour's library."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of TensorRT's libraries, imported.

    Attributes:
        runtime: its name among the engines: "tensorrt" or "tensorrt-rtx".
        trt: the module.
    """

    runtime: str
    trt: ModuleType

    @property
    def version(self) -> str:
        """Of the library."""
        return str(self.trt.__version__)

    @property
    def typed(self) -> bool:
        """Whether networks say themselves what is computed in what; older ones leave it to flags and layers."""
        return self.runtime == "tensorrt-rtx" or self._major >= 10

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """That it can build."""
        return ("float32", "tf32", "float16", *(("bfloat16",) if self.typed else ()), "int8")

    @property
    def needs_card(self) -> bool:
        """Whether it builds only where a card is."""
        return self.runtime != "tensorrt-rtx"

    @property
    def _major(self) -> int:
        return int(self.version.split(".")[0])

    def log(self) -> Any:
        """A logger for the library: it writes to Python's logging and keeps the errors."""
        return _log_of(self.trt)

    def network(self, builder: Any) -> Any:
        """An empty network, of any batch, and typed where the library knows that."""
        known = self.trt.NetworkDefinitionCreationFlag
        wanted = "STRONGLY_TYPED" if self.typed else "EXPLICIT_BATCH"
        return builder.create_network(1 << int(getattr(known, wanted)) if hasattr(known, wanted) else 0)

    def parser(self, network: Any, log: Any) -> Any:
        """An ONNX parser that makes layers of the network of instance normalisations, and no plugins."""
        parser = self.trt.OnnxParser(network, log)
        native = getattr(getattr(self.trt, "OnnxParserFlag", None), "NATIVE_INSTANCENORM", None)
        if native is not None:
            parser.set_flag(native)
        return parser

    def normalization(self, network: Any, x: Any, scale: Any, bias: Any, *, axes: int) -> Any:
        """Adds a normalisation over some axes, a bit for each."""
        add = getattr(network, "add_normalization_v2", None) or network.add_normalization
        layer = add(x, scale, bias, axes)
        if not self.typed:
            layer.compute_precision = self.trt.float32
        return layer

    def config(self, builder: Any, precision: Precision, options: Sequence[str], workspace: int | None) -> Any:
        """What a builder is told beside the network.

        Args:
            builder: of this library.
            precision: of the arithmetic, which a typed network holds already.
            options: of the engine: "version-compatible", "hardware-compatible", "refit", "weight-stripped".
            workspace: bytes that a kernel may take beside its data; None for all there is.

        Raises:
            RuntimeMissing: this version has no such precision or option.
        """
        flags, config = self.trt.BuilderFlag, builder.create_builder_config()
        if precision not in self.precisions:
            raise RuntimeMissing(
                f"{self.runtime} {self.version} has no {precision}", expected=f"one of {', '.join(self.precisions)}"
            )
        (config.set_flag if precision == "tf32" else config.clear_flag)(flags.TF32)
        if precision in ("float16", "int8") and not self.typed:
            config.set_flag(flags.FP16)
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
            if precision == "int8":
                config.set_flag(flags.INT8)
        if workspace is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, workspace)
        # Engines run on TensorRT's own kernels: cuDNN and cuBLAS need not be where they run.
        known = self.trt.TacticSource
        sources = [known.EDGE_MASK_CONVOLUTIONS, known.JIT_CONVOLUTIONS]
        config.set_tactic_sources(sum(1 << int(source) for source in sources))
        sharing = getattr(getattr(self.trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
        if sharing is not None:
            config.set_preview_feature(sharing, True)
        for option in options:
            self._set_option(config, option)
        return config

    def aim(self, config: Any, compute_capability: str | None) -> None:
        """Tells TensorRT-RTX that it builds for Turing, which it leaves out otherwise; and then for nothing else.

        Args:
            config: of a builder.
            compute_capability: of the card that it builds for; None for all that it builds for by itself.

        Raises:
            RuntimeMissing: this version does not build for Turing.
        """
        if not self.needs_card and compute_capability == TURING:
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(self.trt.ComputeCapability.SM75, 0):
                raise RuntimeMissing(f"{self.runtime} {self.version} does not build for Turing", got=TURING)

    def scratch_bytes(self, engine: Any) -> int:
        """Device memory that one context of an engine works in, whatever its profile."""
        newer = getattr(engine, "device_memory_size_v2", None)
        return int(engine.device_memory_size if newer is None else newer)

    def context(self, engine: Any, address: int, size: int) -> Any:
        """A context that works in memory of the caller's, which contexts that run in turn may share."""
        strategies = getattr(self.trt, "ExecutionContextAllocationStrategy", None)
        if strategies is None:
            context = engine.create_execution_context_without_device_memory()
            if context is not None:
                context.device_memory = address
            return context
        context = engine.create_execution_context(strategies.USER_MANAGED)
        if context is not None:
            context.set_device_memory(address, size)
        return context

    def _set_option(self, config: Any, option: str) -> None:
        flags = self.trt.BuilderFlag
        match option:
            case "hardware-compatible" if not self.needs_card:
                return  # RTX's engines are made for a list of architectures in any case
            case "hardware-compatible":
                config.hardware_compatibility_level = self.trt.HardwareCompatibilityLevel.AMPERE_PLUS
                return
        name = {"version-compatible": "VERSION_COMPATIBLE", "refit": "REFIT", "weight-stripped": "STRIP_PLAN"}[option]
        if option == "version-compatible" and not self.needs_card:
            raise RuntimeMissing(
                f"{self.runtime} builds no {option} engines: each runs on the release that built it",
                fix="leave the option out",
            )
        if not hasattr(flags, name):
            raise RuntimeMissing(
                f"{self.runtime} {self.version} builds no {option} engines", fix="leave the option out, or update it"
            )
        config.set_flag(getattr(flags, name))


def open_flavour(runtime: str) -> Flavour:
    """Imports one of TensorRT's libraries.

    Raises:
        RuntimeMissing: it is not installed, is a stub without the library, or its libraries cannot be loaded.
    """
    name = LIBRARIES[runtime]
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise RuntimeMissing(f"{name} is not installed", fix=install_command(runtime)) from error
        raise RuntimeMissing(
            f"{name} cannot be loaded", got=str(error).partition("\n")[0], fix="run `reid doctor`"
        ) from error
    if not hasattr(trt, "Builder"):  # a folder of that name, or a package that was to fetch the library and did not
        raise RuntimeMissing(f"{name} is there without the library", got=_place(trt), fix="run `reid doctor`")
    return Flavour(runtime, trt)


def _place(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), module.__name__))


def _without_place(message: str) -> str:
    return re.sub(r"^(\d+: )?\[[^\[\]]+::\d+\] *", "", message).strip()


def _log_of(trt: ModuleType) -> Any:
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.INFO,  # of graphs that are as they should be, it warns much
        trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.DEBUG,
    }

    class Log(trt.ILogger):
        """The library's messages; `errors` keeps the last few that were errors."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                self.errors = [*self.errors[-9:], message]
            _logger.log(logging.INFO if level == logging.ERROR else level, "%s", message)

        def first_error(self) -> str | None:
            """The first of the errors that were kept, without where in the library's source it was raised."""
            return _without_place(self.errors[0]) if self.errors else None

        def last_error(self) -> str | None:
            """The last of them likewise."""
            return _without_place(self.errors[-1]) if self.errors else None

    return Log()
