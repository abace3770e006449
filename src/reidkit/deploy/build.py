"""From a bundle to a TensorRT engine in its store: by network definition or by ONNX parser, any flavour, no torch."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import reidkit
from reidkit.bundle import Bundle, open_bundle
from reidkit.deploy.network.description import describable, write_network
from reidkit.deploy.network.layers import Kind
from reidkit.deploy.network.tensorrt_layers import TensorRtLayers
from reidkit.deploy.network.weights import read_tensors
from reidkit.deploy.timing_cache import TimingCache
from reidkit.errors import (
    BundleError,
    ConfigError,
    EngineError,
    ModelError,
    RuntimeMissing,
    require_one_of,
)
from reidkit.runtime.contract import CROPS
from reidkit.runtime.engine_facts import FIRST_OF_RTX, OPTIONS, TURING
from reidkit.runtime.engine_store import (
    EngineFacts,
    Machine,
    Profile,
    engine_lock,
    graph_digest,
    read_engine,
    read_store,
    write_engine,
)
from reidkit.runtime.flavour import LIBRARIES, Flavour, open_flavour
from reidkit.types import Precision, Via

BATCHES = (1, 8, 64)

_KINDS: dict[Precision, Kind] = {
    "float32": "float32",
    "tf32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8": "float16",
}
"""Of the maps; in int8, of those that are not rounded."""
_MEMORY_WORDS = (
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "memory allocation",
    "requested amount of gpu memory",
    "cudamalloc",
)

_logger = logging.getLogger(__name__)


def build_engine(
    bundle: Bundle | Path | str,
    runtime: str = "tensorrt",
    *,
    precision: Precision = "float16",
    via: Via | None = None,
    batches: Sequence[int] = BATCHES,
    workspace: int | None = None,
    options: Sequence[str] = (),
    effort: int | None = None,
    device: str = "cuda",
    rebuild: bool = False,
) -> EngineFacts:
    """Builds an engine and puts it into the bundle's store; one that is there and fits is taken as it is.

    Args:
        bundle: a path, or a bundle that is open already.
        runtime: "tensorrt" or "tensorrt-rtx".
        precision: of the maps; statistics, pooling, GeM's power, neck and embedding layer are float32 in all of them.
            "int8" builds the graph that `reid quantize` made, whose other maps are float16.
        via: "network" writes the known network through TensorRT's own API, "parser" parses the ONNX graph; None takes
            the first where the network is known, and the second for int8, which has no other.
        batches: each gives a profile, with kernels chosen for it, for all batches from the one before up to it. A
            bundle whose own batch is fixed gets a profile of that alone.
        workspace: bytes that a kernel may take beside its data; None for all there is.
        options: any of `OPTIONS`, where the flavour has them.
        effort: the builder's optimization level, 0 to 5; None takes its default, 3.
        device: "cuda" or "cuda:N".
        rebuild: build although a fitting engine is there.

    Raises:
        RuntimeMissing: the library, a card, or this precision or option in this version is not there.
        ModelError: a foreign graph or a network without description by "network"; weights or a graph that do not fit;
            int8 of a bundle that was not quantised, or by "network"; a bundle whose own graph is int8.
        EngineError: the builder fails; says when it was for want of memory, and what to do.
        ConfigError: impossible batches, workspace, effort or options.
        OutputError: the bundle cannot be written to.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    require_one_of("flavour of TensorRT", runtime, LIBRARIES)
    if opened.graph_format != "onnx":
        raise ModelError(
            f"{opened.path.name} holds its network as OpenVINO IR, which {runtime} does not read",
            fix="import the ONNX graph or the checkpoint that it was made of",
        )
    if opened.manifest.precision == "int8":
        raise _quantized_elsewhere(opened, runtime)
    for option in options:
        require_one_of("engine option", option, OPTIONS)
    if effort is not None and not 0 <= effort <= 5:
        raise ConfigError("The effort is out of range", got=effort, expected="0 to 5")
    if workspace is not None and workspace < 1:
        raise ConfigError("The workspace is out of range", got=workspace, expected="1 byte or more")
    fixed = opened.manifest.batch
    profiles = profiles_of(batches) if fixed is None else (Profile(fixed, fixed, fixed),)
    if precision == "int8":
        _check_quantized(opened, via)
        via = "parser"
    known = describable(opened.manifest.architecture) and opened.weights is not None
    via = via or ("network" if known else "parser")
    if via == "network" and (opened.manifest.architecture is None or opened.weights is None):
        raise ModelError(
            f"{opened.path} is a foreign graph, and there is no network to write", fix="build it with --via parser"
        )
    flavour = open_flavour(runtime)
    machine = _machine(flavour, device)
    facts = EngineFacts(
        runtime=runtime,
        version=flavour.version,
        precision=precision,
        via=via,
        graph=graph_digest(opened, via, precision),
        profiles=profiles,
        gpu=machine.gpu,
        compute_capability=machine.compute_capability if flavour.needs_card else _least_of_rtx(machine),
        driver=machine.driver,
        options=tuple(sorted(set(options))),
        workspace=workspace,
        effort=effort,
        reidkit=reidkit.__version__,
    )
    if not rebuild and (found := _standing(opened, facts)):
        return found  # also from a bundle that nobody may write to
    with engine_lock(opened, facts.name):
        found = None if rebuild else _standing(opened, facts)  # whoever held the lock may have built it
        return found or _build_on(device, opened, flavour, facts)


def _least_of_rtx(machine: Machine) -> str | None:
    """The oldest cards that TensorRT-RTX builds for here; None where it knows no card, and decides by itself."""
    if machine.gpu is None:
        return None
    return TURING if machine.compute_capability == TURING else FIRST_OF_RTX


def _check_quantized(bundle: Bundle, via: Via | None) -> None:
    if via == "network":
        raise ModelError(
            "int8 is built from the quantised graph alone", got="--via network", fix="leave --via out, or say parser"
        )
    if bundle.int8_model("tensorrt") is None:
        raise ModelError(
            f"{bundle.path.name} was not quantised",
            expected="the graph that an int8 engine is built from",
            fix=f"reid quantize {bundle.path} --calibration DIR",
        )


def _quantized_elsewhere(bundle: Bundle, runtime: str) -> ModelError:
    """Its pairs of Q and DQ stand where another engine wants them, and would be in an engine of any precision."""
    return ModelError(
        f"{runtime} builds nothing from {bundle.path.name}, whose own graph was quantised elsewhere",
        got="a graph in int8",
        expected="a float network, from which `reid quantize` makes the int8 graph for TensorRT",
        fix="import the float network with `reid import`, quantise it with `reid quantize`, and build that bundle",
    )


def profiles_of(batches: Sequence[int]) -> tuple[Profile, ...]:
    """One profile for each batch, from the one before (1 at first) up to it.

    Raises:
        ConfigError: no batch, or one below 1.
    """
    sizes = sorted(set(batches))
    if not sizes or sizes[0] < 1:
        raise ConfigError("A batch size cannot be this", got=list(batches), expected="1 or above")
    return tuple(
        Profile(least, most, most) for least, most in zip((1, *(size + 1 for size in sizes)), sizes, strict=False)
    )


def _machine(flavour: Flavour, device: str) -> Machine:
    try:
        # Its file is read by whoever opens an engine, and needs CUDA's bindings; TensorRT-RTX builds without them.
        from reidkit.runtime.tensorrt import machine_of

        return machine_of(flavour, device)
    except (RuntimeMissing, ModuleNotFoundError) as error:
        if flavour.needs_card or (isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("reidkit")):
            raise
        return Machine(flavour.runtime, flavour.version, None, None, None)


def _standing(bundle: Bundle, wanted: EngineFacts) -> EngineFacts | None:
    """The engine in the store that is what is wanted: of this library and card, which its name says, and this graph."""

    def what(facts: EngineFacts) -> tuple[object, ...]:
        return facts.name, facts.graph, facts.profiles, facts.options, facts.workspace, facts.effort

    found = next((facts for facts in read_store(bundle) if what(facts) == what(wanted)), None)
    try:
        return found if found and read_engine(bundle, found) else None
    except BundleError as error:
        _logger.warning("It is built again: %s", error)
        return None


def _build_on(device: str, bundle: Bundle, flavour: Flavour, facts: EngineFacts) -> EngineFacts:
    """Builds with that card in use, where there is one: kernels are tried out on it."""
    if facts.gpu is None:
        return _build(bundle, flavour, facts)
    from reidkit.runtime import cuda  # needs CUDA's bindings, which are there since they named the card

    with cuda.on_device(cuda.device_index(device)):
        return _build(bundle, flavour, facts)


def _build(bundle: Bundle, flavour: Flavour, facts: EngineFacts) -> EngineFacts:
    log = flavour.log()
    started = time.perf_counter()
    try:
        builder = flavour.trt.Builder(log)
    except TypeError as error:  # all that the library says when it gets no memory or no card
        raise _failure(flavour, log, facts) from error
    config = flavour.config(builder, facts.precision, facts.options, facts.workspace)
    if facts.effort is not None:
        config.builder_optimization_level = facts.effort
    flavour.aim(config, facts.compute_capability)
    network = flavour.network(builder)
    # Whatever this gives has to live until the engine is built.
    kept = (_write if facts.via == "network" else _parse)(bundle, flavour, network, log, facts.precision)
    for profile in facts.profiles:
        config.add_optimization_profile(_profile(bundle, builder, profile))
    timing = TimingCache(flavour, facts, config)
    data = builder.build_serialized_network(network, config)
    del kept
    if data is None:
        raise _failure(flavour, log, facts)
    seconds = time.perf_counter() - started
    facts = replace(
        facts,
        build_seconds=round(seconds, 2),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    facts = write_engine(bundle, facts, bytes(data))
    timing.save()  # last: whatever it waits for, the engine is there
    return facts


def _write(bundle: Bundle, flavour: Flavour, network: Any, log: Any, precision: Precision) -> object:
    """The known network, through the library's own API."""
    architecture, weights = bundle.manifest.architecture, bundle.weights
    assert architecture is not None, "asked before the store is locked"
    assert weights is not None, "likewise"
    layers, kind = TensorRtLayers(flavour, network), _KINDS[precision]
    write_network(layers, architecture, bundle.manifest.input, read_tensors(weights), kind=kind, source=str(weights))
    return layers


def _parse(bundle: Bundle, flavour: Flavour, network: Any, log: Any, precision: Precision) -> object:
    """The ONNX graph with its types, through the library's parser."""
    try:
        import onnx

        from reidkit.deploy.older_opset import in_opset_17
        from reidkit.deploy.typed_graph import typed_graph, value_types
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise RuntimeMissing("onnx is not installed", fix="pip install 'reidkit[onnx]'") from error
    quantized = precision == "int8"
    file = (bundle.int8_model("tensorrt") if quantized else None) or bundle.model
    model, kind = onnx.load(file), _KINDS[precision]
    # Untyped, a normalisation is computed in float32 whatever it is told.
    graph = typed = typed_graph(model, kind, low_instance_norm=not flavour.typed, rounded_by_us=quantized)
    if not flavour.typed and quantized:
        # Its pairs of Q and DQ know float32 alone; what lies between them is told to the layers.
        graph = typed_graph(model, "float32", rounded_by_us=True)
    if not flavour.typed:
        graph = in_opset_17(graph)
    data = graph.SerializeToString(deterministic=True)
    parser = flavour.parser(network, log)
    if not parser.parse(data):
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ModelError(
            f"{flavour.runtime} {flavour.version} cannot parse {file}",
            got="; ".join(dict.fromkeys(reasons)) or log.first_error(),
            fix="build it with --via network, or another runtime",
        )
    if not flavour.typed:
        _type_layers(flavour, network, value_types(typed), quantized=quantized)
    return parser, data


def _type_layers(flavour: Flavour, network: Any, types: dict[str, Kind], *, quantized: bool) -> None:
    """Tells the layers of a network that is not typed what the graph says of their outputs.

    Of a quantised one, which layers between two pairs are fused into integers is the builder's choice, and so are their
    types. The tail is not, and nor are normalisations: no integers compute them, and in float32 they take longer than
    what the convolutions beside them gain.
    """
    trt = flavour.trt
    dtypes = {"float32": trt.float32, "float16": trt.float16}
    casting = {trt.LayerType.CAST, trt.LayerType.IDENTITY}
    moving = casting | {
        getattr(trt.LayerType, name) for name in ("SHUFFLE", "SLICE", "CONCATENATION", "CONSTANT", "SHAPE", "GATHER")
    }
    # Backwards: what a parser puts between two values of the graph has the type of what is made of it.
    needed = dict(types)
    for index in reversed(range(network.num_layers)):
        layer = network.get_layer(index)
        kind = needed.get(layer.get_output(0).name)
        free = quantized and kind != "float32" and layer.type != trt.LayerType.NORMALIZATION
        if kind is None or free:
            continue
        if layer.type not in moving:
            layer.precision = dtypes[kind]
            layer.set_output_type(0, dtypes[kind])
        if layer.type not in casting:
            for place in range(layer.num_inputs):
                source = layer.get_input(place)
                if source is not None and source.dtype in (trt.float32, trt.float16):
                    needed.setdefault(source.name, kind)


def _profile(bundle: Bundle, builder: Any, profile: Profile) -> Any:
    spec, made = bundle.manifest.input, builder.create_optimization_profile()
    sizes = (profile.least, profile.best, profile.most)
    made.set_shape(CROPS, *((size, spec.height, spec.width, 3) for size in sizes))
    return made


def _failure(flavour: Flavour, log: Any, facts: EngineFacts) -> EngineError:
    reason = log.first_error() or "no reason given"
    if any(word in " ".join(log.errors).lower() for word in _MEMORY_WORDS):
        smaller = "1GiB" if facts.workspace is None else f"{max(1, facts.workspace >> 21)}MiB"
        return EngineError(
            f"There is not enough memory to build the engine with {flavour.runtime} {flavour.version}",
            got=reason,
            fix=f"give kernels less: --workspace {smaller}; or build for smaller batches; or close what else runs here",
        )
    refitted = sorted({"refit", "weight-stripped"} & set(facts.options))
    if facts.gpu is None and refitted:
        fix = f"leave --{' and --'.join(refitted)} out, or build where a card is: seen to fail without one"
    else:
        fix = "try the other way (--via), another precision, smaller batches, or a larger --workspace"
    return EngineError(f"{flavour.runtime} {flavour.version} cannot build this engine", got=reason, fix=fix)
